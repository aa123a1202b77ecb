"""The training losses as they are shown: means over the batches, read late, never nan for want of anything to count."""

import numpy as np
import pytest

from config.runtime import mx
from train.metric import MultiBoxMetric


def paper(cls, loc):
    """Outputs of targets=paper: losses of each image."""
    return [mx.nd.array(cls), mx.nd.array(loc)]


def classic(prob, target, loc):
    """Outputs of targets=mxnet for one image: probabilities (C + 1, A), targets (A,), smooth L1 (4 A,)."""
    return [mx.nd.array([prob]), mx.nd.array([loc]), mx.nd.array([target])]


def values(metric):
    return dict(metric.get_global_name_value())


def test_paper_losses_are_summed_over_images_and_averaged_over_batches():
    metric = MultiBoxMetric()
    metric.update([], paper([1, 2], [0.5, 0.5]))
    metric.update([], paper([4, 1], [3, 0]))
    assert values(metric) == {"CrossEntropy": 4.0, "SmoothL1": 2.0}


def test_contexts_share_a_batch():
    metric = MultiBoxMetric(num_contexts=2)
    for part in (paper([1], [1]), paper([2], [0])):
        metric.update([], part)
    assert values(metric) == {"CrossEntropy": 3.0, "SmoothL1": 1.0}


def test_classic_losses_are_per_valid_anchor():
    prob = [[0.5, 0.1, 0.9], [0.5, 0.9, 0.1]]
    metric = MultiBoxMetric()
    metric.update([], classic(prob, [0, 1, -1], [1.0] * 6 + [0.0] * 6))
    metric.update([], classic(prob, [1, -1, -1], [0.0] * 12))
    found = values(metric)
    assert found["CrossEntropy"] == pytest.approx(-(np.log(0.5) + np.log(0.9) + np.log(0.5)) / 3, rel=1e-5)
    assert found["SmoothL1"] == pytest.approx(6 / 3)


def test_nothing_to_count_is_zero():
    metric = MultiBoxMetric()
    assert values(metric) == {"CrossEntropy": 0.0, "SmoothL1": 0.0}
    metric.update([], classic([[0.5], [0.5]], [-1], [0.0] * 4))
    assert values(metric) == {"CrossEntropy": 0.0, "SmoothL1": 0.0}
    assert metric.first_bad is None


def test_an_epoch_starts_at_zero():
    metric = MultiBoxMetric()
    metric.update([], paper([np.nan], [1]))
    metric.flush()
    metric.reset()
    metric.update([], paper([1], [2]))
    assert values(metric) == {"CrossEntropy": 1.0, "SmoothL1": 2.0}
    assert metric.first_bad is None


@pytest.mark.parametrize("contexts", [1, 2])
def test_losses_are_read_one_batch_late(contexts):
    """Reading the newest would make the engine wait; the batch before is done by then."""
    metric = MultiBoxMetric(contexts)
    for batch in range(3):
        for _ in range(contexts):
            metric.update([], paper([batch], [np.inf if batch == 1 else 0]))
        seen = dict(zip(*metric.get(), strict=True))["CrossEntropy"]
        assert seen == (0, 0, 0.5 * contexts)[batch]
        assert metric.first_bad == (None, None, 1)[batch]
    metric.flush()
    assert metric.first_bad == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_batch_is_remembered(bad):
    metric = MultiBoxMetric()
    for value in (1, bad, 1, bad):
        metric.update([], paper([value], [1]))
    metric.flush()
    assert metric.first_bad == 1


def test_a_gradient_that_is_not_finite_is_bad_though_losses_are_fine():
    metric = MultiBoxMetric()
    for square in (1, 2, np.nan, 4):
        metric.update([mx.nd.array([square])], paper([1], [1]))
    assert values(metric) == {"CrossEntropy": 1.0, "SmoothL1": 1.0}
    assert metric.first_bad == 2
