"""Runs that end by number of updates, in mid-epoch: exactly that many, a checkpoint at the end, and on from there."""

from dataclasses import replace

import pytest

from common.errors import OptionError
from model.checkpoint import list_epochs, load_checkpoint
from tests.train.tiny import metrics
from train.training import run_training


def test_a_run_ends_after_max_iter_updates(options):
    """Three batches an epoch: seven updates are two epochs and one batch."""
    run = options(max_iter=7, end_epoch=1, save_every=100)
    run_training(run)
    assert list_epochs(run.prefix)[-1] == 3
    assert load_checkpoint(run.prefix).meta.num_update == 7
    assert [line["num_update"] for line in metrics(run.prefix)] == [3, 6, 7]


def test_a_resumed_run_is_limited_as_the_whole_one(options):
    whole, parts = options(max_iter=5), options(max_iter=3)
    parts = replace(parts, prefix=f"{parts.prefix}-parts")
    run_training(whole)
    run_training(parts)
    run_training(replace(parts, max_iter=5, resume="auto"))
    assert metrics(parts.prefix) == metrics(whole.prefix)
    with pytest.raises(OptionError, match="has made 5 updates; raise --max-iter"):
        run_training(replace(parts, max_iter=5, resume="auto"))
