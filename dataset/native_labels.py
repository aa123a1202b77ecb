"""What the native engine tells ImageDetRecordIter by a list of labels, and reads back from its label rows.

A list line is `id 3 6 position objects... name` (im2rec's .lst with a header of three): the position in the file comes
back with each sample. C++ looks labels up by the id in the record and puts [channels, rows, columns, number of values]
before them. It drops objects without area, so that a dummy of -1 stands for none, which it would refuse.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from boxes.geometry import clip_to_unit
from common.errors import DataError
from dataset.augment import MIN_SIDE
from dataset.image_check import image_header
from dataset.labels import OBJECT_WIDTH
from dataset.recordio import unpack
from dataset.samples import SampleMaker

HEADER_WIDTH = 3
POSITION = 4 + 2  # in a row: after C++'s four values, the header width and the object width
OBJECTS = POSITION + 1
UPRIGHT = 1
SEEK_ALIGNMENT = 4


@dataclass(frozen=True)
class LabelList:
    """lines: the list; sizes (n, 2) float32: h, w of the image at each position of the file, NaN in other shards."""

    lines: str
    sizes: np.ndarray


def label_width(max_objects: int) -> int:
    """Values of a label of max_objects >= 1 objects."""
    return HEADER_WIDTH + OBJECT_WIDTH * max_objects


def read_labels(maker: SampleMaker, positions: np.ndarray) -> LabelList:
    """Reads and checks the labels and image headers of the records at `positions`; DataError naming a bad one."""
    sizes = np.full((len(maker.reader), 2), np.nan, np.float32)
    lines: dict[int, str] = {}
    for position in positions.tolist():
        where = maker.where(position)
        record = unpack(maker.reader.read(position), where)
        if record.index in lines:
            raise DataError(f"{where}: id {record.index} is that of another record, too; pack again with distinct ids")
        sizes[position] = _size(record.image, where)
        lines[record.index] = _line(record.index, position, maker.objects(record.label, where))
    return LabelList("".join(lines.values()), sizes)


def _line(index: int, position: int, objects: np.ndarray) -> str:
    rows = objects if len(objects) else np.full((1, OBJECT_WIDTH), -1, np.float32)
    values = (f"{value:.9g}" for value in rows.ravel())
    return "\t".join([str(index), str(HEADER_WIDTH), str(OBJECT_WIDTH), str(position), *values, "image"]) + "\n"


def _size(image: bytes, where: str) -> tuple[int, int]:
    """(h, w) of an encoded image that C++ does not rotate."""
    try:
        info = image_header(image)
    except DataError as error:
        raise DataError(f"{where}: the image cannot be decoded ({error}); replace it and pack again") from error
    if info.orientation != UPRIGHT:
        raise DataError(
            f"{where}: the JPEG asks to be rotated (EXIF orientation {info.orientation}), which the native engine "
            "would do to the pixels but not to the boxes; use --engine python or remove the tag"
        )
    return info.size


def parse_rows(rows: np.ndarray, max_objects: int, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Label rows (b, 4 + label_width) of C++ -> positions (b,) int64 and objects (b, max_objects, 6), -1 beyond them.

    clip: boxes end at [0, 1] and those with a side below MIN_SIDE are dropped, as in the python engine's augmentation.
    """
    positions = rows[:, POSITION].astype(np.int64)
    objects = rows[:, OBJECTS:].reshape(len(rows), max_objects, OBJECT_WIDTH)
    kept = np.arange(max_objects) < ((rows[:, 3:4] - HEADER_WIDTH) // OBJECT_WIDTH)
    if clip:
        objects[..., 1:5] = np.where(kept[..., None], clip_to_unit(objects[..., 1:5]), -1)
        kept &= (objects[..., 3:5] - objects[..., 1:3] >= MIN_SIDE).all(axis=-1)
        order = np.argsort(~kept, axis=1, kind="stable")
        objects = np.take_along_axis(objects, order[..., None], axis=1)
        kept = np.take_along_axis(kept, order, axis=1)
    return positions, np.where(kept[..., None], objects, np.float32(-1))


def split_by_bytes(bounds: np.ndarray, num_parts: int, blocks: int) -> list[np.ndarray]:
    """Positions of the records of each of num_parts shards, as dmlc::InputSplit divides a file.

    bounds (n + 1,) are the records' offsets and the file's size. A shard of `blocks` blocks ends at a multiple of the
    block's size, which is rounded up to 4 bytes; a record belongs to where it begins (src/io/input_split_base.cc).
    """
    block = -(-int(bounds[-1]) // (num_parts * blocks))
    shard = -(-block // SEEK_ALIGNMENT) * SEEK_ALIGNMENT * blocks
    return [np.flatnonzero(bounds[:-1] // shard == part) for part in range(num_parts)]


def real_objects(objects: np.ndarray) -> Iterator[np.ndarray]:
    """The objects (n, 6) of each sample out of padded ones (b, M, 6)."""
    counts = (objects[..., 0] >= 0).sum(axis=1)
    return (rows[:count] for rows, count in zip(objects, counts, strict=True))
