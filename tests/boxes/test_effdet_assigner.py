"""Anchors, offsets and targets of an EfficientDet."""

import pickle

import numpy as np
import pytest
from hypothesis import given

from boxes.effdet_assigner import (
    LEVELS,
    PER_CELL,
    STRIDES,
    EffDetAssigner,
    decode_effdet,
    effdet_anchors,
    encode_effdet,
)
from boxes.geometry import centres_to_corners, iou
from tests.boxes.strategies import corner_boxes

ASSIGNER = EffDetAssigner()
SIZE = (128, 256)
SCALE = np.array([SIZE[1], SIZE[0]] * 2)


def objects_of(boxes: np.ndarray) -> np.ndarray:
    """Objects (n, 6) of classes 0, 1, 2, ..."""
    return np.column_stack([np.arange(len(boxes)), boxes, np.zeros(len(boxes))]).astype(np.float32)


@pytest.mark.parametrize("size", [(512, 512), (128, 256), (200, 72)])
def test_every_cell_has_its_anchors_around_its_centre(size: tuple[int, int]) -> None:
    anchors = effdet_anchors(size).reshape(-1, PER_CELL, 4)
    maps = [(-(-size[0] // s), -(-size[1] // s), s) for s in STRIDES[:LEVELS]]
    assert len(anchors) == sum(h * w for h, w, _ in maps)
    centres = [((x + 0.5) * s, (y + 0.5) * s) for h, w, s in maps for y in range(h) for x in range(w)]
    np.testing.assert_array_equal(anchors[:, :, :2], np.tile(np.array(centres)[:, None], (1, PER_CELL, 1)))
    np.testing.assert_array_equal(anchors[0, 0, 2:], [32, 32])


@given(corner_boxes(1, 6))
def test_the_best_iou_decides(boxes: np.ndarray) -> None:
    targets = ASSIGNER(objects_of(boxes), SIZE)
    anchors = effdet_anchors(SIZE)
    overlap = iou((boxes * SCALE).astype(np.float32), centres_to_corners(anchors))
    best, owner = overlap.max(axis=0), overlap.argmax(axis=0)
    want = np.where(best >= 0.5, owner + 1, np.where(best < 0.4, 0, -1))
    np.testing.assert_array_equal(targets["cls_target"], want)
    rows = np.flatnonzero(want > 0)
    assert not np.delete(targets["loc_target"], rows, axis=0).any()
    decoded = decode_effdet(targets["loc_target"][rows], anchors[rows])
    np.testing.assert_allclose(decoded, (boxes * SCALE)[owner[rows]], rtol=0, atol=1e-3)
    assert targets["normaliser"].tolist() == [1]


def test_no_object_forces_an_anchor() -> None:
    tiny = centres_to_corners(np.array([[0.5, 0.5, 0.01, 0.01]]))
    assert not ASSIGNER(objects_of(tiny), SIZE)["cls_target"].any()


def test_thin_objects_are_encoded_as_one_pixel() -> None:
    anchor = np.array([[16.0, 16.0, 8.0, 4.0]])
    offsets = encode_effdet(np.array([[18.0, 17.0, 0.25, 2.0]]), anchor)
    np.testing.assert_allclose(offsets, [[0.25, 0.25, np.log(0.5), np.log(1 / 8)]])


def test_an_image_without_objects_has_negatives_alone() -> None:
    targets = ASSIGNER(np.zeros((0, 6), np.float32), SIZE)
    assert not targets["cls_target"].any()
    assert not targets["loc_target"].any()
    assert targets["normaliser"].tolist() == [1]


def test_a_padding_row_is_ignored_everywhere() -> None:
    ignored = ASSIGNER.ignored(SIZE)
    assert (ignored["cls_target"] == -1).all()
    assert not ignored["normaliser"].any()


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]])
def test_objects_without_area_change_nothing(box: list[float]) -> None:
    good = np.array([[0.1, 0.1, 0.6, 0.6]], np.float32)
    want = ASSIGNER(objects_of(good), SIZE)
    assert want["cls_target"].any()
    got = ASSIGNER(objects_of(np.array([*good, box], np.float32)), SIZE)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("count", [0, 3])
def test_thresholds_of_zero_need_an_overlap(count: int) -> None:
    boxes = np.tile([[0.1, 0.1, 0.3, 0.3]], (count, 1))
    target = EffDetAssigner(pos_iou=0.0, neg_iou=0.0)(objects_of(boxes), SIZE)["cls_target"]
    overlap = iou((boxes * SCALE).astype(np.float32), centres_to_corners(effdet_anchors(SIZE)))
    np.testing.assert_array_equal(target > 0, overlap.max(axis=0, initial=0) > 0)


def test_thresholds_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="0.6"):
        EffDetAssigner(pos_iou=0.5, neg_iou=0.6)


@pytest.mark.parametrize("size", [SIZE, (64, 32), (200, 72)])
def test_arrays_have_the_announced_shapes(size: tuple[int, int]) -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    for arrays in (ASSIGNER(objects, size), ASSIGNER.ignored(size)):
        assert {name: array.shape for name, array in arrays.items()} == ASSIGNER.shapes(size)
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_a_pickled_assigner_gives_the_same() -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    want, got = (assigner(objects, SIZE) for assigner in (ASSIGNER, pickle.loads(pickle.dumps(ASSIGNER))))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
