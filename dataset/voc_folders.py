"""Where a data set with VOC annotations keeps its XML files, images and sets.

VOCdevkit      VOC2007/Annotations/, VOC2007/JPEGImages/, VOC2007/ImageSets/Main/SET.txt; VOC2012/ ...
a folder       Annotations/, annotations/ or the like with XML files; JPEGImages/, images/ or the like, or the
               images beside the XML files; with or without ImageSets/
side by side   XML files beside the images: in the folder, in images/, or in folders of these, which are sets
               (train/, valid/, test/, as Roboflow exports them)
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import is_file, text_lines
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dataset.imdb import MAC_PREFIX, AnnotatedImage, Part, files_in, holds, require_inside

DEFAULT_YEARS = ("2007", "2012")
DEFAULT_SET = "trainval"
ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "Annots", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs")
XML = ".xml"
ADVICE = "--split 0.8,0.2 draws train and validation from all"
_CLASS_LINE = re.compile(r"(.*\S)\s+-?[01]")  # of a set of one class, as cat_train.txt of VOC
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VocFolder:
    """Folders of XML files and of their images, and of the sets if there is one.

    root: names of images are relative to it, and nothing out of it is read. name: that of the set that the XML files
    are, '' if they are none.
    """

    root: Path
    annotations: Path
    images: Path
    sets: Path | None = None
    name: str = ""


def voc_names(
    root: Path,
    years: Sequence[str],
    image_sets: Sequence[str],
    every: bool,
    annotations: Path | None = None,
    images: Path | None = None,
) -> tuple[list[tuple[VocFolder, str]], list[Path]]:
    """((folder, name without suffix) of every image asked for, each once; the files that say so).

    every: without image_sets all annotations, even if there is an ImageSets folder. annotations and images: folders
    given by the user in place of those of the root. DataError for what is not there.
    """
    found: dict[tuple[VocFolder, str], None] = {}
    files: list[Path] = []
    if annotations is None and not root.is_dir():
        raise DataError(
            f"{root}: no such folder; --root names a VOCdevkit or a folder with Annotations/ and JPEGImages/"
        )
    for folder, image_set in _folders(root, years, image_sets, annotations, images, every):
        names, file = _names(folder, image_set, every)
        files += [file] if file else []
        found |= dict.fromkeys((folder, name) for name in names)
    return list(found), files


def image_sets(
    roots: Sequence[Path], images: Sequence[AnnotatedImage], parts: Mapping[str, Part], given: bool = False
) -> dict[Path, bytes]:
    """{ImageSets/Main/NAME.txt: its content} of the parts that were drawn of `images`, beside the annotations.

    trainval holds train and val, as in VOC. Names stand in the order of `images`. Each root, and each year of a
    VOCdevkit, has files of its own, and none of a part without images of it. given: the user names the folders of
    annotations and images, the one root holds the sets. DataError where XML files lie beside the images: such a folder
    has no sets.
    """
    drawn = {name: {image.path for image in part.images} for name, part in parts.items()}
    sets = {**drawn, DEFAULT_SET: drawn.get("train", set()) | drawn.get("val", set())}
    lines: dict[Path, str] = {}
    for image in images:
        root, own = _root_and_name(roots, image)
        folder, name = (root, Path(own).with_suffix("").as_posix()) if given else _year_and_name(root, own)
        for image_set in (one for one, paths in sets.items() if image.path in paths):
            path = folder / "ImageSets" / "Main" / f"{image_set}.txt"
            lines[path] = f"{lines.get(path, '')}{name}\n"
    for folder in () if given else {path.parents[2] for path in lines}:
        if not any((folder / name).is_dir() for name in ANNOTATION_FOLDERS):
            raise DataError(
                f"{folder} has its XML files beside the images, where sets are folders; leave out --write-sets"
            )
    return {path: text.encode("utf-8") for path, text in lines.items()}


def _root_and_name(roots: Sequence[Path], image: AnnotatedImage) -> tuple[Path, str]:
    """(the root of an image, its path from there on); of roots within one another the inner one."""
    if len(roots) == 1:
        return roots[0], image.name
    path = Path(os.path.abspath(image.path))
    root = max((one for one in roots if path.is_relative_to(os.path.abspath(one))), key=lambda one: len(one.parts))
    return root, path.relative_to(os.path.abspath(root)).as_posix()


def _year_and_name(root: Path, image: str) -> tuple[Path, str]:
    """(root or folder of a year, name in a set) of an image, which is named from the root on."""
    parts = Path(image).with_suffix("").parts
    year = parts[0] if len(parts) > 2 and (root / parts[0] / "Annotations").is_dir() else ""
    rest = parts[1:] if year else parts
    return root / year, "/".join(rest[1:] if len(rest) > 1 and rest[0] in IMAGE_FOLDERS else rest)


def _folders(
    root: Path,
    years: Sequence[str],
    image_sets: Sequence[str],
    annotations: Path | None,
    images: Path | None,
    every: bool,
) -> list[tuple[VocFolder, str | None]]:
    """Pairs of a folder and an image set; None for the default one, or all where there are no sets."""
    sets: list[str | None] = [*image_sets] or [None]
    bare = _given(root, annotations, images) or _bare(root)
    if bare:
        if years:
            raise DataError(f"{root} has no years: {bare.annotations.name}/ lies directly in it; leave out --year")
        return [(bare, image_set) for image_set in sets]
    present = sorted(path.name[3:] for path in root.glob("VOC*") if (path / "Annotations").is_dir())
    beside = [] if present else _side_by_side(root)
    if beside:
        if years:
            raise DataError(f"{root} has no years: its XML files lie beside the images; leave out --year")
        return [(folder, None) for folder in _chosen(root, beside, image_sets, every)]
    if not present:
        raise DataError(
            f"{root} holds no annotations: neither Annotations/ nor VOC2007/Annotations/ is there, nor XML files "
            "beside images; check --root and --year, or name the folders with --annotations and --images"
        )
    return _of_years(root, list(years or DEFAULT_YEARS), sets, present)


def _of_years(
    root: Path, years: list[str], sets: list[str | None], present: Sequence[str]
) -> list[tuple[VocFolder, str | None]]:
    """Pairs of a year's folder and an image set: one of these is for all of the others."""
    for year in years:
        if year not in present:
            raise DataError(f"{root / f'VOC{year}'}/Annotations is missing; --year can be {','.join(present)}")
    if len(years) == 1:
        years = years * len(sets)
    if len(sets) == 1:
        sets = sets * len(years)
    if len(sets) != len(years):
        raise DataError(f"--set has {len(sets)} names for {len(years)} years; give one, or one for each year")
    return [(_devkit(root, year), image_set) for year, image_set in zip(years, sets, strict=True)]


