"""The annotations that a command names, read by the reader of their kind; several roots joined into one data set."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import DataError, OptionError
from dataset.annotation_list import AnnotationList
from dataset.coco import Coco
from dataset.csv_boxes import CsvBoxes
from dataset.imdb import AnnotatedImage, Imdb
from dataset.labelme import LabelMe
from dataset.layouts import recognise, sets_of
from dataset.pascal_voc import VOC_CLASSES, PascalVoc
from dataset.yolo import YoloFolder

AUTO = "auto"
_BY_NAME = ("pascal", "csv", "labelme")  # their classes are those found, sorted
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What to read: a kind of layouts.KINDS, or auto; a root; and the options of prepare_dataset of these names.

    names: class names by id, None takes those of the annotations. every: without sets all of them, to be split.
    annotations, images: folders that are not the usual ones of the root; None: they are.
    """

    kind: str
    root: Path
    years: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    pixel_origin: int = 1
    skip_bad: bool = False
    every: bool = False
    polygons: str = "refuse"
    annotations: Path | None = None
    images: Path | None = None
    allow_outside: bool = False


class Source(Imdb, Protocol):
    """An Imdb that was read from files: these, and the sentences about what was left out."""

    @property
    def sources(self) -> Sequence[Path]:
        """The files that were read and must not be replaced."""

    @property
    def bad(self) -> Sequence[str]:
        """Sentences about labels that were left out."""


def read_source(wanted: Wanted) -> tuple[Source, str]:
    """(the data set of one root, its kind); a line in the log says what `auto` takes the root for."""
    kind = _kind_of(wanted)
    return _READERS[kind](wanted), kind


def read_sets(wanted: Wanted) -> tuple["dict[str, Joined]", str]:
    """({set: its images}, the kind of the root): each set by itself, all with one numbering of the classes.

    The sets are those of `wanted`, else those of layouts.sets_of; of a root without such the one set is called "" and
    has all images.
    """
    kind = _kind_of(wanted)
    found = wanted.sets or (() if wanted.annotations else tuple(sets_of(wanted.root, kind, wanted.years)))
    if found != wanted.sets:
        logger.info("%s: its sets %s stay sets; --set names others", wanted.root, ", ".join(found))
    every = replace(wanted, every=not any(wanted.root.glob("ImageSets/**/*.txt")))  # else the default one of these
    parts = {name: replace(wanted, sets=(name,)) for name in found} or {"": every}
    read = {name: _READERS[kind](part) for name, part in parts.items()}
    names = wanted.names or _union(list(read.values()))
    if kind in _BY_NAME and names != VOC_CLASSES and not wanted.names:
        names = tuple(sorted(names))
    return {name: _joined([source], names, _of_classes(source, names)) for name, source in read.items()}, kind


def _of_classes(source: Source, names: Sequence[str]) -> list[AnnotatedImage]:
    """The images of a source with the ids of these classes."""
    if tuple(source.class_names) == tuple(names):
        return list(source.images)
    ids = _new_ids(source, names)
    return [replace(image, objects=_with_ids(image.objects, ids)) for image in source.images]


def _kind_of(wanted: Wanted) -> str:
    if wanted.kind != AUTO:
        return wanted.kind
    layout = recognise(wanted.root, wanted.annotations)
    logger.info("%s is read as --dataset %s: %s", wanted.root, layout.kind, layout.why)
    return layout.kind


def _pascal(wanted: Wanted) -> Source:
    return PascalVoc(
        wanted.root,
        wanted.years,
        wanted.sets,
        wanted.names,
        wanted.pixel_origin,
        wanted.skip_bad,
        wanted.every,
        wanted.annotations,
        wanted.images,
    )


def _coco(wanted: Wanted) -> Source:
    if wanted.years:
        logger.warning("--year has no effect: the sets of COCO have their year in their name, as train2017")
    return Coco(
        wanted.root, wanted.sets, wanted.names, wanted.skip_bad, wanted.every, wanted.annotations, wanted.images
    )


def _yolo(wanted: Wanted) -> Source:
    if wanted.years:
        logger.warning("--year has no effect: folders and lists of yolo have no years")
    return YoloFolder(
        wanted.root,
        wanted.sets,
        wanted.names,
        wanted.skip_bad,
        wanted.every,
        wanted.polygons,
        wanted.annotations,
        wanted.images,
        wanted.allow_outside,
    )


