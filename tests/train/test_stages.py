"""Training in two stages: what each trains, one run that resumes exactly in either, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from config.command_line import parse_options
from config.options import replace_options
from model.checkpoint import list_epochs, load_checkpoint, load_optimizer_state
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern
from tests.train.conftest import tiny_options
from tests.train.test_training import digests, stop_in_epoch
from tests.train.tiny import metrics
from train.checks import check_early
from train.options import split_stages, train_options_class
from train.training import run_training

# 22 images: 6 batches of 4 in the first stage, 3 of 8 in the second.
STAGES = {"freeze_epochs": 2, "freeze_batch_size": 4, "freeze_lr": 0.02, "lr": 0.01, "end_epoch": 4}


@pytest.fixture(scope="module")
def staged(records, tmp_path_factory):
    """Options of a finished run of both stages."""
    run = tiny_options(records, tmp_path_factory.mktemp("staged"), **STAGES, optimizer="adam")
    run_training(run)
    return run


def test_one_curve_of_both_stages(staged):
    found = [(line["epoch"], line["num_update"], line["learning_rate"]) for line in metrics(staged.output.prefix)]
    assert found == [(1, 6, 0.02), (2, 12, 0.02), (3, 15, 0.01), (4, 18, 0.01)]
    assert list_epochs(staged.output.prefix) == [1, 2, 3, 4]
    assert [load_checkpoint(staged.output.prefix, k).meta.batch_size for k in (1, 2, 3, 4)] == [4, 4, 8, 8]
    assert len(Path(f"{staged.output.prefix}-results.txt").read_text().splitlines()) == 5


def test_the_body_and_its_moving_averages_stay_in_the_first_stage_alone(staged):
    one, two, last = (load_checkpoint(staged.output.prefix, k) for k in (1, 2, 4))
    pattern = freeze_pattern(staged.input.network, "body")
    body = {name for name in one.arg_params if matches(pattern, name)}
    for name, array in one.aux_params.items():  # all layers with batch norm belong to the body
        np.testing.assert_array_equal(two.aux_params[name].asnumpy(), array.asnumpy())
        assert not np.array_equal(last.aux_params[name].asnumpy(), array.asnumpy())
    assert changed(one, two) == one.arg_params.keys() - body
    assert changed(two, last) == one.arg_params.keys()
    assert {name.rpartition(":")[0] for name in load_optimizer_state(two)} == one.arg_params.keys() - body
    assert {name.rpartition(":")[0] for name in load_optimizer_state(last)} == one.arg_params.keys()


def changed(before, after):
    pairs = ((name, array, after.arg_params[name]) for name, array in before.arg_params.items())
    return {name for name, a, b in pairs if not np.array_equal(a.asnumpy(), b.asnumpy())}


def test_the_second_stage_is_a_run_of_its_own_on_the_weights_of_the_first(staged, options):
    """To the bit that of a run that begins with these weights."""
    alone = options(pretrained=staged.output.prefix, epoch=2, lr=0.01, begin_epoch=2, end_epoch=4, optimizer="adam")
    run_training(alone)
    assert digests(alone.output.prefix, 4) == digests(staged.output.prefix, 4)


ADAM = {"optimizer": "adam", "lr_schedule": "cosine", "warmup_epochs": 0.5}
AVERAGES = {"lr_schedule": "step_epochs", "lr_factor": 0.5, "ema": 0.9, "accumulate": 2}


@pytest.mark.parametrize(
    ("changes", "stopped_in"), [(ADAM, 1), (AVERAGES, 2), pytest.param(AVERAGES, 3, marks=pytest.mark.slow)]
)
def test_a_run_resumes_exactly_in_either_stage(options, tmp_path, stopped_in, changes):
    """Stopped in epoch 1: within the first stage; 2: after it; 3: within the second."""
    whole, parts = (options(prefix=str(tmp_path / name / "t"), **STAGES, **changes) for name in ("whole", "parts"))
    run_training(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(stopped_in))
        with pytest.raises(RuntimeError):
            run_training(parts)
    assert list_epochs(parts.output.prefix)[-1] == stopped_in
    run_training(options(prefix=parts.output.prefix, resume="auto", **STAGES, **changes))
    assert digests(parts.output.prefix, 4) == digests(whole.output.prefix, 4)
    assert metrics(parts.output.prefix) == metrics(whole.output.prefix)


def test_a_late_start_skips_the_first_stage(options, staged):
    run = options(**STAGES, begin_epoch=3, pretrained=staged.output.prefix, epoch=2)
    run_training(run)
    assert [(line["epoch"], line["num_update"]) for line in metrics(run.output.prefix)] == [(4, 3)]


def test_an_interrupt_in_the_second_stage_tells_to_resume(options, caplog, monkeypatch):
    def interrupt(self, param):
        if param.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("train.callbacks.FiniteGuard.__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_training(options(**STAGES))
    assert "--resume auto" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_lr": 0.1}, "--freeze-batch-size and --freeze-lr need --freeze-epochs"),
        ({"freeze_epochs": 2}, "--freeze-epochs 2 leaves no epoch before --end-epoch 2"),
        ({"freeze_epochs": 1, "max_iter": 5}, "--freeze-epochs and --max-iter exclude each other"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_mxnet_is_imported(options, changes, words):
    with pytest.raises(OptionError, match=words):
        check_early(options(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": "nothing_of_this_name"}, "matches no parameter"),
        ({"freeze_batch_size": 1, "cpus": 2}, "--batch-size 1 is too small for 2 devices"),
        ({"freeze_batch_size": 8, "batch_size": 1, "cpus": 2}, "--batch-size 1 is too small for 2 devices"),
        ({"lr": 0.0, "freeze_lr": 0.1, "warmup_bias_lr": 0.1, "warmup_epochs": 1}, "needs a --lr above 0"),
    ],
)
def test_mistakes_of_either_stage_are_found_before_the_first_batch(options, changes, words):
    run = options(**(STAGES | changes))
    with pytest.raises(OptionError, match=words):
        run_training(run)
    assert list_epochs(run.output.prefix) == []


def test_a_run_is_resumed_with_its_stages(continued):
    with pytest.raises(OptionError, match="was trained with freeze_epochs 0, not 2; resume with the same options"):
        run_training(continued(freeze_epochs=2, end_epoch=5, resume="auto"))


def test_what_the_first_stage_freezes_may_be_named():
    first, second = stages_of("--freeze=all-but-heads", "--freeze-epochs=5", "--batch-size=16", "--lr=0.1")
    assert (first.net.freeze, first.schedule.end_epoch, first.data.batch_size, first.schedule.lr) == (
        "all-but-heads",
        5,
        16,
        0.1,
    )
    assert (second.net.freeze, second.schedule.end_epoch) == ("", 240)


def stages_of(*words):
    return split_stages(parse_options(train_options_class(), list(words), ""))


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
