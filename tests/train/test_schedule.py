"""Learning rates: the classic steps, warm-up and cosine, and the same curve in a run that is resumed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from config.command_line import parse_options
from config.options import from_mapping
from config.preset import read_preset
from dataset.iterator import DetRecordIter
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from symbol.symbol_factory import get_assigner, get_symbol_train, label_names
from tests.train.test_training import digests, stop_in_epoch
from tests.train.tiny import BATCH as TINY_BATCH
from tests.train.tiny import CLASSES, metrics
from train.metric import make_metric
from train.options import network_options, train_options, train_options_class
from train.preflight import check_recipe
from train.schedule import (
    Origin,
    Pace,
    Plateau,
    WarmUp,
    get_lr_scheduler,
    make_schedule,
    pace_of,
    updates_per_epoch,
    warm_up_of,
    warm_up_of_others,
)
from train.stages import without_det
from train.training import run_training

EXAMPLES, BATCH, BATCHES = 95, 10, 10


def rates(schedule, updates, begin=0):
    """The rate of each update as an optimizer sees it whose count starts at `begin`."""
    rate, scheduler = schedule
    optimizer = mx.optimizer.create("sgd", learning_rate=rate, lr_scheduler=scheduler, begin_num_update=begin)
    found = []
    for _ in range(updates):
        optimizer._update_count(0)
        found.append(optimizer.learning_rate)
    return np.array(found)


def classic(steps, ratio=0.1, begin_epoch=0):
    return get_lr_scheduler(1.0, steps, ratio, EXAMPLES, BATCH, begin_epoch)


def per_epoch(*values):
    return np.repeat(values, BATCHES)


def test_the_rate_falls_with_the_first_batch_of_an_epoch():
    np.testing.assert_allclose(rates(classic([2, 3]), 40), per_epoch(1, 1, 0.1, 0.01))


def test_steps_may_be_unsorted_repeated_and_fractions():
    np.testing.assert_allclose(rates(classic([3, 2, 2]), 40), per_epoch(1, 1, 0.1, 0.01))
    np.testing.assert_allclose(rates(classic([1.5]), 20), np.repeat([1, 0.1], [15, 5]))


def test_a_late_start_lowers_the_first_rate_and_makes_steps_relative():
    rate, _ = classic([2, 5, 8], begin_epoch=5)
    assert rate == pytest.approx(0.01)  # like the classic trainer, a step at the first epoch is past
    np.testing.assert_allclose(rates(classic([2, 5, 8], begin_epoch=5), 40), per_epoch(0.01, 0.01, 0.01, 0.001))


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"), [([5], 1.0, 1), ([5], 2.0, 1), ([], 0.1, 1), ([1, 2], 0.1, 0.01)]
)
def test_a_constant_rate_needs_no_scheduler(steps, ratio, expected):
    rate, scheduler = classic(steps, ratio, begin_epoch=3)
    assert rate == pytest.approx(expected)
    assert scheduler is None


def updates_of(run, examples):
    return updates_per_epoch(run.schedule, run.data.batch_size, examples)


def options(**changes):
    return train_options(**({"lr": 0.5, "batch_size": BATCH, "end_epoch": 8} | changes))


def curve(changes, epochs=8, begin_epoch=0, first=0):
    """Rates of the epochs from `begin_epoch` of a run whose updates are counted from epoch `first`."""
    begin = (begin_epoch - first) * BATCHES
    return rates(
        make_schedule(options(**changes).schedule, BATCHES, Origin(first)), (epochs - begin_epoch) * BATCHES, begin
    )


def test_warm_up_rises_linearly_from_zero():
    found = curve({"warmup_epochs": 2, "lr_steps": (6.0,), "lr_factor": 0.5})
    np.testing.assert_allclose(found[:20], 0.5 * np.minimum(np.arange(1, 21) / 20, 1))
    np.testing.assert_allclose(found[20:], np.repeat([0.5, 0.25], [40, 20]))
    np.testing.assert_allclose(curve({"warmup_epochs": 2, "lr_factor": 1.0})[-60:], 0.5)


def test_steps_each_few_epochs_fall_with_their_first_batch():
    found = curve({"lr_schedule": "step_epochs", "lr_step_epochs": 3, "lr_factor": 0.1})
    np.testing.assert_allclose(found, np.repeat([0.5, 0.05, 0.005], [30, 30, 20]))
    np.testing.assert_array_equal(curve({"lr_schedule": "step_epochs", "lr_factor": 2.0}), 0.5)  # no factor raises it


def test_cosine_ends_at_its_final_rate():
    found = curve({"lr_schedule": "cosine", "lr_final": 0.1, "warmup_epochs": 1})
    progress = (np.arange(1, 81) - 10) / 70
    np.testing.assert_allclose(found[10:], (0.1 + 0.4 * (1 + np.cos(np.pi * progress)) / 2)[10:])
    assert found[-1] == pytest.approx(0.1)
    assert (np.diff(found[10:]) < 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_steps": (2.0, 5.0)},
        {"lr_steps": (2.0, 5.0), "warmup_epochs": 3},
        {"lr_schedule": "cosine"},
        {"lr_schedule": "cosine", "warmup_epochs": 2.5},
        {"lr_factor": 1.0, "warmup_epochs": 3},
        {"lr_schedule": "cosine_epochs", "warmup_epochs": 1, "warmup_factor": 0.1},
        {"lr_schedule": "step_epochs", "lr_step_epochs": 2, "lr_factor": 0.5},
    ],
)
@pytest.mark.parametrize("begin_epoch", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("first", [0, 1])
def test_a_resumed_run_is_on_the_same_curve(changes, begin_epoch, first):
    whole = curve(changes, begin_epoch=first, first=first)
    resumed = curve(changes, begin_epoch=begin_epoch, first=first)
    np.testing.assert_array_equal(resumed, whole[(begin_epoch - first) * BATCHES :])


def test_steps_may_be_updates():
    np.testing.assert_array_equal(rates(classic(["20i", "3"]), 40), rates(classic([2, 3]), 40))
    np.testing.assert_allclose(rates(classic(["17i"]), 20), np.repeat([1, 0.1], [17, 3]))
    assert classic(["17i"], begin_epoch=2)[0] == pytest.approx(0.1)  # counted from epoch 0, so it is past


@pytest.mark.parametrize("steps", ["80x", "i", "-1", "80000 i", "1.5i", "inf"])
def test_other_steps_are_refused(steps):
    with pytest.raises(OptionError, match="--lr-steps takes epochs like 80 or updates like 80000i, not"):
        parse_options(train_options_class(), [f"--lr-steps={steps}"], "")


@pytest.mark.parametrize("begin_epoch", [1, 2, 5])
def test_a_run_limited_in_updates_resumes_on_the_same_curve(begin_epoch):
    changes = {"lr_steps": ("15i", "4.5"), "max_iter": 60}
    np.testing.assert_array_equal(curve(changes, begin_epoch=begin_epoch), curve(changes)[begin_epoch * BATCHES :])


def test_the_cosine_ends_with_the_last_update():
    found = curve({"lr_schedule": "cosine", "lr_final": 0.1, "max_iter": 57})
    assert found[56] == pytest.approx(0.1)
    assert (found[:56] > 0.1).all()


def test_the_preset_of_ssd_pytorch_has_its_curve():
    preset = from_mapping(train_options_class(), read_preset(train_options_class(), "ssd_pytorch"))
    rate, scheduler = make_schedule(preset.schedule, updates_of(preset, 16551))
    found = [(scheduler(update), rate)[0] for update in (1, 80000, 80001, 100000, 100001, 120000)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert (preset.data.batch_size, preset.schedule.wd, preset.schedule.max_iter) == (32, 5e-4, 120000)


def test_the_cosine_of_epochs_changes_with_them():
    found = curve({"lr_schedule": "cosine_epochs", "lr_final": 0.1})
    expected = 0.1 + 0.4 * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(found, per_epoch(*expected))


@pytest.mark.parametrize(("changes", "updates"), [({"accumulate": 4}, 3), ({"nominal_batch": 64}, 2), ({}, 10)])
def test_accumulated_batches_are_one_update(changes, updates):
    run = options(lr_steps=(2.0,), **changes)
    assert updates_of(run, EXAMPLES) == updates
    found = rates(make_schedule(run.schedule, updates_of(run, EXAMPLES)), 3 * updates)
    np.testing.assert_allclose(found, np.repeat([0.5, 0.05], [2 * updates, updates]))


def test_both_ways_to_accumulate_are_refused():
    with pytest.raises(OptionError, match="--accumulate and --nominal-batch exclude each other"):
        updates_of(options(accumulate=2, nominal_batch=64), EXAMPLES)


def optimizer_of(run, begin=0):
    rate, scheduler = make_schedule(run.schedule, updates_of(run, EXAMPLES))
    names = {0: "a_weight", 1: "a_bias", 2: "b_beta", 3: "b_gamma"}
    parameters = {"learning_rate": rate, "lr_scheduler": scheduler, "momentum": 0.9, "begin_num_update": begin}
    optimizer = mx.optimizer.create("sgd", param_idx2name=names, **parameters)
    optimizer.lr_mult["a_bias"] = 2.0
    return optimizer


def others(run, updates, begin=0):
    """(momentum, rate of weight, bias, beta, gamma) at each update."""
    optimizer, before = optimizer_of(run, begin), warm_up_of_others(run.schedule, BATCHES)
    found = []
    for _ in range(updates):
        before(optimizer)
        optimizer._update_count(list(range(4)))
        found.append([optimizer.momentum, *optimizer._get_lrs(list(range(4)))])
    return np.array(found)


def test_momentum_and_the_rate_of_biases_have_warm_ups_of_their_own():
    run = options(lr_factor=1.0, warmup_epochs=1, warmup_momentum=0.5, warmup_bias_lr=1.0)
    share = np.minimum(np.arange(1, 16) / 10, 1)
    momentum, weight, bias, beta, gamma = others(run, 15).T
    np.testing.assert_allclose(momentum, 0.5 + 0.4 * share)
    np.testing.assert_allclose(weight, 0.5 * share)
    np.testing.assert_allclose(gamma, weight)
    np.testing.assert_allclose(beta, 1.0 - 0.5 * share)
    np.testing.assert_allclose(bias, 2 * beta)
    np.testing.assert_array_equal(others(run, 9, begin=6), others(run, 15)[6:])


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_schedule": "cosine", "lr_final": 0.01},
        {"lr_schedule": "cosine_epochs", "lr_final": 0.01},
        {"lr_schedule": "step_epochs", "lr_step_epochs": 2},
        {"lr_steps": ("5", "7")},
    ],
)
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize(("before", "now"), [(BATCHES, 2), (2, BATCHES)])
def test_a_schedule_goes_on_by_epochs_where_an_epoch_has_another_number_of_updates(changes, first, before, now):
    """Rates of the second half of a run, from epoch 4 on, are those of a run that had this number from its begin."""
    run = options(lr_factor=0.1, **changes)
    origin = Origin(first, before).continued(4, (4 - first) * before, now)
    assert origin.continued(5, (4 - first) * before + now, now) == origin
    done, whole = (4 - first) * before, make_schedule(run.schedule, updates_of(run, now * BATCH), Origin(first))
    found = rates(make_schedule(run.schedule, updates_of(run, now * BATCH), origin), 4 * now, done)
    np.testing.assert_allclose(found, rates(whole, 4 * now, (4 - first) * now))


def test_what_counts_updates_stays_where_an_epoch_has_another_number_of_them():
    origin = Origin(0, 5).continued(4, 20, BATCHES)
    run = options(lr_factor=0.1, lr_steps=("30i",))
    found = rates(make_schedule(run.schedule, updates_of(run, EXAMPLES), origin), 20, 20)
    np.testing.assert_allclose(found, [0.5] * 10 + [0.05] * 10)
    limited = options(lr_schedule="cosine", max_iter=40, lr_final=0.0)
    np.testing.assert_allclose(
        rates(make_schedule(limited.schedule, updates_of(limited, EXAMPLES), origin), 20, 20),
        rates(make_schedule(limited.schedule, updates_of(limited, EXAMPLES)), 20, 20),
    )


@pytest.mark.parametrize(("epochs", "updates"), [(0.4, 4), (0.001, 0)])
def test_a_warm_up_may_be_a_part_of_an_epoch(epochs, updates):
    run = options(lr_factor=1.0, warmup_epochs=epochs, warmup_momentum=0.5)
    check_recipe(run)
    momentum = others(run, 6)[:, 0]
    np.testing.assert_allclose(momentum, 0.9 if not updates else 0.5 + 0.4 * np.minimum(np.arange(1, 7) / updates, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_momentum": 0.8}, "need --warmup-epochs"),
        ({"warmup_bias_lr": 0.1}, "need --warmup-epochs"),
        ({"warmup_momentum": 0.8, "warmup_epochs": 1, "optimizer": "adam"}, "sgd or nag"),
        ({"warmup_bias_lr": 0.1, "warmup_epochs": 1, "lr": 0.0}, "--lr above 0"),
    ],
)
def test_warm_ups_that_cannot_be_are_refused(changes, words):
    with pytest.raises(OptionError, match=words):
        warm_up_of_others(options(**changes).schedule, BATCHES)


# Ten batches an epoch: one update each in the first epoch, then groups of four.
EARLY = {"accumulate": 4, "warmup_updates": 1000, "warmup_factor": 0.001, "warmup_accumulate": 1}


def test_the_pace_of_a_warm_up_without_accumulation():
    run = options(**EARLY)
    pace = pace_of(run.schedule, BATCH, EXAMPLES)
    assert (pace.updates, pace.early_epochs, pace.early, pace.first) == (3, 1, 10, 10)
    assert [pace.before(k) for k in range(4)] == [0, 10, 13, 16]
    assert [pace.epoch_of(u) for u in (0, 1, 10, 11, 13, 14, 16, 17)] == [0, 0, 0, 1, 1, 2, 2, 3]
    longer = options(accumulate=4, warmup_epochs=2.5, warmup_accumulate=2)
    assert [pace_of(longer.schedule, BATCH, EXAMPLES).before(k) for k in (1, 3, 5)] == [5, 15, 21]
    assert pace_of(options(accumulate=4).schedule, BATCH, EXAMPLES) == Pace(3)
    assert pace_of(options(warmup_epochs=1, warmup_accumulate=1).schedule, BATCH, EXAMPLES) == Pace(10)


def trainer_rates(epochs, lr, final, batches=BATCHES, accumulate=4):
    """The YOLOv3-SPP trainer's rate at each update, with groups that begin anew in each epoch."""
    found = []
    for epoch in range(epochs):
        rate = lr * ((1 + np.cos(epoch * np.pi / epochs)) / 2 * (1 - final) + final)
        for i in range(batches):
            share = min(i / min(1000, batches - 1), 1.0)
            factor = 0.001 * (1 - share) + share if epoch == 0 else 1.0
            if epoch == 0 or (i + 1) % accumulate == 0 or i + 1 == batches:
                found.append(rate * factor)
    return found


