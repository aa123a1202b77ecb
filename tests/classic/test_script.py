"""What a script that calls train_net sees: progress, how to go on in its own words, and the example of the document."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import OptionError
from config.options import fields_of
from machine.runtime import mx
from model.checkpoint import list_epochs
from tests.train.tiny import BATCH, CLASSES, NETWORK, TRAIN, VAL, write_record
from train.options import train_options_class
from train.train_net import ARGUMENTS, named_by_arguments, train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "classic.md"
OPTIONS = {name: value for name, value in NETWORK.items() if name not in ("network", "data_shape")}
# What makes the example of the document small; all else of it is run as printed.
SMALLER = {'"resnet50"': '"mobilenet"', "32": "8", "(3, 512, 512)": "(3, 128, 128)", "end_epoch=240": "end_epoch=2"}


@pytest.fixture
def folder(tmp_path):
    """data/train.rec and data/val.rec, as the document has them."""
    (tmp_path / "data").mkdir()
    write_record(tmp_path / "data" / "train.rec", TRAIN, 1)
    write_record(tmp_path / "data" / "val.rec", VAL, 2)
    return tmp_path


def run(folder, text, *words):
    (folder / "mine.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "mine.py", *words], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def examples():
    """The blocks of Python of the page: train_net, and what a script begins with that has a Module of its own."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def example():
    return next(text for text in examples() if "train_net(" in text)


def test_the_example_of_the_document_runs(folder):
    """As a file without a main guard: data workers do not run it again. The console has progress and validation."""
    text = example()
    for printed, small in SMALLER.items():
        assert text.count(printed) == 1, printed
        text = text.replace(printed, small)
    process = run(folder, text)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    for words in (
        "Epoch 1/2 3/3 CrossEntropy=",
        "Epoch[2] Train-CrossEntropy=",
        "Epoch[2] Validation-mAP=",
        "frozen: nothing",
    ):
        assert words in log
    assert "CrossEntropy and SmoothL1 (targets=paper): sums over the anchors / positive anchors" in log
    known = json.loads((folder / "output" / "r50-run.json").read_text())
    assert known["command"] == "mine.py"
    assert known["continue"] == (
        'python mine.py, once its train_net has resume="auto", and neither finetune nor overwrite'
    )


def test_the_classic_beginning_of_a_script_runs_as_printed(folder):
    (text,) = (text for text in examples() if "train_net(" not in text)
    process = run(folder, text)
    _, log = process.communicate(timeout=300)
    assert (process.returncode, log) == (0, "")


def test_an_interrupted_script_is_told_how_to_go_on(folder):
    text = example().replace('"resnet50"', '"mobilenet"').replace("512, 512", "128, 128").replace("32", "4")
    process = run(folder, text)
    checkpoint, end = folder / "output" / "r50-0001.json", time.monotonic() + 200
    while not checkpoint.is_file() and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert 'interrupted; continue with: python mine.py, once its train_net has resume="auto"' in log
    assert "--resume" not in log


def classic(folder, **changes):
    arguments = {
        "net": "mobilenet", "train_path": str(folder / "data/train.rec"), "num_classes": len(CLASSES),
        "batch_size": BATCH, "data_shape": 64, "mean_pixels": 123, "resume": -1, "finetune": -1, "pretrained": None,
        "epoch": 0, "prefix": str(folder / "output/t"), "ctx": [mx.cpu()], "begin_epoch": 0, "end_epoch": 1,
        "frequent": 20, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0005, "lr_refactor_step": "36",
        "lr_refactor_ratio": 0.1, "workers": 0, **OPTIONS,
    }  # fmt: skip
    train_net(**arguments | changes)
    return str(folder / "output/t")


def test_one_mean_stands_for_three_and_a_step_is_one_epoch(folder):
    options = json.loads(Path(f"{classic(folder)}-run.json").read_text())["options"]
    assert [options[f"mean_{channel}"] for channel in "rgb"] == [123, 123, 123]
    assert options["lr_steps"] == ["36"]


def test_who_begins_again_is_told_the_argument(folder):
    prefix = classic(folder)
    with pytest.raises(OptionError, match='add resume="auto" to continue, overwrite to lose them .* another prefix'):
        classic(folder)
    classic(folder, resume="auto", end_epoch=2)
    assert list_epochs(prefix) == [1, 2]


def test_a_resumed_run_tells_its_lowered_rate(folder, caplog):
    caplog.set_level("INFO")
    classic(folder, lr_refactor_step="1")
    assert "Adjusted" not in caplog.text
    classic(folder, lr_refactor_step="1", resume="auto", end_epoch=2)
    assert [line for line in caplog.messages if "Adjusted" in line] == ["Adjusted learning rate to 0.001 for epoch 1"]


def test_flags_are_named_as_arguments():
    assert set(ARGUMENTS) <= set(fields_of(train_options_class()))
    assert set(ARGUMENTS.values()) <= set(inspect.signature(train_net).parameters)
    with pytest.raises(OptionError, match=r'^lr_refactor_step; resume="auto", warmup_epochs - 1--2$'), \
            named_by_arguments(ARGUMENTS):  # fmt: skip
        raise OptionError("--lr-steps; --resume auto, --warmup-epochs - 1--2")
