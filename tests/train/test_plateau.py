"""The loss of the validation, and the learning rate that follows it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from dataset.iterator import DetRecordIter
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from symbol.symbol_factory import get_assigner, get_symbol_train, label_names
from tests.train.test_training import digests, stop_in_epoch
from tests.train.tiny import BATCH, CLASSES, metrics
from train.metric import make_metric
from train.options import network_options
from train.schedule import Plateau, WarmUp
from train.stages import without_det
from train.training import run_training


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


@pytest.mark.parametrize("changes", [{}, {"targets": "mxnet"}, {"ema": 0.9}, {"cpus": 2}])
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
    with_labels = DetRecordIter(run.data.val_path, BATCH, 64, augment=None, assigner=assigner, workers=0)
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
