from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes.effdet_assigner import EffDetAssigner
from boxes.geometry import centres_to_corners
from machine.runtime import mx
from symbol.losses import EFFDET_LABELS, clamped, effdet_losses, focal
from symbol.network_options import EffDetOptions
from tests.symbol.effdet_loss_runner import Labels, batch_labels, reference_losses, run_effdet_losses
from tests.symbol.loss_runner import Targets, reference_loss, run_loss

CLASSES = 3


def random_batch(
    seed: int, images: int = 3, anchors: int = 24, positives: int = 3, ignored: int = 2
) -> tuple[np.ndarray, np.ndarray, Targets]:
    """Predictions and targets with the given numbers of positives and ignored anchors in every image."""
    rng = np.random.default_rng(seed)
    cls_target = np.zeros((images, anchors))
    for row in cls_target:
        chosen = rng.permutation(anchors)
        row[chosen[:positives]] = rng.integers(1, CLASSES + 1, positives)
        row[chosen[positives : positives + ignored]] = -1
    cls_pred = rng.normal(0, 2, (images, anchors, CLASSES + 1))
    loc_pred, loc_target = rng.normal(0, 1, (2, images, anchors, 4))
    return cls_pred, loc_pred, Targets(cls_target, loc_target, float((cls_target > 0).sum()))