@pytest.mark.parametrize("first", [0, 2])
def test_the_rates_of_the_trainer_with_its_warm_up(first):
    run = options(lr_schedule="cosine_epochs", lr_final=0.005, end_epoch=5 + first, **EARLY)
    pace = pace_of(run.schedule, BATCH, EXAMPLES)
    origin = Origin().continued(first, 0, pace.updates, pace.early_epochs, pace.early)
    expected = trainer_rates(5, 0.5, 0.01)
    np.testing.assert_allclose(rates(make_schedule(run.schedule, pace.updates, origin), len(expected)), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_schedule": "cosine", "lr_final": 0.01},
        {"lr_schedule": "cosine_epochs", "lr_final": 0.01},
        {"lr_schedule": "step_epochs", "lr_step_epochs": 2},
        {"lr_steps": ("3", "5.5")},
    ],
)
@pytest.mark.parametrize("first", [0, 2])
def test_epochs_of_another_length_at_the_begin_move_what_epochs_say(changes, first):
    """From the second epoch on rates are those of a run of short epochs alone, but later by those of the first."""
    run = options(lr_factor=0.1, **changes)
    origin = Origin().continued(first, 0, 3, 1, 10)
    with_early, without = make_schedule(run.schedule, 3, origin), make_schedule(run.schedule, 3, Origin(first, 3))
    count = (8 - first) * 3
    found, expected = rates(with_early, count + 7), rates(without, count)
    if changes.get("lr_schedule") == "cosine":  # it is as long as all updates
        whole = 0.5 * np.array([0.02 + 0.98 * (1 + np.cos(np.pi * u / (count + 7))) / 2 for u in range(1, count + 8)])
        np.testing.assert_allclose(found, whole)
        return
    np.testing.assert_allclose(found[10:], expected[3:])
    np.testing.assert_allclose(found[:10], expected[0])


