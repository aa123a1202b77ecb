"""A classic script with plain mxnet gives train.py's numbers, and its checkpoints are taken by the commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from evaluate.main import main as evaluate
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from tests.train.tiny import BATCH, TRAIN, VAL, metrics, write_record
from train.options import train_options
from train.stages import make_stages
from train.start import find_start
from train.training import run_training

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("own_trainer.py")
CLASSES = ("red", "green", "blue")
LINE = re.compile(r"Epoch\[(\d+)\] (Train|Validation)-(\w+)=(\S+)")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {
        "train_path": write_record(folder / "train.rec", TRAIN, 1),
        "val_path": write_record(folder / "val.rec", VAL, 2),
    }


def run_script(records, prefix, **options):
    """The log of the script, and its values: a dict like "train", "validation" of metrics.jsonl for each epoch."""
    words = [sys.executable, str(SCRIPT), json.dumps({**records, "prefix": prefix, **options})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # with the threads of this process
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict = {}
    for epoch, part, name, value in LINE.findall(done.stderr):
        found.setdefault(int(epoch), {}).setdefault(part.lower(), {})[name] = float(value)
    return done.stderr, found


def ours(records, prefix, **options):
    common = {"network": "mobilenet", "width": 0.125, "data_shape": (64,), "targets": "mxnet", "lr_steps": ("1", "2")}
    common["rewrite_graph"] = False  # its rounding would differ from the script's
    run = train_options(**common, **records, batch_size=BATCH, workers=0, prefix=prefix, **options)
    run_training(run)
    return {line["epoch"] - 1: line for line in metrics(prefix)}


@pytest.fixture(scope="module")
def weights(records, tmp_path_factory):
    """Prefix of what the script leaves after an epoch from scratch."""
    prefix = str(tmp_path_factory.mktemp("scratch") / "ssd")
    log, _ = run_script(records, prefix, end_epoch=1)
    assert "Batch [0-2]" in log  # mx.callback.Speedometer
    return prefix


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({}, {}),
        ({"freeze": "conv_[1-4]_.*weight", "voc07": False}, {"freeze": "conv_[1-4]_.*weight", "voc07": False}),
        ({"cpus": 2}, {"cpus": 2}),
    ],
    ids=["plain", "frozen", "two contexts"],
)
def test_the_script_has_the_numbers_of_train_py(records, weights, tmp_path, theirs, own):
    common = {"pretrained": weights, "epoch": 1, "lr": 0.05, "end_epoch": 3}
    _, found = run_script(records, str(tmp_path / "theirs"), **common, **theirs)
    wanted = ours(records, str(tmp_path / "ours"), **common, **own)
    assert sorted(found) == sorted(wanted) == [0, 1, 2]
    for epoch, values in found.items():
        assert values["train"] == pytest.approx(wanted[epoch]["train"], rel=TOLERANCE)
        assert values["validation"] == pytest.approx(wanted[epoch]["validation"], abs=TOLERANCE)
    assert max(values["validation"]["mAP"] for values in found.values()) > 0


def params(prefix, epoch):
    return {name: array.asnumpy() for name, array in mx.nd.load(f"{prefix}-{epoch:04d}.params").items()}


@pytest.fixture
def copied(weights, tmp_path):
    """A prefix with the script's checkpoint."""
    for path in Path(weights).parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return str(tmp_path / "ssd")


def test_the_script_resumes_with_the_lowered_rate(records, copied):
    log, found = run_script(records, copied, resume=1, end_epoch=2, monitor=2)
    assert sorted(found) == [1]
    assert "Adjusted learning rate to 0.001 for epoch 1" in log
    assert "conv_1_conv2d_weight" in log  # mx.mon.Monitor


def test_the_script_finetunes_the_predictions_alone(records, copied):
    run_script(records, copied, finetune=1, end_epoch=2, lr=0.05, lr_steps="")
    before, after = params(copied, 1), params(copied, 2)
    changed = {name for name in before if name.startswith("arg:") and not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "pred" in name}


def test_evaluate_takes_the_checkpoint_of_the_script(records, weights, tmp_path, caplog):
    prefix = str(tmp_path / "more")
    _, found = run_script(records, prefix, pretrained=weights, lr=0.05, end_epoch=3)
    words = ["--prefix", prefix, "--rec-path", records["val_path"], "--cpu", "--workers", "0"]
    evaluate([*words, "--data-shape", "64", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["mAP"] == pytest.approx(
        found[2]["validation"]["mAP"], abs=1e-5
    )
    assert found[2]["validation"]["mAP"] > 0
    (told,) = [line for line in caplog.messages if "has no .json" in line]
    assert "more-0003.params" in told
    assert "mobilenet at 64x64, RGB means 123, 117, 104, images stretched, classes red, green, blue" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "vgg16_reduced"], "these weights are those of mobilenet"),
        (["--class-names", "a,b"], "predicts 3 classes, but 2 are named"),
        (["--epoch", "7"], "no checkpoint there"),
    ],
)
def test_what_is_said_of_it_must_fit(records, weights, words, message):
    with pytest.raises((CheckpointError, OptionError), match=message):
        evaluate(["--prefix", weights, "--rec-path", records["val_path"], "--cpu", "--data-shape", "64", *words])


def test_a_checkpoint_without_json_says_what_can_be_done_with_it(records, weights, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there but weights, .*ssd-0001.params has no .json"):
        load_checkpoint(weights, 1)
    run = train_options(network="mobilenet", **records, prefix=weights, resume="1")
    with pytest.raises(OptionError, match="cannot be resumed; go on from its weights with --pretrained .* --epoch 1"):
        find_start(make_stages(run, CLASSES))


def test_training_says_what_it_takes_for_granted(records, weights, tmp_path, caplog):
    caplog.set_level("INFO")
    ours(records, str(tmp_path / "t"), pretrained=weights, epoch=1, end_epoch=1)
    assert any("ssd-0001.params has no .json: its weights are taken" in line for line in caplog.messages)
