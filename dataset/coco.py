"""COCO annotations: ROOT/annotations/instances_SET.json and the images in ROOT/SET/ or ROOT/images/SET/.

Category ids, which have gaps, become class ids from 0 in the order of the category ids; names come from the file. A box
[x, y, width, height] is measured in pixels from the edge, so its corners are x, y, x + width, y + height. A crowd
(iscrowd) is a difficult object: trained on like any other, as in the classic MXNet SSD, and ignored by the metrics.
Segmentations and areas are not kept.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from common.errors import DataError, did_you_mean
from common.sizes import Size
from dataset.imdb import AnnotatedImage, require_inside

DEFAULT_SETS = ("train2017",)
ANNOTATION_NAMES = ("annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json", "{}.json")
MAX_BYTES = 4 << 30  # instances_train2017.json has 448 MB
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

    objects (n, 7) float64 has rows [image id, category id, x, y, width, height, crowd] in the order of the file.
    """

    images: tuple[Image, ...]
    categories: tuple[Category, ...]
    objects: np.ndarray


class Coco:
    """Reads one or several sets of annotations; images has them in the order of the files.

    dropped describes the boxes without area as written, which were left out. Entries of one set for the same image file
    are one image with the objects of all. An image file that several sets list counts once, with the objects of the
    first; the number of these is logged.
    """

    def __init__(
        self, root: str | Path, image_sets: Sequence[str] = (), class_names: Sequence[str] | None = None
    ) -> None:
        """Reads everything but the images.

        image_sets: train2017 unless given. class_names: by class id; None takes the categories of the files, sorted by
        id. Anything missing or malformed, a name that leaves the root, or a category with objects that is not among
        class_names raises DataError naming the file.
        """
        self.root = Path(root)
        files = {name: _annotation_file(self.root, name) for name in image_sets or DEFAULT_SETS}
        sets = {name: read_annotations(path) for name, path in files.items()}
        categories = _merged(sets, files)
        self.class_names = tuple(class_names) if class_names else tuple(categories.values())
        images: dict[Path, AnnotatedImage] = {}
        for name, annotations in sets.items():
            ids = _class_ids(annotations, categories, self.class_names, files[name])
            found = self._images(name, annotations, ids)
            known = found.keys() & images.keys()
            if known:
                logger.warning("%s: %d of its images are in an earlier set, too, and count once", name, len(known))
            images |= {path: image for path, image in found.items() if path not in known}
        self.images = list(images.values())
        self.sources = list(files.values())  # files that were read
        self.dropped = [line for image in self.images for line in image.dropped]
        if self.dropped:
            logger.warning("%d boxes without area were dropped, the first: %s", len(self.dropped), self.dropped[0])

    def _images(self, name: str, annotations: Annotations, ids: np.ndarray) -> dict[Path, AnnotatedImage]:
        """The images of a set by their files, in its order; ids (n,): classes of its objects."""
        locate = _ImageFinder(self.root, name)
        entries: dict[Path, Image] = {}
        rows: dict[Path, np.ndarray] = {}
        for image, own in zip(annotations.images, _by_image(annotations), strict=True):
            path = locate(image.file_name)
            if entries.setdefault(path, image).size != image.size:
                raise DataError(f"set {name}: {image.file_name} is there with two sizes; correct its entries")
            rows[path] = np.concatenate([rows[path], own]) if path in rows else own
        return {
            path: self._image(image, path, annotations.objects[rows[path]], ids[rows[path]])
            for path, image in entries.items()
        }

    def _image(self, image: Image, path: Path, rows: np.ndarray, ids: np.ndarray) -> AnnotatedImage:
        """One image with its objects of positive width and height."""
        name = path.relative_to(self.root).as_posix()
        kept = (rows[:, 4:6] > 0).all(axis=1)
        dropped = tuple(
            f"{name}: object {k} [{' '.join(f'{value:g}' for value in rows[k, 2:6])}] has no area"
            for k in np.flatnonzero(~kept)
        )
        rows, ids = rows[kept], ids[kept]
        objects = np.column_stack([ids, rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6], rows[:, 6]])
        return AnnotatedImage(name, path, objects, image.size, dropped)


def read_annotations(path: Path) -> Annotations:
    """Reads and checks an annotation file; what is damaged raises DataError naming the file and the entry."""
    content = _load(path)
    images = tuple(_image_entry(entry, path) for entry in _entries(content, "images", path))
    categories = tuple(_category(entry, path) for entry in _entries(content, "categories", path))
    _refuse_repeated([image.id for image in images], "image id", path)
    _refuse_repeated([category.id for category in categories], "category id", path)
    _refuse_repeated([category.name for category in categories], "category name", path)
    rows = [_object(entry, path) for entry in _entries(content, "annotations", path)]
    objects = np.array(rows, np.float64).reshape(-1, 7)
    for column, what, known in ((0, "image", images), (1, "category", categories)):
        unknown = ~np.isin(objects[:, column], [one.id for one in known])
        if unknown.any():
            row = int(np.argmax(unknown))
            raise DataError(
                f"{path}: annotation {row} has the {what}_id {objects[row, column]:.0f}, which is not there"
            )
    return Annotations(images, categories, objects)


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
    return Image(_id(entry, "id", path), name, size)


