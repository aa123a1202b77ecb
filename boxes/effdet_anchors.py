"""Anchors of EfficientDet and offsets of boxes from them (Tan et al. 2020, section 5.1; RetinaNet, section 4)."""

from functools import lru_cache

import numpy as np

STRIDES = (8, 16, 32, 64, 128, 256)  # of the levels P3 ... P8
LEVELS = 5  # P3 ... P7; the largest network alone has P8
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # factors of the width and of the height
PER_CELL = len(SCALES) * len(RATIOS)
MINIMUM_SIDE = 1.0  # pixels that an object's sides count at least, when they are encoded
CACHED_SIZES = 64  # input sizes whose anchors a process keeps


def cell_anchors(stride: int, anchor_scale: float = 4.0) -> np.ndarray:
    """(9, 2) float64 width and height in pixels of a cell's anchors: scales, for each of them the ratios.

    The smallest square has sides of anchor_scale cells.
    """
    sides = stride * anchor_scale * np.array(SCALES)[:, None, None] * np.array(RATIOS)  # (scales, ratios, 2)
    return sides.reshape(-1, 2)


@lru_cache(maxsize=CACHED_SIZES)
def effdet_anchors(size: tuple[int, int], anchor_scale: float = 4.0, levels: int = LEVELS) -> np.ndarray:
    """Anchors (A, 4) float32, centre form (cx, cy, w, h) in pixels of an input of (H, W); read-only, not clipped.

    In the order level, row, column, anchor of the cell. A map has ceil(side / stride) cells along a side; the anchors
    stand around the centres of the cells.
    """
    anchors = np.concatenate([_level(size, stride, anchor_scale) for stride in STRIDES[:levels]]).astype(np.float32)
    anchors.flags.writeable = False
    return anchors


def _level(size: tuple[int, int], stride: int, anchor_scale: float) -> np.ndarray:
    height, width = (-(-side // stride) for side in size)
    anchors = np.empty((height, width, PER_CELL, 4))
    anchors[..., 0] = ((np.arange(width) + 0.5) * stride)[:, None]
    anchors[..., 1] = ((np.arange(height) + 0.5) * stride)[:, None, None]
    anchors[..., 2:] = cell_anchors(stride, anchor_scale)
    return anchors.reshape(-1, 4)  # (h * w * 9, 4)


def encode_effdet(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Offsets (n, 4) that take each anchor to its box: ((gy-ay)/ah, (gx-ax)/aw, ln(gh/ah), ln(gw/aw)).

    boxes and anchors: (n, 4) centre form in pixels. Sides of boxes below one pixel count as one; the centre stays.
    """
    sides = np.log(np.maximum(boxes[:, 2:], MINIMUM_SIDE) / anchors[:, 2:])
    centre = (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:]
    return np.concatenate([centre[:, ::-1], sides[:, ::-1]], axis=1)


def decode_effdet(offsets: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Corner boxes (..., 4) in pixels from offsets (..., 4) and centre-form anchors (..., 4); not clipped.

    The inverse of encode_effdet for boxes with sides of at least a pixel.
    """
    half = np.exp(offsets[..., [3, 2]]) * anchors[..., 2:] / 2
    centre = anchors[..., :2] + offsets[..., [1, 0]] * anchors[..., 2:]
    return np.concatenate([centre - half, centre + half], axis=-1)
