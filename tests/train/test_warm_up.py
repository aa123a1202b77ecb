"""A warm-up without accumulation: updates, checkpoints and limits count with it, and runs resume to the same bits."""

import pytest

from config.options import replace_options
from model.checkpoint import list_epochs, load_checkpoint, read_meta
from tests.train.test_training import digests, stop_in_epoch
from tests.train.tiny import metrics
from train.training import run_training

# Three batches an epoch. One epoch of warm-up: 3 updates, then 2.
ONE = {"accumulate": 2, "warmup_updates": 1000, "warmup_factor": 0.001, "warmup_accumulate": 1}
TWO = ONE | {"warmup_updates": 0, "warmup_epochs": 1.5}  # touches two epochs
RECIPE = {"lr_schedule": "cosine_epochs", "lr_final": 0.001, "optimizer": "nag", "val_path": "", "end_epoch": 4}
WHOLE = {"ema": 0.9, "augment": "ssd", "warmup_momentum": 0.5, "warmup_bias_lr": 0.1}


def updates_of(prefix):
    return [line["num_update"] for line in metrics(prefix)]


@pytest.mark.parametrize(
    ("changes", "updates", "stops"),
    [
        (ONE | WHOLE | {"multi_scale": (1.5,)}, [3, 5, 7, 9], (0, 1)),
        pytest.param(TWO | WHOLE, [3, 6, 8, 10], (1, 3), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_and_after_the_warm_up_ends_with_the_same_bits(options, tmp_path, changes, updates, stops):
    recipe = RECIPE | changes
    whole = options(prefix=str(tmp_path / "whole" / "t"), **recipe)
    run_training(whole)
    assert updates_of(whole.output.prefix) == updates
    for stop in stops:
        parts = options(prefix=str(tmp_path / f"parts{stop}" / "t"), **recipe)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(stop))
            with pytest.raises(RuntimeError):
                run_training(parts)
        assert len(list_epochs(parts.output.prefix)) == stop
        run_training(replace_options(parts, resume="auto"))
        assert digests(parts.output.prefix, 4) == digests(whole.output.prefix, 4)
        assert metrics(parts.output.prefix) == metrics(whole.output.prefix)
    assert read_meta(whole.output.prefix, 4).origin == (0, 2, 0, 1 if stops[0] == 0 else 2, 3)


@pytest.mark.parametrize(("limit", "updates"), [(2, [2]), (6, [3, 5, 6]), (7, [3, 5, 7])])
def test_a_limit_of_updates_counts_those_of_the_warm_up(options, limit, updates):
    """In the third epoch the first group, of two batches, is update 6."""
    run = options(max_iter=limit, **RECIPE | ONE | {"end_epoch": 240})
    run_training(run)
    assert updates_of(run.output.prefix) == updates
    assert load_checkpoint(run.output.prefix).meta.num_update == limit


def test_each_stage_has_a_warm_up_of_its_own(options):
    run = options(freeze_epochs=2, **RECIPE | ONE)
    run_training(run)
    assert updates_of(run.output.prefix) == [3, 5, 8, 10]
    assert read_meta(run.output.prefix, 4).origin == (2, 2, 0, 1, 3)


def test_a_checkpoint_without_other_epochs_keeps_its_form(options):
    run = options(**RECIPE | {"end_epoch": 1, "accumulate": 2, "warmup_epochs": 1})
    run_training(run)
    assert read_meta(run.output.prefix, 1).origin == (0, 2, 0)


def test_a_run_that_gets_its_warm_up_when_it_is_resumed_goes_on_by_epochs(options):
    """Its first epoch is over; the rates are those that epochs 2 to 4 of the cosine have."""
    plain = {name: value for name, value in (RECIPE | ONE).items() if not name.startswith("warmup")}
    run_training(options(**plain | {"end_epoch": 1}))
    run = options(resume="auto", **RECIPE | ONE)
    run_training(run)
    assert updates_of(run.output.prefix) == [2, 4, 6, 8]
    whole = options(prefix=f"{run.output.prefix}-whole", **RECIPE | ONE)
    run_training(whole)
    found, expected = ([line["learning_rate"] for line in metrics(one.output.prefix)] for one in (run, whole))
    assert found[1:] == pytest.approx(expected[1:])
