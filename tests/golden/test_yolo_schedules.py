"""Learning rates of the YOLOv3-SPP trainer."""

import numpy as np
import pytest

from config.options import replace_options
from tests.golden.loader import assert_close, assert_outputs, cases
from train.options import train_options
from train.schedule import cosine_factor, make_schedule, warmup_factor


def inclusive(case):
    first, last = case.args["x"]
    return range(first, last + 1)


@pytest.mark.parametrize("case", cases("yolo_cosine_factor"), ids=str)
def test_cosine_factor(case):
    epochs, final = case.args["epochs"], case.args["lrf"]
    assert_outputs(case, {"factor": [cosine_factor(x, epochs, final) for x in inclusive(case)]})


@pytest.mark.parametrize("case", cases("yolo_warmup_factor"), ids=str)
def test_warmup_factor(case):
    length, start = case.args["warmup_iters"], case.args["warmup_factor"]
    assert_outputs(case, {"factor": [warmup_factor(x, length, start) for x in inclusive(case)]})


@pytest.mark.parametrize("case", cases("yolo_lr_schedule"), ids=str)
def test_rates_of_a_run(case):
    """Without accumulation: there an update is a batch. Which batches end an update is ours (groups begin anew in each
    epoch), so `stepped` is not compared."""
    args = case.args
    first, epochs, batches = args["start_epoch"], args["epochs"], args["batches_per_epoch"]
    options = train_options(
        batch_size=1,
        lr=args["lr0"],
        lr_final=args["lr0"] * args["lrf"],
        lr_schedule="cosine_epochs",
        begin_epoch=first,
        end_epoch=epochs,
    )
    if args["warmup"]:
        assert args["warmup_epochs"] == [0]
        updates = args["warmup_iters"]
        within = {"warmup_updates": updates}  # which an epoch cuts short at its last update but one
        beyond = {"warmup_epochs": (updates + 1) / batches}  # from the first update to that of full rate
        length = within if updates < batches else beyond
        options = replace_options(options, **length, warmup_factor=args["warmup_factor"])
    _, scheduler = make_schedule(options.schedule, batches)
    updates = np.arange(epochs * batches).reshape(epochs, batches)[first:] + 1
    assert_close(case, "lr", np.vectorize(scheduler)(updates))
