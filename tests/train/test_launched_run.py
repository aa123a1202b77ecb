"""train.py under tools/launch.py: a server is killed and the run goes on, SIGTERM saves it, and it ends as if
undisturbed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from machine.runtime import mx
from model.checkpoint import list_epochs
from tests.train.tiny import NETWORK, flags, metrics, write_record
from train.options import train_options
from train.pauses import newest_paused

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # a loaded machine must not fail a test
EPOCHS = 4


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds the options of a run of two workers with a prefix."""
    folder = tmp_path_factory.mktemp("launched")
    train, val = write_record(folder / "train.rec", 36, 1), write_record(folder / "val.rec", 3, 2)

    def options(prefix):
        return train_options(
            **NETWORK,
            train_path=train,
            val_path=val,
            batch_size=2,
            workers=0,
            augment="ssd",
            accumulate=2,
            prefix=str(folder / prefix),
            end_epoch=EPOCHS,
            lr=0.01,
            lr_schedule="cosine",
            ema=0.9,
            kv_store="dist_sync",
        )

    return options


@contextmanager
def launched(options, *more, words=()):
    """tools/launch.py with two workers and a server, its output in a file; no process of it is left."""
    command = [sys.executable, "tools/launch.py", "-n", "2", "-s", "1", *more, sys.executable, "train.py"]
    log = Path(f"{options.output.prefix}-launch.log")
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            [*command, *flags(options), *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()  # the kernel kills the others


def wait_until(condition, process):
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, f"it has ended with status {process.returncode}"
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)


def children(process):
    """{role or worker's number: pid} of the processes of a launcher."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            words = (folder / "environ").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        if parent == process.pid:
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            found[variables.get("DMLC_TASK_ID") or variables.get("DMLC_ROLE")] = int(folder.name)
    return found


def session(pids):
    """Processes that live in the sessions of these."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) in pids and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


def arrays(options, kind):
    return {name: array.asnumpy() for name, array in mx.nd.load(f"{options.output.prefix}-{EPOCHS:04d}.{kind}").items()}


@pytest.mark.slow
def test_a_killed_server_and_a_sigterm_lose_nothing(build):
    plain, disturbed = build("plain"), build("disturbed")
    with launched(plain) as (process, log):
        assert process.wait(SECONDS) == 0, log.read_text()
    with launched(disturbed, "--max-restarts", "2") as (process, log):
        wait_until(lambda: list_epochs(disturbed.output.prefix), process)
        first = children(process)
        assert set(first) == {"scheduler", "server", "0", "1"}
        os.kill(first["server"], signal.SIGKILL)
        wait_until(lambda: not session(first.values()), process)
        wait_until(lambda: len(list_epochs(disturbed.output.prefix)) > 1, process)
        second = children(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143, log.read_text()
        assert not session(second.values())
    told = log.read_text()
    assert f"server 0 (process {first['server']}) was killed by SIGKILL after" in told
    assert "restart 1 of 2" in told
    assert "continue with: python tools/launch.py --num-workers 2 --num-servers 1" in told
    assert newest_paused(disturbed.output.prefix) is not None or len(list_epochs(disturbed.output.prefix)) > 1
    with launched(disturbed, words=["--resume", "auto"]) as (process, log):
        assert process.wait(SECONDS) == 0, log.read_text()
    same(plain, disturbed)


def same(one, two):
    """Weights and optimizer are the same to the last bit; moving averages, which workers average where a run is paused,
    to a rounding."""
    for kind in ("params", "optim.params"):
        wanted, found = arrays(one, kind), arrays(two, kind)
        assert list(wanted) == list(found)
        for name, array in wanted.items():
            if "moving" in name:
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], array, err_msg=name)
    lines = [metrics(options.output.prefix) for options in (one, two)]
    assert [line["num_update"] for line in lines[0]] == [line["num_update"] for line in lines[1]]
    assert lines[1][-1]["train"] == pytest.approx(lines[0][-1]["train"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["scheduler", "server", "0", "1"])
def test_every_role_that_is_killed_or_stopped_ends_the_job_in_30_s(build, role, number):
    options = build(f"{number}-{role}")
    with launched(options, words=["--end-epoch", "1000"]) as (process, log):
        wait_until(lambda: list_epochs(options.output.prefix), process)
        found = children(process)
        begun = time.monotonic()
        os.kill(found[role], number)
        assert process.wait(SECONDS) != 0
    assert time.monotonic() - begun < 30
    assert not session(found.values())
    assert list_epochs(options.output.prefix)
    how = "was killed by SIGKILL" if number == signal.SIGKILL else "has been stopped for"
    assert how in log.read_text()
