"""What is wrong or doubtful in one image and its annotation: a defect each, with a code and what to do about it.

The readers and packers of this folder find the defects; here none of them is refused. On the way an image gives what
pictures are compared by, and what a page shows of it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.sizes import Size
from dataset.fitting import DEFAULT_RULES, Fitted, fit_objects, mixed_classes
from dataset.image_check import ImageInfo, check_stream, image_header, packed_image
from dataset.image_cost import check_cost
from dataset.image_pool import or_reason, read_image
from dataset.imdb import AnnotatedImage
from dataset.labels import mistakes_of, parse_label
from dataset.recordio import RecordReader
from dataset.sidecar import image_digest
from machine.opencv import cv2

Scaled = Callable[[ImageInfo], AnnotatedImage]  # an annotation in pixels of an image of that size
SMALL = 32  # side of the grey copies by which pictures are compared
_BLUR = 3.0  # pixels of a grey copy: slower changes, as of the light, do not tell pictures apart
MOST_SIDE, LEAST_SIDE = 512, 32  # pixels of a thumbnail's longer side
_QUALITIES = (85, 70, 55, 40)  # of a thumbnail's JPEG: the first that is small enough
_USUAL_BYTES = 0.15  # of a pixel of such a JPEG
_SHRINK = 0.75  # sides of the next thumbnail to try
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


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
        told = self.text.endswith(self.remedy)  # a reader's sentence has its remedy
        return f"{self.where}: {self.code}: {self.text}" + ("" if told else f"; {self.remedy}")


@dataclass(frozen=True)
class Wish:
    """What to find out of each image: pictures: decode it; small: keep a grey copy; digest: hash it; view: bytes that
    its thumbnail may have, 0 = no View."""

    pictures: bool = True
    small: bool = False
    digest: bool = False
    bit_depth: str = ""
    view: int = 0


@dataclass(frozen=True)
class View:
    """What to show of an image that can be decoded: its size, its objects (n, 6) [id, xmin, ymin, xmax, ymax,
    difficult] in its pixels as annotated, none where that cannot be read, and a JPEG of it."""

    size: Size
    objects: np.ndarray
    thumbnail: bytes


@dataclass(frozen=True)
class Seen:
    """One image: its defects, the class ids (n,) of its objects, whether it can be trained on, its digest ("" =
    unknown), its grey copy (SMALL, SMALL) float16 and its view, None without."""

    defects: tuple[Defect, ...]
    ids: np.ndarray
    sound: bool
    digest: str = ""
    small: np.ndarray | None = None
    view: View | None = None


@lru_cache(maxsize=2)
def open_reader(path: str) -> RecordReader:
    """The reader of a record; a process keeps the last two."""
    return RecordReader(path)


def look_at_records(path: str, classes: int | None, wish: Wish, positions: Iterable[int]) -> list[Seen]:
    """What the records at these positions show; classes: their number, None = unknown."""
    reader = open_reader(path)
    return [_look_at_record(reader, position, classes, wish) for position in positions]


def _look_at_record(reader: RecordReader, position: int, classes: int | None, wish: Wish) -> Seen:
    where, nothing = reader.where(position), np.zeros(0, np.int64)
    try:
        record = reader.record(position)
    except DataError as error:
        return Seen((Defect(where, "label", bare(str(error), where)),), nothing, False)
    objects, mistakes = np.zeros((0, 6), np.float32), []
    try:
        objects = parse_label(record.label, where)
        mistakes = mistakes_of(objects, classes)
    except DataError as error:
        mistakes = [bare(str(error), where)]
    labels = [Defect(where, "label", text) for text in mistakes]
    return _look(where, record.image, in_pixels(where, objects), labels, wish)


def in_pixels(where: str, objects: np.ndarray) -> Scaled:
    """What makes of normalised objects those in pixels of an image."""

    def scaled(info: ImageInfo) -> AnnotatedImage:
        height, width = info.size
        return AnnotatedImage(where, Path(where), objects * np.array([1.0, width, height, width, height, 1.0]), None)

    return scaled


def look_at_image(wish: Wish, image: AnnotatedImage) -> Seen:
    """What the file of an annotated image shows."""
    where, ids = str(image.path), image.objects[:, 0].astype(np.int64)
    return or_reason(
        lambda: _look(where, read_image(image.path), lambda info: image, [], wish),
        lambda reason: Seen((Defect(where, "image", reason),), ids, False),
    )


def _look(where: str, content: bytes, annotation: Scaled, defects: list[Defect], wish: Wish) -> Seen:
    """What an image file and its annotation show; defects: of the annotation, which then cannot be used."""
    digest, usable = image_digest(content) if wish.digest else "", not defects
    nothing = np.zeros(0, np.int64)
    try:
        content, info = _checked_image(content, wish)
    except DataError as error:
        return Seen((*defects, Defect(where, "image", str(error))), nothing, False, digest)
    if info.orientation != 1:
        defects.append(Defect(where, "rotated", f"EXIF orientation {info.orientation}"))
    small = small_grey(content) if wish.small else None
    image = annotation(info)
    ids = image.objects[:, 0].astype(np.int64) if usable else nothing
    fitted = None
    if usable:
        try:
            fitted = fit_objects(image, info, DEFAULT_RULES)
            defects += _doubts(where, image, fitted)
        except DataError as error:
            defects.append(Defect(where, "size", str(error)))
    view = _view(content, info.size, image, fitted, wish.view) if wish.view else None
    return Seen(tuple(defects), ids, fitted is not None, digest, small, view)


def _view(content: bytes, size: Size, image: AnnotatedImage, fitted: Fitted | None, limit: int) -> View:
    """What to show of an image; its objects are scaled as `fitted` says."""
    x, y = (fitted.factor if fitted else None) or (1.0, 1.0)
    objects = image.objects[np.isfinite(image.objects).all(axis=1)] * (1, x, y, x, y, 1)
    return View(size, objects, thumbnail(content, size, limit))


def thumbnail(content: bytes, size: Size, limit: int) -> bytes:
    """A JPEG of an image file of this size (height, width), its sides at most MOST_SIDE and no longer than the image's.

    It has at most `limit` bytes, unless its longer side is LEAST_SIDE. b"" where OpenCV cannot decode the file.
    """
    longest = max(size)
    side = min(MOST_SIDE, longest, (limit / _USUAL_BYTES * longest / min(size)) ** 0.5)
    factor = max((one for one in _REDUCED if longest >= one * side), default=1)
    flags = _REDUCED.get(factor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        return b""
    while True:
        side = max(side, LEAST_SIDE)
        sides = tuple(max(1, round(side * one / longest)) for one in size[::-1])
        smaller = cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA)
        for quality in _QUALITIES:
            coded = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(coded) <= limit:
                return coded
        if side == LEAST_SIDE:
            return coded
        side *= _SHRINK


def _checked_image(content: bytes, wish: Wish) -> tuple[bytes, ImageInfo]:
    """(the image as a record has it, what is known of it); undecoded where no pictures are wished for."""
    if wish.pictures:
        return packed_image(content, wish.bit_depth)
    check_cost(content)
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
    found = [Defect(where, code, bare(line, image.name)) for code, some in lines.items() for line in some]
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


def bare(line: str, where: str) -> str:
    """A sentence without the name that it begins with."""
    return line.removeprefix(where).lstrip(":, ") if line.startswith(where) else line
