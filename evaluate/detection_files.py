"""Files of detections: COCO's results and annotation files, written and read, and what demo.py --json leaves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boxes.geometry import iou
from common.errors import DataError, OptionError
from common.files import write_atomically
from dataset.coco_file import read_annotations
from dataset.image_list import read_list
from evaluate.detections import ImageResult, Results, coco_rows, on_grid

MAX_BYTES = 4 << 30
LINES = ".jsonl"  # ends the name of a file with an object on each line
_SIDES = 4  # of a box
# Of foreign_ids: images that tell something; IoU of a hit; the share of hits, and how many times that by chance, from
# which on the ids are right.
FEWEST_IMAGES, HIT, SURE, TIMES = 10, 0.5, 0.5, 2
Entry = dict[str, Any]


@dataclass(frozen=True)
class COCOIds:
    """Ids in the files: images (n,) by number of the image, categories by class id, names of the image files.

    ordered: whether the set says in which order its classes are, so that a number means a class.
    """

    images: Sequence[int]
    categories: Sequence[int]
    names: Sequence[str]
    ordered: bool = True


def record_ids(records: Sequence[int], classes: int, rec_path: str) -> COCOIds:
    """The record's own ids and classes from 1; image files are named as in the .lst beside the record, if there."""
    names = _names(rec_path)
    ids = [int(key) for key in records]
    return COCOIds(ids, range(1, classes + 1), [names.get(key, str(key)) for key in ids])


def annotation_ids(records: Sequence[int], class_names: Sequence[str], rec_path: str, path: str) -> COCOIds:
    """The ids that a COCO annotation file has for the images of a record, by file name, and for its classes, by name.

    DataError for a damaged file; OptionError where there is no .lst beside the record, or an image or a class is not in
    the annotation file.
    """
    annotations = read_annotations(Path(path))
    categories = {category.name: category.id for category in annotations.categories}
    images = {image.file_name: image.id for image in annotations.images}
    missing = [name for name in class_names if name not in categories]
    if missing:
        raise OptionError(f"--coco-annotations {path}: there is no category {missing[0]!r}; leave the option out")
    names = _names(rec_path)
    found = [_find(names.get(key), images, f"{rec_path}, record {key}", path) for key in records]
    return COCOIds([images[name] for name in found], [categories[name] for name in class_names], found)


def write_results(path: str, results: Results, ids: COCOIds) -> None:
    """Writes the detections in COCO's results format."""
    detections, _ = coco_rows(results.detections, results.truths)
    content = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(*_columns(detections, ids), detections[:, 2].tolist(), strict=True)
    ]
    _write(path, content)


def write_truth(path: str, results: Results, ids: COCOIds, use_difficult: bool = False) -> None:
    """Writes the objects as an annotation file; difficult ones are crowds unless use_difficult."""
    _, truths = coco_rows(results.detections, results.truths, use_difficult)
    images, categories, boxes = _columns(truths, ids, box=2)
    rows = zip(images, categories, boxes, truths[:, 6].tolist(), truths[:, 7].astype(int).tolist(), strict=True)
    sides = zip(ids.images, ids.names, results.sizes.tolist(), strict=True)
    content = {
        "images": [{"id": key, "file_name": name, "height": size[0], "width": size[1]} for key, name, size in sides],
        "categories": [
            {"id": key, "name": name} for key, name in zip(ids.categories, results.class_names, strict=True)
        ],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for k, (image, category, box, area, crowd) in enumerate(rows, 1)
        ],
    }
    _write(path, content)


def _columns(rows: np.ndarray, ids: COCOIds, box: int = 3) -> tuple[list[int], list[int], list[list[float]]]:
    """Image ids, category ids and boxes of rows whose boxes begin in column `box`."""
    images = np.array(ids.images, np.int64)[rows[:, 0].astype(np.int64)]
    categories = np.array(ids.categories, np.int64)[rows[:, 1].astype(np.int64)]
    return images.tolist(), categories.tolist(), rows[:, box : box + 4].tolist()


def _write(path: str, content: Any) -> None:
    write_atomically(Path(path), json.dumps(content).encode())


def _names(rec_path: str) -> dict[int, str]:
    """The image files of a record by its ids, from the .lst beside it; nothing without one."""
    path = Path(rec_path).with_suffix(".lst")
    if not path.is_file():
        return {}
    return {entry.index: entry.path for entry in read_list(path)}


