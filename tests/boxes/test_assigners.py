"""Matching and the targets of an SSD."""

import pickle

import numpy as np
import pytest
from hypothesis import given

from boxes.anchors import AnchorLayer, decode, multibox_prior
from boxes.assigners import SSDAssigner, match
from boxes.geometry import corners_to_centres, iou
from tests.boxes.strategies import corner_boxes

SIZE = (64, 96)
LAYERS = (AnchorLayer((0.2, 0.3), (1.0, 2.0, 0.5)), AnchorLayer((0.6, 0.8), (1.0, 2.0, 0.5)))
SHAPES = {SIZE: ((8, 12), (4, 6)), (32, 32): ((4, 4), (2, 2))}
ASSIGNER = SSDAssigner(LAYERS, SHAPES)
ANCHORS = np.concatenate([multibox_prior(shape, layer) for shape, layer in zip(SHAPES[SIZE], LAYERS, strict=True)])


def objects_of(boxes: np.ndarray) -> np.ndarray:
    """Objects (n, 6) of classes 0, 1, 2, ..."""
    return np.column_stack([np.arange(len(boxes)), boxes, np.zeros(len(boxes))]).astype(np.float32)


def reference_match(boxes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The rule as ssd.pytorch words it, with its loop over the objects."""
    overlap = iou(boxes, anchors)
    owner, best = overlap.argmax(axis=0), overlap.max(axis=0)
    for index in range(len(boxes)):
        forced = overlap[index].argmax()
        owner[forced], best[forced] = index, 2
    return owner, best >= threshold


@given(corner_boxes(1, 8), corner_boxes(1, 40))
def test_match_is_the_rule_in_loops(boxes: np.ndarray, anchors: np.ndarray) -> None:
    owner, positive = match(boxes, anchors, 0.5)
    want_owner, want_positive = reference_match(boxes, anchors, 0.5)
    np.testing.assert_array_equal(positive, want_positive)
    np.testing.assert_array_equal(owner, want_owner)


def test_iou_equal_to_the_threshold_is_positive() -> None:
    anchors = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.4375]], np.float32)
    _, positive = match(anchors[:1], anchors, 0.5)
    np.testing.assert_array_equal(positive, [True, True, False])


def test_the_threshold_0_makes_anchors_that_overlap_positive() -> None:
    anchors = np.array([[0, 0, 0.5, 0.5], [0.4, 0, 0.9, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    _, positive = match(anchors[:1], anchors, 0.0)
    np.testing.assert_array_equal(positive, [True, True, False])
    targets = SSDAssigner(LAYERS, SHAPES, threshold=0.0)(objects_of(np.zeros((0, 4))), SIZE)
    assert not targets["cls_target"].any()


def test_the_last_of_objects_with_one_best_anchor_has_it() -> None:
    anchor = np.array([[0, 0, 1, 1]], np.float32)
    boxes = np.array([[0, 0, 0.9, 0.9], [0, 0, 0.1, 0.1]], np.float32)
    owner, positive = match(boxes, anchor, 0.5)
    assert (owner[0], positive[0]) == (1, True)


@given(corner_boxes(1, 8))
def test_targets_decode_to_the_objects(boxes: np.ndarray) -> None:
    targets = ASSIGNER(objects_of(boxes), SIZE)
    positive = targets["cls_target"] > 0
    ids = targets["cls_target"][positive].astype(int) - 1
    decoded = decode(targets["loc_target"][positive], corners_to_centres(ANCHORS)[positive], ASSIGNER.variances)
    np.testing.assert_allclose(decoded, boxes[ids], atol=1e-5)
    assert targets["normaliser"][0] == positive.sum() > 0
    np.testing.assert_array_equal(targets["loc_target"][~positive], 0)


def test_an_image_without_objects_is_background() -> None:
    targets = ASSIGNER(np.zeros((0, 6), np.float32), SIZE)
    assert not any(array.any() for array in targets.values())


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]])
def test_objects_without_area_change_nothing(box: list[float]) -> None:
    good = np.array([[0.1, 0.1, 0.6, 0.6]], np.float32)
    want = ASSIGNER(objects_of(good), SIZE)
    got = ASSIGNER(objects_of(np.array([*good, box], np.float32)), SIZE)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_pickled_assigner_is_small_and_gives_the_same() -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    want = ASSIGNER(objects, SIZE)
    data = pickle.dumps(ASSIGNER)
    assert len(data) < 2000  # the anchors stay behind
    got = pickle.loads(data)(objects, SIZE)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("size", SHAPES)
def test_arrays_have_the_announced_shapes(size: tuple[int, int]) -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    shapes = ASSIGNER.shapes(size)
    for arrays in (ASSIGNER(objects, size), ASSIGNER.ignored(size)):
        assert {name: array.shape for name, array in arrays.items()} == shapes
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_a_padding_row_is_ignored_everywhere() -> None:
    ignored = ASSIGNER.ignored(SIZE)
    assert (ignored["cls_target"] == -1).all()
    assert not ignored["loc_target"].any()
    assert ignored["normaliser"][0] == 0


def test_changing_targets_leaves_the_next_image_alone() -> None:
    empty = np.zeros((0, 6), np.float32)
    ASSIGNER(empty, SIZE)["cls_target"][:] = 5
    assert not ASSIGNER(empty, SIZE)["cls_target"].any()


def test_an_unknown_input_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(10, 10\)"):
        ASSIGNER(np.zeros((0, 6), np.float32), (10, 10))
