"""What is wrong or doubtful in a record or in annotated images: a defect each, with a code and what to do about it.

The readers and packers of this folder find the defects; here they are collected, none of them refused.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from common.errors import DataError, UserError
from dataset.class_names import similar_names
from dataset.fitting import DEFAULT_RULES, Fitted, Rules, fit_objects, mixed_classes
from dataset.image_check import ImageInfo, check_stream, image_header, packed_image
from dataset.image_list import image_names
from dataset.image_pool import in_order, or_reason, process_pool, read_image
from dataset.imdb import AnnotatedImage, shortened
from dataset.labels import mistakes_of, pack_label, parse_label
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
from machine.opencv import cv2

T = TypeVar("T")
R = TypeVar("R")
Scaled = Callable[[ImageInfo], AnnotatedImage]  # an annotation in pixels of an image of that size
SMALL = 32  # side of the grey copies by which pictures are compared
_BLOCK = 64  # records that a worker takes at a time
_BLUR = 3.0  # pixels of a grey copy: slower changes, as of the light, do not tell pictures apart
DROP = Rules(duplicates="drop")


@dataclass(frozen=True)
class Code:
    """What a code stands for, what to do about it, and what --fix does."""

    what: str
    remedy: str
    fix: str = "stays"


_FROM_SCRATCH, _LEFT_OUT = "cannot be cleaned", "image left out"
_ONE_PART = "keep both in one part (prepare_dataset.py --split with --group-by), or remove one"
CODES: Mapping[str, Code] = {
    "set": Code("a folder or file of annotations that cannot be read", "correct what is named", _FROM_SCRATCH),
    "label": Code("a label that cannot be read or trained on", "correct the label", _LEFT_OUT),
    "told": Code("what the reader assumes, skips or counts", "check whether that is meant"),
    "record": Code(
        "a record whose chain of headers, or .idx, is damaged", "pack the data set again", _FROM_SCRATCH
    ),
    "sidecar": Code("a sidecar that is damaged or of another record", "pack the data set again", _FROM_SCRATCH),
    "image": Code("an image that is missing, damaged or of a form that is not read", "replace the image", _LEFT_OUT),
    "size": Code(
        "an image of another size than its annotation says", "correct the size, or say whose pixels the boxes are in",
        "scaled, or left out where the proportions differ",
    ),
    "rotated": Code("an image with an EXIF orientation, which is ignored", "check its boxes; store it upright"),
    "no-area": Code("a box without area", "correct or remove the box", "box removed"),
    "outside": Code("a box that lies outside its image", "correct or remove the box", "box removed"),
    "emptied": Code("an image that loses all its boxes", "correct its boxes, or remove the image"),
    "clipped": Code("boxes that reach out of their image", "correct the boxes", "boxes clipped"),
    "far": Code("a box that reaches out by more than half of the image", "correct the box", "box clipped"),
    "thin": Code("a box less than two pixels wide or high", "correct or remove the box"),
    "twice": Code("the same class and box twice", "remove one of them", "one is removed"),
    "alike": Code("nearly the same box twice, of one class", "remove one of them if they are one object"),
    "mixed": Code("nearly the same box, of two classes", "choose the class that is right"),
    "no-objects": Code("classes without objects", "leave them out, or add images of them"),
    "like-names": Code("classes whose names differ by case, blanks or a letter", "give them one name"),
    "leak-same": Code("the same file in two sets", "remove one of them"),
    "leak-picture": Code("the same picture in two sets: other bytes, size or quality", "remove one of them"),
    "leak-mirror": Code("a picture in one set, its mirror image in another", _ONE_PART),
    "leak-shifted": Code("two sets show the same place, a little shifted", _ONE_PART),
    "leak-sibling": Code("variants of one image by Roboflow's names (.rf.) in two sets", _ONE_PART),
    "leak-film": Code("neighbouring frames of one film in two sets, by name", _ONE_PART),
}  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """where: the file or record; code: of CODES; text: the defect."""

    where: str
    code: str
    text: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return CODES[self.code].remedy

    def __str__(self) -> str:
        """The line for the user."""
        return f"{self.where}: {self.code}: {self.text}; {self.remedy}"


@dataclass(frozen=True)
class Wish:
    """What to find out of each image: pictures: decode it; small: keep a grey copy; digest: hash it."""

    pictures: bool = True
    small: bool = False
    digest: bool = False
    bit_depth: str = ""


@dataclass(frozen=True)
class Seen:
    """One image: its defects, the class ids (n,) of its objects, whether it can be trained on, its digest ("" =
    unknown), its grey copy (SMALL, SMALL) float16, None without."""

    defects: tuple[Defect, ...]
    ids: np.ndarray
    sound: bool
    digest: str = ""
    small: np.ndarray | None = None


@dataclass
class CheckedSet:
    """A record, a folder or a set of it. images: a line for each to name it by; names: its file names, where known.

    digests: of each image, "" where unknown. smalls (n, SMALL, SMALL) float16, zeros where there is none; None = not
    asked for. source: what was read, of annotations. sound (n,): which images can be trained on.
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

    def add(self, code: str, text: str, where: str = "") -> None:
        """One more defect; where: the set itself unless given."""
        self.defects.append(Defect(where or self.name, code, text))


