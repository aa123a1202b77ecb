"""COCO annotations: ROOT/annotations/instances_SET.json and the images in ROOT/SET/ or ROOT/images/SET/.

The exports of Roboflow (SET/_annotations.coco.json beside the images), CVAT (annotations/instances_default.json) and
Label Studio (result.json and images/) are of this form, too.

Category ids, which have gaps, become class ids from 0 in the order of the category ids; names come from the file. A box
[x, y, width, height] is measured in pixels from the edge, so its corners are x, y, x + width, y + height. A crowd
(iscrowd) is a difficult object: trained on like any other, as in the classic MXNet SSD, and ignored by the metrics.
Segmentations and areas are not kept.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import DataError, did_you_mean
from common.files import is_file
from dataset.coco_file import NUMBER, Annotations, Image, read_annotations, refuse_repeated
from dataset.imdb import MAC_PREFIX, AnnotatedImage, Mistakes, files_in, require_inside

DEFAULT_SET = "train2017"
ANNOTATION_NAMES = ("annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json", "{}.json")
_SPLITS = ("train2017", "train")  # sets that are taken of several unless others are named
logger = logging.getLogger(__name__)


class Coco:
    """Reads one or several sets of annotations; images has them in the order of the files.

    dropped describes the boxes without area as written, which were left out. Entries of one set for the same image file
    are one image with the objects of all. An image file that several sets list counts once, with the objects of the
    first; the number of these is logged.
    """

    def __init__(
        self,
        root: str | Path,
        image_sets: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        skip_bad: bool = False,
        every: bool = False,
        annotations: Path | None = None,
        images: Path | None = None,
    ) -> None:
        """Reads everything but the images.

        root: a folder, or one annotation file. image_sets: train2017 unless given, or what is there of train and the
        only set; every: all of them. class_names: by class id; None takes the categories of the files, sorted by id.
        annotations: the folder with the annotation files, or one of these; images: the folder with the images.
        Anything missing or malformed, a name that leaves the root, or a category with objects that is not among
        class_names raises DataError naming the file; with skip_bad images with wrong entries are left out, `bad` holds
        the sentences.
        """
        self.root = Path(root) if Path(root).is_dir() or not Path(root).is_file() else Path(root).parent
        self._image_folder = images
        given = annotations or (Path(root) if Path(root).is_file() else None)
        files = _annotation_files(self.root, image_sets, every, given)
        mistakes = Mistakes(skip_bad)
        sets = {name: read_annotations(path, mistakes) for name, path in files.items()}
        categories = _merged(sets, files)
        self.class_names = tuple(class_names) if class_names else tuple(categories.values())
        found: dict[Path, AnnotatedImage] = {}
        for name, content in sets.items():
            ids = _class_ids(content, categories, self.class_names, files[name])
            own = self._images(name, content, ids, mistakes)
            known = own.keys() & found.keys()
            if known:
                logger.warning("%s: %d of its images are in an earlier set, too, and count once", name, len(known))
            found |= {path: image for path, image in own.items() if path not in known}
        mistakes.settle(len(found))
        self.images, self.bad = list(found.values()), mistakes.lines
        self.sources = list(files.values())  # files that were read
        self.dropped = [line for image in self.images for line in image.dropped]
        if self.dropped:
            logger.warning("%d boxes without area were dropped, the first: %s", len(self.dropped), self.dropped[0])

    def _images(
        self, name: str, annotations: Annotations, ids: np.ndarray, mistakes: Mistakes
    ) -> dict[Path, AnnotatedImage]:
        """The images of a set by their files, in its order; ids (n,): classes of its objects."""
        locate = _ImageFinder(self.root, name, self._image_folder)
        entries: dict[Path, Image] = {}
        rows: dict[Path, np.ndarray] = {}
        for image, own in zip(annotations.images, _by_image(annotations), strict=True):
            with mistakes.collected():
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
        below = self.root if path.is_relative_to(self.root) else self._image_folder
        name = path.relative_to(below or self.root).as_posix()
        kept = (rows[:, 4:6] > 0).all(axis=1)
        objects = np.column_stack([ids, rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6], rows[:, 6]])
        found = AnnotatedImage(name, path, objects, image.size, (), rows[:, [NUMBER, 2, 3, 4, 5]])
        dropped = tuple(f"{name}: {found.shown(k)} has no area" for k in np.flatnonzero(~kept))
        return replace(found, dropped=dropped).only(kept)


def annotation_files(root: Path) -> dict[str, Path]:
    """{set: its annotation file} of a folder, by what its files are called; sorted."""
    found: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        found.setdefault(path.stem.removeprefix("instances_"), path)
    found |= {path.parent.name: path for path in sorted(root.glob("*/_annotations.coco.json"))}
    if not found:
        own = [root / "result.json", root / "_annotations.coco.json", *sorted(root.glob("instances_*.json"))]
        found = {path.stem.removeprefix("instances_"): path for path in own if path.is_file()}
    return {name: path for name, path in found.items() if not path.name.startswith(MAC_PREFIX)}


def _annotation_files(root: Path, names: Sequence[str], every: bool, given: Path | None) -> dict[str, Path]:
    """{set: its annotation file} of the sets named, else of the default one."""
    if given is not None:
        return _of_given(given, names)
    known = annotation_files(root) if root.is_dir() else {}
    if names:
        return {name: _annotation_file(root, name, known) for name in names}
    default = next((name for name in _SPLITS if name in known), None)
    if every and known:
        return known
    if default is None and len(known) != 1:
        return {DEFAULT_SET: _annotation_file(root, DEFAULT_SET, known)}
    chosen = default or next(iter(known))
    if len(known) > 1:
        logger.info("%s: the set %s is taken; sets that are there (--set): %s", root, chosen, _listed(known))
    return {chosen: known[chosen]}


def _of_given(given: Path, names: Sequence[str]) -> dict[str, Path]:
    """The same of an annotation file, or of a folder with such files, that the user names."""
    if given.is_file() and names:
        raise DataError(f"{given} is one set of annotations: leave out --set")
    if given.is_file():
        return {given.stem.removeprefix("instances_"): given}
    if not given.is_dir():
        raise DataError(f"--annotations {given}: no such folder or file")
    known = {path.stem.removeprefix("instances_"): path for path in files_in(given, {".json"})}
    chosen = names or (list(known) if len(known) == 1 else [DEFAULT_SET])
    for name in chosen:
        if name not in known:
            raise DataError(f"{given} has no set {name}; sets that are there (--set): {_listed(known)}")
    return {name: known[name] for name in chosen}


def _listed(known: dict[str, Path]) -> str:
    return ", ".join(list(known)[:20]) or "none"


def _annotation_file(root: Path, name: str, known: dict[str, Path]) -> Path:
    """The annotation file of a set; DataError where there is none or the name leaves the root."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --root names a folder with annotations/instances_SET.json")
    paths = [root / pattern.format(name) for pattern in ANNOTATION_NAMES]
    for path in paths:
        require_inside(path, root, root)
        if path.is_file():
            return path
    if name in known:
        return known[name]
    raise DataError(f"{paths[0]} is missing; sets that are there (--set): {_listed(known)}")


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
    refuse_repeated(list(merged.values()), "category name", next(iter(files.values())))
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

    def __init__(self, root: Path, name: str, given: Path | None = None) -> None:
        """given: the folder with the images, as the user names it."""
        self._root = given or root
        usual = [root / "images" / name, root / name, root / "images", root]
        self._folders = [path for path in ([given] if given else usual) if path.is_dir()] or [self._root]
        self._inside: set[Path] = set()

    def __call__(self, file_name: str) -> Path:
        """The file; where there is none, the likeliest path (packing names it as missing)."""
        shared = re.match(r"COCO_([a-z]+\d{4})_\d+\.", file_name)
        more = [self._root / "images" / shared[1], self._root / shared[1]] if shared else []
        names = dict.fromkeys([file_name, file_name.replace("\\", "/")])
        candidates = [folder / name for name in names for folder in [*self._folders, *more]]
        for path in candidates:
            self._require_inside(path, file_name)
            if is_file(path):
                return path
        return candidates[0]

    def _require_inside(self, path: Path, file_name: str) -> None:
        """DataError for a path out of the root; each folder is looked at once."""
        if path.parent not in self._inside or path.is_symlink() or ".." in file_name:
            require_inside(path, self._root, self._root)
            self._inside.add(path.parent)
