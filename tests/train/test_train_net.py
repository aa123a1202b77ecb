"""The classic train_net, and mx.mon.Monitor."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, UserError
from machine.runtime import mx
from model.checkpoint import list_epochs
from tests.train.tiny import BATCH, CLASSES, NETWORK, TRAIN, VAL, metrics
from train.train_net import train_net

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
    assert list(inspect.signature(train_net).parameters)[:-1] == ARGUMENTS.split()


def test_a_classic_call_trains(arguments):
    """The meaning of each argument is seen in what the run writes; the log has the monitor's lines."""
    train_net(**arguments, kv_store=None)
    prefix = arguments["prefix"]
    assert list_epochs(prefix) == [1]
    written = json.loads(Path(f"{prefix}-run.json").read_text())["options"]
    assert (written["nms"], written["nms_topk"], written["force"], written["voc07"]) == (0.4, 100, True, True)
    assert (written["mean_r"], written["mean_b"], written["freeze"]) == (120, 100, "")  # from scratch
    log = Path(arguments["log_file"]).read_text()
    assert "conv_1_" in log
    assert "moving_mean" in log
    assert len({line.split("Batch:")[1].split()[0] for line in log.splitlines() if "Batch:" in line}) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ctx": [mx.cpu(0), mx.gpu(0)]}, "ctx: cpu\\(0\\), gpu\\(0\\)"),
        ({"ctx": mx.cpu(3)}, "ctx: cpu\\(3\\)"),
        ({"ctx": mx.gpu(77)}, "gpus 77: GPU 77 cannot be used"),
        ({"ctx": None}, "ctx: none; give GPUs"),
        ({"mean_pixels": (1, 2)}, "mean_pixels \\(1, 2\\): expected three numbers"),
        ({"data_shape": None}, "data_shape None: expected a side"),
        ({"data_shape": (1, 32, 32)}, "data_shape \\(1, 32, 32\\): expected"),
        ({"kv_store": "dist_async"}, "^kv_store in train_net takes local, device, dist_sync or .*, not 'dist_async'"),
        ({"num_classes": 20}, "^num_classes 20, but there are 3"),
        (
            {"label_pad_width": 8},
            "^label_pad_width 8 has room for 1 objects, but an image of the records has 3; give 20",
        ),
        ({"monitor_pattern": "("}, "^monitor_pattern '\\(': not a regular expression"),
        ({"kv_store": "dist_sync"}, "DMLC_ROLE, DMLC_PS_ROOT_URI, .* is not set"),
        ({"no_such_thing": 1}, "unknown option 'no_such_thing'"),
        ({"resume": 7}, "no checkpoint there"),
        ({"resume": "yes"}, "resume 'yes': expected an epoch or \"auto\"; -1 = not at all"),
        ({"finetune": None}, "finetune None: expected an epoch; -1"),
        ({"mean_pixels": "grey"}, "mean_pixels grey: expected three numbers"),
        ({"mean_pixels": None}, "mean_pixels None: expected three numbers"),
        ({"lr_refactor_ratio": 0}, "^lr_refactor_ratio in train_net is at least"),
        ({"lr_refactor_step": "80;160"}, "^lr_refactor_step in train_net takes epochs like 80"),
    ],
)
def test_mistakes_are_told_before_the_first_batch(arguments, changes, words):
    with pytest.raises(UserError, match=words):
        train_net(**arguments | changes)
    assert not list_epochs(arguments["prefix"])


def test_lists_replace_the_labels_of_both_records(arguments, tmp_path):
    """Of training: without its line for the last image the run is refused. Of validation: all objects are red."""
    lists = {"train_list": tmp_path / "train.lst", "val_list": tmp_path / "val.lst"}
    for path, count in zip(lists.values(), (TRAIN, VAL), strict=True):
        path.write_text("".join(f"{k}\t2\t6\t0\t0.1\t0.1\t0.9\t0.9\t0\t{k}.png\n" for k in range(count)))
    arguments |= {"iter_monitor": 0, "label_pad_width": 0, **{name: str(path) for name, path in lists.items()}}
    train_net(**arguments)
    (line,) = metrics(arguments["prefix"])
    assert np.isfinite(line["validation"]["red"])
    assert not {"green", "blue"} & {name for name, value in line["validation"].items() if value is not None}
    lists["train_list"].write_text("".join(lists["train_list"].read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="train.lst"):
        train_net(**arguments | {"prefix": str(tmp_path / "other" / "t")})


@pytest.mark.parametrize("optimizer", ["rmsprop", pytest.param("adadelta", marks=pytest.mark.slow)])
def test_the_other_classic_optimizers_train_and_resume(arguments, optimizer):
    arguments |= {"optimizer": optimizer, "iter_monitor": 0, "learning_rate": 0.001}
    train_net(**arguments)
    train_net(**arguments | {"resume": "auto", "end_epoch": 2})
    assert list_epochs(arguments["prefix"]) == [1, 2]
