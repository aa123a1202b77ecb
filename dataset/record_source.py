"""A record file as it is read: its classes, its labels or those of a list, and its objects as boxes in an input."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from boxes.geometry import iou
from common.errors import DataError, OptionError
from common.sizes import Size
from dataset.image_check import record_header
from dataset.image_list import read_labels
from dataset.imdb import AnnotatedImage
from dataset.labels import parse_label, validate
from dataset.letterbox import Resize
from dataset.recordio import RecordReader, pack, unpack
from dataset.sidecar import read_sidecar, verify_sidecar

MOST_READ = 1000  # records whose boxes tell what is usual
CANDIDATES = 500
HIT = 0.5  # IoU

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A record file and what must be known of it: class names (None without a sidecar), classes, rows of the label."""

    reader: RecordReader
    class_names: tuple[str, ...] | None
    num_classes: int
    max_objects: int


def open_source(
    path: str | Path,
    num_classes: int | None,
    max_objects: int | None,
    path_imglist: str | Path | None = None,
    skips_bad: bool = False,
) -> Source:
    """Opens a record file; what is None comes from its sidecar, or without one from its labels.

    The labels of a list replace the record's, and their widest tells the number of objects. A number of classes that
    labels alone tell is logged, as a wrong id among them could not be found. OptionError if the list has more than
    max_objects in an image; DataError for a damaged file, a sidecar of another record, or a list that has no line for a
    record. skips_bad: records whose labels cannot be read tell nothing, in place of raising DataError.
    """
    reader, sidecar = RecordReader(path), read_sidecar(path)
    if sidecar:
        verify_sidecar(path, sidecar, hash=False)
        num_classes = len(sidecar.class_names) if num_classes is None else num_classes
        max_objects = sidecar.max_objects if max_objects is None and not path_imglist else max_objects
    if path_imglist:
        reader = relabelled = RelabelledReader(path, path_imglist, num_classes)
        if max_objects is not None and relabelled.max_objects > max_objects:
            raise OptionError(
                f"{path_imglist}: an image has {relabelled.max_objects} objects, labels have {max_objects} rows"
            )
        max_objects = relabelled.max_objects if max_objects is None else max_objects
    if max_objects is None:
        max_objects = widest_record(reader, skips_bad)
    _tell_other_ids(reader)
    if num_classes is None:
        num_classes = classes_of_labels(reader, skips_bad)
        logger.warning(
            "%s has no sidecar (.json) that names its classes: they are taken to be the %d of its labels; give "
            "num_classes to have the labels checked",
            path,
            num_classes,
        )
    return Source(reader, sidecar.class_names if sidecar else None, num_classes, max(1, max_objects))


def _tell_other_ids(reader: RecordReader) -> None:
    """A warning, once, where an .idx has other ids than the records' headers, of which at most MOST_READ are looked at;
    nothing for what is no image record, which reading tells."""
    if not reader.path.with_suffix(".idx").exists():
        return
    with suppress(DataError):
        for position in _spread(len(reader), MOST_READ).tolist():
            own = reader.image_id(position)
            if own != reader.keys[position]:
                _tell_once(
                    f"{reader.path}: the .idx calls record {position} {reader.keys[position]}, its own header {own}; "
                    "lists go by the headers, names in messages and COCO files by the .idx: pack it again"
                )
                return


@cache
def _tell_once(line: str) -> None:
    logger.warning(line)


def classes_of_labels(reader: RecordReader, skips_bad: bool = False) -> int:
    """One more than the largest class id, at least 1; reads the whole file. DataError naming a damaged record, which
    skips_bad leaves out."""
    largest = max((objects[:, 0].max(initial=0) for objects in _labels(reader, skips_bad)), default=0)
    return max(1, int(largest) + 1)


def widest_record(reader: RecordReader, skips_bad: bool = False) -> int:
    """The largest number of objects of a record; reads the whole file. DataError naming a damaged record, which
    skips_bad leaves out."""
    return max((len(objects) for objects in _labels(reader, skips_bad)), default=0)