def _find(name: str | None, images: dict[str, int], where: str, path: str) -> str:
    """The file name that an annotation file has for an image of a list, whose path may begin with folders."""
    if name is None:
        raise OptionError(f"{where}: the .lst beside the record does not name its image; --coco-annotations needs it")
    parts = name.split("/")
    endings = ["/".join(parts[k:]) for k in range(len(parts))]
    found = next((ending for ending in endings if ending in images), None)
    if found is None:
        raise OptionError(f"{where}: {name} is not in --coco-annotations {path}; give the file it was packed from")
    return found


def read_detections(path: str | Path, results: Results, ids: COCOIds) -> Results:
    """The results with the detections of a file in place of theirs.

    The file is a list in COCO's results format, whose ids are those of `ids`, or what demo.py --json writes, a list or
    .jsonl, whose pictures are found by the ends of their paths and classes by name. Boxes are clipped to their images.
    DataError, with the file and the entry, for what belongs to no image or class of the set, a score or box that is no
    finite number, a picture of another size, and frames of videos.
    """
    entries = _entries(Path(path))
    if all("image_id" in entry for entry in entries):
        image, rows = _of_coco(path, entries, ids)
    elif all("detections" in entry for entry in entries):
        image, rows = _of_demo(path, entries, results)
    else:
        raise DataError(
            f"{path}: neither COCO's results, a list of objects with image_id, category_id, bbox and score, nor what "
            "demo.py --json writes"
        )
    order = np.argsort(image, kind="stable")
    bounds = np.searchsorted(image[order], np.arange(len(results.images) + 1))
    parts = [rows[order[begin:end]] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    images = [_with_found(image, part) for image, part in zip(results.images, parts, strict=True)]
    return Results(results.class_names, tuple(images))


def _with_found(image: ImageResult, found: np.ndarray) -> ImageResult:
    boxes = on_grid(np.clip(found[:, 2:], 0, np.tile(image.size[::-1], 2)))
    return replace(image, found=np.column_stack([found[:, :2], boxes]))


def _entries(path: Path) -> list[Entry]:
    """The objects of a file; DataError for what is no list of objects."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 30} GiB, these are no detections")
        text = path.read_text("utf-8")
        lines = path.suffix.lower() == LINES
        content = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{path}: not a list of objects, as detections are")
    return content


def _of_coco(path: str | Path, entries: list[Entry], ids: COCOIds) -> tuple[np.ndarray, np.ndarray]:
    """(the number of the image (n,), rows (n, 6)) of COCO's results."""
    if not ids.ordered:
        raise OptionError(
            f"--detections {path} names classes by number, and the set does not say their order; give --class-names in "
            "the order of the model's classes"
        )
    where = _places(path, entries)
    images = _numbers_of(entries, "image_id", ids.images, where, _share_of_ids(entries, ids))
    classes = _numbers_of(entries, "category_id", ids.categories, where, f"known are {_shown(ids.categories)}")
    boxes = _boxes(entries, "bbox", where)
    boxes[:, 2:] += boxes[:, :2]
    return images, np.column_stack([classes, _scores(entries, where), boxes])


def _share_of_ids(entries: list[Entry], ids: COCOIds) -> str:
    """Which part of the image ids of a file the set has."""
    given = {one for entry in entries if isinstance(one := entry.get("image_id"), int | str)}
    there = len(given & set(ids.images))
    return (
        f"the set has no image with this id, and {there} of the {len(given)} ids that the file has; evaluate on the "
        "set that it was made of: a record, the folder that it was packed from and a COCO file have ids of their own"
    )


def _of_demo(path: str | Path, entries: list[Entry], results: Results) -> tuple[np.ndarray, np.ndarray]:
    """(the number of the image (n,), rows (n, 6)) of what demo.py --json writes."""
    find, taken = _finder([image.name for image in results.images]), dict[int, int]()
    images: list[int] = []
    found: list[Entry] = []
    places: list[str] = []
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number} ({entry.get('image')!r:.200})"
        image = _picture(entry, where, find, results)
        if taken.setdefault(image, number) != number:
            raise DataError(f"{where}: the picture is in entry {taken[image]}, too; leave one of them out")
        inner = entry["detections"]
        if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
            raise DataError(f"{where}: its detections are no list of objects")
        images += [image] * len(inner)
        found += inner
        places += [f"{where}, detection {k}" for k in range(len(inner))]
    names = _shown(results.class_names)
    classes = _numbers_of(found, "class", results.class_names, places.__getitem__, f"the set has {names}")
    scores, boxes = _scores(found, places.__getitem__), _boxes(found, "box", places.__getitem__)
    return np.array(images, np.int64), np.column_stack([classes, scores, boxes])


