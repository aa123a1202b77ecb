"""Inputs of several sizes: those of multi-scale training, and those of rectangular batches.

Multi-scale training: YOLO9000, section 2, https://arxiv.org/abs/1612.08242. Rectangular batches have images of like
proportions together, in the smallest input that letterboxes them all, which saves the borders' time: `rect` of
ultralytics/yolov3 (utils/datasets.py, LoadImagesAndLabels), for validation and for training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import DataError, OptionError
from common.sizes import Size
from dataset.image_check import record_header
from dataset.letterbox import smallest_size
from dataset.recordio import RecordReader

MULTIPLE = 32  # pixels; the stride of the deepest maps
LARGEST_FACTOR = 8  # what is larger are pixels


def multi_scale_sizes(size: Size, limits: Sequence[float], multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The inputs (H, W) to train on beside `size` (H, W): those in about its proportions, the smallest first.

    limits: the smallest and the largest longer side, as factors of that of `size` (up to 8) or in pixels; a single
    factor f > 1 = those of the YOLOv3-SPP trainer (_trainer_sides); () = no other inputs, (). multiple: what the sides
    are multiples of, in pixels. OptionError for other limits, or where no multiple lies between them.
    """
    if not limits:
        return ()
    longest = max(size)
    pixels = [value * longest if value <= LARGEST_FACTOR else value for value in limits]
    if len(limits) == 1 and 1 < limits[0] <= LARGEST_FACTOR:
        sides = _trainer_sides(longest, limits[0], multiple)
        pixels = [longest / limits[0], *pixels]
    elif len(pixels) != 2 or pixels[0] > pixels[1]:
        raise OptionError(
            f"--multi-scale {','.join(f'{v:g}' for v in limits)}: give the smallest and the largest input, or one "
            "factor above 1"
        )
    else:
        sides = range(math.ceil(pixels[0] / multiple), int(pixels[1] // multiple) + 1)
    if not sides or not sides[0]:
        raise OptionError(
            f"--multi-scale: no multiple of {multiple} lies between {pixels[0]:g} and {pixels[1]:g} pixels; widen it"
        )
    return tuple(tuple(max(1, round(s * side / longest)) * multiple for s in size) for side in sides)  # type: ignore[misc]


def _trainer_sides(longest: int, factor: float, multiple: int) -> range:
    """The longer sides, in multiples: both limits are rounded down, and longest * factor is not reached itself.

    At 512 and 1.5 these are 320 to 736: the YOLOv3-SPP trainer has int(512 // 1.5) // 32 and int(512 // 0.667) // 32.
    """
    return range(int(longest / factor // multiple), math.ceil(longest * factor / multiple))


@dataclass(frozen=True)
class Rectangles:
    """The images of a record in batches by proportions.

    order (n,): positions of the records in the file. sizes: (H, W) of each batch's inputs. kinds (n,): equal numbers
    for images, in their order, of equal height and width.
    """

    order: np.ndarray
    sizes: tuple[Size, ...]
    kinds: np.ndarray

    @property
    def largest(self) -> Size:
        """The smallest (H, W) that no batch exceeds."""
        height, width = np.max(self.sizes, axis=0).tolist()
        return height, width

    def shuffled(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(order (n,), numbers (b,) of the batches in the order to serve them) of an epoch.

        Images of equal size change places, so that the batches keep their inputs but not their images.
        """
        order = np.empty_like(self.order)
        order[np.argsort(self.kinds, kind="stable")] = self.order[np.lexsort((rng.random(len(order)), self.kinds))]
        return order, rng.permutation(len(self.sizes))


def find_rectangles(
    reader: RecordReader, batch_size: int, size: Size, multiple: int, skips_bad: bool = False
) -> Rectangles:
    """Batches of a record's images by rising h / w, equal ones in the file's order, as large as in an input `size`.

    Reads the images' headers. OptionError unless both sides of `size` are multiples of `multiple`; DataError naming a
    damaged record, which with skips_bad counts as an image of `size`.
    """
    if any(side % multiple for side in size):
        raise OptionError(
            f"rectangular batches: the sides of the data shape, {size[0]},{size[1]}, are not multiples of {multiple}; "
            "change --data-shape or --rect-multiple"
        )
    shapes = [_image_size(reader, k, size if skips_bad else None) for k in range(len(reader))]
    order = np.argsort([height / width for height, width in shapes], kind="stable")
    ordered = [shapes[position] for position in order]
    batches = [ordered[begin : begin + batch_size] for begin in range(0, len(ordered), batch_size)]
    kinds = np.unique(ordered, axis=0, return_inverse=True)[1].reshape(-1)  # (n,)
    return Rectangles(order, tuple(smallest_size(batch, size, multiple) for batch in batches), kinds)


def _image_size(reader: RecordReader, position: int, otherwise: Size | None) -> Size:
    """(h, w) that a record's image announces; `otherwise` in place of a DataError, if there is one."""
    try:
        return record_header(reader.record(position).image, reader.where(position)).size
    except DataError:
        if otherwise is None:
            raise
        return otherwise