def _labels(reader: RecordReader, skips_bad: bool) -> Iterator[np.ndarray]:
    """The objects (n, 6) of each record; of those that validate accepts alone, with skips_bad."""
    for position in range(len(reader)):
        with suppress(DataError) if skips_bad else nullcontext():
            objects = parse_label(reader.record(position).label, reader.where(position))
            if skips_bad:
                validate(objects, None, "")
            yield objects


class RelabelledReader(RecordReader):
    """A RecordReader whose payloads carry the labels that a list gives the ids in the records' headers.

    Attributes:
        max_objects: the largest number of objects of a record.
    """

    def __init__(self, path: str | Path, path_imglist: str | Path, num_classes: int | None) -> None:
        """Reads and checks the labels of all records; lines of other records do not matter.

        DataError names a record without a line, or a line whose label cannot be trained on.
        """
        super().__init__(path)
        self._labels = read_labels(path_imglist, self.image_ids(), num_classes)
        self.max_objects = self._labels.max_objects

    def read(self, position: int) -> bytes:
        """The payload of the position-th record with the list's label."""
        record = unpack(super().read(position), self.where(position))
        return pack(self._labels.of(position), record.image, record.index)


def annotated_image(reader: RecordReader, position: int, num_classes: int, name: str) -> tuple[AnnotatedImage, bytes]:
    """(a record as an image of this name with its objects in pixels, the bytes of the image).

    Pixels that are whole but for the rounding of the label are whole. DataError names a record whose label or image
    header cannot be used.
    """
    record, where = reader.record(position), reader.where(position)
    labels = parse_label(record.label, where)
    validate(labels, num_classes, where)
    height, width = record_header(record.image, where).size
    objects, sides = labels.astype(np.float64), np.array([width, height, width, height])
    pixels = objects[:, 1:5] * sides
    whole = np.round(pixels)
    objects[:, 1:5] = np.where((whole / sides).astype(np.float32) == labels[:, 1:5], whole, pixels)
    return AnnotatedImage(name, reader.path, objects, (height, width)), record.image


def object_boxes(rec_path: str | Path, num_classes: int | None, size: Size, resize: Resize) -> list[np.ndarray]:
    """Corner boxes (n, 4) float32 of each record, normalised to an input of `size` that its image fills as `resize`.

    DataError names a record whose label or image header cannot be used.
    """
    reader = RecordReader(rec_path)
    boxes = []
    for position in range(len(reader)):
        record, where = reader.record(position), reader.where(position)
        objects = parse_label(record.label, where)
        validate(objects, num_classes, where)
        frame = resize.frame(record_header(record.image, where).size, size)
        boxes.append(frame.move_boxes(objects[:, 1:5]))
    return boxes


def usual_boxes(
    reader: RecordReader, num_classes: int, size: Size, resize: Resize, skips_bad: bool = False
) -> np.ndarray:
    """A detection (K, 6) float32 for each class that occurs: its id, score 1 and its most usual box.

    That is the box which overlaps most boxes of the class with an IoU of at least 0.5, of at most CANDIDATES among
    those of at most MOST_READ records, evenly spread; normalised to an input of `size` that images fill as `resize`.
    DataError naming a damaged record, which skips_bad leaves out.
    """
    objects = [np.empty((0, 5), np.float32)]
    for position in _spread(len(reader), MOST_READ):
        with suppress(DataError) if skips_bad else nullcontext():
            record, where = reader.record(position), reader.where(position)
            rows = parse_label(record.label, where)
            frame = resize.frame(record_header(record.image, where).size, size)
            objects.append(np.column_stack([rows[:, 0], frame.move_boxes(rows[:, 1:5])]))
    found = np.concatenate(objects)
    chosen = []
    for k in range(num_classes):
        boxes = found[found[:, 0] == k, 1:]
        if len(boxes):
            candidates = boxes[_spread(len(boxes), CANDIDATES)]
            fits = iou(candidates, boxes[_spread(len(boxes), 4 * CANDIDATES)]) >= HIT
            chosen.append((k, 1.0, *candidates[fits.sum(1).argmax()]))
    return np.array(chosen, np.float32).reshape(-1, 6)


def _spread(length: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below length, evenly spread."""
    return np.unique(np.linspace(0, max(length - 1, 0), min(most, length)).round().astype(int))
