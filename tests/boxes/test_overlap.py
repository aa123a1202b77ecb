"""Overlap measures of pairs of boxes."""

import numpy as np
import pytest
from hypothesis import given

from boxes.geometry import iou
from boxes.overlap import PAIRED_OVERLAPS, wh_iou
from tests.boxes.strategies import corner_boxes


@pytest.mark.parametrize("kind", PAIRED_OVERLAPS)
@given(corner_boxes(1, 6))
def test_identical_boxes_overlap_by_1(kind: str, boxes: np.ndarray) -> None:
    np.testing.assert_allclose(PAIRED_OVERLAPS[kind](boxes, boxes), 1, rtol=1e-6)


@given(corner_boxes(2, 2), corner_boxes(2, 2))
def test_each_measure_only_takes_away_from_iou(a: np.ndarray, b: np.ndarray) -> None:
    values = {kind: overlap(a, b) for kind, overlap in PAIRED_OVERLAPS.items()}
    np.testing.assert_allclose(values["iou"], iou(a, b).diagonal(), rtol=1e-6)
    slack = 1e-6
    assert (values["giou"] >= -1 - slack).all()
    assert (values["giou"] <= values["iou"] + slack).all()
    assert (values["ciou"] <= values["diou"] + slack).all()
    assert (values["diou"] <= values["iou"] + slack).all()


@pytest.mark.parametrize("kind", PAIRED_OVERLAPS)
@given(corner_boxes(3, 3), corner_boxes(3, 3))
def test_order_and_scale_do_not_matter(kind: str, a: np.ndarray, b: np.ndarray) -> None:
    overlap = PAIRED_OVERLAPS[kind]
    np.testing.assert_allclose(overlap(a, b), overlap(b, a), atol=1e-6)
    np.testing.assert_allclose(overlap(a, b), overlap(a * 416, b * 416), atol=1e-5)


@pytest.mark.parametrize("kind", PAIRED_OVERLAPS)
def test_boxes_without_area_are_finite(kind: str) -> None:
    boxes = np.array([[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.9], [0.1, 0.1, 0.4, 0.1]])
    pairs = np.repeat(boxes, 3, axis=0), np.tile(boxes, (3, 1))
    assert np.isfinite(PAIRED_OVERLAPS[kind](*pairs)).all()


@given(corner_boxes(1, 5), corner_boxes(1, 5))
def test_sizes_are_compared_as_boxes_with_a_common_corner(a: np.ndarray, b: np.ndarray) -> None:
    sizes = [boxes[:, 2:] - boxes[:, :2] for boxes in (a, b)]
    moved = [np.concatenate([np.zeros_like(size), size], axis=1) for size in sizes]
    np.testing.assert_allclose(wh_iou(*sizes), iou(*moved), rtol=1e-6)
    assert not wh_iou(np.zeros((1, 2)), np.zeros((2, 2))).any()
