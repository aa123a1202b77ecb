"""The assigner of EfficientDet: which anchor learns which object. Numpy only, it runs in the workers."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from boxes.effdet_anchors import CACHED_SIZES, LEVELS, effdet_anchors, encode_effdet
from boxes.geometry import centres_to_corners, corners_to_centres, has_area, iou


@dataclass(frozen=True)
class EffDetAssigner:
    """Targets of an EfficientDet for one image; contract in docs/architecture.md.

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

    def __call__(self, objects: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
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

    def shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays for one image of input size (H, W)."""
        count = len(effdet_anchors(size, self.anchor_scale, self.levels))
        return {"cls_target": (count,), "loc_target": (count, 4), "normaliser": (1,)}

    def ignored(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Arrays of a padding row: every anchor ignored (cls_target -1), no image to divide by."""
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        targets["cls_target"][:] = -1
        return targets


@lru_cache(maxsize=CACHED_SIZES)
def _corners(size: tuple[int, int], anchor_scale: float, levels: int) -> np.ndarray:
    """The anchors (A, 4) as corners, read-only."""
    corners = centres_to_corners(effdet_anchors(size, anchor_scale, levels))
    corners.flags.writeable = False
    return corners
