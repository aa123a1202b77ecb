"""One sample of a batch: read a record, decode, augment, assign targets, write into the arrays of the batch.

This is what the workers run; it knows nothing of processes and mxnet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from boxes.assigners import Assigner, AssignerError
from common.errors import DataError
from common.sizes import Size
from config.augment_options import TrainAugment
from dataset.augment import (
    MIXED,
    TILES,
    Sample,
    Tile,
    augment,
    augment_mosaic,
    degrade,
    mix_up,
    orient,
    resize_only,
    unknown_view,
)
from dataset.labels import OBJECT_WIDTH, PADDING, parse_label, validate
from dataset.letterbox import Resize
from dataset.recordio import RecordReader, unpack
from dataset.transforms import decode, normalise

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")
DATA, LABEL, GEOMETRY = "data", "label", "geometry"
ALIGNMENT = 64  # bytes, a cache line


class UnreadableError(DataError):
    """A record whose label or image cannot be read; its file can."""


def label_rows(max_objects: int, augment: TrainAugment | None) -> int:
    """Rows of the labels for records of max_objects: a mosaic shows four, a mixture two views."""
    if augment is None:
        return max_objects
    return max_objects * (TILES if augment.mosaic_prob else 1) * (MIXED if augment.mixup_prob else 1)


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples of a record file; a sample depends on (seed, epoch, position) and on nothing else.

    Attributes:
        reader: the record file.
        size: (H, W) of the network input; resized() gives the maker of another.
        augment: None = the whole image resized, otherwise random views.
        mean, std: (3,) RGB, float32.
        max_objects: of a record, at most; the label has as many rows, or more where samples show several records.
        num_classes: valid class ids are below it.
        assigner: None = no targets.
        seed: of the augmentation.
        resize: how images fill the input.
        mosaic_end: samples of this epoch and later ones show one record each; None = there is no such epoch.
        skips_bad: a record that cannot be read becomes a row of padding, in place of an error; in mosaics and mixtures,
            and for the pixels of that row, the next one of the file stands for it.
    """

    reader: RecordReader
    size: Size
    augment: TrainAugment | None
    mean: np.ndarray
    std: np.ndarray
    max_objects: int
    num_classes: int
    assigner: Assigner | None
    seed: int
    resize: Resize = Resize()
    mosaic_end: int | None = None
    skips_bad: bool = False

    def resized(self, size: Size) -> "SampleMaker":
        """The same for inputs of another (H, W)."""
        return self if size == self.size else replace(self, size=size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each float32 array of one sample."""
        own = {DATA: (3, *self.size), LABEL: (label_rows(self.max_objects, self.augment), OBJECT_WIDTH), GEOMETRY: (6,)}
        return own | (self.assigner.shapes(self.size) if self.assigner else {})

    def objects(self, label: np.ndarray, where: str) -> np.ndarray:
        """The objects (n, 6) of a record's label, checked; DataError."""
        objects = self._checked(label, where)
        self._check_rows(objects, where)
        return objects

    def _checked(self, label: np.ndarray, where: str) -> np.ndarray:
        objects = parse_label(label, where)
        validate(objects, self.num_classes, where)
        return objects

    def _check_rows(self, objects: np.ndarray, where: str) -> None:
        if len(objects) > self.max_objects:
            raise DataError(
                f"{where}: {len(objects)} objects, but labels have {self.max_objects} rows; raise max_objects"
            )

    def write(self, arrays: Arrays, row: int, epoch: int, position: int) -> str:
        """Fills row `row` of the batch arrays with the record at `position`; DataError naming a damaged record.

        Returns why the row is padding, "" if it is a sample.
        """
        try:
            pixels, objects, view = self.view(epoch, position)
        except UnreadableError as error:
            if not self.skips_bad:
                raise
            pixels, _, _ = self._readable(position + 1, partial(self.view, epoch))
            normalise(pixels, self.mean, self.std, arrays[DATA][row])
            self._pad(arrays, slice(row, row + 1))
            return str(error)
        normalise(pixels, self.mean, self.std, arrays[DATA][row])
        arrays[GEOMETRY][row] = view
        label = arrays[LABEL][row]
        label[: len(objects)] = objects
        label[len(objects) :] = -1
        write_all(arrays, row, self.targets(objects, self.reader.where(position)))
        return ""

    def view(self, epoch: int, position: int) -> Sample:
        """Pixels (H, W, 3) uint8 BGR, objects (n, 6), geometry (6,) of a sample; DataError naming a damaged record."""
        own = self.read(position)
        if self.augment is None:
            return resize_only(*own, self.size, self.resize)
        rng = np.random.default_rng((self.seed, epoch, position))
        is_alone = self.mosaic_end is not None and epoch >= self.mosaic_end
        pixels, objects, view = self._random_view(own, self.augment, is_alone, rng)
        if not is_alone and self.augment.mixup_prob and rng.random() < self.augment.mixup_prob:
            other = self._readable(int(rng.integers(len(self.reader))), self.read)
            second = self._random_view(other, self.augment, is_alone, rng)
            pixels, objects = mix_up((pixels, objects), second[:2], rng)
            view = unknown_view(own[0])
        return degrade(pixels, self.augment, rng), objects, view

    def _random_view(self, own: Tile, options: TrainAugment, is_alone: bool, rng: np.random.Generator) -> Sample:
        """As view() of an image; is_alone: it is in no mosaic."""
        if not is_alone and options.mosaic_prob and rng.random() < options.mosaic_prob:
            others = rng.integers(len(self.reader), size=TILES - 1)
            tiles = [own, *(self._readable(other, self.read) for other in others.tolist())]
            pixels, objects, _ = augment_mosaic(
                [orient(*tile, options, rng) for tile in tiles], self.size, options, rng, self.resize
            )
            return pixels, objects, unknown_view(own[0])
        image, objects = orient(*own, options, rng)
        pixels, objects, view = augment(image, objects, self.size, options, rng, self.resize)
        return pixels, objects, view if image is own[0] else unknown_view(own[0])

    def read(self, position: int) -> Tile:
        """The image (h, w, 3) and the objects (n, 6) of a record; UnreadableError naming it if it is damaged, DataError
        if its file is, or labels have too few rows for it."""
        payload, where = self.reader.read(position), self.reader.where(position)
        try:
            record = unpack(payload, where)
            objects, image = self._checked(record.label, where), decode(record.image, where)
        except DataError as error:
            raise UnreadableError(str(error)) from error
        self._check_rows(objects, where)
        return image, objects

    def _readable(self, position: int, read: Callable[[int], T]) -> T:
        """read(position), or of the next record that can be read, from the first on after the last, with skips_bad."""
        first = None
        for k in range(len(self.reader)):
            try:
                return read((position + k) % len(self.reader))
            except UnreadableError as error:
                if not self.skips_bad:
                    raise
                first = first or error
        raise DataError(f"{self.reader.path}: none of its {len(self.reader)} records can be read ({first})")

    def targets(self, objects: np.ndarray, where: str) -> Mapping[str, np.ndarray]:
        """The assigner's arrays for objects (n, 6), {} without one; DataError naming the record that it cannot take."""
        if not self.assigner:
            return {}
        try:
            return self.assigner(objects, self.size)
        except AssignerError as error:
            raise DataError(f"{where}: {error}") from error

    def write_padding(self, arrays: Arrays, begin: int) -> None:
        """Makes the rows from `begin` on padding: geometry 0, label -1 (last column: PADDING), ignored targets; the
        pixels stay."""
        self._pad(arrays, slice(begin, None))

    def _pad(self, arrays: Arrays, rows: slice) -> None:
        arrays[GEOMETRY][rows] = 0
        arrays[LABEL][rows] = -1
        arrays[LABEL][rows, :, -1] = PADDING
        if self.assigner:
            write_all(arrays, rows, self.assigner.ignored(self.size))


def write_all(arrays: Arrays, rows: int | slice, values: Mapping[str, np.ndarray]) -> None:
    """Writes an assigner's targets to rows of the batch arrays."""
    for name, value in values.items():
        arrays[name][rows] = value


@dataclass(frozen=True)
class BatchLayout:
    """How float32 batch arrays lie in memory, several batches ("slots") one after the other.

    A batch has one of several input sizes; a slot has room for the largest.

    Attributes:
        batch_size: rows of each array.
        shapes: for each input (H, W), the shape of one row of each array.
    """

    batch_size: int
    shapes: Mapping[Size, Mapping[str, tuple[int, ...]]]

    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return max(sum(map(self._bytes, shapes.values())) for shapes in self.shapes.values())

    def arrays(self, memory: memoryview, slot: int, size: Size) -> dict[str, np.ndarray]:
        """The arrays (batch_size, *shape) of a slot with a batch of input (H, W), as views of the memory."""
        arrays, offset = {}, slot * self.slot_bytes()
        for name, shape in self.shapes[size].items():
            count = self.batch_size * int(np.prod(shape))
            arrays[name] = np.frombuffer(memory, np.float32, count, offset).reshape(self.batch_size, *shape)
            offset += self._bytes(shape)
        return arrays

    def _bytes(self, shape: tuple[int, ...]) -> int:
        size = self.batch_size * int(np.prod(shape)) * np.dtype(np.float32).itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT
