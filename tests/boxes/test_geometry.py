"""Forms of boxes, areas, intersections, IoU, and the overlaps that box losses learn."""

import numpy as np
import pytest
from hypothesis import given

from boxes.geometry import (
    PAIRED_OVERLAPS,
    area,
    centres_to_corners,
    clip_to_unit,
    corners_to_centres,
    intersection,
    iou,
    log_sum_exp,
    paired_iou,
    wh_iou,
)
from tests.boxes.strategies import corner_boxes


@given(corner_boxes())
def test_forms_are_inverse(boxes: np.ndarray) -> None:
    np.testing.assert_array_equal(centres_to_corners(corners_to_centres(boxes)), boxes)


@given(corner_boxes(), corner_boxes())
def test_iou_is_symmetric_bounded_and_one_on_itself(a: np.ndarray, b: np.ndarray) -> None:
    values = iou(a, b)
    np.testing.assert_array_equal(values, iou(b, a).T)
    assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_array_equal(np.diag(iou(a, a)), 1)


@given(corner_boxes(), corner_boxes())
def test_intersection_is_at_most_either_area(a: np.ndarray, b: np.ndarray) -> None:
    common = intersection(a, b)
    assert (common <= np.minimum(area(a)[:, None], area(b))).all()


@given(corner_boxes(), corner_boxes())
def test_paired_iou_is_iou_of_each_pair(a: np.ndarray, b: np.ndarray) -> None:
    n = min(len(a), len(b))
    np.testing.assert_array_equal(paired_iou(a[:n], b[:n]), np.diag(iou(a[:n], b[:n])))


def test_no_pixel_is_added_and_touching_boxes_do_not_overlap() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]], np.float64)
    np.testing.assert_allclose(iou(boxes[:1], boxes), [[1, 1 / 3, 0]])


def test_border_counts_the_last_pixel() -> None:
    a, b = np.array([[10.0, 10, 19, 19]]), np.array([[12.0, 10, 21, 19]])
    assert paired_iou(a, b, border=1.0)[0] == pytest.approx(80 / 120)


def test_empty_and_inverted_boxes_have_iou_zero() -> None:
    flat = np.array([[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]], np.float32)
    np.testing.assert_array_equal(iou(flat, flat), 0)
    np.testing.assert_array_equal(paired_iou(flat, flat), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_kept(dtype: type) -> None:
    boxes = np.array([[0, 0, 1, 1]], dtype)
    for result in (corners_to_centres(boxes), centres_to_corners(boxes), area(boxes), iou(boxes, boxes)):
        assert result.dtype == dtype


def test_no_boxes_give_empty_matrices() -> None:
    assert iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_clip_limits_every_corner() -> None:
    np.testing.assert_array_equal(clip_to_unit(np.array([[-1, 0.2, 0.5, 3]])), [[0, 0.2, 0.5, 1]])


def test_log_sum_exp_survives_rows_of_different_size() -> None:
    rows = np.array([[1000.0, 1000.0], [-1000.0, -1000.0]])
    np.testing.assert_allclose(log_sum_exp(rows), rows[:, :1] + np.log(2))


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
