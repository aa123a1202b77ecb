"""How an image fills the network input: stretched (force), or in its own proportions with borders (letterbox).

A Frame says where the picture lies in the input. What fills the frame, the whole image or a crop of it, is made as if
the frame were the input; the frame then surrounds it and moves its boxes, so that boxes follow the pixels exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import OptionError
from common.sizes import Size
from config.augment_options import DEFAULT_FILL, FORCE, LETTERBOX, RESIZE_MODES
from machine.opencv import cv2

LESS_BEFORE = 0.1  # an odd border has its larger half behind: round(half - 0.1) before


@dataclass(frozen=True)
class Frame:
    """The part of an input (H, W) that shows the picture: `inner` (h, w), from row `top` and column `left` on."""

    size: Size
    inner: Size
    top: int = 0
    left: int = 0

    def surround(self, pixels: np.ndarray, fill: int) -> np.ndarray:
        """The input (H, W, 3) uint8: `pixels` (h, w, 3) in the frame, beside it the colour `fill` in all channels.

        Without a border the pixels themselves are returned.
        """
        if self.inner == self.size:
            return pixels
        bottom, right = (side - inner for side, inner in zip(self.size, self.inner, strict=True))
        borders = (self.top, bottom - self.top, self.left, right - self.left)
        return cv2.copyMakeBorder(pixels, *borders, cv2.BORDER_CONSTANT, value=(fill,) * 3)

    def move_view(self, view: np.ndarray) -> np.ndarray:
        """The geometry (6,) of a view of an input as large as the frame -> its geometry in this input."""
        return view + [0, 0, 0, 0, self.top, self.left]

    def move_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) normalised to the frame -> (n, 4) float32 normalised to the input; without a border the same."""
        if self.inner == self.size:
            return boxes
        scale, offset = np.array(self.inner[::-1] * 2), np.array([self.left, self.top] * 2)
        return ((boxes * scale + offset) / np.array(self.size[::-1] * 2)).astype(np.float32)


@dataclass(frozen=True)
class Resize:
    """A mode of RESIZE_MODES, and the colour of the borders (0 to 255 in all channels), which `force` has none of.

    OptionError for another mode or colour.
    """

    mode: str = FORCE
    fill: int = DEFAULT_FILL

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.mode not in RESIZE_MODES:
            raise OptionError(f"resize mode {self.mode!r}: expected {' or '.join(RESIZE_MODES)}")
        if not 0 <= self.fill <= 255:
            raise OptionError(f"fill {self.fill}: expected 0 to 255")

    def frame(self, shape: tuple[float, float], size: Size) -> Frame:
        """The frame in an input (H, W) of an image, or a crop, of `shape` (h, w) pixels."""
        return letterbox(shape, size) if self.mode == LETTERBOX else Frame(size, size)


def letterbox(shape: tuple[float, float], size: Size, *, scale_up: bool = True, auto: int = 0) -> Frame:
    """The frame of the largest picture with the proportions of `shape` (h, w), in the middle of an input (H, W).

    As letterbox() of ultralytics/yolov3 (utils/datasets.py): sides are rounded, at least 1; of an odd border the larger
    half is at the bottom or right. scale_up=False: the picture is not enlarged. auto: as many whole multiples of this
    number of pixels as possible are taken from the borders of each axis, which makes the input smaller; 0 = none.
    """
    scale = fitting_scale(shape, size, scale_up)
    inner = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    if auto:
        size = (inner[0] + (size[0] - inner[0]) % auto, inner[1] + (size[1] - inner[1]) % auto)
    top, left = (round((side - part) / 2 - LESS_BEFORE) for side, part in zip(size, inner, strict=True))
    return Frame(size, inner, top, left)


def fitting_scale(shape: tuple[float, float], size: Size, scale_up: bool = True) -> float:
    """The factor by which an image (h, w) just fits into an input (H, W); at most 1 unless scale_up."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return scale if scale_up else min(scale, 1.0)


def smallest_size(shapes: Sequence[Size], size: Size, multiple: int) -> Size:
    """The smallest (H, W), in multiples of `multiple`, in which images (h, w) are letterboxed as in an input `size`.

    Each image has in it exactly the pixels that it has there, only its borders are narrower. Both sides of `size` must
    be multiples of `multiple`.
    """
    filled = [_filled(shape, size, multiple) for shape in shapes]
    return max(height for height, _ in filled), max(width for _, width in filled)


def _filled(shape: Size, size: Size, multiple: int) -> Size:
    """The same for one image, which fills one of the sides."""
    (height, width), (rows, columns) = shape, size
    if rows * width <= columns * height:
        return rows, math.ceil(width * rows / (height * multiple)) * multiple
    return math.ceil(height * columns / (width * multiple)) * multiple, columns
