"""The training losses as they are shown: means over the batches, read late, never nan for want of anything to count."""

import numpy as np
import pytest

from machine.runtime import mx
from train.metric import ClassicMetric, LossMetric, make_metric


def paper(cls, loc):
    """Outputs of targets=paper: losses of each image."""
    return [mx.nd.array(cls), mx.nd.array(loc)]


def classic(prob, target, loc):
    """Outputs of targets=mxnet for one image: probabilities (C + 1, A), targets (A,), smooth L1 (4 A,)."""
    return [mx.nd.array([prob]), mx.nd.array([loc]), mx.nd.array([target])]


def values(metric):
    return dict(metric.get_global_name_value())


def test_paper_losses_are_summed_over_images_and_averaged_over_batches():
    metric = LossMetric()
    metric.update([], paper([1, 2], [0.5, 0.5]))
    metric.update([], paper([4, 1], [3, 0]))
    assert values(metric) == {"CrossEntropy": 4.0, "SmoothL1": 2.0}


def test_contexts_share_a_batch():
    metric = LossMetric(num_contexts=2)
    for part in (paper([1], [1]), paper([2], [0])):
        metric.update([], part)
    assert values(metric) == {"CrossEntropy": 3.0, "SmoothL1": 1.0}


def test_classic_losses_are_per_valid_anchor():
    prob = [[0.5, 0.1, 0.9], [0.5, 0.9, 0.1]]
    metric = ClassicMetric()
    metric.update([], classic(prob, [0, 1, -1], [1.0] * 6 + [0.0] * 6))
    metric.update([], classic(prob, [1, -1, -1], [0.0] * 12))
    found = values(metric)
    assert found["CrossEntropy"] == pytest.approx(-(np.log(0.5) + np.log(0.9) + np.log(0.5)) / 3, rel=1e-5)
    assert found["SmoothL1"] == pytest.approx(6 / 3)


def test_nothing_to_count_is_zero():
    assert values(LossMetric()) == {"CrossEntropy": 0.0, "SmoothL1": 0.0}
    metric = ClassicMetric()
    metric.update([], classic([[0.5], [0.5]], [-1], [0.0] * 4))
    assert values(metric) == {"CrossEntropy": 0.0, "SmoothL1": 0.0}
    assert metric.first_bad is None


def test_an_epoch_starts_at_zero():
    metric = LossMetric()
    metric.update([], paper([np.nan], [1]))
    metric.flush()
    metric.reset()
    metric.update([], paper([1], [2]))
    assert values(metric) == {"CrossEntropy": 1.0, "SmoothL1": 2.0}
    assert metric.first_bad is None


@pytest.mark.parametrize("contexts", [1, 2])
def test_losses_are_read_one_batch_late(contexts):
    """Reading the newest would make the engine wait; the batch before is done by then."""
    metric = LossMetric(num_contexts=contexts)
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
    metric = LossMetric()
    for value in (1, bad, 1, bad):
        metric.update([], paper([value], [1]))
    metric.flush()
    assert metric.first_bad == 1


def test_a_gradient_that_is_not_finite_is_bad_though_losses_are_fine():
    metric = LossMetric()
    for square in (1, 2, np.nan, 4):
        metric.update([mx.nd.array([square])], paper([1], [1]))
    assert values(metric) == {"CrossEntropy": 1.0, "SmoothL1": 1.0}
    assert metric.first_bad == 2


def group(*names):
    return mx.sym.Group([mx.sym.make_loss(mx.sym.var(f"{name}_in"), name=name) for name in names])


@pytest.mark.parametrize(
    ("outputs", "shown"),
    [
        (("cls_loss", "loc_loss"), ("CrossEntropy", "SmoothL1")),
        (("box_loss", "obj_loss", "cls_loss"), ("box_loss", "obj_loss", "cls_loss")),
        (("giou", "total"), ("giou_loss", "total_loss")),
    ],
)
def test_losses_are_named_by_the_outputs(outputs, shown):
    metric = make_metric(group(*outputs))
    metric.update([], [mx.nd.array([k, 1]) for k in range(len(outputs))])
    assert values(metric) == {name: k + 1.0 for k, name in enumerate(shown)}


def test_the_classic_outputs_have_their_own_metric():
    parts = [mx.sym.MakeLoss(mx.sym.var(f"{name}_in"), name=name) for name in ("cls_prob", "loc_loss", "cls_label")]
    assert isinstance(make_metric(mx.sym.Group(parts)), ClassicMetric)


@pytest.mark.parametrize("contexts", [1, 2])
def test_batches_of_one_update_are_added_up(contexts):
    metric = LossMetric(["box_loss"], contexts)
    for loss, completes in ((1, False), (2, True), (4, False), (5, True)):
        for _ in range(contexts):
            metric.update([], [mx.nd.array([loss])], completes)
    assert values(metric) == {"box_loss": 6.0 * contexts}


def test_the_bad_batch_of_a_group_is_told_by_its_own_number():
    metric = LossMetric(["box_loss"])
    for loss, completes in ((1, False), (2, True), (np.nan, False), (5, True)):
        metric.update([], [mx.nd.array([loss])], completes)
    metric.flush()
    assert metric.first_bad == 2
