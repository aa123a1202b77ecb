"""The assigner of YOLOv3: which anchor of which cell learns which object. Numpy only, it runs in the workers."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from boxes.assigners import AssignerError
from boxes.geometry import corners_to_centres, has_area, wh_iou
from common.sizes import Size

Anchors = tuple[tuple[float, float], ...]

# A row of yolo_target. Lengths are in cells, dx and dy from the cell's upper left corner to the object's centre.
COLUMNS = ("anchor", "row", "column", "dx", "dy", "w", "h", "anchor_w", "anchor_h", "class", "owns_cell")
# Beyond the positives: no anchor, and boxes of one cell, so that no quotient of the losses is 0 / 0.
UNUSED_ROW = (-1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0)


class Positives(NamedTuple):
    """The positives of one map, anchor after anchor, each with its objects in their order.

    anchor, row, column: (p,) int indices; box (p, 4): dx, dy, w, h in cells; sizes (p, 2): of the anchors, in cells;
    classes (p,); owns_cell (p,) bool: False where a later object has the same anchor and cell.
    """

    anchor: np.ndarray
    row: np.ndarray
    column: np.ndarray
    box: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    owns_cell: np.ndarray


@dataclass(frozen=True)
class YOLOAssigner:
    """Targets of a YOLOv3 for one image; contract in docs/contracts.md.

    The rule is build_targets of the YOLOv3-SPP trainer: on every map, every anchor whose size has an IoU above the
    threshold with the object's size (corners put together) learns it, in the cell of the object's centre. So an
    object has any number of positives, none included, and nothing is ignored. A centre on the right or lower border
    belongs to the last cell. Objects that share anchor and cell all count; the last one has the objectness.

    Attributes:
        anchors: (w, h) in pixels of the input, for each map.
        strides: pixels of a cell, for each map.
        iou_threshold: iou_t of the reference.
        max_targets: rows for the positives of an image on one map; the iterator sets it by for_objects().
    """

    anchors: tuple[Anchors, ...]
    strides: tuple[int, ...] = (32, 16, 8)
    iou_threshold: float = 0.2
    max_targets: int = 300

    def __call__(self, objects: np.ndarray, size: Size) -> dict[str, np.ndarray]:
        """Targets of an image of input size (H, W) with objects (n, 6); objects without area are left out.

        Returns:
            yolo_target (maps, max_targets, 11): COLUMNS of the positives, then UNUSED_ROWs; image_mask (1,): 1;
            normaliser (maps + 1,): positives of each map, and 1 for the image. All float32, shapes without (H, W).

        Raises:
            AssignerError: there are more positives than rows.
        """
        targets = self.ignored(size)
        targets["image_mask"][:] = targets["normaliser"][-1] = 1
        for level in range(len(self.anchors)):
            found = self.positives(objects, size, level)
            count = len(found.anchor)
            if count > self.max_targets:
                raise AssignerError(
                    f"{len(objects)} objects make {count} targets on the map of stride {self.strides[level]}, but "
                    f"there are {self.max_targets} rows for them; use for_objects() with their number"
                )
            targets["yolo_target"][level, :count] = np.column_stack(found)
            targets["normaliser"][level] = count
        return targets

    def for_objects(self, count: int) -> "YOLOAssigner":
        """The same with room for images of `count` objects, whatever their sizes."""
        return replace(self, max_targets=max(1, count * max(map(len, self.anchors))))

    def positives(self, objects: np.ndarray, size: Size, level: int) -> Positives:
        """The positives of objects (n, 6) on one map of an input of (H, W), both multiples of the stride."""
        stride = self.strides[level]
        cells = np.array([size[1] // stride, size[0] // stride])  # along x, y
        if size != (cells[1] * stride, cells[0] * stride):
            raise ValueError(f"input size {size} is not a multiple of the stride {stride}")
        objects = objects[has_area(objects[:, 1:5])]
        boxes = corners_to_centres(objects[:, 1:5].astype(np.float64)) * np.tile(cells, 2)  # (n, 4) in cells
        sizes = np.array(self.anchors[level], np.float64) / stride  # (a, 2)
        anchor, owner = np.nonzero(wh_iou(sizes, boxes[:, 2:]) > self.iou_threshold)
        boxes = boxes[owner]  # (p, 4)
        cell = np.clip(np.floor(boxes[:, :2]), 0, cells - 1)  # (p, 2)
        boxes[:, :2] -= cell
        column, row = cell.astype(int).T
        owns = _last_of_each((anchor * cells[1] + row) * cells[0] + column)
        return Positives(anchor, row, column, boxes, sizes[anchor], objects[owner, 0], owns)

    def shapes(self, size: Size) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays for one image, the same for every input size."""
        maps = len(self.anchors)
        return {"yolo_target": (maps, self.max_targets, len(COLUMNS)), "image_mask": (1,), "normaliser": (maps + 1,)}

    def ignored(self, size: Size) -> dict[str, np.ndarray]:
        """Arrays of a padding row: no positives, and image_mask 0 takes its cells out of the objectness too."""
        arrays = {name: np.zeros(shape, np.float32) for name, shape in self.shapes(size).items()}
        arrays["yolo_target"][:] = UNUSED_ROW
        return arrays


def _last_of_each(keys: np.ndarray) -> np.ndarray:
    """(p,) bool: no later entry of keys (p,) has the same value."""
    last = np.zeros(len(keys), bool)
    last[len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] = True
    return last
