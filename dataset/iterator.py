"""DetRecordIter: batches of a record file for a Module, made by worker processes (docs/architecture.md, Batch)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from boxes.assigners import Assigner
from common.errors import OptionError, UserError
from common.sizes import Size, input_size
from config.augment_options import DEFAULT_FILL, FORCE, LETTERBOX, TrainAugment
from dataset.input_sizes import find_rectangles
from dataset.letterbox import Resize
from dataset.record_source import open_source
from dataset.samples import DATA, GEOMETRY, LABEL, BatchLayout, SampleMaker, label_rows
from dataset.transforms import shape_of
from dataset.workers import InProcess, WorkerPool
from machine.cpu import usable_threads
from machine.runtime import mx

AHEAD = 2  # batches made ahead, beside those of the current group
NORMALISER = "normaliser"
PAD_INDEX = -1
SIZE_STREAM = (0, 1)  # after (seed, epoch): random numbers that no sample and no order has


class RecordIter(mx.io.DataIter, ABC):
    """The contract of both engines, DetRecordIter and NativeDetRecordIter; the option --engine names one.

    Serves a shard of a record file, every record once in an epoch.

    A batch is an mx.io.DataBatch whose arrays belong to the caller: data [(B, 3, H, W) RGB], label [(B, M, 6) rows
    [id, corners normalised to the input, difficult], -1 beyond the objects, then the assigner's arrays]; pad, index
    (B,) int64 ids of the records; and geometry (B, 6) float32: h, w of the image, scale y, x, offset y, x with input
    pixel = image pixel * scale + offset (scale x < 0: mirrored). The last `pad` rows are no samples: geometry 0, label
    -1, index -1, ignored targets, and the pixels of the epoch's first samples, as batch norm sees them. The batches of
    an epoch form groups of `accumulate`, the last one may be smaller; completes_update is true in the last batch of a
    group, and the label `normaliser` (B, k) holds in each row the sums of the assigner's normalisers (k,) over all
    samples of the group. H and W may differ between batches, as provide_data and provide_label of each batch say. A
    damaged record raises DataError with its id; reset() goes on with the next epoch.

    Attributes:
        class_names: from the sidecar, None without one.
        num_classes: valid class ids are below it.
        num_examples: records of this shard.
        num_batches: batches of an epoch, the same for all shards.
        epoch: the current epoch.
    """

    def __init__(
        self,
        path_imgrec: str | Path,
        batch_size: int,
        data_shape: int | Sequence[int],
        *,
        augment: TrainAugment | None,
        mean_pixels: Sequence[float] = (123, 117, 104),
        std: Sequence[float] = (1, 1, 1),
        max_objects: int | None = None,
        num_classes: int | None = None,
        assigner: Assigner | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        workers: int | None = None,
        num_parts: int = 1,
        part_index: int = 0,
        label_name: str = LABEL,
        path_imglist: str | Path | None = None,
        resize_mode: str = FORCE,
        fill: int = DEFAULT_FILL,
        accumulate: int = 1,
        sizes: Sequence[Size] = (),
        rect: int = 0,
    ) -> None:
        """Opens the record and starts to make batches.

        Args:
            path_imgrec: the .rec file, with .idx and sidecar .json beside it if there are any.
            batch_size: B.
            data_shape: side, (H, W) or (3, H, W).
            augment: random views for training; None = the whole image resized bilinearly (the classic cfg.valid).
            mean_pixels, std: RGB; pixels become (value - mean) / std.
            max_objects: M; None = as many as the record with most objects has, at least 1.
            num_classes: a label with another class is an error; None = the sidecar's.
            assigner: makes the targets of a network; None = label alone.
            shuffle: another order in every epoch.
            seed, epoch: decide order and augmentation.
            workers: processes (native: threads); None = usable cores, 0 = work in this process (to debug).
            num_parts, part_index: serve one of num_parts shards.
            label_name: name of the first label.
            path_imglist: a .lst whose labels replace those of the records with the same ids; lines of other records do
                not matter. None or "" = the record's own labels.
            resize_mode: force = the image, or its crop, is stretched to the input; letterbox = it keeps its proportions
                and has borders of the colour `fill` (0 to 255).
            accumulate: batches whose gradients make one update together. All of them are made before the first is
                served: memory holds accumulate + AHEAD batches.
            sizes: inputs (H, W) of which each group has one, chosen by (seed, epoch, number of the group); () = always
                data_shape. Memory is reserved for the largest.
            rect: for validation with letterbox: the order is that of the images' proportions, and each batch has the
                smallest input, in multiples of `rect` pixels, in which its images are as large as in data_shape
                (dataset/input_sizes.py); data_shape's sides must be such multiples. 0 = one size.

        Raises:
            OptionError: arguments that do not fit together.
            DataError: a damaged record file, sidecar or list, a list without a line for a record, or too little memory.
        """
        super().__init__(batch_size)
        size = input_size(data_shape, smallest=1)
        if accumulate < 1:
            raise OptionError(f"accumulate {accumulate}: an update needs at least one batch")
        if batch_size < 1 or num_parts < 1 or not 0 <= part_index < num_parts:
            raise OptionError(f"batch_size {batch_size} and part {part_index} of {num_parts} do not make batches")
        source = open_source(path_imgrec, num_classes, max_objects, path_imglist)
        if rect and (augment or shuffle or sizes or num_parts > 1 or resize_mode != LETTERBOX):
            raise OptionError(
                "--rect-val: rectangular batches are for validation with --resize-mode letterbox, without parts"
            )
        self._rectangles = find_rectangles(source.reader, batch_size, size, rect) if rect else None
        size = self._rectangles.largest if self._rectangles else size
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self._maker = SampleMaker(
            reader=source.reader,
            size=size,
            augment=augment,
            mean=_channels("mean_pixels", mean_pixels),
            std=_channels("std", std),
            max_objects=source.max_objects,
            num_classes=source.num_classes,
            assigner=_with_room(_importable(assigner), label_rows(source.max_objects, augment)),
            seed=seed,
            resize=Resize(resize_mode, fill),
        )
        self._accumulate, self._sizes = accumulate, tuple(input_size(one, smallest=1) for one in sizes) or (size,)
        self._total: np.ndarray | None = None  # normalisers of the current group
        self._layout = self._make_layout((size, *(self._rectangles.sizes if self._rectangles else self._sizes)))
        self._shuffle, self._num_parts, self._part_index = shuffle, num_parts, part_index
        self._label_name = label_name
        if len(source.reader) < num_parts:
            raise OptionError(f"{path_imgrec} holds {len(source.reader)} records, too few for {num_parts} parts")
        self._workers = min(usable_threads(), batch_size) if workers is None else workers
        self.num_examples, self.num_batches = self._prepare()
        self.set_epoch(epoch)

    @property
    def provide_data(self) -> list[mx.io.DataDesc]:
        """Name and shape of the data, for batches of data_shape; with `rect`, of the largest batch."""
        return self._data_desc(self._maker.size)

    @property
    def smallest_size(self) -> Size:
        """(H, W) of the batches with the fewest pixels; a symbol that is built for it finds boxes in all of them."""
        return min(self._layout.shapes, key=lambda size: size[0] * size[1])

    @property
    def provide_label(self) -> list[mx.io.DataDesc]:
        """Names and shapes of the label and of the assigner's arrays, for batches of data_shape."""
        return self._label_desc(self._maker.size)

    def reset(self) -> None:
        """Begins the next epoch, in mid-epoch too."""
        self.set_epoch(self.epoch + 1)

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Goes to the begin of an epoch."""

    @abstractmethod
    def close(self) -> None:
        """Ends all work in the background and frees its memory; next() would start it again and go on."""

    @abstractmethod
    def _prepare(self) -> tuple[int, int]:
        """Gets ready to make batches; returns num_examples and num_batches."""

    def _make_layout(self, sizes: Iterable[Size]) -> BatchLayout:
        return BatchLayout(self.batch_size, {size: self._maker.resized(size).shapes() for size in sizes})

    def _data_desc(self, size: Size) -> list[mx.io.DataDesc]:
        return [mx.io.DataDesc(DATA, (self.batch_size, *self._layout.shapes[size][DATA]), np.float32, "NCHW")]

    def _label_desc(self, size: Size) -> list[mx.io.DataDesc]:
        return [
            mx.io.DataDesc(self._label_name if name == LABEL else name, (self.batch_size, *shape), np.float32)
            for name, shape in self._layout.shapes[size].items()
            if name not in (DATA, GEOMETRY)
        ]

    def _group_end(self, batch: int) -> int:
        """The number of the batch after the group of this one."""
        return min((batch // self._accumulate + 1) * self._accumulate, self.num_batches)

    def _batch(self, arrays: dict[str, np.ndarray], positions: np.ndarray, number: int) -> mx.io.DataBatch:
        """Batch `number` of arrays with the samples at `positions` in their first rows, completed by padding and the
        normaliser."""
        pad, size = self.batch_size - len(positions), shape_of(arrays[DATA][0, 0])
        if pad:
            self._maker.resized(size).write_padding(arrays, len(positions))
        if self._total is not None:
            arrays[NORMALISER][:] = self._total
        batch = mx.io.DataBatch(
            data=[_to_mxnet(arrays[DATA])],
            label=[_to_mxnet(array) for name, array in arrays.items() if name not in (DATA, GEOMETRY)],
            pad=pad,
            index=np.append(self._maker.reader.keys[positions], [PAD_INDEX] * pad).astype(np.int64),
            provide_data=self._data_desc(size),
            provide_label=self._label_desc(size),
        )
        batch.geometry = arrays[GEOMETRY].copy()
        batch.completes_update = number + 1 == self._group_end(number)
        return batch


class DetRecordIter(RecordIter):
    """The python engine: worker processes that decode and augment with OpenCV.

    The order is a permutation of all records that (seed, epoch) decides, and a sample depends on (seed, epoch, its
    place in the file) alone, not on the number of workers. Shard k of n serves every n-th sample of this order. A
    damaged record raises when its group is due; next() then goes on with the following group. A worker that dies raises
    RuntimeError; next() and reset() then start new ones.
    """

    _pool: WorkerPool | InProcess | None = None

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, [] without any."""
        return self._pool.pids if isinstance(self._pool, WorkerPool) else []

    def set_epoch(self, epoch: int) -> None:
        """Goes to the begin of an epoch."""
        if self._pool is not None:
            self._drain(self._pool)
        self.epoch = epoch
        self._cursor = self._submitted = 0
        self._order = self._epoch_order()
        self._batch_sizes = self._epoch_sizes()

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch."""
        if self._cursor >= self.num_batches:
            raise StopIteration
        pool = self._running_pool()
        try:
            self._submit(pool)
            if self._cursor % self._accumulate == 0:
                self._total = self._group_total(pool)
            pool.wait(self._cursor % self._slots)
            batch = self._batch(self._arrays(pool, self._cursor), self._positions(self._cursor), self._cursor)
        except UserError:
            self._cursor = self._group_end(self._cursor)
            raise
        except BaseException:  # Ctrl-C, a dead worker, a bug: nobody knows what the workers do now
            self.close()
            raise
        self._cursor += 1
        self._submit(pool)
        return batch

    def close(self) -> None:
        """Ends the workers and frees their memory; next() would start new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool, self._submitted = None, self._cursor

    def _prepare(self) -> tuple[int, int]:
        count = len(self._maker.reader)
        self._slots = self._accumulate + AHEAD
        self._part = slice(self._part_index, None, self._num_parts)
        self._running_pool()
        return len(range(count)[self._part]), math.ceil(math.ceil(count / self._num_parts) / self.batch_size)

    def _running_pool(self) -> WorkerPool | InProcess:
        if self._pool is None:
            if self._workers:
                self._pool = WorkerPool(self._maker, self._layout, self._slots, self._workers)
            else:
                self._pool = InProcess(self._maker, self._layout, self._slots)
        return self._pool

    def _drain(self, pool: WorkerPool | InProcess) -> None:
        try:
            pool.drain()
        except BaseException:
            self.close()
            raise

    def _epoch_order(self) -> np.ndarray:
        """Positions of this shard's samples in the order of the epoch."""
        count = len(self._maker.reader)
        if self._rectangles:
            return self._rectangles.order
        if not self._shuffle:
            return np.arange(count)[self._part]
        return np.random.default_rng((self._maker.seed, self.epoch)).permutation(count)[self._part]

    def _epoch_sizes(self) -> list[Size]:
        """The input (H, W) of each batch of the epoch, one for each group."""
        if self._rectangles:
            return list(self._rectangles.sizes)
        groups = np.arange(self.num_batches) // self._accumulate
        rng = np.random.default_rng((self._maker.seed, self.epoch, *SIZE_STREAM))
        choices = rng.integers(len(self._sizes), size=self.num_batches)  # (groups or more,)
        return [self._sizes[k] for k in choices[groups]]

    def _group_total(self, pool: WorkerPool | InProcess) -> np.ndarray | None:
        """Waits for all batches of the group that begins; the sums (k,) of their normalisers, None without any."""
        numbers = range(self._cursor, self._group_end(self._cursor))
        errors = []
        for number in numbers:
            try:
                pool.wait(number % self._slots)
            except UserError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return group_total((self._arrays(pool, n), len(self._positions(n))) for n in numbers)

    def _arrays(self, pool: WorkerPool | InProcess, batch: int) -> dict[str, np.ndarray]:
        return pool.arrays(batch % self._slots, self._batch_sizes[batch])

    def _positions(self, batch: int) -> np.ndarray:
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _submit(self, pool: WorkerPool | InProcess) -> None:
        """Has batches made ahead, as far as there are slots."""
        while self._submitted < min(self._cursor + self._slots, self.num_batches):
            rows = np.arange(self._submitted * self.batch_size, (self._submitted + 1) * self.batch_size)
            positions, size = self._order.take(rows, mode="wrap"), self._batch_sizes[self._submitted]
            pool.submit(self._submitted % self._slots, self.epoch, positions, size)
            self._submitted += 1


def group_total(batches: Iterable[tuple[dict[str, np.ndarray], int]]) -> np.ndarray | None:
    """The column sums (k,) of the normalisers (B, k) of batches, each given as arrays and its number of samples; None
    if there are no normalisers."""
    rows = [arrays[NORMALISER][:count] for arrays, count in batches if NORMALISER in arrays]
    return np.concatenate(rows).sum(axis=0) if rows else None


def _to_mxnet(array: np.ndarray) -> mx.nd.NDArray:
    """A copy on the CPU; mx.nd.array would copy twice."""
    result = mx.nd.empty(array.shape, dtype=array.dtype)
    result[:] = array
    return result


def _channels(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.array(values, np.float32)
    if array.shape != (3,) or (name == "std" and not (array > 0).all()):
        raise OptionError(f"{name} {tuple(values)} is not one number for each of red, green, blue")
    return array


def _with_room(assigner: Assigner | None, count: int) -> Assigner | None:
    """The assigner with room for images of `count` objects; one without for_objects() has arrays of its own size."""
    adapt = getattr(assigner, "for_objects", None)
    return adapt(count) if adapt else assigner


def _importable(assigner: Assigner | None) -> Assigner | None:
    """Refuses what the workers cannot import."""
    if type(assigner).__module__ == "__main__":
        raise OptionError(f"{type(assigner).__name__} is defined in the script itself; move it to a module of its own")
    return assigner