def test_a_run_that_is_resumed_with_another_pace_goes_on_by_epochs():
    origin = Origin().continued(0, 0, 3, 1, 10)
    assert origin.numbers() == (0, 3, 0, 1, 10)
    assert origin.continued(2, 13, 3, 1, 10) == Origin(*origin.numbers())
    assert origin.continued(2, 13, 5, 1, 10).shift == 15 - 13
    assert origin.continued(2, 13, 3).shift == 6 - 13
    assert Origin(0, 3).continued(2, 6, 3, 1, 10).shift == 13 - 6
    assert Origin(0, 3, 4).numbers() == (0, 3, 4)


@pytest.mark.parametrize(("updates", "rising"), [(10, 9), (5, 5), (1, 0)])
def test_a_warm_up_of_updates_ends_within_the_first_epoch(updates, rising):
    """With the trainer's factor it begins with the first update, and the one after it has the full rate."""
    run = options(lr_factor=1.0, warmup_updates=min(updates, 5) if rising == 5 else 1000, warmup_factor=0.1)
    found = warm_up_of(run.schedule, 10 if rising == 5 else updates)
    expected = [0.1 * (1 - k / rising) + k / rising for k in range(rising)] if rising else []
    np.testing.assert_allclose([found.at(u) for u in range(1, rising + 1)], expected)
    assert found.at(rising + 1) == 1.0


