"""Inputs of several sizes: those of multi-scale training, and those of rectangular batches.

Multi-scale training: YOLO9000, section 2, https://arxiv.org/abs/1612.08242. Rectangular batches have images of like
proportions together, in the smallest input that letterboxes them all, which saves the borders' time: the `rect`
validation of ultralytics/yolov3 (utils/datasets.py, LoadImagesAndLabels).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import OptionError
from common.sizes import Size
from dataset.image_check import record_header
from dataset.letterbox import smallest_size
from dataset.recordio import RecordReader

MULTIPLE = 32  # pixels; the stride of the deepest maps
LARGEST_FACTOR = 8  # what is larger are pixels


def multi_scale_sizes(size: Size, limits: Sequence[float], multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The inputs (H, W) to train on beside `size` (H, W): those in about its proportions, the smallest first.

    limits: the smallest and the largest longer side, as factors of that of `size` (up to 8) or in pixels; () = no other
    inputs, (). multiple: what the sides are multiples of, in pixels. OptionError where limits are no two numbers, or no
    multiple lies between them.
    """
    if not limits:
        return ()
    longest = max(size)
    pixels = [value * longest if value <= LARGEST_FACTOR else value for value in limits]
    if len(pixels) != 2 or pixels[0] > pixels[1]:
        raise OptionError(
            f"--multi-scale {','.join(f'{v:g}' for v in limits)}: give the smallest and the largest input"
        )
    sides = range(math.ceil(pixels[0] / multiple), int(pixels[1] // multiple) + 1)
    if not sides or not sides[0]:
        raise OptionError(
            f"--multi-scale: no multiple of {multiple} lies between {pixels[0]:g} and {pixels[1]:g} pixels; widen it"
        )
    return tuple(tuple(max(1, round(s * side / longest)) * multiple for s in size) for side in sides)  # type: ignore[misc]


@dataclass(frozen=True)
class Rectangles:
    """order (n,): positions of the records in the file, as they are served; sizes: (H, W) of each batch's inputs."""

    order: np.ndarray
    sizes: tuple[Size, ...]

    @property
    def largest(self) -> Size:
        """The smallest (H, W) that no batch exceeds."""
        height, width = np.max(self.sizes, axis=0).tolist()
        return height, width


def find_rectangles(reader: RecordReader, batch_size: int, size: Size, multiple: int) -> Rectangles:
    """Batches of a record's images by rising h / w, equal ones in the file's order, as large as in an input `size`.

    Reads the images' headers. OptionError unless both sides of `size` are multiples of `multiple`; DataError naming a
    damaged record.
    """
    if any(side % multiple for side in size):
        raise OptionError(
            f"rectangular batches: the sides of the data shape, {size[0]},{size[1]}, are not multiples of {multiple}; "
            "change --data-shape or --rect-multiple"
        )
    shapes = [record_header(reader.record(k).image, reader.where(k)).size for k in range(len(reader))]
    order = np.argsort([height / width for height, width in shapes], kind="stable")
    ordered = [shapes[position] for position in order]
    batches = [ordered[begin : begin + batch_size] for begin in range(0, len(ordered), batch_size)]
    return Rectangles(order, tuple(smallest_size(batch, size, multiple) for batch in batches))