Progress = Callable[[Iterable[Seen], int], Iterable[Seen]]


def check_record(path: Path, wish: Wish, workers: int, progress: Progress) -> CheckedSet:
    """All that is wrong or doubtful in a record; each image is read once, and decoded only as wish says."""
    checked = CheckedSet(str(path))
    try:
        reader = RecordReader(path)
    except DataError as error:
        checked.add("record", _bare(str(error), checked.name))
        return checked
    sidecar = _sidecar(path, checked)
    classes = len(sidecar.class_names) if sidecar else None
    _reader.cache_clear()  # the file may have changed since
    blocks = [range(k, min(k + _BLOCK, len(reader))) for k in range(0, len(reader), _BLOCK)]
    known = split_digests(sidecar.image_digests) if sidecar else []
    look = partial(_look_at_records, str(path), classes, Wish(wish.pictures, wish.small, wish.digest and not known))
    with _worked(look, blocks, workers) as results:
        seen = list(progress((one for block in results for one in block), len(reader)))
    _collect(checked, seen, sidecar.class_names if sidecar else (), wish)
    checked.images = [reader.where(k) for k in range(len(reader))]
    checked.names = [name.partition(" ")[2][1:-1] for name in image_names(path, "", reader.keys.tolist())]
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
        checked.add("sidecar", _bare(str(error), checked.name))
        return None
    return sidecar


def _check_counts(checked: CheckedSet, sidecar: Sidecar, seen: Sequence[Seen]) -> None:
    """A defect where the sidecar counts other objects than the labels have."""
    counts = _counts(seen, len(sidecar.class_names))
    if tuple(counts.tolist()) != sidecar.objects_per_class:
        where = str(sidecar_path(checked.name))
        checked.add("sidecar", f"counts {sidecar.num_objects} objects, the labels have {counts.sum()}", where)


def check_annotations(wanted: Wanted, wish: Wish, workers: int, progress: Progress) -> CheckedSet:
    """All that is wrong or doubtful in annotations and their images."""
    sets = f" ({','.join(wanted.sets)})" if wanted.sets else ""
    checked = CheckedSet(f"{wanted.root}{sets}")
    told: list[str] = []
    try:
        with _warnings(told):
            checked.source, checked.kind = read_source(wanted)
    except UserError as error:
        checked.add("set", str(error))
        return checked
    source = checked.source
    for line in source.bad:
        where, _, text = line.partition(": ")
        checked.add("label", text or line, where)
    for line in source.dropped:
        where, _, text = line.partition(": ")
        checked.add("no-area", text or line, where)
    summaries = [line for line in told if not any(line.endswith(dropped) for dropped in source.dropped[:1])]
    for line in summaries:
        checked.add("told", line)
    with _worked(partial(_look_at_image, wish), source.images, workers) as results:
        seen = list(progress(results, len(source.images)))
    assumed = isinstance(source, PascalVoc) and source.class_names == VOC_CLASSES and not wanted.names
    _collect(checked, seen, source.class_names, wish, assumed)
    checked.images = [str(image.path) for image in source.images]
    checked.names = [image.name for image in source.images]
    return checked