def _devkit(root: Path, year: str) -> VocFolder:
    folder = root / f"VOC{year}"
    return VocFolder(root, folder / "Annotations", folder / "JPEGImages", _sets(folder))


def _given(root: Path, annotations: Path | None, images: Path | None) -> VocFolder | None:
    """The folders that the user names; the other one of these is looked for in the root."""
    if annotations is None and images is None:
        return None
    for flag, folder in (("--annotations", annotations), ("--images", images)):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{flag} {folder}: no such folder")
    annotations = annotations or next((root / name for name in ANNOTATION_FOLDERS if holds(root / name, XML)), root)
    images = images or _images(root, annotations)
    return VocFolder(images, annotations, images, _sets(root))


def _bare(root: Path) -> VocFolder | None:
    """The folder with XML files in a root, None without one; Annotations/ is it even if it is empty."""
    for name in ANNOTATION_FOLDERS:
        folder = root / name
        if folder.is_dir() and (name == ANNOTATION_FOLDERS[0] or files_in(folder, {XML}, below=True)):
            return VocFolder(root, folder, _images(root, folder), _sets(root))
    return None


def _images(root: Path, annotations: Path) -> Path:
    """The folder of the images: JPEGImages/ or the like, else the one that holds images beside or above the XML."""
    found = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    if found:
        return found
    return next(
        (folder for folder in (annotations, root) if any(holds(folder, suffix) for suffix in IMAGE_SUFFIXES)),
        root / IMAGE_FOLDERS[0],
    )


def _sets(folder: Path) -> Path | None:
    """ImageSets/Main, or ImageSets if the lists lie directly in it; None without ImageSets."""
    sets = folder / "ImageSets"
    if not sets.is_dir():
        return None
    return sets if not (sets / "Main").is_dir() and any(sets.glob("*.txt")) else sets / "Main"


