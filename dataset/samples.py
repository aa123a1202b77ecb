"""One sample of a batch: read a record, decode, augment, assign targets, write into the arrays of the batch.

This is what the workers run; it knows nothing of processes and mxnet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from dataset.recordio import RecordReader
from dataset.transforms import decode, normalise

Arrays = Mapping[str, np.ndarray]
DATA, LABEL, GEOMETRY = "data", "label", "geometry"
ALIGNMENT = 64  # bytes, a cache line


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

    def resized(self, size: Size) -> "SampleMaker":
        """The same for inputs of another (H, W)."""
        return self if size == self.size else replace(self, size=size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each float32 array of one sample."""
        own = {DATA: (3, *self.size), LABEL: (label_rows(self.max_objects, self.augment), OBJECT_WIDTH), GEOMETRY: (6,)}
        return own | (self.assigner.shapes(self.size) if self.assigner else {})

    def objects(self, label: np.ndarray, where: str) -> np.ndarray:
        """The objects (n, 6) of a record's label, checked; DataError."""
        objects = parse_label(label, where)
        validate(objects, self.num_classes, where)
        if len(objects) > self.max_objects:
            raise DataError(
                f"{where}: {len(objects)} objects, but labels have {self.max_objects} rows; raise max_objects"
            )
        return objects

    def write(self, arrays: Arrays, row: int, epoch: int, position: int) -> None:
        """Fills row `row` of the batch arrays with the record at `position`; DataError naming a damaged record."""
        pixels, objects, view = self.view(epoch, position)
        normalise(pixels, self.mean, self.std, arrays[DATA][row])
        arrays[GEOMETRY][row] = view
        label = arrays[LABEL][row]
        label[: len(objects)] = objects
        label[len(objects) :] = -1
        write_all(arrays, row, self.targets(objects, self.reader.where(position)))

    def view(self, epoch: int, position: int) -> Sample:
        """Pixels (H, W, 3) uint8 BGR, objects (n, 6), geometry (6,) of a sample; DataError naming a damaged record."""
        own = self.read(position)
        if self.augment is None:
            return resize_only(*own, self.size, self.resize)
        rng = np.random.default_rng((self.seed, epoch, position))
        is_alone = self.mosaic_end is not None and epoch >= self.mosaic_end
        pixels, objects, view = self._random_view(own, self.augment, is_alone, rng)
        if not is_alone and self.augment.mixup_prob and rng.random() < self.augment.mixup_prob:
            other = self.read(int(rng.integers(len(self.reader))))
            second = self._random_view(other, self.augment, is_alone, rng)
            pixels, objects = mix_up((pixels, objects), second[:2], rng)
            view = unknown_view(own[0])
        return degrade(pixels, self.augment, rng), objects, view

    def _random_view(self, own: Tile, options: TrainAugment, is_alone: bool, rng: np.random.Generator) -> Sample:
        """As view() of an image; is_alone: it is in no mosaic."""
        if not is_alone and options.mosaic_prob and rng.random() < options.mosaic_prob:
            others = rng.integers(len(self.reader), size=TILES - 1)
            tiles = [orient(*tile, options, rng) for tile in (own, *map(self.read, others.tolist()))]
            pixels, objects, _ = augment_mosaic(tiles, self.size, options, rng, self.resize)
            return pixels, objects, unknown_view(own[0])
        image, objects = orient(*own, options, rng)
        pixels, objects, view = augment(image, objects, self.size, options, rng, self.resize)
        return pixels, objects, view if image is own[0] else unknown_view(own[0])

    def read(self, position: int) -> Tile:
        """The image (h, w, 3) and the objects (n, 6) of a record; DataError naming it if it is damaged."""
        record, where = self.reader.record(position), self.reader.where(position)
        objects = self.objects(record.label, where)
        return decode(record.image, where), objects

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
        arrays[GEOMETRY][begin:] = 0
        arrays[LABEL][begin:] = -1
        arrays[LABEL][begin:, :, -1] = PADDING
        if self.assigner:
            write_all(arrays, slice(begin, None), self.assigner.ignored(self.size))


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
