"""Accumulated gradients: the update of the large batch, from several smaller ones."""

import numpy as np
import pytest

from dataset.iterator import DetRecordIter
from machine.runtime import mx
from symbol.symbol_factory import get_assigner
from tests.train.test_module import FREEZE_BATCH_NORM, make_module, settings_of, step, weights
from tests.train.tiny import CLASSES
from train.metric import make_metric
from train.recipe import Recipe


def read(records, size, **changes):
    assigner = get_assigner("mobilenet", 64, len(CLASSES), **settings_of(**changes))
    return list(DetRecordIter(records[0], size, 64, augment=None, assigner=assigner, workers=0))


def grouped(batches, size):
    """Batches that make one update together: the last completes it, all hold the normaliser of all."""
    for begin in range(0, len(batches), size):
        group = batches[begin : begin + size]
        names = [desc.name for desc in group[0].provide_label]
        if "normaliser" in names:
            place = names.index("normaliser")
            total = sum(batch.label[place].asnumpy()[0] for batch in group)
            for batch in group:
                batch.label[place][:] = mx.nd.array(np.broadcast_to(total, batch.label[place].shape))
        for batch in group:
            batch.completes_update = batch is group[-1]
    return batches


@pytest.mark.parametrize("contexts", [1, 2])
def test_an_accumulated_update_is_that_of_the_large_batch(records, contexts):
    """Batch norm, which sees one batch alone, is frozen here. The second update has a smaller group."""
    large, small = read(records, 16), grouped(read(records, 8), 2)
    assert [batch.completes_update for batch in small] == [False, True, True]
    options = {"freeze": FREEZE_BATCH_NORM, "parameters": {"momentum": 0.9, "wd": 1e-3}}
    whole, parts = make_module(large[0], **options), make_module(small[0], contexts, **options)
    for batch in large * 2:
        step(whole, batch)
    for batch in small * 2:
        step(parts, batch)
    assert parts.num_update == whole.num_update == 4
    expected = weights(whole)
    for name, array in weights(parts).items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_means_over_batches_are_averaged(records):
    """Two equal batches of the classic target rule make the update of one of them."""
    first = read(records, 8, targets="mxnet")[0]
    options = {"freeze": FREEZE_BATCH_NORM, "targets": "mxnet"}
    one = make_module(first, **options)
    both = make_module(first, recipe=Recipe(means=True), **options)
    step(one, first)
    for completes in (False, True):
        first.completes_update = completes
        step(both, first)
    expected = weights(one)
    for name, array in weights(both).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_losses_of_a_group_are_those_of_the_large_batch(records):
    values = []
    for batches in (read(records, 16), grouped(read(records, 8), 2)):
        module = make_module(batches[0], freeze=FREEZE_BATCH_NORM, parameters={"learning_rate": 1e-9})
        metric = make_metric(module.symbol)
        for batch in batches:
            step(module, batch)
            module.update_metric(metric, batch.label)
        values.append([value for _, value in metric.get_global_name_value()])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_seen_in_mid_group_and_in_its_last_batch(records):
    for poisoned in (0, 1):
        batches = grouped(read(records, 8), 2)
        module = make_module(batches[0])
        metric = make_metric(module.symbol)
        batches[poisoned].data[0][:] = np.nan
        for batch in batches[:2]:
            step(module, batch)
            module.update_metric(metric, batch.label)
        metric.flush()
        assert metric.first_bad == poisoned


def test_an_update_waits_for_nothing(records, monkeypatch):
    batches = grouped(read(records, 8), 2)
    module = make_module(batches[0], recipe=Recipe(ema=0.9))

    def refuse(*_):
        raise AssertionError("the engine is waited for")

    with monkeypatch.context() as patch:
        patch.setattr(mx.nd, "waitall", refuse)
        patch.setattr(mx.nd.NDArray, "asnumpy", refuse)
        patch.setattr(mx.nd.NDArray, "wait_to_read", refuse)
        for batch in batches:
            step(module, batch)
