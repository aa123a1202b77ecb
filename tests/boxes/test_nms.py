"""The NMS reference against MultiBoxDetection and against its own definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxes.anchors import AnchorLayer, multibox_prior
from boxes.geometry import iou
from boxes.nms import multibox_detection, nms
from machine.runtime import mx
from tests.boxes.strategies import corner_boxes

ANCHORS = multibox_prior((6, 9), AnchorLayer((0.2, 0.4), (1.0, 2.0, 0.5)))


@given(corner_boxes(1, 12), st.randoms(use_true_random=False))
def test_kept_boxes_do_not_overlap_and_removed_ones_do(boxes: np.ndarray, random: object) -> None:
    scores = np.array([random.random() for _ in boxes])
    kept = nms(boxes, scores, 0.4)
    assert (np.diff(scores[kept]) <= 0).all()
    among = iou(boxes[kept], boxes[kept])
    assert (among[~np.eye(len(kept), dtype=bool)] < 0.4).all()
    for removed in set(range(len(boxes))) - set(kept.tolist()):
        better = kept[scores[kept] >= scores[removed]]
        assert iou(boxes[[removed]], boxes[better]).max() >= 0.4


def test_only_the_best_are_considered() -> None:
    boxes = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], np.float32)
    assert nms(boxes, np.array([0.1, 0.9, 0.5]), 0.5, top_k=2).tolist() == [1, 2]


def test_classes_suppress_their_own_only() -> None:
    boxes = np.zeros((3, 4)) + [0, 0, 1, 1]
    scores, classes = np.array([0.5, 0.9, 0.7]), np.array([0, 0, 1])
    assert nms(boxes, scores, 0.5, classes=classes).tolist() == [1, 2]
    assert nms(boxes, scores, 0.5).tolist() == [1]


def test_iou_equal_to_the_threshold_is_removed_unless_told() -> None:
    boxes, scores = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5]]), np.array([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [0]
    assert nms(boxes, scores, 0.5, keep_equal=True).tolist() == [0, 1]


def test_no_boxes_leave_none() -> None:
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1])
def test_thresholds_that_switch_nms_off_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        nms(np.zeros((1, 4)), np.zeros(1), threshold)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"force_suppress": True},
        {"nms_topk": 30},
        {"nms_threshold": 0.3, "threshold": 0.4},
        {"variances": (0.2, 0.1, 0.3, 0.2), "clip": False},
    ],
    ids=str,
)
def test_detections_are_those_of_the_operator(options: dict[str, object]) -> None:
    rng = np.random.default_rng(7)
    logits = 2 * rng.standard_normal((1, 4, len(ANCHORS))).astype(np.float32)
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loc = rng.standard_normal((1, 4 * len(ANCHORS))).astype(np.float32)
    rows = mx.nd.contrib.MultiBoxDetection(mx.nd.array(prob), mx.nd.array(loc), mx.nd.array(ANCHORS[None]), **options)
    want = rows.asnumpy()[0]
    want = want[want[:, 0] >= 0]
    got = multibox_detection(prob[0], loc[0], ANCHORS, **options)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert len(got) > 5