def test_two_lengths_of_the_warm_up_are_refused():
    with pytest.raises(OptionError, match="--warmup-updates 9 and --warmup-epochs 1 exclude each other; set one"):
        check_recipe(options(warmup_updates=9, warmup_epochs=1))


def plateau(state=None, **changes):
    settings = {"factor": 0.1, "patience": 2, "lowest": 0.002} | changes
    return Plateau(1.0, warm_up=WarmUp(), state=state or {}, **settings)


def rates_of(schedule, losses):
    rates = []
    for loss in losses:
        schedule.observe(loss)
        rates.append(schedule(1))
    return rates


def test_the_rate_falls_after_more_bad_validations_than_tolerated():
    losses = [5, 4, 4, 3.9999, 4, 3, 3, 3, 3, math.nan, math.inf, 3, 3, 3, 3]
    expected = [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.002, 0.002, 0.002, 0.002]
    np.testing.assert_allclose(rates_of(plateau(), losses), expected)


@pytest.mark.parametrize("lowest", [2.0, 0.0])
def test_a_lower_bound_above_the_rate_does_not_raise_it(lowest):
    assert rates_of(plateau(patience=0, lowest=lowest), [1, 1])[-1] == (1.0 if lowest else 0.1)


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_the_state_goes_through_json(stop):
    losses = [math.nan, 5, 5, 5, 5, 4, 4, 4, 4]
    first = plateau()
    begun = rates_of(first, losses[:stop])
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    assert begun + rates_of(plateau(state), losses[stop:]) == rates_of(plateau(), losses)