def _collect(
    checked: CheckedSet, seen: Sequence[Seen], class_names: Sequence[str], wish: Wish, assumed: bool = False
) -> None:
    """What the images of a set have shown, together. assumed: whether nobody has named the classes, which are VOC's."""
    checked.defects += [defect for one in seen for defect in one.defects]
    checked.sound = np.array([one.sound for one in seen], bool)
    checked.digests = [one.digest for one in seen]
    if wish.small:
        blank = np.zeros((SMALL, SMALL), np.float16)
        checked.smalls = np.array([blank if one.small is None else one.small for one in seen]).reshape(-1, *blank.shape)
    counts = _counts(seen, len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty and not assumed:
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


@lru_cache(maxsize=2)
def _reader(path: str) -> RecordReader:
    return RecordReader(path)


def _look_at_records(path: str, classes: int | None, wish: Wish, positions: Iterable[int]) -> list[Seen]:
    reader = _reader(path)
    return [_look_at_record(reader, position, classes, wish) for position in positions]


def _look_at_record(reader: RecordReader, position: int, classes: int | None, wish: Wish) -> Seen:
    where, nothing = reader.where(position), np.zeros(0, np.int64)
    try:
        record = reader.record(position)
    except DataError as error:
        return Seen((Defect(where, "label", _bare(str(error), where)),), nothing, False)
    try:
        objects = parse_label(record.label, where)
        mistakes = mistakes_of(objects, classes)
    except DataError as error:
        objects, mistakes = np.zeros((0, 6), np.float32), [_bare(str(error), where)]
    labels = [Defect(where, "label", text) for text in mistakes]
    return _look(where, record.image, None if labels else _in_pixels(where, objects), labels, wish)


def _in_pixels(where: str, objects: np.ndarray) -> Scaled:
    """What makes of normalised objects those in pixels of an image."""

    def scaled(info: ImageInfo) -> AnnotatedImage:
        height, width = info.size
        return AnnotatedImage(where, Path(where), objects * np.array([1.0, width, height, width, height, 1.0]), None)

    return scaled


def _look_at_image(wish: Wish, image: AnnotatedImage) -> Seen:
    where, ids = str(image.path), image.objects[:, 0].astype(np.int64)
    return or_reason(
        lambda: _look(where, read_image(image.path), lambda info: image, [], wish),
        lambda reason: Seen((Defect(where, "image", reason),), ids, False),
    )


def _look(where: str, content: bytes, annotation: Scaled | None, defects: list[Defect], wish: Wish) -> Seen:
    """What an image file and its annotation show; annotation: None if that is bad."""
    digest = image_digest(content) if wish.digest else ""
    nothing = np.zeros(0, np.int64)
    try:
        content, info = _checked_image(content, wish)
    except DataError as error:
        return Seen((*defects, Defect(where, "image", str(error))), nothing, False, digest)
    if info.orientation != 1:
        defects.append(Defect(where, "rotated", f"EXIF orientation {info.orientation}"))
    small = small_grey(content) if wish.small else None
    if annotation is None:
        return Seen(tuple(defects), nothing, False, digest, small)
    image = annotation(info)
    ids = image.objects[:, 0].astype(np.int64)
    try:
        fitted = fit_objects(image, info, DEFAULT_RULES)
    except DataError as error:
        return Seen((*defects, Defect(where, "size", str(error))), ids, False, digest, small)
    defects += _doubts(where, image, fitted)
    return Seen(tuple(defects), ids, True, digest, small)


def _checked_image(content: bytes, wish: Wish) -> tuple[bytes, ImageInfo]:
    """(the image as a record has it, what is known of it); undecoded where no pictures are wished for."""
    if wish.pictures:
        return packed_image(content, wish.bit_depth)
    return content, image_header(content) if wish.bit_depth else check_stream(content)


def _doubts(where: str, image: AnnotatedImage, fitted: Fitted) -> list[Defect]:
    lines = {
        "size": fitted.scaled,
        "outside": fitted.dropped,
        "far": fitted.far,
        "thin": fitted.thin,
        "twice": fitted.twice,
        "alike": fitted.alike,
        "mixed": mixed_classes(image, fitted) if len(fitted.objects) > 1 else (),
    }
    found = [Defect(where, code, _bare(line, image.name)) for code, some in lines.items() for line in some]
    if fitted.clipped > len(fitted.far):
        found.append(Defect(where, "clipped", f"boxes that reach out of the image: {fitted.clipped}"))
    if not len(fitted.objects) and (fitted.dropped or image.dropped):
        found.append(Defect(where, "emptied", "no box is left"))
    return found


def small_grey(content: bytes) -> np.ndarray | None:
    """(SMALL, SMALL) float16 of an image file: grey, without what changes slowly, of length 1; zeros for a plain one.

    None where OpenCV cannot decode it.
    """
    coded = np.frombuffer(content, np.uint8)
    pixels = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        return None
    grey = cv2.resize(pixels, (SMALL, SMALL), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey -= cv2.GaussianBlur(grey, (0, 0), _BLUR)
    grey -= grey.mean()
    length = float(np.sqrt((grey**2).sum()))
    return (grey / length if length > SMALL / 4 else np.zeros_like(grey)).astype(np.float16)


def _bare(line: str, where: str) -> str:
    """A sentence without the name that it begins with."""
    return line.removeprefix(where).lstrip(":, ") if line.startswith(where) else line


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
    image = _in_pixels(where, objects)(info)
    rows = fit_objects(image, info, DROP).rows
    objects = objects[rows]
    objects[:, 1:5] = objects[:, 1:5].clip(0, 1)
    return objects
