"""Offsets between boxes and anchors (SSD, section 2.2; variances as in Caffe SSD)."""

from collections.abc import Sequence

import numpy as np

from boxes.geometry import corners_to_centres


def expand_variances(variances: Sequence[float], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """(4,) variances of cx, cy, w, h from 2 numbers (centre, size) or 4.

    Raises:
        ValueError: another count, or a number that is not positive.
    """
    if len(variances) not in (2, 4) or min(variances) <= 0:
        raise ValueError(f"variances are 2 or 4 positive numbers, not {variances}")
    return np.repeat(np.asarray(variances, dtype), 4 // len(variances))


def encode(boxes: np.ndarray, anchors: np.ndarray, variances: Sequence[float]) -> np.ndarray:
    """Offsets (n, 4) that take each anchor to its box: ((gx-ax)/aw, (gy-ay)/ah, ln(gw/aw), ln(gh/ah)) / variances.

    Args:
        boxes: (n, 4) corners, one per anchor; a box without width or height gives -inf, callers drop such objects.
        anchors: (n, 4) centre form, sizes > 0.
        variances: 2 or 4 numbers.
    """
    boxes = corners_to_centres(boxes)
    with np.errstate(divide="ignore"):
        size = np.log(boxes[:, 2:] / anchors[:, 2:])
    centre = (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:]
    return np.concatenate([centre, size], axis=1) / expand_variances(variances, size.dtype)


def decode(offsets: np.ndarray, anchors: np.ndarray, variances: Sequence[float]) -> np.ndarray:
    """Corner boxes (..., 4) from offsets (..., 4) and centre-form anchors (..., 4): inverse of encode; not clipped."""
    scaled = offsets * expand_variances(variances, offsets.dtype)
    half = anchors[..., 2:] * np.exp(scaled[..., 2:]) / 2
    centre = anchors[..., :2] + scaled[..., :2] * anchors[..., 2:]
    return np.concatenate([centre - half, centre + half], axis=-1)
