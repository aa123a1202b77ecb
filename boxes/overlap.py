"""Overlap measures that box losses learn: IoU, GIoU, DIoU and CIoU of pairs, IoU of sizes. Numpy only.

symbol/yolo_losses.py has them as graphs; these state what those compute. Sides are signed as in the YOLOv3-SPP trainer,
so that inverted boxes give its numbers too.
"""

import numpy as np

from boxes.geometry import corners_to_centres, paired_iou

EPSILON = 1e-16  # keeps quotients of boxes without area finite, too small to change any other in float32


def wh_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes with sizes a (n, 2) and b (m, 2) that share a corner; 0 where both areas are 0."""
    common = np.minimum(a[:, None], b).prod(axis=2)  # (n, m)
    union = a.prod(axis=1)[:, None] + b.prod(axis=1) - common
    return common / np.maximum(union, np.finfo(union.dtype).tiny)


def paired_giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU (n,) in [-1, 1] of corner boxes a (n, 4) and b (n, 4).

    IoU minus the share of the enclosing box that neither covers (Rezatofighi et al. 2019, algorithm 1).
    """
    iou = paired_iou(a, b)
    union = (_sides(a).prod(axis=1) + _sides(b).prod(axis=1)) / (1 + iou)  # the sum holds what is common twice
    enclosing = _enclosing_sides(a, b).prod(axis=1) + EPSILON
    return iou - (enclosing - union) / enclosing


def paired_diou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance IoU (n,) of corner boxes a (n, 4) and b (n, 4); identical boxes give 1.

    IoU minus the squared distance of the centres by the squared diagonal of the enclosing box (Zheng et al. 2020,
    equation 7).
    """
    distance = (corners_to_centres(a) - corners_to_centres(b))[:, :2]
    diagonal = (_enclosing_sides(a, b) ** 2).sum(axis=1) + EPSILON
    return paired_iou(a, b) - (distance**2).sum(axis=1) / diagonal


def paired_ciou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Complete IoU (n,) of corner boxes a (n, 4) and b (n, 4); identical boxes give 1.

    DIoU minus alpha * v, v the squared difference of the aspect angles (Zheng et al. 2020, equations 8-11).
    """
    v = 4 / np.pi**2 * (_aspect_angle(a) - _aspect_angle(b)) ** 2
    alpha = v / np.maximum(np.maximum(1 - paired_iou(a, b), 0) + v, EPSILON)
    return paired_diou(a, b) - alpha * v


PAIRED_OVERLAPS = {"iou": paired_iou, "giou": paired_giou, "diou": paired_diou, "ciou": paired_ciou}


def _sides(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2:] - boxes[:, :2]


def _enclosing_sides(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 2) width and height of the smallest box around each pair."""
    return np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])


def _aspect_angle(boxes: np.ndarray) -> np.ndarray:
    """(n,) arctan(width / height), 0 where both are 0."""
    width, height = _sides(boxes).T
    return np.arctan2(width * np.sign(height), np.abs(height))