def _side_by_side(root: Path) -> list[VocFolder]:
    """The folders that hold XML files and images."""
    for base in (root, root / "images"):
        children = sorted(path for path in base.glob("*") if path.is_dir()) if base.is_dir() else []
        found = [
            VocFolder(root, folder, folder, None, "" if folder == base else folder.name)
            for folder in [base, *children]
            if holds(folder, XML)
        ]
        if found:
            return found
    return []


def _chosen(root: Path, beside: list[VocFolder], image_sets: Sequence[str], every: bool) -> list[VocFolder]:
    """The sets named, else train of several, or all if there is none of that name or `every` is set."""
    known = ", ".join(folder.name for folder in beside if folder.name)
    missing = [name for name in image_sets if name not in {folder.name for folder in beside}]
    if missing:
        there = f"sets that are there (--set): {known}" if known else f"its XML files are no sets; {ADVICE}"
        raise DataError(f"{root} has no set {missing[0]!r}; {there}")
    if image_sets:
        return [folder for name in image_sets for folder in beside if folder.name == name]
    default = [folder for folder in beside if folder.name == "train"]
    if default and not every and len(beside) > 1:
        logger.info("%s: the set train is taken; sets that are there (--set): %s", root, known)
        return default
    return beside


def _names(folder: VocFolder, image_set: str | None, every: bool) -> tuple[list[str], Path | None]:
    """(image names without suffix of a set of one folder, the file that lists them)."""
    if image_set is None and (every or folder.sets is None):
        return _all_names(folder, folder.annotations, tell=not every), None
    if folder.sets is None:
        inner = folder.annotations / str(image_set)
        require_inside(inner, folder.annotations, folder.annotations)
        if inner.is_dir():
            return _all_names(folder, inner, tell=False), None
        raise DataError(
            f"{folder.root / 'ImageSets/Main'}/{image_set}.txt is missing: there are no ImageSets; leave out --set, "
            f"and {ADVICE}"
        )
    path = folder.sets / f"{image_set or _default_set(folder.sets)}.txt"
    require_inside(path, folder.sets, folder.sets)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.sets.glob("*.txt"))[:20]) or "none"
        raise DataError(f"{path} is missing; sets that are there (--set): {known}; or {ADVICE}")
    lines = [line.strip() for line in "\n".join(text_lines(path)).splitlines()]
    names = [_name(line, number, path, folder) for number, line in enumerate(lines, 1) if line]
    if not names:
        raise DataError(f"{path} lists no images; choose another --set")
    return names, path


def _all_names(folder: VocFolder, inner: Path, tell: bool) -> list[str]:
    """The names of all XML files of a folder; of the folders in it, where it has none itself."""
    files = files_in(inner, {XML}) or files_in(inner, {XML}, below=True)
    names = [path.relative_to(folder.annotations).with_suffix("").as_posix() for path in files]
    if not names:
        raise DataError(f"{inner} holds no annotations (*.xml)")
    if tell and not folder.name:
        logger.info("%s has no ImageSets: all its %d annotations are taken; %s", folder.root, len(names), ADVICE)
    return names


def _default_set(sets: Path) -> str:
    """trainval, or the one set that is there."""
    found = [path.stem for path in sets.glob("*.txt") if not path.name.startswith(MAC_PREFIX)]
    return found[0] if len(found) == 1 else DEFAULT_SET


def _name(line: str, number: int, path: Path, folder: VocFolder) -> str:
    """The name that a line of a set gives; a suffix of an image or of XML is cut off where that names an annotation."""

    def is_there(name: str) -> bool:
        return "\0" not in name and is_file(folder.annotations / f"{name}{XML}")

    stem, dot, suffix = line.rpartition(".")
    if f"{dot}{suffix}".lower() in (XML, *IMAGE_SUFFIXES, *OTHER_SUFFIXES) and not is_there(line):
        return stem.rpartition("/")[2] if not is_there(stem) and is_there(stem.rpartition("/")[2]) else stem
    flagged = _CLASS_LINE.fullmatch(line)
    if flagged and not is_there(line):
        raise DataError(
            f"{path}:{number}: {line!r:.80} is a line of a set of one class (1: it is there, -1: it is not); "
            "give --set the set without a class, as trainval"
        )
    return line
