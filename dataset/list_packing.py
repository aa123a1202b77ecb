"""NAME.lst -> NAME.rec, NAME.idx and, for detection labels of named classes, the sidecar NAME.json.

Images are read and encoded in threads (OpenCV leaves Python's lock alone meanwhile) and written in the order of the
list, whatever the number of threads. A list is of detection labels if a label in it has their layout.

An image is stored as it is, or cropped, resized and encoded anew, with the bytes of mxnet's im2rec.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import DataError, OptionError
from dataset.image_check import MANY_OUTSIDE, ImageInfo, check_stream, packed_image
from dataset.image_list import ImageRoot, ListEntry, checked_objects, read_list
from dataset.image_pool import in_order, or_reason, read_image, refuse_unusable
from dataset.imdb import WINDOWS_PATH
from dataset.labels import HEADER_WIDTH, MIN_OBJECT_WIDTH
from dataset.recordio import RecordWriter, pack, pack_single
from dataset.sidecar import describe_record, has_sidecar, image_digest, read_sidecar, sidecar_bytes, sidecar_path
from machine.opencv import MAX_PIXELS, cv2

logger = logging.getLogger(__name__)
DEFAULT_QUALITY = {".jpg": 95, ".png": 9}  # mxnet asks for 95 with either; OpenCV takes it as 9 for PNG
_QUALITY_FLAG = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".png": cv2.IMWRITE_PNG_COMPRESSION}


@dataclass(frozen=True)
class Encoder:
    """What becomes of an image file.

    Attributes:
        pass_through: nothing; the rest does not count.
        center_crop: the square in its middle is cut out.
        resize: then its shorter edge gets this length in pixels; 0 = no.
        color: 1 = BGR, 0 = grey, -1 = as stored.
        encoding: .jpg or .png.
        quality: of JPEG 1 to 100, compression of PNG 1 to 9.
        bit_depth: the rule of --bit-depth; not with pass_through.
    """

    pass_through: bool = False
    center_crop: bool = False
    resize: int = 0
    color: int = 1
    encoding: str = ".jpg"
    quality: int = 95
    bit_depth: str = ""

    def __call__(self, content: bytes) -> tuple[bytes, ImageInfo]:
        """(bytes to store, what is known of the file); DataError, the reason alone, for what is no whole image.

        The EXIF orientation is ignored: labels refer to the pixels as stored. Files passed through are checked for
        completeness, not decoded.
        """
        if self.bit_depth:
            content, info = packed_image(content, self.bit_depth)  # a PNG of 8 bits, which is then any other's
        else:
            info = check_stream(content)
        if self.pass_through:
            return content, info
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), self.color | cv2.IMREAD_IGNORE_ORIENTATION)
            if pixels is None or pixels.shape[:2] != info.size:
                raise DataError("OpenCV cannot decode it")
            return self._encode(self._resize(crop_square(pixels) if self.center_crop else pixels)), info
        except cv2.error as error:
            raise DataError(f"OpenCV cannot convert it: {error.err}") from error

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        if not self.resize:
            return pixels
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        height, width = height * self.resize // shorter, width * self.resize // shorter
        if height * width > MAX_PIXELS:
            raise DataError(f"resized to {width} x {height} it has more than {MAX_PIXELS // 10**6} million pixels")
        return cv2.resize(pixels, (width, height))

    def _encode(self, pixels: np.ndarray) -> bytes:
        done, content = cv2.imencode(self.encoding, pixels, [_QUALITY_FLAG[self.encoding], self.quality])
        if not done:
            raise DataError(f"OpenCV cannot encode it as {self.encoding}")
        return content.tobytes()


def crop_square(pixels: np.ndarray) -> np.ndarray:
    """The square in the middle of an image (h, w, ...), with side min(h, w)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


@dataclass(frozen=True)
class Encoded:
    """A line of a list with what is to be stored, or the reason why its image cannot be used."""

    entry: ListEntry
    content: bytes = b""
    reason: str = ""
    rotated: bool = False
    outside: float = 0.0
    digest: str = ""


Progress = Callable[[Iterable[Encoded], int], Iterable[Encoded]]


@dataclass(frozen=True)
class ImageList:
    """A list that was read and checked.

    Attributes:
        path: the .lst file.
        entries: its lines.
        counts: objects of each line, for detection labels; None for others.
        ids: class ids of all objects.
        class_names: of the sidecar to write; None = none is written.
    """

    path: Path
    entries: list[ListEntry]
    counts: np.ndarray | None
    ids: np.ndarray
    class_names: tuple[str, ...] | None


@dataclass
class PackedList:
    """What was packed: number of records, values of a label, and lines for the user."""

    count: int = 0
    label_width: int = 0
    bad: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def load_list(path: Path, class_names: tuple[str, ...] | None, check: bool) -> ImageList:
    """Reads a list and, if check, every detection label; DataError names the line.

    class_names None takes those of a sidecar that is there already.
    """
    entries = read_list(path)
    if not check or not any(has_detection_layout(entry.label) for entry in entries):
        if class_names:
            raise OptionError(f"--class-names: {path} has no detection labels ([2, 6, id, xmin, ...]) to name")
        return ImageList(path, entries, None, np.zeros(0, np.int64), None)
    sidecar = None if class_names else read_sidecar(path)
    if sidecar:
        class_names = sidecar.class_names
        logger.info("%s: classes of its sidecar: %s", path, ", ".join(class_names))
    try:
        objects = checked_objects(entries, path, len(class_names) if class_names else None)
    except DataError as error:
        raise DataError(f"{error} (--no-check-labels packs labels of any kind)") from error
    ids = np.concatenate(objects)[:, 0].astype(np.int64)
    return ImageList(path, entries, np.array([len(rows) for rows in objects]), ids, class_names)


