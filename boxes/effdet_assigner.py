"""EfficientDet's anchors, offsets of boxes from them, and its assigner: which anchor learns which object.

Tan et al. 2020, section 5.1, and RetinaNet, section 4. Numpy only, it runs in the workers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from boxes.geometry import centres_to_corners, corners_to_centres, has_area, iou
from common.sizes import Size

STRIDES = (8, 16, 32, 64, 128, 256)  # of the levels P3 ... P8
LEVELS = 5  # P3 ... P7; the largest network alone has P8
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # factors of the width and of the height
PER_CELL = len(SCALES) * len(RATIOS)
MINIMUM_SIDE = 1.0  # pixels that an object's sides count at least, when they are encoded
COMPARED = 64  # objects compared with all anchors at a time
CACHED_SIZES = 64  # input sizes whose anchors a process keeps


@dataclass(frozen=True)
class EffDetAssigner:
    """Targets of an EfficientDet for one image; contract in docs/contracts.md.

    Every anchor looks at its best object (the first of equals): from pos_iou on it learns it, below neg_iou it is
    background, between them it is ignored. No object forces an anchor, so that one may have none (RetinaNet, section
    4). IoUs are those of the unclipped anchors, in pixels of the input.

    Attributes:
        pos_iou: IoU from which an anchor is positive.
        neg_iou: IoU below which it is negative; at most pos_iou, another gives ValueError.
        anchor_scale: side of a level's smallest square anchor in cells.
        levels: number of maps.
    """

    pos_iou: float = 0.5
    neg_iou: float = 0.4
    anchor_scale: float = 4.0
    levels: int = LEVELS

    def __post_init__(self) -> None:
        if self.neg_iou > self.pos_iou:
            raise ValueError(f"anchors below {self.neg_iou} are negative, but those from {self.pos_iou} on positive")

    def __call__(self, objects: np.ndarray, size: Size) -> dict[str, np.ndarray]:
        """Targets of an image of input size (H, W) with objects (n, 6); objects without area are left out.

        Returns:
            cls_target (A,): id + 1 of a positive, 0 negative, -1 ignored; loc_target (A, 4): offsets dy, dx, dh, dw of
            the positives, 0 elsewhere; normaliser (1,): 1, the image. All float32.
        """
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        targets["normaliser"][:] = 1
        objects = objects[has_area(objects[:, 1:5])]
        boxes = (objects[:, 1:5] * np.array([size[1], size[0]] * 2)).astype(np.float32)  # (n, 4) pixels
        overlap = iou(boxes, _corners(size, self.anchor_scale, self.levels))  # (n, A)
        best = overlap.max(axis=0, initial=0)
        rows = np.flatnonzero((best >= self.pos_iou) & (best > 0))
        owner = overlap[:, rows].argmax(axis=0) if len(rows) else rows
        targets["cls_target"][best >= self.neg_iou] = -1
        targets["cls_target"][rows] = objects[owner, 0] + 1
        anchors = effdet_anchors(size, self.anchor_scale, self.levels)[rows]
        targets["loc_target"][rows] = encode_effdet(corners_to_centres(boxes[owner]), anchors)
        return targets

    def best_iou(self, boxes: np.ndarray, size: Size) -> np.ndarray:
        """IoU (n,) of normalised corner boxes (n, 4) with their best anchor in an input (H, W)."""
        anchors = _corners(size, self.anchor_scale, self.levels)
        pixels = (boxes * np.array([size[1], size[0]] * 2)).astype(np.float32)
        starts = range(0, len(boxes), COMPARED)
        return np.concatenate([np.zeros(0), *(iou(pixels[k : k + COMPARED], anchors).max(axis=1) for k in starts)])

    def shapes(self, size: Size) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays for one image of input size (H, W)."""
        count = len(effdet_anchors(size, self.anchor_scale, self.levels))
        return {"cls_target": (count,), "loc_target": (count, 4), "normaliser": (1,)}

    def ignored(self, size: Size) -> dict[str, np.ndarray]:
        """Arrays of a padding row: every anchor ignored (cls_target -1), no image to divide by."""
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        targets["cls_target"][:] = -1
        return targets


@lru_cache(maxsize=CACHED_SIZES)
def _corners(size: Size, anchor_scale: float, levels: int) -> np.ndarray:
    """The anchors (A, 4) as corners, read-only."""
    corners = centres_to_corners(effdet_anchors(size, anchor_scale, levels))
    corners.flags.writeable = False
    return corners


def cell_anchors(stride: int, anchor_scale: float = 4.0) -> np.ndarray:
    """(9, 2) float64 width and height in pixels of a cell's anchors: scales, for each of them the ratios.

    The smallest square has sides of anchor_scale cells.
    """
    sides = stride * anchor_scale * np.array(SCALES)[:, None, None] * np.array(RATIOS)  # (scales, ratios, 2)
    return sides.reshape(-1, 2)


@lru_cache(maxsize=CACHED_SIZES)
def effdet_anchors(size: Size, anchor_scale: float = 4.0, levels: int = LEVELS) -> np.ndarray:
    """Anchors (A, 4) float32, centre form (cx, cy, w, h) in pixels of an input of (H, W); read-only, not clipped.

    In the order level, row, column, anchor of the cell. A map has ceil(side / stride) cells along a side; the anchors
    stand around the centres of the cells.
    """
    anchors = np.concatenate([_level(size, stride, anchor_scale) for stride in STRIDES[:levels]]).astype(np.float32)
    anchors.flags.writeable = False
    return anchors


def _level(size: Size, stride: int, anchor_scale: float) -> np.ndarray:
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
