"""The set to evaluate on: a record, a folder of annotated pictures, or a COCO annotation file.

A network reads records: a folder is packed into one for the time being, so that it gives the numbers of the record
packed from it. Detections from a file need the annotations and the sizes of the pictures alone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from common.errors import DataError, OptionError
from config.options import option
from dataset.class_names import read_class_names
from dataset.coco_file import Annotations, read_annotations
from dataset.fitting import DEFAULT_RULES, fit_objects
from dataset.image_check import ImageInfo, file_header, record_header
from dataset.image_list import listed_paths
from dataset.imdb import AnnotatedImage, Part
from dataset.labels import parse_label, validate
from dataset.layouts import KINDS, recognise, sets_of
from dataset.packing import pack_dataset
from dataset.record_source import open_source
from dataset.recordio import refuse_other_file
from dataset.sidecar import read_sidecar, verify_sidecar
from dataset.sources import AUTO, Wanted, read_source
from dataset.transforms import shown_bit_depth
from evaluate.detection_files import COCOIds, annotation_ids, record_ids
from evaluate.detections import ImageResult, Results, label_pixels

if TYPE_CHECKING:
    from model.checkpoint import CheckpointMeta
    from model.manifest import Manifest

CALIBRATION = "--calib-rec"  # for which the training record is as good as another
ANNOTATIONS = frozenset({".json", ".yaml", ".yml", ".data", ".csv", ".txt"})  # files that are annotations
BY_NAME = ("pascal", "csv", "labelme")  # their classes are sorted by name, whatever a model's are
NOTHING = np.zeros((0, 6))
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetOptions:
    """What to evaluate on, and how a folder is read."""

    rec_path: str = option(
        "data/val.rec",
        "what to evaluate on: a record, a folder of annotated pictures as prepare_dataset.py takes it, or a COCO "
        "annotation file",
        "data",
    )
    dataset: str = option(AUTO, "kind of the folder's annotations", "folders", choices=(AUTO, *KINDS))
    set: tuple[str, ...] = option((), "set of the folder, such as test or val2017", "folders")
    year: tuple[str, ...] = option((), "years of a VOCdevkit", "folders")
    images: str = option("", "folder of the pictures, where it is no usual one of the folder or file", "folders")
    pixel_origin: int = option(
        1, "1: coordinates of pascal, csv and list count pixels from 1; 0: they are edges", "folders", choices=(0, 1)
    )
    class_names: tuple[str, ...] = option(
        (), "classes of the set, where it does not name them; a model must have them", "data"
    )


def is_annotated(path: str) -> bool:
    """Whether this is a folder or a file of annotations, and not a record."""
    return Path(path).is_dir() or (Path(path).suffix.lower() in ANNOTATIONS and Path(path).is_file())


def is_coco_file(path: str) -> bool:
    """Whether this is a file that can only be a COCO annotation file."""
    return Path(path).suffix.lower() == ".json" and Path(path).is_file()


def _kind_of(options: SetOptions) -> str:
    return recognise(Path(options.rec_path)).kind if options.dataset == AUTO else options.dataset


def read_annotated(options: SetOptions) -> Part:
    """The images of the folder or file; OptionError where it has several sets and none is named."""
    root, kind = Path(options.rec_path), _kind_of(options)
    sets = [] if options.set else sets_of(root, kind, options.year)
    if len(sets) > 1:
        raise OptionError(f"--rec-path {root} has the sets {', '.join(sets)}: name the one to evaluate on with --set")
    wanted = Wanted(
        kind,
        root,
        options.year,
        options.set or tuple(sets),
        read_class_names(options.class_names),
        options.pixel_origin,
        every=not any(root.glob("ImageSets/**/*.txt")),
        images=Path(options.images) if options.images else None,
    )
    source, _ = read_source(wanted)
    return Part(tuple(source.class_names), source.images, source.dropped)


def with_classes(part: Part, names: Sequence[str], path: str, owner: str) -> Part:
    """The images with the ids that the classes have in `names`; OptionError for an object whose class is not there.

    owner: whose classes these are, for the sentence.
    """
    if tuple(names) == part.class_names:
        return part
    ids = np.array([names.index(name) if name in names else -1 for name in part.class_names])
    images = [replace(image, objects=_renumbered(image.objects, ids)) for image in part.images]
    for before, image in zip(part.images, images, strict=True):
        if (image.objects[:, 0] < 0).any():
            name = part.class_names[int(before.objects[image.objects[:, 0] < 0, 0][0])]
            raise OptionError(
                f"--rec-path {path}: {image.name} has an object of the class {name!r}, {owner} knows {', '.join(names)}"
            )
    return Part(tuple(names), images, part.dropped)


def _renumbered(objects: np.ndarray, ids: np.ndarray) -> np.ndarray:
    objects = objects.copy()
    objects[:, 0] = ids[objects[:, 0].astype(np.int64)]
    return objects


@contextmanager
def as_record(
    options: SetOptions, names: Sequence[str], owner: str, bit_depth: str = "", workers: int = 1
) -> Iterator[str]:
    """The path of the record; a folder, or a COCO file with its pictures, is one in a temporary folder for the block.

    names: the classes of the model, which is called `owner`; bit_depth: as it was trained.
    """
    if not is_annotated(options.rec_path):
        yield options.rec_path
        return
    part = with_classes(read_annotated(options), names, options.rec_path, owner)
    with TemporaryDirectory(prefix="evaluate-") as folder:
        target = Path(folder, "set.lst")
        pack_dataset(part, target, seed=None, workers=workers, source=options.rec_path, bit_depth=bit_depth)
        logger.info("%s: %d images are packed for the evaluation", options.rec_path, len(part.images))
        yield str(target.with_suffix(".rec"))


def record_truth(
    rec_path: str, names: Sequence[str] | None, list_path: str = ""
) -> tuple[tuple[str, ...], list[ImageResult]]:
    """(class names, the images of a record without detections); names None takes those of its sidecar.

    OptionError where there are none, or others; DataError naming a record that cannot be used.
    """
    refuse_other_file(rec_path, "--rec-path")
    if not Path(rec_path).is_file():
        raise DataError(f"--rec-path {rec_path}: no such file; make it with tools/prepare_dataset.py")
    source = open_source(rec_path, len(names) if names else None, None, list_path or None)
    if names and source.class_names and tuple(names) != source.class_names:
        raise OptionError(
            f"--class-names {', '.join(names)}: {rec_path} has {', '.join(source.class_names)}; leave the option out"
        )
    known = tuple(names or source.class_names or ())
    if not known:
        raise OptionError(f"--rec-path {rec_path} has no sidecar that names its classes; give them by --class-names")
    paths, reader = listed_paths(rec_path, list_path), source.reader
    images = []
    for position, key in enumerate(reader.keys.tolist()):
        record, where = reader.record(position), reader.where(position)
        labels = parse_label(record.label, where)
        validate(labels, len(known), where)
        size = record_header(record.image, where).size
        images.append(ImageResult(paths.get(key, str(key)), size, label_pixels(labels, size), NOTHING, key))
    return known, images


def read_truth(options: SetOptions, list_path: str = "", coco_annotations: str = "") -> tuple[Results, COCOIds]:
    """(the images of the set without detections, their ids in COCO files).

    A COCO file's ids are its own, and its pictures need not be there; those of a record are its own, or those of
    coco_annotations; the images of a folder are counted from 0. Categories count from 1 where no COCO file says
    otherwise.
    """
    names = read_class_names(options.class_names)
    if is_coco_file(options.rec_path) and options.dataset in (AUTO, "coco"):
        return _of_coco_file(Path(options.rec_path), names)
    if not is_annotated(options.rec_path):
        known, images = record_truth(options.rec_path, names, list_path)
        keys = [image.id for image in images]
        if coco_annotations:
            ids = annotation_ids(keys, known, options.rec_path, coco_annotations)
        else:
            ids = record_ids(keys, len(known), options.rec_path)
        return Results(known, tuple(images)), ids
    part = read_annotated(options)
    images = [_fitted(image, file_header(image.path), number) for number, image in enumerate(part.images)]
    ordered = bool(names) or _kind_of(options) not in BY_NAME
    ids = COCOIds(range(len(images)), range(1, len(part.class_names) + 1), [image.name for image in images], ordered)
    return Results(tuple(part.class_names), tuple(images)), ids


def _fitted(image: AnnotatedImage, info: ImageInfo, number: int) -> ImageResult:
    """An image with its objects as packing would have them."""
    try:
        fitted = fit_objects(image, info, DEFAULT_RULES)
    except DataError as error:
        raise DataError(f"{image.name}: {error}") from error
    return ImageResult(image.name, info.size, label_pixels(fitted.objects, info.size), NOTHING, number)


def _of_coco_file(path: Path, names: tuple[str, ...] | None) -> tuple[Results, COCOIds]:
    """The images of a COCO annotation file by its own sizes, classes by the ids of the categories."""
    annotations = read_annotations(path)
    categories = sorted(annotations.categories, key=lambda category: category.id)
    found = {category.name: category.id for category in categories}
    known = names or tuple(found)
    missing = [name for name in known if name not in found] + [name for name in found if name not in known]
    if missing:
        raise OptionError(
            f"--class-names: {path} has the categories {', '.join(found)}; {missing[0]!r} is in one alone"
        )
    ids = COCOIds(
        [image.id for image in annotations.images],
        [found[name] for name in known],
        [image.file_name for image in annotations.images],
    )
    images = _coco_images(path, annotations, list(ids.categories))
    return Results(known, tuple(images)), ids


def _coco_images(path: Path, annotations: Annotations, categories: list[int]) -> list[ImageResult]:
    owner = annotations.objects[:, 0]
    order = np.argsort(owner, kind="stable")
    rows = annotations.objects[order]
    images = []
    for image in annotations.images:
        if image.size is None:
            raise DataError(f"{path}: the image {image.id} ({image.file_name}) has no height and width; add them")
        own = rows[np.searchsorted(rows[:, 0], image.id) : np.searchsorted(rows[:, 0], image.id, side="right")]
        own = own[(own[:, 4:6] > 0).all(axis=1)]
        classes = [categories.index(int(category)) for category in own[:, 1]]
        objects = np.column_stack([classes, own[:, 2:4], own[:, 2:4] + own[:, 4:6], own[:, 6]]).reshape(-1, 6)
        annotated = AnnotatedImage(image.file_name, path, objects, image.size)
        images.append(_fitted(annotated, ImageInfo(image.size, 1), image.id))
    return images


def check_record(rec_path: str, meta: "CheckpointMeta | Manifest", prefix: str, what: str = "--rec-path") -> None:
    """check_classes, and a record that has changed since it was packed is refused with DataError; one that is the
    training record, none of the run's, or of another bit depth, is told."""
    check_classes(rec_path, meta.class_names, prefix, what)
    sidecar = read_sidecar(rec_path)
    if sidecar is None:
        return
    verify_sidecar(rec_path, sidecar, hash=True)
    if sidecar.bit_depth != meta.bit_depth:
        logger.warning(
            "%s %s was packed with the bit depth %s, %s was trained with %s: its pixels mean something else; pack the "
            "record as the training's",
            what, rec_path, shown_bit_depth(sidecar.bit_depth), prefix, shown_bit_depth(meta.bit_depth),
        )  # fmt: skip
    records: Mapping[str, str] = getattr(meta, "records", {})  # a manifest does not say
    known = next((name for name, digest in records.items() if digest == sidecar.sha256), "")
    if known == "train" and what != CALIBRATION:
        logger.warning(
            "%s %s is the record that %s was trained on; the values promise too much", what, rec_path, prefix
        )
    elif records and not known:
        logger.info("%s %s is neither the training nor the validation record of %s", what, rec_path, prefix)


def check_classes(rec_path: str, names: Sequence[str], prefix: str, what: str = "--rec-path") -> None:
    """DataError if there is no such record, OptionError if its sidecar names other classes.

    what: the option, or other word, that stands before the path in the sentence.
    """
    refuse_other_file(rec_path, what)
    if not Path(rec_path).is_file():
        raise DataError(f"{what} {rec_path}: no such file; make it with tools/prepare_dataset.py")
    sidecar = read_sidecar(rec_path)
    if sidecar and list(sidecar.class_names) != list(names):
        raise OptionError(
            f"{what} {rec_path} holds the classes {', '.join(sidecar.class_names)}, but {prefix} was trained on "
            f"{', '.join(names)}; pack the record with --class-names of the training"
        )
