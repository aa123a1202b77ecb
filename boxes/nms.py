"""Greedy non-maximum suppression and the detections of an SSD in numpy: the reference for tests of graphs."""

from collections.abc import Sequence

import numpy as np

from boxes.anchors import decode
from boxes.geometry import clip_to_unit, corners_to_centres, iou


def nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    top_k: int = -1,
    classes: np.ndarray | None = None,
    keep_equal: bool = False,
) -> np.ndarray:
    """Greedy NMS: a box is removed when it overlaps a better one that is kept.

    Args:
        boxes: (n, 4) corners.
        scores: (n,) numbers; of equal ones the first is the better.
        threshold: IoU from which a box is removed, in (0, 1].
        top_k: number of best boxes that are considered at all, over all classes; -1 = all.
        classes: (n,) class of each box: only boxes of one class suppress each other; None = all do.
        keep_equal: keep a box whose IoU equals the threshold (ssd.pytorch); MultiBoxDetection removes it.

    Returns:
        Indices of the kept boxes, best first; empty for no boxes.

    Raises:
        ValueError: threshold outside (0, 1], where MultiBoxDetection silently does nothing.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the NMS threshold lies in (0, 1], not {threshold}")
    order = np.argsort(-scores, kind="stable")
    if top_k >= 0:
        order = order[:top_k]
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        overlap = iou(boxes[best, None], boxes[order])[0]
        survives = overlap <= threshold if keep_equal else overlap < threshold
        if classes is not None:
            survives |= classes[order] != classes[best]
        order = order[survives]
    return np.array(kept, dtype=np.int64)


def multibox_detection(
    cls_prob: np.ndarray,
    loc_pred: np.ndarray,
    anchors: np.ndarray,
    threshold: float = 0.01,
    nms_threshold: float = 0.5,
    force_suppress: bool = False,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    nms_topk: int = -1,
    clip: bool = True,
) -> np.ndarray:
    """The valid rows (n, 6) [id, score, xmin, ymin, xmax, ymax] that MultiBoxDetection gives for one image, best first.

    Each anchor has one class, its best foreground one (the first of equals), and counts if its probability is at least
    the threshold.

    Args:
        cls_prob: (C + 1, A) probabilities, row 0 the background.
        loc_pred: (A, 4) or (4 * A,) offsets.
        anchors: (A, 4) corners.
        threshold, nms_threshold, force_suppress, variances, nms_topk, clip: as in the operator; force_suppress lets
            boxes of different classes suppress each other.
    """
    ids, scores = cls_prob[1:].argmax(axis=0), cls_prob[1:].max(axis=0)
    rows = np.flatnonzero(scores >= threshold)
    boxes = decode(loc_pred.reshape(-1, 4)[rows], corners_to_centres(anchors)[rows], variances)
    boxes = clip_to_unit(boxes) if clip else boxes
    ids, scores = ids[rows], scores[rows]
    kept = nms(boxes, scores, nms_threshold, nms_topk, None if force_suppress else ids)
    return np.concatenate([ids[kept, None], scores[kept, None], boxes[kept]], axis=1)
