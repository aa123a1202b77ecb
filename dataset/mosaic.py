"""Mosaics: four images around a random centre of a canvas (load_mosaic of ultralytics/yolov3, utils/datasets.py)."""

from collections.abc import Sequence

import numpy as np

from dataset.letterbox import Resize
from dataset.transforms import Size, resize, shape_of

TILES = 4
# Of each tile: where it lies, above (1) or below (0) the centre, and left (1) or right (0) of it.
SIDES = ((1, 1), (1, 0), (0, 1), (0, 0))

Tile = tuple[np.ndarray, np.ndarray]  # image (h, w, 3) uint8, objects (n, 6) normalised to it


def compose(
    tiles: Sequence[Tile], size: Size, fill: int, interpolation: int, rng: np.random.Generator, mode: Resize
) -> Tile:
    """The canvas (2 H, 2 W, 3) of an input (H, W) with four images around a point in its middle, and all objects.

    Each image is resized as the input's mode has it, without borders, and touches the point with a corner; what does
    not fit on the canvas is cut off, and what no image covers has the colour `fill`. The boxes are normalised to the
    canvas and may reach beyond it.
    """
    shape = (2 * size[0], 2 * size[1])
    canvas = np.full((*shape, 3), fill, np.uint8)
    centre = (np.array(size) * rng.uniform(0.5, 1.5, 2)).astype(np.int64)  # y, x
    placed = []
    for (image, objects), side in zip(tiles, SIDES, strict=True):
        inner = mode.frame(shape_of(image), size).inner
        corner = centre - np.array(side) * inner
        _paste(canvas, resize(image, inner, interpolation), *corner.tolist())
        placed.append(_place_objects(objects, inner, corner, shape))
    return canvas, np.concatenate(placed)


def _paste(canvas: np.ndarray, image: np.ndarray, y: int, x: int) -> None:
    """Copies the part of an image that lies on the canvas if its upper left corner is at (y, x)."""
    top, left = max(y, 0), max(x, 0)
    visible = image[top - y : canvas.shape[0] - y, left - x : canvas.shape[1] - x]
    canvas[top : top + visible.shape[0], left : left + visible.shape[1]] = visible


def _place_objects(objects: np.ndarray, inner: Size, corner: np.ndarray, canvas: Size) -> np.ndarray:
    """Objects (n, 6) of an image of size `inner` at `corner` (y, x), float64 normalised to the canvas (h, w)."""
    scale, offset, unit = (np.tile(pair[::-1], 2) for pair in (inner, corner, canvas))
    return np.concatenate([objects[:, :1], (objects[:, 1:5] * scale + offset) / unit, objects[:, 5:]], axis=1)