def background_rows(gradient: np.ndarray, targets: Targets) -> np.ndarray:
    """(B,) number of background anchors that get a gradient."""
    return ((gradient != 0).any(axis=2) & (targets.cls == 0)).sum(axis=1)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"negative_ratio": 1.0},
    {"negative_ratio": 0.0},
    {"negative_ratio": 1.5, "alpha": 0.25},
    {"minimum_negatives": 11},
    {"negative_ratio": 100.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("positives", [0, 1, 5])
def test_values_are_those_of_the_reference(options: dict[str, Any], positives: int) -> None:
    cls_pred, loc_pred, targets = random_batch(seed=positives, positives=positives)
    got = run_loss(cls_pred, loc_pred, targets, **options)
    cls_loss, loc_loss = reference_loss(cls_pred, loc_pred, targets, **options)
    np.testing.assert_allclose(got.cls_loss, cls_loss, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(got.loc_loss, loc_loss, rtol=2e-5, atol=1e-6)


@settings(max_examples=8)
@given(st.integers(0, 1000), st.sampled_from(OPTIONS))
def test_gradients_are_finite_differences_of_the_reference(seed: int, options: dict[str, Any]) -> None:
    cls_pred, loc_pred, targets = random_batch(seed, images=2, anchors=12, positives=2)
    got = run_loss(cls_pred, loc_pred, targets, **options)

    def total(cls: np.ndarray, loc: np.ndarray) -> float:
        return float(np.sum(reference_loss(cls, loc, targets, **options)))

    step = 1e-6
    for place in np.ndindex(cls_pred.shape):
        nudge = np.zeros_like(cls_pred)
        nudge[place] = step
        slope = (total(cls_pred + nudge, loc_pred) - total(cls_pred - nudge, loc_pred)) / (2 * step)
        assert got.grad_cls[place] == pytest.approx(slope, abs=1e-5)
    for place in np.ndindex(loc_pred.shape):
        nudge = np.zeros_like(loc_pred)
        nudge[place] = step
        slope = (total(cls_pred, loc_pred + nudge) - total(cls_pred, loc_pred - nudge)) / (2 * step)
        assert got.grad_loc[place] == pytest.approx(slope, abs=1e-5)


def test_a_batch_without_positives_is_zero_with_zero_gradient() -> None:
    got = run_loss(*random_batch(seed=1, positives=0))
    for array in got:
        np.testing.assert_array_equal(array, 0)


def test_minimum_negatives_serve_images_without_objects() -> None:
    cls_pred, loc_pred, targets = random_batch(seed=2, positives=0)
    got = run_loss(cls_pred, loc_pred, targets, minimum_negatives=5)
    assert (got.cls_loss > 0).all()
    np.testing.assert_array_equal(background_rows(got.grad_cls, targets), 5)


def test_ignored_anchors_and_padding_rows_contribute_nothing() -> None:
    cls_pred, loc_pred, targets = random_batch(seed=3)
    targets.cls[1] = -1  # a padding row
    wild_cls, wild_loc = cls_pred.copy(), loc_pred.copy()
    wild_cls[targets.cls < 0], wild_loc[targets.cls < 0] = 70.0, -1e6
    wild_cls[targets.cls < 0, 0] = -70.0
    got = run_loss(cls_pred, loc_pred, targets, minimum_negatives=30)
    with_wild = run_loss(wild_cls, wild_loc, targets, minimum_negatives=30)
    for array, other in zip(got, with_wild, strict=True):
        np.testing.assert_array_equal(array, other)
    assert got.cls_loss[1] == got.loc_loss[1] == 0
    assert not got.grad_cls[targets.cls < 0].any()
    assert not got.grad_loc[targets.cls < 0].any()


def test_ties_are_mined_up_to_the_count_and_no_further() -> None:
    _, loc_pred, targets = random_batch(seed=4, positives=2, ignored=0)
    logits = np.zeros((*targets.cls.shape, CLASSES + 1))
    got = run_loss(logits, loc_pred, targets)
    np.testing.assert_array_equal(background_rows(got.grad_cls, targets), 3 * 2)
    np.testing.assert_allclose(got.cls_loss, (2 + 6) * np.log(CLASSES + 1) / targets.normaliser, rtol=1e-5)


@pytest.mark.parametrize("right", [True, False], ids=["all right", "all wrong"])
def test_extreme_logits_are_finite(right: bool) -> None:
    _, loc_pred, targets = random_batch(seed=5, ignored=0)
    certain = np.eye(CLASSES + 1)[targets.cls.astype(int)]
    logits = np.where(certain > 0, 80.0, -80.0) * (1 if right else -1)
    got = run_loss(logits, loc_pred, targets)
    assert all(np.isfinite(array).all() for array in got)
    np.testing.assert_allclose(got.cls_loss, reference_loss(logits, loc_pred, targets)[0], rtol=1e-5, atol=1e-6)
    if right:
        np.testing.assert_allclose(got.grad_cls, 0, atol=1e-6)


def test_predictions_that_are_not_finite_reach_the_loss() -> None:
    cls_pred, loc_pred, targets = random_batch(seed=6)
    cls_pred[0, int(np.flatnonzero(targets.cls[0] > 0)[0])] = np.nan
    assert np.isnan(run_loss(cls_pred, loc_pred, targets).cls_loss[0])


def test_mining_is_per_image_and_normalisation_is_not() -> None:
    """Images never compete for negatives; split batches with the global normaliser add up to the whole one."""
    cls_pred, loc_pred, targets = random_batch(seed=7, images=4)
    targets.cls[2] = 0  # an image without objects
    whole = run_loss(cls_pred, loc_pred, targets)
    for k in range(4):
        part = slice(k, k + 1)
        alone = Targets(targets.cls[part], targets.loc[part], targets.normaliser)
        for array, other in zip(whole, run_loss(cls_pred[part], loc_pred[part], alone), strict=True):
            np.testing.assert_allclose(array[part], other, rtol=1e-6, atol=1e-8)


CLASSES = 3
ASSIGNER = EffDetAssigner()
SIZE = (64, 128)
ANCHORS = ASSIGNER.shapes(SIZE)["cls_target"][0]


def random_objects(rng: np.random.Generator, count: int) -> np.ndarray:
    """Objects (n, 6), most of which have positives and ignored anchors."""
    centres = np.column_stack([rng.random((count, 2)), rng.uniform(0.3, 0.9, (count, 2))])
    return np.column_stack([rng.integers(0, CLASSES, count), centres_to_corners(centres), np.zeros(count)])


def labels_of(counts: list[int], seed: int = 0, padding: int = 0) -> Labels:
    """Labels of images with the given numbers of objects, then padding rows."""
    rng = np.random.default_rng(seed)
    return batch_labels(ASSIGNER, [random_objects(rng, count) for count in counts], SIZE, padding)


def predictions(seed: int, images: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, A, C) and offsets (B, A, 4)."""
    rng = np.random.default_rng(seed)
    cls, reg = (rng.normal(0, scale, (images, ANCHORS, k)).astype(np.float32) for k in (CLASSES, 4))
    return cls, reg


OPTIONS: list[dict[str, Any]] = [
    {},
    {"prob_clamp": 0.0},
    {"focal_alpha": 0.4, "focal_gamma": 1.5, "smooth_l1_beta": 1.0},
    {"focal_gamma": 0.0, "prob_clamp": 0.1},
    {"focal_gamma": 0.5, "prob_clamp": 0.0, "loc_weight": 50.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("counts", [[0, 0], [4, 0], [7, 12]], ids=str)
def test_losses_are_those_of_the_papers(counts: list[int], options: dict[str, Any]) -> None:
    labels = labels_of(counts)
    assert bool(sum(counts)) == bool((labels["cls_target"] > 0).any()) == bool((labels["cls_target"] < 0).any())
    cls, reg = predictions(1, len(counts))
    got = run_effdet_losses(cls, reg, labels, **options)
    cls_loss, reg_loss = reference_losses(cls, reg, labels, **options)
    np.testing.assert_allclose(got.cls_loss, cls_loss, rtol=2e-5)
    np.testing.assert_allclose(got.reg_loss, reg_loss, rtol=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_the_losses(options: dict[str, Any]) -> None:
    """Along random directions."""
    labels, (cls, reg) = labels_of([0, 9]), predictions(2, 2)
    result, rng = run_effdet_losses(cls, reg, labels, **options), np.random.default_rng(3)
    for _ in range(4):
        step = [rng.normal(0, 1e-4, array.shape) for array in (cls, reg)]
        moved = [
            sum(loss.sum() for loss in reference_losses(cls + k * step[0], reg + k * step[1], labels, **options))
            for k in (1, -1)
        ]
        products = [result.grad_cls * step[0], result.grad_reg * step[1]]
        scale = sum(float(np.abs(product).sum()) for product in products)
        slope = sum(float(product.sum()) for product in products)
        np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2, rtol=1e-3, atol=1e-4 * scale)


def test_an_image_without_objects_contributes_its_negatives() -> None:
    cls, reg = predictions(4, 2)
    result = run_effdet_losses(cls, reg, labels_of([5, 0]))
    assert (result.grad_cls[1] != 0).mean() > 0.9
    assert result.reg_loss[1] == 0
    assert not result.grad_reg[1].any()


def test_ignored_anchors_and_padding_images_contribute_nothing() -> None:
    cls, reg = predictions(5, 4)
    want = run_effdet_losses(cls[:3], reg[:3], labels_of([3, 0, 9]))
    labels = labels_of([3, 0, 9], padding=1)
    got = run_effdet_losses(cls, reg, labels)
    for name in ("cls_loss", "reg_loss"):
        np.testing.assert_allclose(getattr(got, name), [*getattr(want, name), 0], rtol=1e-6)
    for name in ("grad_cls", "grad_reg"):
        np.testing.assert_allclose(getattr(got, name)[:3], getattr(want, name), rtol=1e-6)
        assert not getattr(got, name)[3].any()
    assert not got.grad_cls[labels["cls_target"] < 0].any()
    assert not got.grad_reg[labels["cls_target"] <= 0].any()


def test_parts_with_the_normaliser_of_the_whole_make_up_the_whole() -> None:
    (cls, reg), labels = predictions(6, 4), labels_of([0, 8, 2, 11])
    whole = run_effdet_losses(cls, reg, labels)
    for part in (slice(0, 1), slice(1, 4)):
        result = run_effdet_losses(cls[part], reg[part], {name: array[part] for name, array in labels.items()})
        for got, want in zip(result, whole, strict=True):
            np.testing.assert_allclose(got, want[part], rtol=1e-5, atol=1e-9)


def test_one_class() -> None:
    rng = np.random.default_rng(7)
    labels = batch_labels(ASSIGNER, [random_objects(rng, 6) * [0, 1, 1, 1, 1, 1]], SIZE)
    cls, reg = predictions(7, 1)
    got = run_effdet_losses(cls[:, :, :1], reg, labels)
    np.testing.assert_allclose(got.cls_loss, reference_losses(cls[:, :, :1], reg, labels)[0], rtol=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_saturated_predictions_have_finite_losses_and_gradients(logit: float, options: dict[str, Any]) -> None:
    cls, reg = predictions(8, 2)
    result = run_effdet_losses(np.full_like(cls, logit), np.full_like(reg, logit), labels_of([6, 0]), **options)
    assert all(np.isfinite(array).all() for array in result)


def values_and_slopes(symbol: mx.sym.Symbol, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and gradients of a function of the variable x."""
    data = mx.nd.array(logits)
    data.attach_grad()
    executor = symbol.bind(mx.cpu(), {"x": data}, args_grad={"x": data.grad})
    value = executor.forward(is_train=True)[0].asnumpy()
    executor.backward(mx.nd.ones(logits.shape))
    return value, data.grad.asnumpy()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_the_focal_loss_keeps_its_relative_accuracy(gamma: float) -> None:
    exact = np.array([-300, -100, -80, -20, -5, -1, 0, 1, 5, 20, 80, 100, 300], np.float64)
    value, slope = values_and_slopes(focal(mx.sym.var("x"), gamma), exact.astype(np.float32))
    p, entropy = 1 / (1 + np.exp(-exact)), np.logaddexp(0, exact)
    want = p**gamma * entropy
    np.testing.assert_allclose(value, want, rtol=2e-5, atol=1e-37)
    np.testing.assert_allclose(slope, p**gamma * (p + gamma * (1 - p) * entropy), rtol=2e-5, atol=1e-37)


def test_the_clamp_stops_the_gradient_and_nothing_else_does() -> None:
    logits = np.array([-80, -9.3, -9.1, 0, 9.1, 9.3, 80], np.float32)
    slope = values_and_slopes(focal(clamped(mx.sym.var("x"), 1e-4), 2.0), logits)[1]
    assert (slope != 0).tolist() == [False, False, True, True, True, False, False]
    value, slope = values_and_slopes(focal(clamped(mx.sym.var("x"), 0.0), 0.0), logits)
    assert (value > 0).all()
    assert (slope > 0).all()


def test_one_symbol_serves_every_input_size() -> None:
    symbol = mx.sym.Group(effdet_losses(mx.sym.var("cls"), mx.sym.var("reg"), CLASSES, EffDetOptions()))
    for count in (9, 90):
        shapes = {"cls": (2, count, CLASSES), "reg": (2, count, 4), "cls_target": (2, count), "normaliser": (2, 1)}
        assert symbol.infer_shape(**shapes, loc_target=(2, count, 4))[1] == [(2,), (2,)]


def test_the_labels_are_those_of_the_assigner() -> None:
    assert set(EFFDET_LABELS) == set(ASSIGNER.shapes(SIZE))