def _category(entry: dict[str, Any], path: Path) -> Category:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise DataError(f"{path}: a category has the name {name!r:.80}; correct the entry")
    return Category(_id(entry, "id", path), name.strip())


def _object(entry: dict[str, Any], path: Path) -> tuple[float, ...]:
    """A row of Annotations.objects."""
    box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{path}: annotation {entry.get('id')!r:.40} has the bbox {box!r:.80}, not four numbers")
    if crowd not in (0, 1):
        raise DataError(f"{path}: annotation {entry.get('id')!r:.40} has iscrowd {crowd!r:.40}, not 0 or 1")
    return (_id(entry, "image_id", path), _id(entry, "category_id", path), *box, crowd)


def _id(entry: dict[str, Any], key: str, path: Path) -> int:
    value = entry.get(key)
    if not _is_whole(value) or abs(value) > 1 << 53:  # exact as float64
        raise DataError(f"{path}: an entry has the {key} {value!r:.80}, not a whole number")
    return value


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A finite number that is no larger than any picture needs."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _refuse_repeated(values: Sequence[Any], what: str, path: Path) -> None:
    if len(set(values)) < len(values):
        repeated = Counter(values).most_common(1)[0][0]
        raise DataError(f"{path}: the {what} {repeated!r:.80} is there more than once; correct the file")


def _annotation_file(root: Path, name: str) -> Path:
    """The annotation file of a set; DataError where there is none or the name leaves the root."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --root names a folder with annotations/instances_SET.json")
    paths = [root / pattern.format(name) for pattern in ANNOTATION_NAMES]
    for path in paths:
        require_inside(path, root, root)
        if path.is_file():
            return path
    known = sorted(path.stem.removeprefix("instances_") for path in (root / "annotations").glob("*.json"))
    raise DataError(f"{paths[0]} is missing; sets that are there (--set): {', '.join(known[:20]) or 'none'}")


def _merged(sets: dict[str, Annotations], files: dict[str, Path]) -> dict[int, str]:
    """Names by category id, sorted by id; DataError where two files disagree."""
    merged: dict[int, str] = {}
    for name, annotations in sets.items():
        for category in annotations.categories:
            if merged.setdefault(category.id, category.name) != category.name:
                raise DataError(
                    f"{files[name]}: category {category.id} is {category.name!r}, in another set it is "
                    f"{merged[category.id]!r}; pack the sets one by one"
                )
    _refuse_repeated(list(merged.values()), "category name", next(iter(files.values())))
    return dict(sorted(merged.items()))


def _class_ids(
    annotations: Annotations, categories: dict[int, str], class_names: Sequence[str], path: Path
) -> np.ndarray:
    """Class id (n,) of every object; DataError for a category that is not among class_names."""
    used, index = np.unique(annotations.objects[:, 1].astype(np.int64), return_inverse=True)
    names = [categories[category] for category in used.tolist()]
    for name in names:
        if name not in class_names:
            hint = did_you_mean(name, class_names)
            raise DataError(
                f"{path}: category {name!r} is not among the {len(class_names)} class names{hint}; "
                "add it to --class-names, or leave its objects out with --only-class-names"
            )
    return np.array([class_names.index(name) for name in names], np.int64)[index]


def _by_image(annotations: Annotations) -> list[np.ndarray]:
    """Rows of the objects of each image, in the order of the images and of the file."""
    owner = annotations.objects[:, 0]
    order = np.argsort(owner, kind="stable")
    ids = np.array([image.id for image in annotations.images], np.float64)
    first, last = (np.searchsorted(owner[order], ids, side=side) for side in ("left", "right"))
    return [order[a:b] for a, b in zip(first, last, strict=True)]


class _ImageFinder:
    """Finds the image files of a set: in images/SET, SET, images or the root itself.

    COCO_val2014_*.jpg is looked for in the folder val2014, too, whose images several sets of 2014 share.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._folders = [path for path in (root / "images" / name, root / name, root / "images", root) if path.is_dir()]
        self._inside: set[Path] = set()

    def __call__(self, file_name: str) -> Path:
        """The file; where there is none, the likeliest path (packing names it as missing)."""
        shared = re.match(r"COCO_([a-z]+\d{4})_\d+\.", file_name)
        more = [self._root / "images" / shared[1], self._root / shared[1]] if shared else []
        candidates = [folder / file_name for folder in [*self._folders, *more]]
        for path in candidates:
            self._require_inside(path)
            if path.is_file():
                return path
        return candidates[0]

    def _require_inside(self, path: Path) -> None:
        """DataError for a path out of the root; each folder is looked at once."""
        if path.parent not in self._inside or path.is_symlink() or ".." in path.parts:
            require_inside(path, self._root, self._root)
            self._inside.add(path.parent)
