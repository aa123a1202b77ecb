"""What is wrong or doubtful in records and sets of annotations: the defects of all their images (defects.py), and those
of the whole. A record can be cleaned.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from common.errors import DataError, UserError
from dataset.class_names import similar_names
from dataset.defects import SMALL, Defect, Seen, Wish, bare, in_pixels, look_at_image, look_at_records, open_reader
from dataset.fitting import Rules, fit_objects
from dataset.image_check import image_header
from dataset.image_list import image_names
from dataset.image_pool import in_order, process_pool
from dataset.imdb import shortened
from dataset.labels import pack_label, parse_label
from dataset.pascal_voc import VOC_CLASSES, PascalVoc
from dataset.recordio import Record, RecordReader, RecordWriter, pack
from dataset.sidecar import (
    Sidecar,
    describe_record,
    image_digest,
    read_sidecar,
    sidecar_bytes,
    sidecar_path,
    split_digests,
    verify_sidecar,
)
from dataset.sources import Source, Wanted, read_source

T = TypeVar("T")
R = TypeVar("R")
_BLOCK = 64  # records that a worker takes at a time
DROP = Rules(duplicates="drop")


@dataclass
class CheckedSet:
    """A record, a folder or a set of it. images: a line for each to name it by; names: its file names, where known.

    digests: of each image, "" where unknown. smalls (n, SMALL, SMALL) float16, zeros where there is none; None = not
    asked for. source: what was read, of annotations. sound (n,): which images can be trained on. assumed: nobody has
    named the classes, which are VOC's. seen: what each image has shown, where views were asked for.
    """

    name: str
    defects: list[Defect] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    smalls: np.ndarray | None = None
    sound: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    source: Source | None = None
    kind: str = ""
    class_names: tuple[str, ...] = ()
    assumed: bool = False
    seen: Sequence[Seen] = ()

    def add(self, code: str, text: str, where: str = "") -> None:
        """One more defect; where: the set itself unless given."""
        self.defects.append(Defect(where or self.name, code, text))


Progress = Callable[[Iterable[Seen], int], Iterable[Seen]]


class OpenedSet(Protocol):
    """A record, or a set of annotations, of which all but the images has been read."""

    @property
    def count(self) -> int:
        """Its images."""

    def check(self, wish: Wish, workers: int, progress: Progress) -> CheckedSet:
        """All that is wrong or doubtful in it; each image is read once, and decoded only as wish says."""


class OpenedRecord:
    """A record."""

    def __init__(self, path: Path) -> None:
        """Opens it; what is wrong with it as a whole is a defect."""
        self._path, self._checked = path, CheckedSet(str(path))
        self._reader: RecordReader | None = None
        try:
            self._reader = RecordReader(path)
        except DataError as error:
            self._checked.add("record", bare(str(error), self._checked.name))

    @property
    def count(self) -> int:
        """Its images; 0 where it cannot be read."""
        return len(self._reader) if self._reader else 0

    def check(self, wish: Wish, workers: int, progress: Progress) -> CheckedSet:
        """As OpenedSet."""
        checked, reader = self._checked, self._reader
        if reader is None:
            return checked
        sidecar = _sidecar(self._path, checked)
        checked.class_names = sidecar.class_names if sidecar else ()
        classes = len(sidecar.class_names) if sidecar else None
        open_reader.cache_clear()  # the file may have changed since
        blocks = [range(k, min(k + _BLOCK, self.count)) for k in range(0, self.count, _BLOCK)]
        known = split_digests(sidecar.image_digests) if sidecar else []
        look = partial(look_at_records, str(self._path), classes, replace(wish, digest=wish.digest and not known))
        with _worked(look, blocks, workers) as results:
            seen = list(progress((one for block in results for one in block), self.count))
        _collect(checked, seen, wish)
        checked.images = [reader.where(k) for k in range(self.count)]
        names = image_names(self._path, "", reader.keys.tolist())
        checked.names = [name.partition(" ")[2][1:-1] for name in names]
        checked.digests = known or checked.digests
        if sidecar and checked.sound.all():
            _check_counts(checked, sidecar, seen)
        return checked


def _sidecar(path: Path, checked: CheckedSet) -> Sidecar | None:
    """The sidecar of a record, None without a sound one; what is wrong with it becomes a defect."""
    try:
        sidecar = read_sidecar(path)
        if sidecar:
            verify_sidecar(path, sidecar, hash=False)
    except DataError as error:
        checked.add("sidecar", bare(str(error), checked.name))
        return None
    return sidecar


def _check_counts(checked: CheckedSet, sidecar: Sidecar, seen: Sequence[Seen]) -> None:
    """A defect where the sidecar counts other objects than the labels have."""
    counts = _counts(seen, len(sidecar.class_names))
    if tuple(counts.tolist()) != sidecar.objects_per_class:
        where = str(sidecar_path(checked.name))
        checked.add("sidecar", f"counts {sidecar.num_objects} objects, the labels have {counts.sum()}", where)


class OpenedAnnotations:
    """A set of annotations."""

    def __init__(self, wanted: Wanted) -> None:
        """Reads the annotations; what is wrong with them is a defect."""
        sets = f" ({','.join(wanted.sets)})" if wanted.sets else ""
        self._checked, self._wanted = CheckedSet(f"{wanted.root}{sets}"), wanted
        told: list[str] = []
        try:
            with _warnings(told):
                self._checked.source, self._checked.kind = read_source(wanted)
        except UserError as error:
            self._checked.add("set", str(error))
            return
        self._tell(self._checked.source, told)

    def _tell(self, source: Source, told: Sequence[str]) -> None:
        """Notes what reading has shown; told: the lines of the log."""
        for code, lines in (("label", source.bad), ("no-area", source.dropped)):
            for line in lines:
                where, _, text = line.partition(": ")
                self._checked.add(code, text or line, where)
        for line in told:
            if not any(line.endswith(dropped) for dropped in source.dropped[:1]):
                self._checked.add("told", line)

    @property
    def count(self) -> int:
        """Its images; 0 where the annotations cannot be read."""
        return len(self._checked.source.images) if self._checked.source else 0

    def check(self, wish: Wish, workers: int, progress: Progress) -> CheckedSet:
        """As OpenedSet."""
        checked, source = self._checked, self._checked.source
        if source is None:
            return checked
        with _worked(partial(look_at_image, wish), source.images, workers) as results:
            seen = list(progress(results, self.count))
        checked.class_names = source.class_names
        is_voc = isinstance(source, PascalVoc) and source.class_names == VOC_CLASSES
        checked.assumed = is_voc and not self._wanted.names
        _collect(checked, seen, wish)
        checked.images = [str(image.path) for image in source.images]
        checked.names = [image.name for image in source.images]
        return checked


def _collect(checked: CheckedSet, seen: Sequence[Seen], wish: Wish) -> None:
    """What the images of a set have shown, together."""
    checked.defects += [defect for one in seen for defect in one.defects]
    checked.sound = np.array([one.sound for one in seen], bool)
    checked.seen = seen if wish.view else ()
    checked.digests = [one.digest for one in seen]
    if wish.small:
        blank = np.zeros((SMALL, SMALL), np.float16)
        checked.smalls = np.array([blank if one.small is None else one.small for one in seen]).reshape(-1, *blank.shape)
    class_names = checked.class_names
    counts = _counts(seen, len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty and not checked.assumed:
        checked.add("no-objects", f"{len(empty)} of {len(class_names)} classes: {', '.join(shortened(empty))}")
    for line in similar_names(class_names):
        checked.add("like-names", line)


def _counts(seen: Sequence[Seen], classes: int) -> np.ndarray:
    """(classes,) objects of each class."""
    ids = np.concatenate([np.zeros(0, np.int64), *(one.ids for one in seen)])
    return np.bincount(ids[(ids >= 0) & (ids < classes)], minlength=classes)


def _worked(work: Callable[[T], R], items: Sequence[T], workers: int) -> AbstractContextManager[Iterator[R]]:
    """work(item) of all items in order, in this process for one worker."""
    if workers == 1 or not items:
        return nullcontext(map(work, items))
    return in_order(process_pool(workers), workers, work, items)


@contextmanager
def _warnings(lines: list[str]) -> Iterator[None]:
    """Collects what the modules of this folder warn of, instead of logging it; the rest is logged."""
    logger = logging.getLogger(__package__)
    handler = _Collected(lines)
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


class _Collected(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a warning, and hands on what is less."""
        if record.levelno >= logging.WARNING:
            self.lines.append(record.getMessage())
        elif logging.getLogger().isEnabledFor(record.levelno):
            logging.getLogger().handle(record)


