"""Batches of a record file for a Module (docs/contracts.md, Batch): open_batches(), and the contract of iterators.

The engine `python`, worker processes, is here, too; its classic name is DetRecordIter.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, WorkerError
from common.sizes import DataShape, Size
from dataset.batch_memory import check_memory
from dataset.batch_spec import MEAN_PIXELS, BatchPlan, BatchSpec, classic_spec, plan_batches
from dataset.left_out import LeftOut
from dataset.samples import DATA, GEOMETRY, LABEL
from dataset.transforms import shape_of
from dataset.workers import InProcess, WorkerPool
from machine.runtime import mx

NORMALISER = "normaliser"
PAD_INDEX = -1
SIZE_STREAM = (0, 1)  # after (seed, epoch): random numbers that no sample and no order has


class RecordIter(mx.io.DataIter, ABC):
    """The contract of both engines, PythonRecordIter and NativeRecordIter; open_batches() makes one.

    Serves a shard of a record file, every record once in an epoch.

    A batch is an mx.io.DataBatch whose arrays belong to the caller: data [(B, 3, H, W) RGB], label [(B, M, 6) rows
    [id, corners normalised to the input, difficult], -1 beyond the objects, then the assigner's arrays]; pad, index
    (B,) int64 ids of the records; and geometry (B, 6) float32: h, w of the image, scale y, x, offset y, x with
    input pixel = image pixel * scale + offset (scale x < 0: mirrored). The last `pad` rows are no samples: geometry
    0, label -1 (in the last column PADDING), index -1, ignored targets, and the pixels of the epoch's first samples
    (in shuffled rectangles, of the batch's own), as batch norm sees them. The batches of an epoch form groups of
    `group_size`, the last one may be smaller; completes_update is true in the last batch of a group, and the label
    `normaliser` (B, k) holds in each row the sums of the assigner's normalisers (k,) over all samples of the group.
    H and W may differ between batches, as provide_data and provide_label of each batch say. A damaged record raises
    DataError with its id; reset() goes on with the next epoch. With spec.left_out it becomes a row of padding, too, of
    those at the end of its batch.

    Attributes:
        class_names: from the sidecar, None without one.
        num_classes: valid class ids are below it.
        num_examples: records of this shard.
        num_batches: batches of an epoch, the same for all shards.
        epoch: the current epoch.
        left_out: the records that have become padding.
    """

    def __init__(self, plan: BatchPlan, num_examples: int, num_batches: int) -> None:
        """Of a plan; the engine says how many records its shard has, and how many batches every shard."""
        super().__init__(plan.spec.batch_size)
        self._plan, self._maker, self._layout = plan, plan.maker, plan.layout
        self._total: np.ndarray | None = None  # normalisers of the current group
        # What becomes of these when a group begins: with several processes the sums over all of them.
        self.over_processes: Callable[[np.ndarray | None], np.ndarray | None] = lambda total: total
        self.class_names, self.num_classes = plan.class_names, plan.maker.num_classes
        self.num_examples, self.num_batches = num_examples, num_batches
        self.epoch = plan.spec.epoch
        self.left_out = LeftOut(plan.maker.reader, plan.spec.left_out)

    @property
    def provide_data(self) -> list[mx.io.DataDesc]:
        """Name and shape of the data, for batches of data_shape; with `rect`, of the largest batch."""
        return self._data_desc(self._maker.size)

    @property
    def smallest_size(self) -> Size:
        """(H, W) of the batches with the fewest pixels; a symbol that is built for it finds boxes in all of them."""
        return min(self._layout.shapes, key=lambda size: size[0] * size[1])

    @property
    def spec(self) -> BatchSpec:
        """What was asked for."""
        return self._plan.spec

    @property
    def group_size(self) -> int:
        """Batches of an update in this epoch."""
        return self._plan.spec.group_size(self.epoch)

    @property
    def places(self) -> int:
        """Samples of an epoch with those that only fill a batch; the same for all shards."""
        return self.num_batches * self.batch_size

    @property
    def provide_label(self) -> list[mx.io.DataDesc]:
        """Names and shapes of the label and of the assigner's arrays, for batches of data_shape."""
        return self._label_desc(self._maker.size)

    def reset(self) -> None:
        """Begins the next epoch, in mid-epoch too."""
        self.set_epoch(self.epoch + 1)

    def end_mosaic(self, epoch: int) -> None:
        """Ends mosaics and mixtures before this epoch (BatchSpec.mosaic_end), for one whose end is known late."""
        if epoch != self._maker.mosaic_end:
            self._maker = replace(self._maker, mosaic_end=epoch)
            self.close()

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""

    @abstractmethod
    def skip(self, batches: int) -> None:
        """Goes on as if so many batches of the epoch, whole groups, had been served; at its beginning."""

    @abstractmethod
    def close(self) -> None:
        """Ends all work in the background and frees its memory; next() would start it again and go on."""

    def _data_desc(self, size: Size) -> list[mx.io.DataDesc]:
        return [mx.io.DataDesc(DATA, (self.batch_size, *self._layout.shapes[size][DATA]), np.float32, "NCHW")]

    def _label_desc(self, size: Size) -> list[mx.io.DataDesc]:
        return [
            mx.io.DataDesc(self._plan.spec.label_name if name == LABEL else name, (self.batch_size, *shape), np.float32)
            for name, shape in self._layout.shapes[size].items()
            if name not in (DATA, GEOMETRY)
        ]

    def _group_end(self, batch: int) -> int:
        """The number of the batch after the group of this one."""
        return min((batch // self.group_size + 1) * self.group_size, self.num_batches)

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


class PythonRecordIter(RecordIter):
    """The python engine: worker processes that decode and augment with OpenCV.

    The order is a permutation of all records that (seed, epoch) decides, and a sample depends on (seed, epoch, its
    place in the file) alone, not on the number of workers. Shard k of n serves every n-th sample of this order. A
    damaged record raises when its group is due; next() then goes on with the following group. A worker that dies
    or does not answer raises WorkerError; next() and reset() then start new ones.
    """

    def __init__(self, spec: BatchSpec) -> None:
        """Opens the record and starts the workers; errors of plan_batches, OptionError for too little memory."""
        plan = plan_batches(spec)
        check_memory([plan])
        count, part = len(plan.maker.reader), slice(spec.part_index, None, spec.num_parts)
        num_batches = math.ceil(math.ceil(count / spec.num_parts) / spec.batch_size)
        super().__init__(plan, num_examples=len(range(count)[part]), num_batches=num_batches)
        self._part = part
        self._slots = plan.slots
        self._pool: WorkerPool | InProcess | None = None
        self._running_pool()
        self.set_epoch(spec.epoch)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, [] without any."""
        return self._pool.pids if isinstance(self._pool, WorkerPool) else []

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""
        if self._pool is not None:
            self._drain(self._pool)
        self.epoch = epoch
        self._cursor = self._submitted = 0
        self._order, self._numbers = self._epoch_order()
        self._batch_sizes = self._epoch_sizes()

    def skip(self, batches: int) -> None:
        """Goes on as if so many batches of the epoch, whole groups, had been served; at its beginning."""
        self._cursor = self._submitted = batches

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch."""
        if self._cursor >= self.num_batches:
            raise StopIteration
        pool = self._running_pool()
        try:
            self._submit(pool)
            if self._cursor % self.group_size == 0:
                self._total = self.over_processes(self._group_total(pool))
            pool.wait(self._cursor % self._slots)
            batch = self._batch(*self._samples_first(pool), self._cursor)
        except WorkerError:
            self.close()
            raise
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

    def _running_pool(self) -> WorkerPool | InProcess:
        if self._pool is None:
            if self._plan.workers:
                self._pool = WorkerPool(self._maker, self._layout, self._slots, self._plan.workers)
            else:
                self._pool = InProcess(self._maker, self._layout, self._slots)
        return self._pool

    def _drain(self, pool: WorkerPool | InProcess) -> None:
        try:
            pool.drain()
        except BaseException:
            self.close()
            raise

    def _epoch_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of this shard's samples in batches of the epoch, and the numbers of these as they are served."""
        count, numbers = len(self._maker.reader), np.arange(self.num_batches)
        rng = np.random.default_rng((self._maker.seed, self.epoch))
        if self._plan.rectangles:
            is_shuffled = self._plan.spec.shuffle
            return self._plan.rectangles.shuffled(rng) if is_shuffled else (self._plan.rectangles.order, numbers)
        order = rng.permutation(count) if self._plan.spec.shuffle else np.arange(count)
        return order[self._part], numbers

    def _epoch_sizes(self) -> list[Size]:
        """The input (H, W) of each batch of the epoch, one for each group."""
        if self._plan.rectangles:
            return [self._plan.rectangles.sizes[k] for k in self._numbers]
        groups = np.arange(self.num_batches) // self.group_size
        rng = np.random.default_rng((self._maker.seed, self.epoch, *SIZE_STREAM))
        choices = rng.integers(len(self._plan.sizes), size=self.num_batches)  # (groups or more,)
        return [self._plan.sizes[k] for k in choices[groups]]

    def _group_total(self, pool: WorkerPool | InProcess) -> np.ndarray | None:
        """Waits for all batches of the group that begins; the sums (k,) of their normalisers, None without any."""
        numbers = range(self._cursor, self._group_end(self._cursor))
        errors = []
        for number in numbers:
            try:
                pool.wait(number % self._slots)
            except WorkerError:
                raise
            except UserError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return group_total((self._arrays(pool, n), len(self._positions(n))) for n in numbers)

    def _samples_first(self, pool: WorkerPool | InProcess) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays of the batch at the cursor and the positions of its samples, before rows that are left out."""
        arrays, positions = self._arrays(pool, self._cursor), self._positions(self._cursor)
        reasons = pool.left_out(self._cursor % self._slots)
        bad = [row for row in sorted(reasons) if row < len(positions)]
        if not bad:
            return arrays, positions
        for row in bad:
            self.left_out.note(int(positions[row]), reasons[row])
        order = np.append(np.delete(np.arange(self.batch_size), bad), bad)
        return {name: array[order] for name, array in arrays.items()}, np.delete(positions, bad)

    def _arrays(self, pool: WorkerPool | InProcess, batch: int) -> dict[str, np.ndarray]:
        return pool.arrays(batch % self._slots, self._batch_sizes[batch])

    def _positions(self, batch: int) -> np.ndarray:
        begin = self._numbers[batch] * self.batch_size
        return self._order[begin : begin + self.batch_size]

    def _filled(self, batch: int) -> np.ndarray:
        """The positions of a batch with those whose pixels padding rows have."""
        own = self._positions(batch)
        if self._plan.rectangles and self._plan.spec.shuffle:
            return np.resize(own, self.batch_size)
        return np.append(own, self._order.take(np.arange(self.batch_size - len(own)), mode="wrap"))

    def _submit(self, pool: WorkerPool | InProcess) -> None:
        """Has batches made ahead, as far as there are slots."""
        while self._submitted < min(self._cursor + self._slots, self.num_batches):
            positions, size = self._filled(self._submitted), self._batch_sizes[self._submitted]
            pool.submit(self._submitted % self._slots, self.epoch, positions, size)
            self._submitted += 1


class WrappedIter(mx.io.DataIter):
    """The batches of another iterator."""

    def __init__(self, iterator: mx.io.DataIter) -> None:
        """iterator stays the caller's to close."""
        super().__init__(iterator.batch_size)
        self._iterator = iterator

    @property
    def provide_data(self) -> list[Any]:
        """As the iterator's."""
        return self._iterator.provide_data

    @property
    def provide_label(self) -> list[Any]:
        """As the iterator's."""
        return self._iterator.provide_label

    def reset(self) -> None:
        """Begins the iterator's next epoch."""
        self._iterator.reset()

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch."""
        return self._iterator.next()


class ClassicArguments:
    """The arguments of the classic DetRecordIter, for an engine that takes a BatchSpec."""

    def __init__(
        self,
        path_imgrec: str | Path,
        batch_size: int,
        data_shape: DataShape,
        *,
        mean_pixels: float | Sequence[float] = MEAN_PIXELS,
        label_pad_width: int = 0,
        path_imglist: str | Path | None = None,
        **more: Any,
    ) -> None:
        """label_pad_width: numbers in a label, 350 = 58 objects of 6 and 2 more; 0 or -1 = what the record needs.

        more: fields of BatchSpec, or settings by their names in cfg (`**cfg.train`, `**cfg.valid`); what is given of
        neither is not done. preprocess_threads is a limit: no more workers than usable cores. A name that is neither
        raises OptionError; other errors as in PythonRecordIter.
        """
        more |= {"mean_pixels": mean_pixels, "path_imglist": path_imglist}
        spec = classic_spec(path_imgrec, batch_size, data_shape, label_pad_width, **more)
        super().__init__(spec)  # type: ignore[call-arg]  # of the engine, which comes next


class DetRecordIter(ClassicArguments, PythonRecordIter):
    """The python engine by its classic name and arguments."""


def check_batches(spec: BatchSpec, engine: str = "python") -> BatchPlan:
    """The errors of open_batches for a spec that cannot be served, but too little memory; nothing is started."""
    plan = plan_batches(spec)
    if engine == "native":
        from dataset.native_iterator import check_native

        check_native(plan)
    return plan


def open_batches(spec: BatchSpec, engine: str = "python") -> RecordIter:
    """The iterator of an engine, `python` or `native`, over the batches of a spec; errors as its class has them."""
    if engine == "python":
        return PythonRecordIter(spec)
    from dataset.native_iterator import NativeRecordIter

    return NativeRecordIter(spec)


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
