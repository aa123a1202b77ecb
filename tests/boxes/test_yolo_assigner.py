"""The targets of a YOLOv3."""

import pickle

import numpy as np
import pytest
from hypothesis import given

from boxes.assigners import AssignerError
from boxes.geometry import centres_to_corners, corners_to_centres, wh_iou
from boxes.yolo_assigner import COLUMNS, YOLOAssigner
from tests.boxes.strategies import corner_boxes

ANCHORS = (((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))
STRIDES = (32, 16)
ASSIGNER = YOLOAssigner(ANCHORS, STRIDES)
SIZE = (320, 416)
NAMES = dict(zip(COLUMNS, range(len(COLUMNS)), strict=True))


def objects_of(boxes: np.ndarray) -> np.ndarray:
    """Objects (n, 6) of classes 0, 1, 2, ..."""
    return np.column_stack([np.arange(len(boxes)), boxes, np.zeros(len(boxes))]).astype(np.float32)


def rows_of(targets: dict[str, np.ndarray], level: int) -> np.ndarray:
    """The rows (p, 11) of the positives of one map."""
    rows = targets["yolo_target"][level]
    return rows[rows[:, 0] >= 0]


def column(rows: np.ndarray, name: str) -> np.ndarray:
    return rows[:, NAMES[name]]


@given(corner_boxes(1, 8))
def test_every_anchor_above_the_threshold_learns_the_object(boxes: np.ndarray) -> None:
    targets = ASSIGNER(objects_of(boxes), SIZE)
    sizes = corners_to_centres(boxes)[:, 2:] * SIZE[::-1]
    for level, anchors in enumerate(ANCHORS):
        rows = rows_of(targets, level)
        wanted = np.argwhere(wh_iou(np.array(anchors), sizes) > ASSIGNER.iou_threshold)
        got = np.column_stack([column(rows, "anchor"), column(rows, "class")])
        np.testing.assert_array_equal(got, wanted)
        assert targets["normaliser"][level] == len(rows)
    assert targets["normaliser"][-1] == targets["image_mask"][0] == 1


@given(corner_boxes(1, 8))
def test_targets_decode_to_the_objects(boxes: np.ndarray) -> None:
    targets = ASSIGNER(objects_of(boxes), SIZE)
    for level, stride in enumerate(STRIDES):
        rows = rows_of(targets, level)
        cells = np.array([SIZE[1], SIZE[0]]) / stride
        corner = rows[:, [NAMES["column"], NAMES["row"]]]
        assert ((corner >= 0) & (corner < cells)).all()
        centre = corner + rows[:, [NAMES["dx"], NAMES["dy"]]]
        decoded = np.concatenate([centre / cells, rows[:, [NAMES["w"], NAMES["h"]]] / cells], axis=1)
        np.testing.assert_allclose(
            centres_to_corners(decoded), boxes[column(rows, "class").astype(int)], rtol=0, atol=1e-6
        )
        anchors = np.array(ANCHORS[level])[column(rows, "anchor").astype(int)] / stride
        np.testing.assert_allclose(rows[:, [NAMES["anchor_w"], NAMES["anchor_h"]]], anchors)


def test_a_centre_on_the_far_border_belongs_to_the_last_cell() -> None:
    box = centres_to_corners(np.array([[1.0, 1.0, 0.5, 0.5]]))
    row = rows_of(ASSIGNER(objects_of(box), SIZE), 0)[0]
    assert (row[NAMES["row"]], row[NAMES["column"]]) == (SIZE[0] // 32 - 1, SIZE[1] // 32 - 1)
    assert (row[NAMES["dx"]], row[NAMES["dy"]]) == (1, 1)


def test_of_objects_in_one_cell_all_count_and_the_last_has_it() -> None:
    boxes = centres_to_corners(np.array([[0.5, 0.5, 0.4, 0.5], [0.1, 0.1, 0.4, 0.5], [0.501, 0.501, 0.4, 0.52]]))
    rows = rows_of(ASSIGNER(objects_of(boxes), SIZE), 0)
    first = rows[rows[:, 0] == rows[0, 0]]
    assert column(first, "class").tolist() == [0, 1, 2]
    assert column(first, "owns_cell").tolist() == [0, 1, 1]


def test_an_image_without_objects_has_no_positives() -> None:
    targets = ASSIGNER(np.zeros((0, 6), np.float32), SIZE)
    assert (targets["yolo_target"][..., 0] == -1).all()
    assert targets["normaliser"].tolist() == [0, 0, 1]
    assert targets["image_mask"].tolist() == [1]


def test_a_padding_row_is_ignored_everywhere() -> None:
    ignored = ASSIGNER.ignored(SIZE)
    assert (ignored["yolo_target"][..., 0] == -1).all()
    assert not ignored["normaliser"].any()
    assert not ignored["image_mask"].any()


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]])
def test_objects_without_area_change_nothing(box: list[float]) -> None:
    good = np.array([[0.1, 0.1, 0.6, 0.6]], np.float32)
    want = ASSIGNER(objects_of(good), SIZE)
    got = ASSIGNER(objects_of(np.array([*good, box], np.float32)), SIZE)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_more_targets_than_rows_are_an_error_and_lose_nothing() -> None:
    boxes = centres_to_corners(np.tile([0.5, 0.5, 0.3, 0.3], (100, 1)))
    rows = [len(rows_of(ASSIGNER(objects_of(boxes), SIZE), level)) for level in range(2)]
    assert 0 < max(rows) <= 300
    small = YOLOAssigner(ANCHORS, STRIDES, max_targets=max(rows) - 1)
    with pytest.raises(AssignerError, match=f"100 objects make {max(rows)} targets .* for_objects"):
        small(objects_of(boxes), SIZE)


def test_a_hundred_objects_fit_whatever_their_sizes() -> None:
    rng = np.random.default_rng(0)
    boxes = centres_to_corners(np.column_stack([rng.random((100, 2)), rng.uniform(0.01, 1, (100, 2))]))
    everything = YOLOAssigner(ANCHORS, STRIDES, iou_threshold=0.0, max_targets=1).for_objects(100)
    assert everything(objects_of(boxes), SIZE)["normaliser"].tolist() == [300, 300, 1]


@pytest.mark.parametrize("size", [SIZE, (64, 32)])
def test_arrays_have_the_announced_shapes_at_every_size(size: tuple[int, int]) -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    for arrays in (ASSIGNER(objects, size), ASSIGNER.ignored(size)):
        assert {name: array.shape for name, array in arrays.items()} == ASSIGNER.shapes((320, 320))
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_an_input_size_between_strides_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(330, 320\)"):
        ASSIGNER(np.zeros((0, 6), np.float32), (330, 320))


def test_a_pickled_assigner_gives_the_same() -> None:
    objects = objects_of(np.array([[0.1, 0.1, 0.6, 0.6]]))
    want, got = (assigner(objects, SIZE) for assigner in (ASSIGNER, pickle.loads(pickle.dumps(ASSIGNER))))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
