"""Averaged weights: their values, also of batch norm's moving averages, and that they are what is validated."""

import numpy as np
import pytest

from dataset.iterator import DetRecordIter
from machine.runtime import mx
from tests.train.test_module import make_module, step, weights
from tests.train.tiny import BATCH
from train.recipe import Recipe, WeightAverage, decay_at

DECAY = 0.99
RAMP = 5.0


def averages(module):
    return {name: array.asnumpy() for params in module.params_to_save() for name, array in params.items()}


def test_the_decay_rises_to_its_value():
    assert decay_at(0.9999, 1) == pytest.approx(0.9999 * (1 - np.exp(-1 / 2000)))
    assert decay_at(0.9999, 2000) == pytest.approx(0.9999 * (1 - np.exp(-1)))
    assert decay_at(0.9999, 10**6) == pytest.approx(0.9999)
    assert decay_at(0.9, 100, ramp=100) == pytest.approx(0.9 * (1 - np.exp(-1)))


@pytest.mark.parametrize("contexts", [1, 2])
def test_averages_follow_weights_and_moving_averages(batches, contexts):
    """The wide network's backward is long: moving averages read too early would be those of the batch before."""
    batch = batches()[0]
    module = make_module(batch, contexts, width=1.0, freeze="conv_1_", recipe=Recipe(ema=DECAY, ema_ramp=RAMP))
    mx.nd.waitall()
    expected = weights(module)
    assert averages(module).keys() == expected.keys()
    values = [expected]
    for _ in range(6):
        step(module, batch)
        mx.nd.waitall()
        values.append(weights(module))
    for number, current in enumerate(values[1:], start=1):
        d = decay_at(DECAY, number, RAMP)
        expected = {name: d * expected[name] + (1 - d) * array for name, array in current.items()}
    for name, array in averages(module).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_averages_are_the_same_without_waiting(batches):
    """Batches one after the other as in training: bit for bit what a run gives that waits after each."""
    batch, found = batches()[0], []
    for wait in (False, True):
        module = make_module(batch, width=1.0, recipe=Recipe(ema=DECAY))
        for _ in range(6):
            step(module, batch)
            if wait:
                mx.nd.waitall()
        found.append(averages(module))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


@pytest.mark.parametrize("contexts", [1, 3])
def test_moving_averages_that_do_not_change_stay_bit_for_bit(contexts):
    values = np.random.default_rng(3).normal(0, 10, 5000).astype(np.float32)
    aux = [mx.nd.array(values) for _ in range(contexts)]
    average = WeightAverage(DECAY, {}, {"bn_moving_mean": aux[0]}, ramp=RAMP)
    for number in range(1, 4):
        average.update({}, [[array] for array in aux], [mx.nd.zeros(1)] * contexts, number)
    np.testing.assert_array_equal(average.params()[1]["bn_moving_mean"].asnumpy(), values)


class SumOfScores(mx.metric.EvalMetric):
    """Tells two sets of weights apart."""

    def update(self, labels, preds):
        self.sum_metric += float(np.abs(preds[0]).sum())
        self.num_inst = 1


@pytest.mark.parametrize("contexts", [1, 2])
def test_validation_sees_the_averages_and_training_goes_on_from_its_own(batches, records, contexts):
    train = batches()
    module = make_module(train[0], contexts, recipe=Recipe(ema=DECAY), parameters={"momentum": 0.9})
    for batch in train:
        step(module, batch)
    before = weights(module)
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    found = module.score(val_iter, SumOfScores("s"))
    for name, array in weights(module).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    plain = make_module(train[0], contexts)
    raw = plain.score(val_iter, SumOfScores("s"))
    plain.set_params(*module.params_to_save())
    assert plain.score(val_iter, SumOfScores("s")) == found != raw


def test_a_restored_average_continues_bit_for_bit(batches):
    first, second, third = batches()
    options = {"parameters": {"momentum": 0.9}}
    whole = make_module(first, recipe=Recipe(ema=DECAY), **options)
    step(whole, first)
    step(whole, second)
    saved = whole.params_to_save()
    state = whole.optimizer_state()
    raw = {name.removeprefix("raw:"): mx.nd.array(array) for name, array in state.items() if name.startswith("raw:")}
    trained = {name: array for name, array in state.items() if not name.startswith("raw:")}
    assert raw.keys() == saved[0].keys() | saved[1].keys()
    step(whole, third)
    options["parameters"] |= {"begin_num_update": 2}
    resumed = make_module(first, state=trained, recipe=Recipe(ema=DECAY, averages=saved), **options)
    resumed.set_params({n: raw[n] for n in saved[0]}, {n: raw[n] for n in saved[1]})
    step(resumed, third)
    for found, expected in ((weights(resumed), weights(whole)), (averages(resumed), averages(whole))):
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_epoch_that_is_not_validated_is_left_out(batches, records):
    module = make_module(batches()[0], recipe=Recipe(validates=lambda epoch: epoch == 3))
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    ended = []
    assert module.score(val_iter, SumOfScores("s"), score_end_callback=ended.append, epoch=2) == []
    assert not ended
    assert module.score(val_iter, SumOfScores("s"), score_end_callback=ended.append, epoch=3)
    assert len(ended) == 1
