"""A random affine map of pixels and boxes: rotation, scale, shear, shift (random_affine of ultralytics/yolov3).

Matrices (3, 3) map edges, in pixels, x first: pixel k reaches from k to k + 1, as boxes have it. Three details
differ from the reference on purpose: shear leaves the centre where it is; shifts are parts of the input's own sides;
and how much of an object is left is judged by its whole area as it is mapped (there by what a mosaic's canvas shows of
it, times the scale once).
"""

import numpy as np

from boxes.geometry import area
from config.augment_options import TrainAugment
from dataset.transforms import Size
from machine.opencv import cv2

MIN_PIXELS = 4  # an object keeps more than this of each side,
MIN_AREA = 0.2  # more than this part of its area,
MAX_ASPECT = 10  # and less than this ratio of its sides (ultralytics/yolov3, random_affine)
HALF_PIXEL = 0.5  # OpenCV's coordinates are those of the pixels' centres


def choose_matrix(source: Size, size: Size, options: TrainAugment, rng: np.random.Generator) -> np.ndarray:
    """The matrix (3, 3) from an image (h, w) to an input (H, W): the centre goes to the centre, then it is shifted.

    Without a random part it moves by whole pixels.
    """
    to_centre = _shift(*(-(side // 2) for side in source[::-1]))
    from_centre = _shift(*(side // 2 for side in size[::-1]))
    if not options.affine:
        return from_centre @ to_centre
    angle, scale, *skew = rng.uniform(-1, 1, 4) * (options.degrees, options.scale, options.shear, options.shear)
    shift = rng.uniform(-1, 1, 2) * options.translate * size[::-1]
    cosine, sine = (1 + scale) * np.cos(np.radians(angle)), (1 + scale) * np.sin(np.radians(angle))
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    slope_x, slope_y = np.tan(np.radians(skew))
    shear = np.array([[1, slope_x, 0], [slope_y, 1, 0], [0, 0, 1]])
    return from_centre @ _shift(*shift) @ shear @ rotation @ to_centre


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def warp(image: np.ndarray, matrix: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """The input (H, W, 3) uint8 that shows an image (h, w, 3) mapped by the matrix, bilinearly; `fill` is around it."""
    x, y = (-matrix[:2, 2]).astype(np.int64)
    inside = min(x, y) >= 0 and y + size[0] <= image.shape[0] and x + size[1] <= image.shape[1]
    if inside and (matrix == _shift(-x, -y)).all():
        return image[y : y + size[0], x : x + size[1]]
    centres = _shift(-HALF_PIXEL, -HALF_PIXEL) @ matrix @ _shift(HALF_PIXEL, HALF_PIXEL)
    return cv2.warpAffine(image, centres[:2], size[::-1], flags=cv2.INTER_LINEAR, borderValue=(fill,) * 3)


def map_objects(objects: np.ndarray, source: Size, matrix: np.ndarray, size: Size) -> np.ndarray:
    """Objects of an image mapped to an input, each with the box around its mapped corners, clipped at the input.

    Args:
        objects: (n, 6), boxes normalised to the image; they may reach beyond it, where there is nothing to see.
        source: (h, w) of the image.
        matrix: (3, 3) from the image's pixels to the input's.
        size: (H, W) of the input.

    Returns:
        (k, 6) float32 normalised to the input: those of which enough is left (MIN_PIXELS, MIN_AREA, MAX_ASPECT).
    """
    boxes = objects[:, 1:5].astype(np.float64)
    whole = area(boxes * np.tile(source[::-1], 2)) * abs(np.linalg.det(matrix))  # (n,)
    corners = np.clip(boxes, 0, 1)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] * source[::-1]  # (n, 4 corners, xy)
    mapped = corners @ matrix[:2, :2].T + matrix[:2, 2]
    limits = np.tile(size[::-1], 2)
    found = np.clip(np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1), 0, limits)  # (n, 4)
    sides = found[:, 2:] - found[:, :2]
    kept = (sides > MIN_PIXELS).all(axis=1) & (area(found) > MIN_AREA * whole)
    kept &= sides.max(axis=1, initial=0) < MAX_ASPECT * sides.min(axis=1, initial=np.inf)
    return np.concatenate([objects[:, :1], found / limits, objects[:, 5:]], axis=1)[kept].astype(np.float32)
