"""A COCO annotation file: JSON with images, categories and annotations, checked.

An entry that cannot be used is a mistake (dataset/mistakes.py); where mistakes are skipped, its image is left out.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from common.errors import DataError
from common.sizes import Size
from dataset.imdb import Mistakes

MAX_BYTES = 4 << 30  # instances_train2017.json has 448 MB
_EXACT = 1 << 53  # larger numbers are not exact as float64
NUMBER = 7  # column of an object's number in Annotations.objects
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Category:
    """A category of an annotation file."""

    id: int
    name: str


@dataclass(frozen=True)
class Image:
    """An image of an annotation file; size (height, width), None if the file does not say."""

    id: int
    file_name: str
    size: Size | None


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file.

    objects (n, 8) float64 has rows [image id, category id, x, y, width, height, crowd, number] in the order of the
    file; number: the id of the annotation, its place in the file if it has none.
    """

    images: tuple[Image, ...]
    categories: tuple[Category, ...]
    objects: np.ndarray


def read_annotations(path: Path, collected: Mistakes | None = None) -> Annotations:
    """Reads and checks an annotation file; what is damaged raises DataError naming the file.

    Images and annotations that cannot be used go to `collected`, each with its id, and images with such annotations
    are not in the result, nor any image of an id that several have; without it they raise DataError, too. Of categories
    of one name those without annotations are left out, with a line in the log.
    """
    content, mistakes = _load(path), Mistakes() if collected is None else collected
    images: list[Image] = []
    for entry in _entries(content, "images", path):
        with mistakes.collected():
            images.append(_image_entry(entry, path))
    categories = [_category(entry, path) for entry in _entries(content, "categories", path)]
    images, ambiguous = _of_distinct_ids(images, path, mistakes)
    refuse_repeated([category.id for category in categories], "category id", path)
    objects, spoiled = _objects(content, images, categories, path, mistakes)
    spoiled |= ambiguous
    used = np.unique(objects[:, 1]).tolist()
    categories = _without_unused_twins(categories, used, path)
    refuse_repeated([category.name for category in categories], "category name", path)
    if collected is None:
        mistakes.settle(len(images))
    kept = tuple(image for image in images if image.id not in spoiled)
    return Annotations(kept, tuple(categories), objects[~np.isin(objects[:, 0], list(spoiled))])


def _of_distinct_ids(images: Sequence[Image], path: Path, mistakes: Mistakes) -> tuple[list[Image], set[int]]:
    """(the images, one of each id; the ids that stand for several images, so that no annotation says whose it is).

    An entry that is there again changes nothing: the first one counts. Each entry beyond the first is a mistake.
    """
    first: dict[int, Image] = {}
    ambiguous: set[int] = set()
    for image in images:
        other = first.setdefault(image.id, image)
        if other is image:
            continue
        mistakes.lines.append(
            f"{path}: the image id {image.id} is there more than once, of {other.file_name:.80} and "
            f"{image.file_name:.80}; correct the file"
        )
        if other != image:
            ambiguous.add(image.id)
    return list(first.values()), ambiguous


def _objects(
    content: dict[str, Any],
    images: Sequence[Image],
    categories: Sequence[Category],
    path: Path,
    mistakes: Mistakes,
) -> tuple[np.ndarray, set[int]]:
    """(objects (n, 8), ids of the images with an annotation that cannot be used)."""
    rows: list[tuple[float, ...]] = []
    spoiled: set[int] = set()
    known = {"image_id": {image.id for image in images}, "category_id": {category.id for category in categories}}
    unclear = 0
    for place, entry in enumerate(_entries(content, "annotations", path)):
        try:
            rows.append(_object(entry, place, known, path))
            unclear += entry.get("iscrowd", 0) is None
        except DataError as error:
            mistakes.lines.append(str(error))
            if _is_whole(entry.get("image_id")):
                spoiled.add(entry["image_id"])
    if unclear:
        logger.warning("%s: %d annotations have iscrowd null and count as no crowds", path, unclear)
    return np.array(rows, np.float64).reshape(-1, NUMBER + 1), spoiled


def _without_unused_twins(categories: list[Category], used: Sequence[float], path: Path) -> list[Category]:
    """The categories without those that share the name of one with annotations and have none."""
    busy = {category.name for category in categories if category.id in used}
    left_out = [category for category in categories if category.name in busy and category.id not in used]
    for category in left_out:
        logger.warning(
            "%s: the category %d, %r, has no annotations and the name of another one: left out",
            path, category.id, category.name,
        )  # fmt: skip
    return [category for category in categories if category not in left_out]


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 30} GiB, this is not a COCO annotation file")
        content = json.loads(path.read_bytes(), object_hook=_without_mask, parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO annotation file, which is an object with images and annotations")
    return content


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """Forgets segmentations while reading: they are most of the file."""
    entry.pop("segmentation", None)
    return entry


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: {key!r} is not a list of objects; this is not a COCO annotation file")
    return entries


def _image_entry(entry: dict[str, Any], path: Path) -> Image:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise DataError(f"{path}: an image has the file_name {name!r:.80}; correct the entry")
    height, width = entry.get("height"), entry.get("width")
    size = (height, width) if _is_whole(height) and _is_whole(width) and min(height, width) > 0 else None
    return Image(_id(entry, path), name, size)


def _category(entry: dict[str, Any], path: Path) -> Category:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise DataError(f"{path}: a category has the name {name!r:.80}; correct the entry")
    return Category(_id(entry, path), name.strip())


def _object(entry: dict[str, Any], place: int, known: dict[str, set[int]], path: Path) -> tuple[float, ...]:
    """A row of Annotations.objects of the entry at `place`; known: the ids that there are."""
    own = entry.get("id")
    where = (
        f"{path}: annotation {own!r:.40}" if own is not None else f"{path}: annotation number {place + 1}, without id,"
    )
    box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{where} has the bbox {box!r:.80}, not four numbers")
    crowd = {None: 0, "0": 0, "1": 1}.get(crowd, crowd) if isinstance(crowd, str | None) else crowd
    if crowd not in (0, 1):
        raise DataError(f"{where} has iscrowd {crowd!r:.40}, not 0 or 1")
    for key, ids in known.items():
        value = entry.get(key)
        if not _is_whole(value):
            raise DataError(f"{where} has the {key} {value!r:.80}, not a whole number")
        if value not in ids:
            raise DataError(f"{where} has the {key} {value}, which is not there")
    number = own if _is_whole(own) and abs(own) <= _EXACT else place + 1
    return (entry["image_id"], entry["category_id"], *box, crowd, number)


def _id(entry: dict[str, Any], path: Path) -> int:
    value = entry.get("id")
    if not _is_whole(value) or abs(value) > _EXACT:
        raise DataError(f"{path}: an entry has the id {value!r:.80}, not a whole number")
    return value


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A finite number that is no larger than any picture needs."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def refuse_repeated(values: Sequence[Any], what: str, path: Path) -> None:
    """DataError naming one of the values that is there more than once."""
    if len(set(values)) < len(values):
        repeated = Counter(values).most_common(1)[0][0]
        raise DataError(f"{path}: the {what} {repeated!r:.80} is there more than once; correct the file")