def _picture(entry: Entry, where: str, find: Callable[[str], list[int]], results: Results) -> int:
    """The number of the image that an entry of demo.py means."""
    if "frame" in entry:
        raise DataError(f"{where}: a frame of a video; name pictures of the set alone")
    found = find(str(entry.get("image")))
    if not found:
        raise DataError(f"{where}: the set has no such image; evaluate on the set that these pictures are from")
    if len(found) > 1:
        raise DataError(f"{where}: {len(found)} images of the set end like this; give detections with longer paths")
    height, width = results.images[found[0]].size
    if (entry.get("height"), entry.get("width")) != (height, width):
        raise DataError(
            f"{where}: the picture is {entry.get('width')} x {entry.get('height')}, in the set it is {width} x {height}"
        )
    return found[0]


def _finder(names: Sequence[str]) -> Callable[[str], list[int]]:
    """A function that gives the numbers of the names that share the longest end, in whole parts, with a path.

    At least the file name is the same.
    """
    by_file: dict[str, list[int]] = {}
    parts = [Path(name).parts for name in names]
    for number, one in enumerate(parts):
        by_file.setdefault(one[-1] if one else "", []).append(number)

    def find(path: str) -> list[int]:
        wanted = Path(path).parts
        candidates = by_file.get(wanted[-1] if wanted else "", [])
        lengths = [_shared(parts[number], wanted) for number in candidates]
        return [number for number, length in zip(candidates, lengths, strict=True) if length == max(lengths)]

    return find


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts from the end on are the same."""
    pairs = list(zip(reversed(a), reversed(b), strict=False))
    return next((k for k, (x, y) in enumerate(pairs) if x != y), len(pairs))


def _places(path: str | Path, entries: list[Entry]) -> Callable[[int], str]:
    """A function that names an entry by its number."""
    return lambda number: f"{path}, entry {number} (image_id {entries[number].get('image_id')!r:.40})"


def _numbers_of(
    entries: list[Entry], key: str, known: Sequence[Any], where: Callable[[int], str], hint: str
) -> np.ndarray:
    """(n,) the places of the entries' values among the known ones; DataError for a value that is not there."""
    numbers = {value: number for number, value in enumerate(known)}
    values = [entry.get(key) for entry in entries]
    found = [numbers.get(value, -1) if isinstance(value, int | str) else -1 for value in values]
    wrong = found.index(-1) if -1 in found else None
    if wrong is not None:
        raise DataError(f"{where(wrong)}: {key} {values[wrong]!r:.80}: {hint}")
    return np.array(found, np.int64)


def _scores(entries: list[Entry], where: Callable[[int], str]) -> np.ndarray:
    """(n,) the scores; DataError for one that is no finite number."""
    values = [entry.get("score") for entry in entries]
    for number, value in enumerate(values):
        if not _is_number(value):
            raise DataError(f"{where(number)}: the score is {value!r:.40}, not a finite number")
    return np.array(values, np.float64)


def _boxes(entries: list[Entry], key: str, where: Callable[[int], str]) -> np.ndarray:
    """(n, 4) the boxes; DataError for one that is not four finite numbers."""
    values = [entry.get(key) for entry in entries]
    for number, value in enumerate(values):
        if not isinstance(value, list) or len(value) != _SIDES or not all(map(_is_number, value)):
            raise DataError(f"{where(number)}: {key} is {value!r:.80}, not four finite numbers")
    return np.array(values, np.float64).reshape(-1, _SIDES)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _shown(values: Sequence[Any], most: int = 20) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


def images_without(results: Results) -> list[str]:
    """Names of the images in which nothing was found."""
    return [image.name for image in results.images if not len(image.found)]


def foreign_ids(results: Results) -> str:
    """A sentence where the detections fit the objects of other images as well as those of their own, as they do where
    ids are numbers of another set's images; "" where they do not, or fewer than FEWEST_IMAGES images tell.

    Compared are the surest detection of each image and its objects, of whatever class, at an IoU of HIT.
    """
    told = [image for image in results.images if len(image.found) and len(image.truth)]
    if len(told) < FEWEST_IMAGES:
        return ""
    boxes = [image.found[image.found[:, 1].argmax(), None, 2:6] for image in told]
    steps = {0, 1, len(told) // 3, len(told) // 2}
    hits = {
        step: sum(
            bool((iou(box, told[(k + step) % len(told)].truth[:, 1:5]) >= HIT).any()) for k, box in enumerate(boxes)
        )
        for step in steps
    }
    own, others = hits.pop(0) / len(told), max(hits.values()) / len(told)
    if own >= SURE or own > TIMES * others:
        return ""
    return (
        f"the surest detections hit an object in {own:.0%} of {len(told)} images, and with the images exchanged in "
        f"{others:.0%}: the ids of the file may be those of another set (a record, the folder that it was packed from "
        "and a COCO file have ids of their own), or the model has found nothing"
    )
