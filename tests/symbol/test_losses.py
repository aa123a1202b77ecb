from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