def clean_record(path: Path, checked: CheckedSet, out: Path) -> tuple[int, int]:
    """Writes `out` with the sound records of `path`; (records written, records left out).

    Boxes are clipped; an object that is there twice is written once. All else stays byte for byte. The sidecar is
    written where `path` has a sound one. DataError if nothing is left.
    """
    reader, sidecar = RecordReader(path), read_sidecar(path)
    kept = np.flatnonzero(checked.sound).tolist()
    if not kept:
        raise DataError(f"{path}: no record is left, nothing was written; pack the data set again")
    counts, digests, ids, width = [], [], [], 0
    with RecordWriter(out) as writer:
        for position in kept:
            record = reader.record(position)
            objects = _cleaned(record, reader.where(position))
            label = pack_label(objects)
            writer.write(int(reader.keys[position]), pack(label, record.image, record.index))
            counts.append(len(objects))
            ids.append(objects[:, 0].astype(np.int64))
            width = max(width, label.size)
            digests.append(image_digest(record.image))
        rec = writer.finish()
        if sidecar:
            numbers = np.bincount(np.concatenate(ids), minlength=len(sidecar.class_names))
            source = f"{sidecar.source}, cleaned"
            made = describe_record(rec, sidecar.class_names, counts, numbers, width, source, digests, sidecar.bit_depth)
            writer.add_file(sidecar_path(out), sidecar_bytes(made))
    return len(kept), len(reader) - len(kept)


def _cleaned(record: Record, where: str) -> np.ndarray:
    """(n, 6) objects of a sound record, clipped, none of them twice."""
    objects = parse_label(record.label, where)
    info = image_header(record.image)
    image = in_pixels(where, objects)(info)
    rows = fit_objects(image, info, DROP).rows
    objects = objects[rows]
    objects[:, 1:5] = objects[:, 1:5].clip(0, 1)
    return objects