@pytest.mark.parametrize("state", [{"rate": "x"}, {"best": []}, {"bad": None}])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(CheckpointError, match="plateau is damaged"):
        plateau(state)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"targets": "mxnet"}, {"ema": 0.9}, {"cpus": 2}]
)
def test_the_loss_of_the_validation_is_that_of_the_saved_weights(options, changes):
    """10 images in batches of 8, with batch norm on its moving averages; detections are validated as without it."""
    run = options(val_loss=True, end_epoch=1, **changes)
    run_training(run)
    found = metrics(run.output.prefix)[-1]
    assert {name: pytest.approx(value, rel=1e-4) for name, value in loss_of(run).items()} == found["validation_loss"]
    header, line = Path(f"{run.output.prefix}-results.txt").read_text().splitlines()
    values = dict(zip(header.split(), line.split(), strict=True))
    assert float(values["val_SmoothL1"]) == pytest.approx(found["validation_loss"]["SmoothL1"], rel=1e-4)
    plain = options(prefix=f"{run.output.prefix}-plain", end_epoch=1, **changes)
    run_training(plain)
    assert metrics(plain.output.prefix)[-1]["validation"] == pytest.approx(found["validation"])
    assert digests(plain.output.prefix, 1) == digests(run.output.prefix, 1)


