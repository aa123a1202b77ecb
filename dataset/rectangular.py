"""Rectangular batches: images of like proportions together, in the smallest input that letterboxes them all.

As the `rect` validation of ultralytics/yolov3 (utils/datasets.py, LoadImagesAndLabels): it saves the borders' time.
"""

from dataclasses import dataclass

import numpy as np

from common.errors import DataError, OptionError
from dataset.image_check import image_header
from dataset.letterbox import smallest_size
from dataset.recordio import RecordReader, unpack
from dataset.transforms import Size


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
    shapes = [_image_size(reader, position) for position in range(len(reader))]
    order = np.argsort([height / width for height, width in shapes], kind="stable")
    ordered = [shapes[position] for position in order]
    batches = [ordered[begin : begin + batch_size] for begin in range(0, len(ordered), batch_size)]
    return Rectangles(order, tuple(smallest_size(batch, size, multiple) for batch in batches))


def _image_size(reader: RecordReader, position: int) -> Size:
    """(h, w) of a record's image."""
    where = f"{reader.path}, record {reader.keys[position]}"
    image = unpack(reader.read(position), where).image
    try:
        return image_header(image).size
    except DataError as error:
        raise DataError(f"{where}: the image cannot be decoded ({error}); replace it and pack again") from error
