"""What a folder or file with annotations is, for `--dataset auto`: the first that fits of the layouts below.

pascal    XML files (dataset/voc_folders.py); a VOCdevkit and a folder with Annotations/ are it whatever else there is
coco      JSON with images, annotations, categories (dataset/coco.py)
yolo      .txt labels, a .data file or a data.yaml (dataset/yolo_folders.py)
labelme   JSON files with shapes (dataset/labelme.py)
csv       a CSV file with a box on each line (dataset/csv_boxes.py)
list      a text file with an image and its boxes on each line (dataset/annotation_list.py)
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import open_regular
from config.preset import read_yaml
from dataset.coco import annotation_files
from dataset.darknet_data import read_data
from dataset.image_check import IMAGE_SUFFIXES
from dataset.imdb import files_in, holds
from dataset.labelme import is_labelme
from dataset.names_file import CLASSES, DATA_YAML, YAML_SUFFIXES
from dataset.voc_folders import ANNOTATION_FOLDERS, DEFAULT_YEARS, XML

KINDS = ("pascal", "coco", "yolo", "list", "csv", "labelme")
_BOXES = re.compile(rb"\S.*?(\s+-?[\d.]+(,-?[\d.]+){4})+\s*")
_NO_LABELS = (CLASSES, "README.txt", "README.dataset.txt", "README.roboflow.txt")
_PART = re.compile(r"(train|val|valid|validation|test|trainval)(\d*)")  # names of sets that are parts of one whole
_PEEK = 1 << 20  # bytes of a file that are looked at
_FILES: Mapping[str, tuple[str, str]] = {
    ".data": ("yolo", "a .data file of Darknet"),
    **{suffix: ("yolo", "a data.yaml of YOLO trainers") for suffix in YAML_SUFFIXES},
    ".csv": ("csv", "a CSV file"),
    ".json": ("coco", "a COCO annotation file"),
}


@dataclass(frozen=True)
class Layout:
    """A kind of annotations (KINDS), and what it was recognised by."""

    kind: str
    why: str


def recognise(root: Path, annotations: Path | None = None) -> Layout:
    """What a root is, or the annotations that the user names apart from it.

    DataError for a folder that is none of the layouts, or several. A root that is not there is a VOC folder, whose
    reader says that it is missing.
    """
    if annotations is not None and annotations.is_file():
        return _of_file(annotations)
    if annotations is not None and annotations.is_dir():
        return _of_annotations(annotations)
    if root.is_file():
        return _of_file(root)
    if not root.is_dir() or (root / ANNOTATION_FOLDERS[0]).is_dir() and not _is_coco(root / ANNOTATION_FOLDERS[0]):
        return Layout("pascal", f"XML files in {ANNOTATION_FOLDERS[0]}/")
    if any((path / ANNOTATION_FOLDERS[0]).is_dir() for path in root.glob("VOC*")):
        return Layout("pascal", "a VOCdevkit")
    found = [layout for layout in (look(root) for look in _LOOKS) if layout]
    if not found:
        raise DataError(
            f"{root} holds no annotations that are known here: neither XML files (VOC), JSON of COCO or LabelMe, "
            "labels of YOLO (.txt beside images, in labels/, a data.yaml or .data) nor a CSV; check --root, or name "
            "the folders with --annotations and --images"
        )
    if len(found) > 1:
        kinds = "; ".join(f"{layout.kind}: {layout.why}" for layout in found)
        raise DataError(f"{root} holds annotations of several kinds ({kinds}); choose one with --dataset")
    return found[0]


def sets_of(root: Path, kind: str, years: Sequence[str] = ()) -> list[str]:
    """The sets of a root of this kind that are parts of one whole, by their names: train, val, test and the like.

    Without trainval where train and val are there. Empty for a root without such sets. Of a VOCdevkit those that all
    the years have; none given: 2007 and 2012.
    """
    devkit = [root / f"VOC{year}" for year in years or DEFAULT_YEARS if (root / f"VOC{year}").is_dir()]
    of_kind = _SETS.get(kind, lambda _: ())
    named = [set(of_kind(one)) for one in (devkit if kind == "pascal" and devkit else [root])]
    found = [name for name in set.intersection(*named) if _PART.fullmatch(name)]
    whole = {name for name in found if {name.replace("trainval", part) for part in ("train", "val")} <= {*found}}
    return sorted((name for name in found if name not in whole or "trainval" not in name), key=_rank)


def _rank(name: str) -> tuple[int, str]:
    """The place of a set: train, val, test."""
    return next(k for k, part in enumerate(("train", "val", "test")) if name.startswith(part)), name


def _pascal_sets(root: Path) -> Iterable[str]:
    lists = [*root.glob("ImageSets/Main/*.txt")] or [*root.glob("ImageSets/*.txt")]
    if lists or any((root / name).is_dir() for name in ANNOTATION_FOLDERS):
        return (path.stem for path in lists)
    return (path.name for base in (root, root / "images") for path in _folders(base) if holds(path, XML))


def _yolo_sets(root: Path) -> Iterable[str]:
    files = [root] if root.is_file() else [root / name for name in DATA_YAML]
    for path in (path for path in files if path.is_file() and path.suffix.lower() in YAML_SUFFIXES):
        content = read_yaml(path)
        named = [key for key in ("train", "val", "test") if isinstance(content, dict) and content.get(key)]
        if named:
            return named
    data = files if root.is_file() else files_in(root, {".data"})
    if len(data) == 1 and data[0].suffix == ".data" and not (root / "images").is_dir():
        lists = read_data(data[0])
        return [name for name in ("train", "valid") if getattr(lists, name)]
    within = [path.name for path in _folders(root / "images")]
    return (
        within if (root / "images").is_dir() else [path.name for path in _folders(root) if (path / "images").is_dir()]
    )


def _folders(base: Path) -> list[Path]:
    return [path for path in base.glob("*") if path.is_dir()]


_SETS: Mapping[str, Callable[[Path], Iterable[str]]] = {
    "pascal": _pascal_sets,
    "coco": annotation_files,
    "yolo": _yolo_sets,
    "csv": lambda root: (path.parent.name for path in root.glob("*/*.csv")) if not files_in(root, {".csv"}) else (),
    "labelme": lambda root: (path.name for path in _folders(root) if holds(path, ".json")),
}


def _is_coco(folder: Path) -> bool:
    return holds(folder, ".json") and not holds(folder, XML)


def _of_file(path: Path) -> Layout:
    if path.suffix.lower() == ".json" and is_labelme(path):
        raise DataError(f"{path}: is LabelMe's file of one image; give --root the folder of all of them")
    if path.suffix.lower() in _FILES:
        return Layout(*_FILES[path.suffix.lower()])
    if path.suffix.lower() == XML:
        raise DataError(f"{path}: is the annotation of one image; give --root the folder that holds all of them")
    with open_regular(path) as file:
        lines = file.read(_PEEK).splitlines()
    if any(_BOXES.fullmatch(line) for line in lines[:100]):
        return Layout("list", "lines of an image and its boxes")
    return Layout("yolo", "a list of images")


def _of_annotations(folder: Path) -> Layout:
    """The kind of the files in a folder that holds annotations alone."""
    files = files_in(folder, {XML, ".json", ".txt", ".csv"}) or files_in(folder, {XML, ".json", ".txt"}, below=True)
    suffixes = {path.suffix.lower() for path in files if path.name != CLASSES}
    if XML in suffixes:
        return Layout("pascal", f"XML files in {folder}")
    if ".json" in suffixes:
        labelme = is_labelme(next(path for path in files if path.suffix.lower() == ".json"))
        return Layout("labelme" if labelme else "coco", f"JSON files in {folder}")
    if ".txt" in suffixes:
        return Layout("yolo", f".txt labels in {folder}")
    raise DataError(f"--annotations {folder}: holds neither XML, JSON nor .txt files; check the folder")


def _pascal(root: Path) -> Layout | None:
    for name in ANNOTATION_FOLDERS[1:]:
        if files_in(root / name, {XML}, below=True):
            return Layout("pascal", f"XML files in {name}/")
    folders = [root, *(path for base in (root, root / "images") for path in [base, *base.glob("*")] if path.is_dir())]
    found = next((folder for folder in folders if holds(folder, XML)), None)
    return Layout("pascal", f"XML files beside images in {found}") if found else None


def _coco(root: Path) -> Layout | None:
    known = {name: path for name, path in annotation_files(root).items() if not is_labelme(path)}
    first = next(iter(known.values()), None)
    return Layout("coco", f"{first.relative_to(root)} and the like") if first else None


def _yolo(root: Path) -> Layout | None:
    for name in DATA_YAML:
        if (root / name).is_file():
            return Layout("yolo", name)
    data = files_in(root, {".data"})
    if data:
        return Layout("yolo", data[0].name)
    if _labels(root / "labels") and (root / "images").is_dir():
        return Layout("yolo", "labels/ and images/")
    if any((path / "images").is_dir() and _labels(path / "labels") for path in root.glob("*") if path.is_dir()):
        return Layout("yolo", "folders with labels/ and images/")
    for folder in (root / "images", root):
        if folder.is_dir() and _labels(folder) and any(holds(folder, suffix) for suffix in IMAGE_SUFFIXES):
            return Layout("yolo", f".txt labels beside images in {folder}")
    return None


def _labels(folder: Path) -> bool:
    """Whether a folder, or one in it, holds .txt labels."""
    return any(
        path.name != CLASSES and path.stem.lower() != "readme" for path in files_in(folder, {".txt"}, below=True)
    )


def _labelme(root: Path) -> Layout | None:
    for folder in (root, *(path for path in sorted(root.glob("*")) if path.is_dir())):
        found = next((path for path in files_in(folder, {".json"}) if is_labelme(path)), None)
        if found:
            return Layout("labelme", f"JSON files with shapes in {folder}")
    return None


def _csv(root: Path) -> Layout | None:
    found = files_in(root, {".csv"}) or sorted(root.glob("*/_annotations.csv"))
    return Layout("csv", str(found[0].relative_to(root))) if found else None


_LOOKS: tuple[Callable[[Path], Layout | None], ...] = (_pascal, _coco, _yolo, _labelme, _csv)
