"""NativeRecordIter: the batches of docs/contracts.md made by mx.io.ImageDetRecordIter, the classic C++ pipeline.

What that iterator does on its own account is kept out: it gets its labels from a list that our reader has checked and
that tells each sample's place in the file; every epoch is one pass through the file; padding is ours.

A line of the list is `id 3 6 position objects... name` (im2rec's .lst with a header of three): the position in the file
comes back with each sample. C++ looks labels up by the id in the record and puts [channels, rows, columns, number of
values] before them. It drops objects without area, so that a dummy of -1 stands for none, which it would refuse.
"""

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from boxes.geometry import clip_to_unit
from common.errors import DataError, OptionError
from common.sizes import Size
from config.augment_options import FORCE
from config.config import classic_arguments
from dataset.augment import MIN_SIDE
from dataset.batch_memory import check_memory
from dataset.batch_spec import BatchPlan, BatchSpec, plan_batches
from dataset.image_check import record_header
from dataset.iterator import ClassicArguments, RecordIter, group_total
from dataset.labels import OBJECT_WIDTH
from dataset.samples import DATA, GEOMETRY, LABEL, BatchLayout, SampleMaker, write_all
from dataset.transforms import MORE_BITS, decode
from machine.runtime import mx

AHEAD = 3  # batches that the thread makes ahead
SHUFFLE_CHUNK_MB = 64
RECORD, LIST = "records.rec", "labels.lst"

T = TypeVar("T")
Batch = tuple[dict[str, np.ndarray], np.ndarray]  # arrays, positions of the samples in their first rows
HEADER_WIDTH = 3
POSITION = 4 + 2  # in a row: after C++'s four values, the header width and the object width
OBJECTS = POSITION + 1
UPRIGHT = 1
SEEK_ALIGNMENT = 4


