"""Runs that end by number of updates, in mid-epoch: exactly that many, a checkpoint at the end, and on from there."""

import pytest

from common.errors import OptionError
from config.options import replace_options
from model.checkpoint import list_epochs, load_checkpoint
from tests.train.tiny import metrics
from train.training import run_training


def test_a_run_ends_after_max_iter_updates(options):
    """Three batches an epoch: seven updates are two epochs and one batch."""
    run = options(max_iter=7, end_epoch=1, save_every=100)
    run_training(run)
    assert list_epochs(run.output.prefix)[-1] == 3
    assert load_checkpoint(run.output.prefix).meta.num_update == 7
    assert [line["num_update"] for line in metrics(run.output.prefix)] == [3, 6, 7]


def test_a_resumed_run_is_limited_as_the_whole_one(options):
    whole, parts = options(max_iter=5), options(max_iter=3)
    parts = replace_options(parts, prefix=f"{parts.output.prefix}-parts")
    run_training(whole)
    run_training(parts)
    run_training(replace_options(parts, max_iter=5, resume="auto"))
    assert metrics(parts.output.prefix) == metrics(whole.output.prefix)
    with pytest.raises(OptionError, match="has made 5 updates; raise --max-iter"):
        run_training(replace_options(parts, max_iter=5, resume="auto"))