def has_detection_layout(label: Sequence[float]) -> bool:
    """Whether a label is [A, B, ...] with header width A >= 2, object width B >= 5 and whole objects after it."""
    if len(label) < HEADER_WIDTH or not all(value.is_integer() for value in label[:2]):
        return False
    header, width = int(label[0]), int(label[1])
    return HEADER_WIDTH <= header <= len(label) and width >= MIN_OBJECT_WIDTH and (len(label) - header) % width == 0


def pack_list(
    source: ImageList,
    root: ImageRoot,
    encoder: Encoder,
    *,
    threads: int,
    pack_label: bool | None = None,
    skip_bad: bool = False,
    progress: Progress = lambda images, total: images,
) -> PackedList:
    """Packs a list into the .rec and .idx beside it, records in the order of the lines.

    pack_label False stores the first value of a label, otherwise all are. A damaged or missing image raises DataError
    with the list of all such images, after the last; with skip_bad it is left out. The files appear at the end, the
    sidecar last; an error or an interruption leaves those of an earlier run as they were.
    """
    if encoder.center_crop and not encoder.pass_through and source.counts is not None:
        raise OptionError(f"--center-crop: the boxes of {source.path} would not fit the cropped images; use --resize")
    if pack_label is False and source.counts is not None:
        raise OptionError(f"--no-pack-label: {source.path} has detection labels, which need all their values")
    packed, kept, rec = PackedList(), [], source.path.with_suffix(".rec")
    pool, encode = ThreadPoolExecutor(threads), partial(_encode, root=root, encoder=encoder)
    with RecordWriter(rec) as writer, in_order(pool, threads, encode, source.entries) as results:
        for k, encoded in enumerate(progress(results, len(source.entries))):
            if encoded.reason:
                packed.bad.append(f"{encoded.entry.path} (line {encoded.entry.line}): {encoded.reason}")
            elif skip_bad or not packed.bad:
                kept.append(k)
                _write(writer, encoded, pack_label is not False, packed)
        refuse_unusable(packed.bad, skip_bad, packed.count)
        if source.class_names:
            counts, per_class = _counts(source, source.class_names, np.array(kept))
            sidecar = describe_record(
                writer.finish(),
                source.class_names,
                counts,
                per_class,
                packed.label_width,
                f"im2rec {source.path.name}",
                packed.digests,
                encoder.bit_depth,
            )
            writer.add_file(sidecar_path(rec), sidecar_bytes(sidecar))
        dropped = not source.class_names and has_sidecar(rec)
        if dropped:
            writer.remove(sidecar_path(rec))
    if encoder.bit_depth and not source.class_names:
        logger.warning("%s: without a sidecar nothing keeps the bit depth for train.py; give --class-names", rec)
    if dropped:
        logger.warning("%s removed: it described the record that was there before", sidecar_path(rec))
    return packed


def _write(writer: RecordWriter, encoded: Encoded, whole: bool, packed: PackedList) -> None:
    entry, label = encoded.entry, encoded.entry.label
    if whole and len(label) > 1:
        payload = pack(np.array(label, np.float32), encoded.content, entry.index)
    else:
        label = label[:1]
        payload = pack_single(label[0], encoded.content, entry.index)
    writer.write(entry.index, payload)
    packed.count += 1
    packed.digests.append(encoded.digest)
    packed.label_width = max(packed.label_width, len(label))
    if encoded.rotated:
        packed.rotated.append(entry.path)
    if encoded.outside > MANY_OUTSIDE:
        packed.outside.append(f"{entry.path}: {encoded.outside:.0%}")


def _counts(source: ImageList, names: tuple[str, ...], kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objects of each of the kept lines (positions), and of each class in these."""
    assert source.counts is not None  # only detection labels have names
    ids = source.ids[np.isin(np.repeat(np.arange(len(source.counts)), source.counts), kept)]
    return source.counts[kept], np.bincount(ids, minlength=len(names))


def _encode(entry: ListEntry, root: ImageRoot, encoder: Encoder) -> Encoded:
    return or_reason(lambda: _read_and_encode(entry, root, encoder), lambda reason: Encoded(entry, reason=reason))


def _read_and_encode(entry: ListEntry, root: ImageRoot, encoder: Encoder) -> Encoded:
    """Reads and encodes one image, in a thread; OSError, or DataError with the reason alone."""
    path = root.find(entry.path)
    if ("\\" in entry.path or WINDOWS_PATH.match(entry.path)) and not os.path.exists(path):
        raise DataError("a path of Windows; write it relative to the folder of the images, with / for \\")
    content, info = encoder(read_image(path))
    return Encoded(entry, content, rotated=info.orientation != 1, digest=image_digest(content), outside=info.outside)
