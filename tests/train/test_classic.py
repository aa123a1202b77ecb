"""The classic train_net, and mx.mon.Monitor."""

import inspect
import json
from pathlib import Path

import pytest

from config.errors import UserError
from config.runtime import mx
from tests.train.tiny import BATCH, CLASSES, NETWORK
from train import classic
from train.checkpoint import list_epochs

# The keyword arguments of the classic function in its order.
ARGUMENTS = """net train_path num_classes batch_size data_shape mean_pixels resume finetune pretrained epoch prefix ctx
begin_epoch end_epoch frequent learning_rate momentum weight_decay lr_refactor_step lr_refactor_ratio
freeze_layer_pattern num_example label_pad_width nms_thresh force_nms ovp_thresh use_difficult class_names voc07_metric
nms_topk force_suppress train_list val_path val_list iter_monitor monitor_pattern log_file"""
OPTIONS = {name: value for name, value in NETWORK.items() if name not in ("network", "data_shape")}


@pytest.fixture
def arguments(records, tmp_path):
    """Classic arguments of one epoch of the tiny problem, beside the options of its network."""
    return {
        "net": "mobilenet",
        "train_path": records[0],
        "num_classes": len(CLASSES),
        "batch_size": BATCH,
        "data_shape": (3, 64, 64),
        "mean_pixels": (120, 110, 100),
        "resume": -1,
        "finetune": -1,
        "pretrained": None,
        "epoch": 0,
        "prefix": str(tmp_path / "classic" / "t"),
        "ctx": mx.cpu(),
        "begin_epoch": 0,
        "end_epoch": 1,
        "frequent": 20,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "lr_refactor_step": "80, 160",
        "lr_refactor_ratio": 0.1,
        "freeze_layer_pattern": "^conv_1_",
        "num_example": 22,
        "label_pad_width": 350,
        "nms_thresh": 0.4,
        "force_nms": True,
        "ovp_thresh": 0.5,
        "use_difficult": False,
        "class_names": list(CLASSES),
        "voc07_metric": True,
        "nms_topk": 100,
        "force_suppress": False,
        "train_list": "",
        "val_path": records[1],
        "val_list": "",
        "iter_monitor": 2,
        "monitor_pattern": "conv_1_.*output|.*moving_mean",
        "log_file": str(tmp_path / "train.log"),
        **OPTIONS,
        "workers": 0,
    }


def test_the_arguments_are_the_classic_ones():
    assert list(inspect.signature(classic.train_net).parameters)[:-1] == ARGUMENTS.split()


def test_a_classic_call_trains(arguments):
    """The meaning of each argument is seen in what the run writes; the log has the monitor's lines."""
    classic.train_net(**arguments)
    prefix = arguments["prefix"]
    assert list_epochs(prefix) == [1]
    written = json.loads(Path(f"{prefix}-run.json").read_text())["options"]
    assert (written["nms"], written["nms_topk"], written["force"], written["voc07"]) == (0.4, 100, True, True)
    assert (written["mean_r"], written["mean_b"], written["freeze"]) == (120, 100, "^conv_1_")
    log = Path(arguments["log_file"]).read_text()
    assert "conv_1_" in log
    assert "moving_mean" in log
    assert len({line.split("Batch:")[1].split()[0] for line in log.splitlines() if "Batch:" in line}) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ctx": [mx.cpu(0), mx.gpu(0)]}, "ctx: cpu\\(0\\), gpu\\(0\\)"),
        ({"ctx": mx.cpu(3)}, "ctx: cpu\\(3\\)"),
        ({"ctx": mx.gpu(77)}, "--gpus 77: GPU 77 cannot be used"),
        ({"num_classes": 20}, "--num-class 20, but there are 3"),
        ({"label_pad_width": 8}, "--label-width 8 has room for 1 objects, but an image of the records has 3; give 20"),
        ({"monitor_pattern": "("}, "--pattern '\\(': not a regular expression"),
        ({"kv_store": "dist_sync"}, "--kv-store dist_sync"),
        ({"no_such_thing": 1}, "unknown option 'no_such_thing'"),
        ({"resume": 7}, "no checkpoint there"),
    ],
)
def test_mistakes_are_told_before_the_first_batch(arguments, changes, words):
    with pytest.raises(UserError, match=words):
        classic.train_net(**arguments | changes)
    assert not list_epochs(arguments["prefix"])


@pytest.mark.parametrize("optimizer", ["rmsprop", "adadelta"])
def test_the_other_classic_optimizers_train_and_resume(arguments, optimizer):
    arguments |= {"optimizer": optimizer, "iter_monitor": 0, "learning_rate": 0.001}
    classic.train_net(**arguments)
    classic.train_net(**arguments | {"resume": "auto", "end_epoch": 2})
    assert list_epochs(arguments["prefix"]) == [1, 2]
