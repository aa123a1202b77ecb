"""Overlaps of boxes and the targets of the YOLOv3-SPP trainer."""

import numpy as np
import pytest

from boxes.geometry import PAIRED_OVERLAPS, centres_to_corners, corners_to_centres, iou, wh_iou
from boxes.yolo_assigner import YOLOAssigner
from tests.golden.loader import Case, assert_close, cases


@pytest.mark.parametrize("case", cases("yolo_bbox_iou"), ids=str)
def test_paired_overlap(case: Case) -> None:
    overlap = PAIRED_OVERLAPS[case.args["kind"]]
    assert_close(case, "from_xyxy", overlap(case["box1_xyxy"], case["box2_xyxy"]))
    corners = [centres_to_corners(case[name]) for name in ("box1_xywh", "box2_xywh")]
    assert_close(case, "from_xywh", overlap(*corners))


@pytest.mark.parametrize("case", cases("yolo_bbox_iou_one_vs_many"), ids=str)
def test_one_box_with_many(case: Case) -> None:
    others = case["box2_xyxy"]
    box = np.broadcast_to(case["box1_xyxy"][case.args["box1_row"]], others.shape)
    assert_close(case, "out", PAIRED_OVERLAPS[case.args["kind"]](box, others))


@pytest.mark.parametrize("case", cases("yolo_wh_iou"), ids=str)
def test_iou_of_sizes(case: Case) -> None:
    assert_close(case, "out", wh_iou(case["wh1"], case["wh2"]))


@pytest.mark.parametrize("case", cases("yolo_box_iou"), ids=str)
def test_iou_of_all_pairs(case: Case) -> None:
    rows = [slice(*case.args[f"{name}_rows"]) for name in ("box1", "box2")]
    assert_close(case, "out", iou(case["box1_xyxy"][rows[0]], case["box2_xyxy"][rows[1]]))


@pytest.mark.parametrize("case", cases("yolo_xyxy2xywh"), ids=str)
def test_corners_to_centres(case: Case) -> None:
    assert_close(case, "out", corners_to_centres(case["x"]))


@pytest.mark.parametrize("case", cases("yolo_xywh2xyxy"), ids=str)
def test_centres_to_corners(case: Case) -> None:
    assert_close(case, "out", centres_to_corners(case["x"]))


def yolo_assigner(case: Case) -> YOLOAssigner:
    """The assigner of a case's anchors, strides and threshold."""
    anchors = tuple(tuple(tuple(case.args["anchors_px"][k]) for k in mask) for mask in case.args["anchor_masks"])
    return YOLOAssigner(anchors, tuple(case.args["strides"]), case.args["iou_t"])


def image_objects(case: Case, image: int) -> np.ndarray:
    """Objects (n, 6) of one image out of the rows (image, class, cx, cy, w, h) of a case."""
    rows = case["targets"][case["targets"][:, 0] == image].astype(np.float64)
    return np.column_stack([rows[:, 1], centres_to_corners(rows[:, 2:]), np.zeros(len(rows))])


@pytest.mark.parametrize("case", cases("yolo_build_targets"), ids=str)
def test_build_targets(case: Case) -> None:
    assigner, size = yolo_assigner(case), tuple(case.args["img_hw"])
    for level in range(len(assigner.anchors)):
        found = [assigner.positives(image_objects(case, k), size, level) for k in range(case.args["batch"])]
        images = np.repeat(np.arange(len(found)), [len(positives.anchor) for positives in found])
        joined = type(found[0])(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        order = np.lexsort((images, joined.anchor))  # the reference's batch is one list: anchors, then images
        got = {
            "tcls": joined.classes,
            "tbox": joined.box,
            "indices": np.column_stack([images, joined.anchor, joined.row, joined.column]),
            "anch": joined.sizes,
        }
        for name, values in got.items():
            assert_close(case, f"L{level}_{name}", values[order])
