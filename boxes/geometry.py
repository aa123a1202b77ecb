"""Box algebra on numpy arrays: forms of boxes, areas, intersections, IoU, and the overlaps that box losses learn.

Corner form is [xmin, ymin, xmax, ymax], centre form [cx, cy, w, h]. No area has a +1, and no IoU an epsilon. Functions
keep float32 and float64.

The overlaps of box losses are GIoU, DIoU and CIoU of pairs, and the IoU of sizes. symbol/yolo_losses.py has them as
graphs; these state what those compute. Their sides are signed as in the YOLOv3-SPP trainer, so that inverted boxes
give its numbers too.
"""

import numpy as np

EPSILON = 1e-16  # keeps quotients of boxes without area finite, too small to change any other in float32


def corners_to_centres(boxes: np.ndarray) -> np.ndarray:
    """Corner form (..., 4) to centre form (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def centres_to_corners(boxes: np.ndarray) -> np.ndarray:
    """Centre form (..., 4) to corner form (..., 4); not clipped."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def clip_to_unit(boxes: np.ndarray) -> np.ndarray:
    """Limits every coordinate of corner boxes (..., 4) to [0, 1]; NaN stays NaN."""
    return np.clip(boxes, 0, 1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (...) of corner boxes (..., 4); 0 for empty and inverted boxes."""
    width = np.maximum(boxes[..., 2] - boxes[..., 0], 0)
    return width * np.maximum(boxes[..., 3] - boxes[..., 1], 0)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(n,) bool: corner boxes (n, 4) that are finite and have an area."""
    return np.isfinite(boxes).all(axis=1) & (area(boxes) > 0)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection areas (n, m) of corner boxes a (n, 4) and b (m, 4); 0 where they do not overlap."""
    common = _overlap(a, b, 0)
    common *= _overlap(a, b, 1)
    return common


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of corner boxes a (n, 4) and b (m, 4); 0 where both areas are 0."""
    common = intersection(a, b)
    union = area(a)[:, None] + area(b)
    union -= common
    np.maximum(union, np.finfo(union.dtype).tiny, out=union)  # 0 / 0 becomes 0, every other quotient stays
    return np.divide(common, union, out=common)


def paired_iou(a: np.ndarray, b: np.ndarray, border: float = 0.0) -> np.ndarray:
    """IoU (n,) of each corner box of a (n, 4) with its partner in b (n, 4); 0 where the union is 0.

    Args:
        border: added to every width and height; 1 for boxes that hold the indices of their last pixels (VOC devkit).
    """
    grow = np.array([0, 0, border, border], a.dtype)
    a, b = a + grow, b + grow
    common = area(np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1))
    union = area(a) + area(b) - common
    return common / np.maximum(union, np.finfo(union.dtype).tiny)


def log_sum_exp(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """log(sum(exp(x))) along an axis, which stays with length 1; stable in each row by its own maximum."""
    peak = x.max(axis=axis, keepdims=True)
    return peak + np.log(np.exp(x - peak).sum(axis=axis, keepdims=True))


def _overlap(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Common lengths (n, m) along axis 0 (x) or 1 (y). Contiguous columns keep the inner loop over m fast."""
    low_b, high_b = np.ascontiguousarray(b[:, axis]), np.ascontiguousarray(b[:, axis + 2])
    common = np.minimum(a[:, axis + 2, None], high_b)
    common -= np.maximum(a[:, axis, None], low_b)
    return np.maximum(common, 0, out=common)


def wh_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes with sizes a (n, 2) and b (m, 2) that share a corner; 0 where both areas are 0."""
    common = np.minimum(a[:, None], b).prod(axis=2)  # (n, m)
    union = a.prod(axis=1)[:, None] + b.prod(axis=1) - common
    return common / np.maximum(union, np.finfo(union.dtype).tiny)


def paired_giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU (n,) in [-1, 1] of corner boxes a (n, 4) and b (n, 4).

    IoU minus the share of the enclosing box that neither covers (Rezatofighi et al. 2019, algorithm 1).
    """
    plain = paired_iou(a, b)
    union = (_sides(a).prod(axis=1) + _sides(b).prod(axis=1)) / (1 + plain)  # the sum holds what is common twice
    enclosing = _enclosing_sides(a, b).prod(axis=1) + EPSILON
    return plain - (enclosing - union) / enclosing


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