class NativeRecordIter(RecordIter):
    """The native engine: C++ decodes and augments, a thread of this process assigns targets a few batches ahead.

    Labels, classes and image headers of the whole shard are checked on construction; a damaged image raises DataError
    naming it when its batch is due, and again until reset() begins the next epoch. What is different from the python
    engine, because C++ decides it:

    - Shuffling: blocks of SHUFFLE_CHUNK_MB are served in random order, and records are shuffled within 8 MB.
    - Randomness: order and augmentation go on from epoch to epoch, so that they depend on the epochs served before, and
      on the number of threads (at most the number of cores - 1). Where a pass begins anew (another start epoch, a pass
      that was broken off, an error, close()), the order depends on (seed, epoch), but the augmentation is that of a
      new iterator: a resumed run repeats views. Two runs alike are the same.
    - min_crop_overlaps and the like have no effect unless all six limits exclude something; hue does not wrap around;
      images without objects are not cropped.
    - geometry of augmented samples has NaN for scale and offset.
    - Shards are ranges of bytes: their numbers of records differ, and shorter ones end with batches of padding.
    - JPEG files with an EXIF rotation are refused, since C++ rotates the pixels but not the boxes.
    - All batches have the same size.
    - Images are stretched to the input: resize_mode letterbox is refused.
    """

    def __init__(self, spec: BatchSpec) -> None:
        """Opens the record and starts the thread; errors as plan_batches has them, and for what C++ cannot do."""
        plan = plan_batches(spec)
        check_native(plan)
        check_memory([plan])
        shards = split_by_bytes(plan.maker.reader.bounds, spec.num_parts, _shuffle_blocks(plan))
        counts = [len(positions) for positions in shards]
        if min(counts) == 0:
            raise OptionError(f"{plan.maker.reader.path} has records too large for {spec.num_parts} parts")
        super().__init__(plan, num_examples=counts[spec.part_index], num_batches=-(-max(counts) // spec.batch_size))
        self._source = NativeSource(plan.maker, plan.layout, shards[spec.part_index], _arguments(plan))
        self._pass: Prefetcher | None = None
        self._group: Sequence[Batch] = ()  # made, but not yet served
        self._cursor = 0
        self._begin()

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""
        follows = self._pass is not None and self._cursor == self.num_batches and epoch == self.epoch + 1
        if self._pass is not None and follows:
            self._pass.close()
        else:
            self.close()
        self.epoch, self._cursor = epoch, 0
        self._begin()

    def skip(self, batches: int) -> None:
        """Goes on as if so many batches of the epoch, whole groups, had been served; they are made and dropped."""
        for _ in range(batches):
            self.next()

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch."""
        if self._cursor >= self.num_batches:
            raise StopIteration
        try:
            if not self._group:
                self._make_group()
        except BaseException:
            self.close()
            raise
        (arrays, positions), self._group = self._group[0], self._group[1:]
        self._cursor += 1
        return self._batch(arrays, positions, self._cursor - 1)

    def _make_group(self) -> None:
        """Takes the group's batches from the cursor on; the sum of its normalisers is known if some were served."""
        running = self._pass or self._begin()
        self._group = [running.take() for _ in range(self._cursor, self._group_end(self._cursor))]
        if self._cursor % self.group_size == 0:
            self._total = group_total((arrays, len(positions)) for arrays, positions in self._group)

    def close(self) -> None:
        """Ends the thread and the C++ iterator; next() would start them again."""
        if self._pass is not None:
            self._pass.close()
        self._pass, self._group = None, ()
        self._source.release()

    def _begin(self) -> "Prefetcher":
        """Starts the thread at the batch of the cursor."""
        self._pass = Prefetcher(self._source.batches(self.epoch, self._cursor, self.num_batches))
        return self._pass


class NativeDetRecordIter(ClassicArguments, NativeRecordIter):
    """The native engine with the arguments of DetRecordIter."""


def check_native(plan: BatchPlan) -> None:
    """OptionError for what C++ cannot do."""
    if plan.spec.resize_mode != FORCE:
        raise OptionError(f"the native engine cannot do {plan.spec.resize_mode}; use --data-engine python")
    if plan.spec.left_out:
        raise OptionError("the native engine cannot leave records out; use --data-engine python for --bad-records")
    if plan.sizes != (plan.maker.size,):
        raise OptionError("the native engine has inputs of one size; use --data-engine python for --multi-scale")
    _arguments(plan)


def _shuffle_blocks(plan: BatchPlan) -> int:
    """The number of blocks of a shard that are served in random order, as C++ computes it."""
    share = int(plan.maker.reader.bounds[-1]) * 1.1 / (plan.spec.num_parts * (SHUFFLE_CHUNK_MB << 20))
    return max(1, int(np.ceil(share))) if plan.spec.shuffle else 1


def _arguments(plan: BatchPlan) -> dict[str, Any]:
    """The arguments of mx.io.ImageDetRecordIter that are the same in all epochs."""
    spec, maker = plan.spec, plan.maker
    mean = {f"mean_{channel}": float(value) for channel, value in zip("rgb", maker.mean, strict=True)}
    std = {f"std_{channel}": float(value) for channel, value in zip("rgb", maker.std, strict=True)}
    own = {
        "batch_size": spec.batch_size,
        "data_shape": (3, *maker.size),
        "label_pad_width": label_width(maker.max_objects),
        "preprocess_threads": max(1, plan.workers),
        "num_parts": spec.num_parts,
        "part_index": spec.part_index,
        "shuffle": spec.shuffle,
        "shuffle_chunk_size": SHUFFLE_CHUNK_MB if spec.shuffle else 0,
        "round_batch": False,
        "verbose": False,
        "ctx": "cpu",
    }
    return mean | std | classic_arguments(maker.augment) | own


class NativeSource:
    """Passes of mx.io.ImageDetRecordIter through a shard; it lives as long as any of them."""

    def __init__(
        self, maker: SampleMaker, layout: BatchLayout, positions: np.ndarray, arguments: dict[str, Any]
    ) -> None:
        """Reads the labels of the records at `positions`; arguments are those of all passes."""
        labels = label_list(maker, positions)
        self._maker, self._layout, self._positions, self._arguments = maker, layout, positions, arguments
        self._sizes = labels.sizes
        self._record = open(maker.reader.path, "rb")  # noqa: SIM115 - open as long as the passes
        self._folder = TemporaryDirectory(prefix="native-labels-")
        weakref.finalize(self, _discard, self._record, self._folder)
        Path(self._folder.name, LIST).write_text(labels.lines, "ascii")
        Path(self._folder.name, RECORD).symlink_to(f"/proc/self/fd/{self._record.fileno()}")
        self._native: Any = None  # MXDataIter of the running or finished pass

    def release(self) -> None:
        """Ends C++'s threads; the next pass begins with a new iterator, otherwise it continues its random numbers."""
        self._native = None

    def batches(self, epoch: int, begin: int, end: int) -> Iterator[Batch]:
        """The batches begin to end - 1 of an epoch; DataError naming a record that C++ cannot decode."""
        unserved = np.zeros(len(self._maker.reader), bool)
        unserved[self._positions] = True
        self._call(self._start, unserved, epoch)
        first = np.empty(0)
        for number in range(end):
            data, positions, objects = self._call(self._take, unserved, bool(unserved.any()))
            unserved[positions] = False
            if len(positions) < len(data) and unserved.any():
                lost = self._maker.reader.where(int(unserved.argmax()))
                raise DataError(f"{lost}: MXNet does not find it; pack the data set again")
            if number == 0:
                first = data[: len(positions)].copy()
            if number >= begin:
                data[len(positions) :] = first.take(np.arange(len(data) - len(positions)), axis=0, mode="wrap")
                yield self._arrays(data, positions, objects), positions

    def _start(self, epoch: int) -> None:
        """Begins a pass. C++ gets names of ours for the files: ; ? # have a meaning, and it lists their folder."""
        if self._native is not None:
            self._native.reset()
            return
        seed = int(np.random.SeedSequence((self._maker.seed, epoch)).generate_state(1)[0] >> 2)
        self._native = mx.io.ImageDetRecordIter(
            path_imgrec=os.path.join(self._folder.name, RECORD),
            path_imglist=os.path.join(self._folder.name, LIST),
            seed=seed,
            shuffle_chunk_seed=seed,
            **self._arguments,
        )

    def _take(self, more: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels (B, 3, H, W), positions (n,) and objects (n, M, 6) of the next batch; n = 0 at the end."""
        batch = next(self._native, None) if more else None
        if batch is None:
            shape = self._maker.shapes()
            return (
                np.empty((self._layout.batch_size, *shape[DATA]), np.float32),
                np.empty(0, int),
                np.empty((0, *shape[LABEL])),
            )
        rows = batch.label[0].asnumpy()[: self._layout.batch_size - batch.pad]
        clip = self._maker.augment is not None
        return batch.data[0].asnumpy(), *parse_rows(rows, self._maker.max_objects, clip)

    def _arrays(self, data: np.ndarray, positions: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a batch with samples in the first rows."""
        maker, count = self._maker, len(positions)
        arrays = {n: np.empty((len(data), *shape), np.float32) for n, shape in maker.shapes().items() if n != DATA}
        arrays[LABEL][:count] = objects
        arrays[GEOMETRY][:count] = self._geometry(positions)
        if maker.assigner:
            for row, sample in enumerate(real_objects(objects)):
                write_all(arrays, row, maker.targets(sample, maker.reader.where(int(positions[row]))))
        return {DATA: data} | arrays

    def _geometry(self, positions: np.ndarray) -> np.ndarray:
        """(n, 6): h, w, scale y, x and offset 0, or NaN where the augmenter has chosen them."""
        sizes = self._sizes[positions]
        if self._maker.augment:
            return np.concatenate([sizes, np.full((len(sizes), 4), np.nan)], axis=1)
        return np.concatenate([sizes, np.array(self._maker.size) / sizes, np.zeros((len(sizes), 2))], axis=1)

    def _call(self, function: Callable[..., T], unserved: np.ndarray, *arguments: Any) -> T:
        """Calls what may raise MXNetError, which names no record: the first unserved image that fails is the cause."""
        try:
            return function(*arguments)
        except mx.base.MXNetError as error:
            for position in np.flatnonzero(unserved).tolist():
                decode(self._maker.reader.record(position).image, self._maker.reader.where(position))
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"{self._maker.reader.path}: MXNet cannot read it ({reason}); use --data-engine python"
            ) from error


def _discard(record: BufferedReader, folder: TemporaryDirectory[str]) -> None:
    record.close()
    folder.cleanup()


class Prefetcher:
    """Runs an iterator in a thread, AHEAD items before they are taken; garbage collection ends the thread, too."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self._items = items
        self._executor = ThreadPoolExecutor(1, "native batches")
        self._futures = deque(self._executor.submit(next, items) for _ in range(AHEAD))

    def take(self) -> Batch:
        """The next item; raises what the iterator raised."""
        self._futures.append(self._executor.submit(next, self._items))
        return self._futures.popleft().result()

    def close(self) -> None:
        """Waits for the item in work and drops the others."""
        self._executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class LabelList:
    """lines: the list; sizes (n, 2) float32: h, w of the image at each position of the file, NaN in other shards."""

    lines: str
    sizes: np.ndarray


def label_width(max_objects: int) -> int:
    """Values of a label of max_objects >= 1 objects."""
    return HEADER_WIDTH + OBJECT_WIDTH * max_objects


def label_list(maker: SampleMaker, positions: np.ndarray) -> LabelList:
    """Reads and checks the labels and image headers of the records at `positions`; DataError naming a bad one."""
    sizes = np.full((len(maker.reader), 2), np.nan, np.float32)
    lines: dict[int, str] = {}
    for position in positions.tolist():
        record, where = maker.reader.record(position), maker.reader.where(position)
        if record.index in lines:
            raise DataError(f"{where}: id {record.index} is that of another record, too; pack again with distinct ids")
        sizes[position] = _size(record.image, where)
        lines[record.index] = _line(record.index, position, maker.objects(record.label, where))
    return LabelList("".join(lines.values()), sizes)


def _line(index: int, position: int, objects: np.ndarray) -> str:
    rows = objects if len(objects) else np.full((1, OBJECT_WIDTH), -1, np.float32)
    values = (f"{value:.9g}" for value in rows.ravel())
    return "\t".join([str(index), str(HEADER_WIDTH), str(OBJECT_WIDTH), str(position), *values, "image"]) + "\n"


def _size(image: bytes, where: str) -> Size:
    """(h, w) of an encoded image that C++ does not rotate."""
    info = record_header(image, where)
    if info.orientation != UPRIGHT:
        raise DataError(
            f"{where}: the JPEG asks to be rotated (EXIF orientation {info.orientation}), which the native engine "
            "would do to the pixels but not to the boxes; use --data-engine python or remove the tag"
        )
    if info.bits > 8:
        raise DataError(f"{where}: the image {MORE_BITS}")
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
