"""The assigner of the tests' own family; the data workers import this module, so it keeps clear of mxnet."""

from dataclasses import dataclass

import numpy as np

from boxes.geometry import centres_to_corners, corners_to_centres, iou

STRIDE = 16


@dataclass(frozen=True)
class RetinaAssigner:
    """One square anchor of `side` pixels in each cell of a map of stride 16; IoU of 0.4 or the best one is positive."""

    side: float

    def anchors(self, size):
        """Centre form (A, 4), normalised."""
        rows, columns = size[0] // STRIDE, size[1] // STRIDE
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        sides = np.broadcast_to([self.side / size[1], self.side / size[0]], (rows * columns, 2))
        return np.column_stack([x.ravel(), y.ravel(), sides]).astype(np.float32)

    def __call__(self, objects, size):
        anchors, targets = self.anchors(size), {name: np.zeros(s, np.float32) for name, s in self.shapes(size).items()}
        if len(objects):
            overlap = iou(centres_to_corners(anchors), objects[:, 1:5])  # (A, n)
            owner, positive = overlap.argmax(axis=1), overlap.max(axis=1) >= 0.4
            best = overlap.argmax(axis=0)
            owner[best], positive[best] = np.arange(len(objects)), True
            rows = np.flatnonzero(positive)
            owned = corners_to_centres(objects[owner[rows], 1:5])
            targets["retina_cls"][rows] = objects[owner[rows], 0] + 1
            targets["retina_box"][rows, :2] = (owned[:, :2] - anchors[rows, :2]) / anchors[rows, 2:]
            targets["retina_box"][rows, 2:] = np.log(owned[:, 2:] / anchors[rows, 2:])
            targets["normaliser"][:] = len(rows)
        return targets

    def shapes(self, size):
        count = (size[0] // STRIDE) * (size[1] // STRIDE)
        return {"retina_cls": (count,), "retina_box": (count, 4), "normaliser": (1,)}

    def ignored(self, size):
        targets = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        targets["retina_cls"][:] = -1
        return targets
