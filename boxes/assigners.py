"""Assigners: which anchor learns which object. Numpy only, so that they run in the iterator's workers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from boxes.anchors import AnchorLayer, encode, multibox_prior
from boxes.geometry import corners_to_centres, has_area, iou
from common.sizes import Size

CACHED_GRIDS = 64  # input sizes whose anchors a process keeps


class AssignerError(ValueError):
    """An assigner cannot take an image's objects; the message names the remedy, whoever catches it the record."""


def match(boxes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Matches anchors to objects by the rule of ssd.pytorch's match() (SSD, section 2.2).

    Every object forces its best anchor to be positive for it; where objects share one, the last has it. Any other
    anchor belongs to its best object (the first of equals) and is positive if they overlap with an IoU of at least the
    threshold.

    Args:
        boxes: (n, 4) corners of the objects, finite, each with an area; without objects no anchor is positive.
        anchors: (A, 4) corners.

    Returns:
        (A,) int index of each anchor's object, background anchors included, and (A,) bool: is it positive.
    """
    overlap = iou(boxes, anchors)  # (n, A)
    best = overlap.max(axis=0, initial=0)
    positive = (best >= threshold) & (best > 0)
    order = np.arange(len(boxes), 0, -1, dtype=np.int32)[:, None]
    owner = len(boxes) - ((overlap == best) * order).max(axis=0, initial=0)  # overlap.argmax(axis=0), but faster
    forced = overlap.argmax(axis=1)
    owner[forced] = np.arange(len(boxes))  # the last of equal indices is kept
    positive[forced] = True
    return owner, positive


class Assigner(Protocol):
    """Gives each anchor of a network its target; see docs/contracts.md. It must be picklable."""

    def __call__(self, objects: np.ndarray, size: Size) -> dict[str, np.ndarray]:
        """Targets, one array a name, of an image with objects (n, 6) in an input (H, W)."""

    def shapes(self, size: Size) -> dict[str, tuple[int, ...]]:
        """The shape of each array for an input (H, W)."""

    def ignored(self, size: Size) -> dict[str, np.ndarray]:
        """The targets of a row that is no sample."""


@dataclass(frozen=True)
class SSDAssigner:
    """Targets of an SSD for one image; contract in docs/contracts.md.

    Attributes:
        layers: anchors of each feature map.
        feature_shapes: (h, w) of each feature map by input size (H, W).
        threshold: IoU from which an anchor is positive.
        variances: 2 or 4 numbers of the offsets.
    """

    layers: tuple[AnchorLayer, ...]
    feature_shapes: Mapping[Size, tuple[Size, ...]]
    threshold: float = 0.5
    variances: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)

    def __call__(self, objects: np.ndarray, size: Size) -> dict[str, np.ndarray]:
        """Targets of an image of input size (H, W) with objects (n, 6); objects without area are left out.

        Returns:
            cls_target (A,): 0 background, id + 1 otherwise; loc_target (A, 4): offsets of the positives, 0 elsewhere;
            normaliser (1,): number of positives. All float32.
        """
        corners, centres = self._anchors(size)
        objects = objects[has_area(objects[:, 1:5])]
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        owner, positive = match(objects[:, 1:5], corners, self.threshold)
        rows = np.flatnonzero(positive)
        owned = objects[owner[rows]]
        targets["cls_target"][rows] = owned[:, 0] + 1
        targets["loc_target"][rows] = encode(owned[:, 1:5], centres[rows], self.variances)
        targets["normaliser"][:] = len(rows)
        return targets

    def shapes(self, size: Size) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays for one image of input size (H, W)."""
        count = len(self._anchors(size)[0])
        return {"cls_target": (count,), "loc_target": (count, 4), "normaliser": (1,)}

    def ignored(self, size: Size) -> dict[str, np.ndarray]:
        """Arrays of a padding row: every anchor ignored (cls_target -1), nothing to normalise by."""
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        targets["cls_target"][:] = -1
        return targets

    def _anchors(self, size: Size) -> tuple[np.ndarray, np.ndarray]:
        if size not in self.feature_shapes:
            raise ValueError(f"no anchors for input size {size}; known are {sorted(self.feature_shapes)}")
        return _anchor_grid(self.layers, self.feature_shapes[size])


@lru_cache(maxsize=CACHED_GRIDS)
def _anchor_grid(layers: tuple[AnchorLayer, ...], shapes: tuple[Size, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Anchors (A, 4) of all feature maps as corners and as centres, read-only; cached in the process, never pickled."""
    maps = [multibox_prior(shape, layer) for shape, layer in zip(shapes, layers, strict=True)]
    corners = np.concatenate(maps)
    centres = corners_to_centres(corners)
    corners.flags.writeable = centres.flags.writeable = False
    return corners, centres
