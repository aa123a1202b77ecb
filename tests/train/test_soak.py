"""A long run takes no more memory and no more descriptors at its end than near its beginning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.tiny import BATCH, write_record

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ctypes, gc, json, os, re, sys
from pathlib import Path
from tests.train.tiny import NETWORK
from train.epoch_end import EpochEnd
from train.options import train_options
from train.training import run_training

class Allocated(ctypes.Structure):  # struct mallinfo2 of glibc
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc, lines, real = ctypes.CDLL(None), [], EpochEnd._end
libc.mallinfo2.restype = Allocated

def end(self, epoch, *more):
    real(self, epoch, *more)
    gc.collect()
    found, status = libc.mallinfo2(), Path("/proc/self/status").read_text()
    lines.append({
        "allocated": found.uordblks + found.hblkhd,
        "resident": 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "updates": self.module.num_update,
    })

EpochEnd._end = end
run_training(train_options(**NETWORK, **json.loads(sys.argv[1])))
Path(sys.argv[2]).write_text(json.dumps(lines))
"""
WARM, MEGABYTE = 0.2, 1 << 20  # share of the epochs in which caches fill


def measured(folder, epochs, batches, **changes):
    """What a run of so many epochs takes after each."""
    records = [write_record(folder / f"{name}.rec", count, 1) for name, count in (("t", BATCH * batches), ("v", 12))]
    words = {
        "train_path": records[0],
        "val_path": records[1],
        "allow_same_record": True,
        "batch_size": BATCH,
        "workers": 1,
        "prefix": str(folder / "run" / "t"),
        "end_epoch": epochs,
        "lr": 0.001,
        "keep": 2,
        **changes,
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(words), str(folder / "lines.json")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return json.loads((folder / "lines.json").read_text())


def growth(lines, name):
    """From the end of the warm-up to the end, in what the lines have."""
    return lines[-1][name] - lines[round(WARM * len(lines))][name]


def test_validations_lose_no_memory(tmp_path):
    """15 of them: a copy of the network for each was 1.7 MB."""
    lines = measured(tmp_path, 15, 1, workers=0, save_every="15")
    assert growth(lines, "allocated") < MEGABYTE
    assert growth(lines, "descriptors") == 0


@pytest.mark.slow
def test_5000_updates_with_50_validations_take_no_more(tmp_path):
    lines = measured(tmp_path, 50, 100)
    print([{name: growth(lines, name) for name in lines[0]}, lines[-1]])
    assert lines[-1]["updates"] == 5000
    assert growth(lines, "descriptors") == 0
    assert growth(lines, "allocated") < MEGABYTE
    assert growth(lines, "resident") < 8 * MEGABYTE