def _list(wanted: Wanted) -> Source:
    _refuse_sets(wanted, "list", ("years", "sets"))
    return AnnotationList(wanted.annotations or wanted.root, wanted.names, wanted.pixel_origin, wanted.skip_bad)


def _csv(wanted: Wanted) -> Source:
    _refuse_sets(wanted, "CSV", ("years",))
    return CsvBoxes(
        wanted.annotations or wanted.root,
        wanted.sets,
        wanted.names,
        wanted.pixel_origin,
        wanted.skip_bad,
        wanted.every,
        wanted.images,
    )


def _labelme(wanted: Wanted) -> Source:
    _refuse_sets(wanted, "LabelMe folder", ("years",))
    return LabelMe(wanted.root, wanted.sets, wanted.names, wanted.skip_bad, wanted.annotations, wanted.images)


def _refuse_sets(wanted: Wanted, what: str, fields: Sequence[str]) -> None:
    for field in fields:
        if getattr(wanted, field):
            name = field.removesuffix("s")
            raise OptionError(f"--{name}: a {what} has no {name}s, all its lines are packed; leave it out")


_READERS: Mapping[str, Callable[[Wanted], Source]] = {
    "pascal": _pascal,
    "coco": _coco,
    "yolo": _yolo,
    "list": _list,
    "csv": _csv,
    "labelme": _labelme,
}


@dataclass(frozen=True)
class Joined:
    """Several data sets as one, their objects by the names of their classes."""

    class_names: tuple[str, ...]
    images: Sequence[AnnotatedImage]
    dropped: Sequence[str]
    sources: Sequence[Path]
    bad: Sequence[str]


def read_sources(wanted: Wanted, roots: Sequence[Path]) -> tuple[Source, str]:
    """(the data set of all roots, their kinds): each is read by itself, objects are joined by the names of classes.

    Names of images then begin with their path below the folder that all roots share. DataError for an image that two
    roots hold, or for classes whose names differ in their case alone.
    """
    if len(roots) == 1:
        return read_source(replace(wanted, root=roots[0]))
    read = [read_source(replace(wanted, root=root)) for root in roots]
    names = wanted.names or _union([source for source, _ in read])
    base = Path(os.path.commonpath([os.path.abspath(root) for root in roots]))
    images: dict[Path, AnnotatedImage] = {}
    for (source, _), root in zip(read, roots, strict=True):
        ids = _new_ids(source, names)
        for image in source.images:
            path = Path(os.path.abspath(image.path))
            if path in images:
                raise DataError(f"{path} is in two of the roots; leave one of them out (this one: {root})")
            images[path] = _renumbered(image, path, ids, base)
    kinds = "+".join(dict.fromkeys(kind for _, kind in read))
    return _joined([source for source, _ in read], names, list(images.values())), kinds


def _joined(sources: Sequence[Source], names: Sequence[str], images: Sequence[AnnotatedImage]) -> Joined:
    return Joined(
        tuple(names),
        images,
        [line for source in sources for line in source.dropped],
        [path for source in sources for path in source.sources],
        [line for source in sources for line in source.bad],
    )


def _renumbered(image: AnnotatedImage, path: Path, ids: np.ndarray, base: Path) -> AnnotatedImage:
    name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
    return replace(image, name=name, objects=_with_ids(image.objects, ids))


def _new_ids(source: Source, names: Sequence[str]) -> np.ndarray:
    """(classes,) the ids that the classes of a source have among these names; -1 for one that is not there."""
    return np.array([names.index(name) if name in names else -1 for name in source.class_names])


def _with_ids(objects: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The objects (n, 6) with the new ids (classes,) in place of theirs."""
    objects = objects.copy()
    objects[:, 0] = ids[objects[:, 0].astype(np.int64)] if len(objects) else objects[:, 0]
    return objects


def _union(sources: Sequence[Source]) -> tuple[str, ...]:
    """The class names of all, each once; of a VOC folder that took VOC's twenty only those found, unless all did."""
    if len({tuple(source.class_names) for source in sources}) == 1:
        return tuple(sources[0].class_names)
    found: dict[str, None] = {}
    for source in sources:
        twenty = source.class_names == VOC_CLASSES and isinstance(source, PascalVoc)
        found |= dict.fromkeys(source.found_names if twenty else source.class_names)  # type: ignore[attr-defined]
    logger.info("class names of all roots: %s", ",".join(found))
    return tuple(found)