def loss_of(run):
    """The losses of a run's last checkpoint over its validation record."""
    settings, checkpoint = network_options(run), load_checkpoint(run.output.prefix)
    symbol = without_det(get_symbol_train(run.input.network, run.input.data_shape, len(CLASSES), **settings))
    names = label_names(run.input.network, **settings)
    assigner = get_assigner(run.input.network, run.input.data_shape, len(CLASSES), **settings)
    with_labels = DetRecordIter(run.data.val_path, TINY_BATCH, 64, augment=None, assigner=assigner, workers=0)
    module = mx.mod.Module(symbol, label_names=names)
    shapes = {desc.name: desc for desc in with_labels.provide_label}
    module.bind(with_labels.provide_data, [shapes[name] for name in names], for_training=False)
    module.set_params(checkpoint.arg_params, checkpoint.aux_params)
    metric = make_metric(symbol)
    for batch in with_labels:
        arrays = dict(zip(shapes, batch.label, strict=True))
        module.forward(mx.io.DataBatch(batch.data, [arrays[name] for name in names]), is_train=False)
        metric.update([], module.get_outputs())
    return dict(metric.get_global_name_value())


def test_a_run_on_a_plateau_resumes_exactly(options, tmp_path):
    changes = {
        "lr_schedule": "plateau",
        "val_loss": True,
        "lr_patience": 0,
        "lr": 0.5,
        "lr_factor": 0.5,
        "end_epoch": 6,
    }
    whole, parts = (options(prefix=str(tmp_path / name / "t"), **changes) for name in ("whole", "parts"))
    run_training(whole)
    rates = [line["learning_rate"] for line in metrics(whole.output.prefix)]
    assert rates[0] == 0.5
    assert rates[-1] < 0.5
    stop = 1 + next(k for k, rate in enumerate(rates) if rate < 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(stop))
        with pytest.raises(RuntimeError):
            run_training(parts)
    run_training(options(**(changes | {"prefix": parts.output.prefix, "resume": "auto"})))
    assert metrics(parts.output.prefix) == metrics(whole.output.prefix)
    assert digests(parts.output.prefix, 6) == digests(whole.output.prefix, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_loss": True, "val_path": ""}, "--val-loss needs a validation"),
        ({"lr_schedule": "plateau"}, "--lr-schedule plateau follows the validation loss; give --val-loss"),
    ],
)
def test_what_does_not_fit_is_refused(options, changes, words):
    with pytest.raises(OptionError, match=words):
        run_training(options(**changes))
