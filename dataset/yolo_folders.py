"""Which images a data set annotated for YOLO consists of, and the names of its classes.

NAME.data      Darknet's file: lists of images, names; also in a folder, as CVAT exports it (obj.data)
data.yaml      path, train, val, test: folders of images or lists; names. Also in a folder (Roboflow, ultralytics)
NAME.txt       a list: the path of an image on each line
a folder       images/ and labels/, with sets in these (images/train/) or before them (train/images/), or images
               with their labels beside them
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import DataError
from common.files import exists, text_lines
from config.preset import read_yaml
from dataset.darknet_data import numbered_names, read_data, read_names
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dataset.imdb import files_in, find_file, holds
from dataset.names_file import CLASSES, DATA_YAML, YAML_SUFFIXES, checked, names_beside, names_of_mapping

SUFFIXES = frozenset((*IMAGE_SUFFIXES, *OTHER_SUFFIXES))
_FIRST = "train"  # the set that is taken of several unless others are named
_YAML_SETS = {"valid": "val", "validation": "val"}  # other words for a key of data.yaml
_ADVICE = "--set names others, --split draws parts from all"
_BOXES = re.compile(r"\S+?(\s+-?[\d.]+(,-?[\d.]+){4})+\s*")  # a line of an annotation list
logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """Images, each once; the folder that their names are relative to; class names if there are some; the files that
    say all this."""

    images: list[Path]
    folder: Path
    names: tuple[str, ...] | None
    files: list[Path]


def listed_images(
    source: Path, sets: Sequence[str], every: bool = False, strict: bool = True, outside: bool = False
) -> Listing:
    """What a folder, a .data file, a data.yaml or a list names; every: of a folder all its sets unless some are named.

    DataError for what is not there; if strict, for names of classes beside it that disagree; unless `outside`, for
    what a list or .data file names out of its folder and the one above, by `..`, as an absolute path or by a link.
    """
    if source.is_dir():
        return _of_folder(source, sets, every, strict, outside)
    if source.suffix == ".data":
        return _of_data(source, sets, every, outside)
    if source.suffix.lower() in YAML_SUFFIXES:
        return _of_yaml(source, sets, every, outside)
    if sets:
        raise DataError(f"{source} is one list of images: --set is for a folder, a .data file or a data.yaml")
    names, file = names_beside(source.parent, strict)
    return Listing(_in_list(source, outside), source.parent, names, [source, *([file] if file else [])])


def listed_in(images: Path, folders: Sequence[Path], strict: bool = True) -> Listing:
    """The images below a folder that the user names; names of classes from the first of the folders that has some."""
    if not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    found = (names_beside(folder, strict) for folder in (*folders, images))
    names, file = next((one for one in found if one[0]), (None, None))
    return Listing(_images_below(images), images, names, [file] if file else [])


def _of_folder(source: Path, sets: Sequence[str], every: bool, strict: bool, outside: bool) -> Listing:
    """A folder; what an export's own file says of it is taken from there."""
    for name in DATA_YAML:
        if (source / name).is_file() and _has_sets(source / name):
            return _of_yaml(source / name, sets, every, outside)
    own = sorted(source.glob("*.data"))
    if len(own) == 1 and not (source / "images").is_dir():
        return _of_data(own[0], sets, every, outside)
    names, file = names_beside(source, strict)
    return Listing(_in_folder(source, sets, every), source, names, [file or source / CLASSES])


def _of_data(source: Path, sets: Sequence[str], every: bool, outside: bool) -> Listing:
    data = read_data(source)
    paths: dict[str, str] = {"train": data.train, "valid": data.valid}
    images: list[Path] = []
    files = [source]
    for name in sets or ([key for key, path in paths.items() if path] if every else ("train",)):
        if not paths.get(name):
            given = ", ".join(key for key, path in paths.items() if path)
            remedy = f"--set can be {given}" if given else "add a line like `train = train.txt`, a list of images"
            raise DataError(f"{source}: has no list `{name}`; {remedy}")
        files.append(_found(paths[name], source.parent, source, outside))
        images += _in_list(files[-1], outside)
    if data.names:
        files.append(_found(data.names, source.parent, source, outside))
    names = read_names(files[-1]) if data.names else None
    if names and len(names) != data.classes:
        raise DataError(f"{source}: classes = {data.classes}, but {data.names} has {len(names)} names")
    return Listing(list(dict.fromkeys(images)), source.parent, names or _numbered(data.classes, source), files)


def _numbered(count: int, source: Path) -> tuple[str, ...]:
    logger.warning(
        "%s gives a number of classes and no names: they are called class0 to class%d; --class-names names them",
        source, count - 1,
    )  # fmt: skip
    return numbered_names(count)


def _has_sets(path: Path) -> bool:
    content = read_yaml(path)
    return isinstance(content, dict) and any(key in content for key in ("train", "val", "test"))


def _of_yaml(source: Path, sets: Sequence[str], every: bool, outside: bool) -> Listing:
    """The images of a data.yaml; its paths start from `path` if that lies in the file's folder, else from there."""
    content = read_yaml(source)
    if not isinstance(content, dict) or not any(content.get(key) for key in ("train", "val", "test")):
        raise DataError(f"{source}: has no `train: FOLDER`, this is no data.yaml of a YOLO trainer")
    known = [key for key in ("train", "val", "test") if content.get(key)]
    images: list[Path] = []
    files = [source]
    for name in sets or (known if every else known[:1]):
        key = name if name in content else _YAML_SETS.get(name, name)
        if key not in known:
            raise DataError(f"{source}: has no set `{name}`; --set can be {', '.join(known)}")
        written = content[key]
        for path in written if isinstance(written, list) else [written]:
            found = _yaml_path(str(path), content.get("path"), source)
            files += [found] if found.is_file() else []
            images += _in_list(found, outside) if found.is_file() else _images_below(found)
    return Listing(list(dict.fromkeys(images)), source.parent, _yaml_names(content, source), files)


def _yaml_names(content: dict[str, Any], source: Path) -> tuple[str, ...] | None:
    count = content.get("nc")
    if "names" not in content:
        return _numbered(count, source) if isinstance(count, int) and 0 < count < 10**4 else None
    names = checked(names_of_mapping(content, source), source)
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{source}: nc is {count}, but it has {len(names)} names; correct one of them")
    return names


def _yaml_path(written: str, base: Any, source: Path) -> Path:
    """A folder or list as a data.yaml has it, inside of the folder of this file.

    Roboflow writes ../train/images for train/images; `path` often names a folder of the machine where it was written.
    """
    folder = source.parent
    inner = written.replace("\\", "/")
    while inner.startswith(("../", "./")):
        inner = inner.partition("/")[2]
    bases = [folder, *([folder / str(base)] if base else [])]
    candidates = [one / part for one in reversed(bases) for part in (written, inner)]
    real = folder.resolve()
    there = [path for path in candidates if exists(path)]
    inside = [path for path in there if path.resolve().is_relative_to(real)]
    found = next((path for path in inside if path.is_dir() or path.is_file()), None)
    if found is not None:
        return found
    outside = next((path for path in there if path not in inside), None)
    if outside is not None:
        raise DataError(
            f"{source}: {written!r:.200} leads out of its folder, to {outside.resolve()}; give --root that folder, "
            f"with --class-names {source}"
        )
    raise DataError(f"{source}: {written!r:.200} is missing (looked in {folder}); correct the path")


def _in_folder(source: Path, sets: Sequence[str], every: bool) -> list[Path]:
    base = source / "images"
    if base.is_dir():
        return _in_sets(base, sets)
    parts = {path.name: path / "images" for path in sorted(source.glob("*")) if (path / "images").is_dir()}
    if parts:
        missing = next((name for name in sets if name not in parts), None)
        if missing is not None:
            raise DataError(f"{source / missing} is no folder; sets that are there (--set): {', '.join(parts)}")
        first = [_FIRST] if _FIRST in parts and not every else list(parts)
        if not sets and len(parts) > len(first):
            logger.info("%s: the set %s is taken of %s; %s", source, _FIRST, ", ".join(parts), _ADVICE)
        return [image for name in sets or first for image in _images_below(parts[name])]
    if any(holds(source, suffix) for suffix in IMAGE_SUFFIXES) and not sets:
        return files_in(source, SUFFIXES)
    raise DataError(
        f"{source}: has no folder images/; --root names a folder with images/ and labels/, a list, a .data or a "
        "data.yaml"
    )


def _in_sets(base: Path, sets: Sequence[str]) -> list[Path]:
    """The images of folders in images/, of all of it without sets."""
    folders = [base / name for name in sets] or [base]
    missing = [
        folder
        for folder in folders
        if not folder.is_dir() or base.resolve() not in (folder.resolve(), *folder.resolve().parents)
    ]
    if missing:
        known = ", ".join(sorted(path.name for path in base.iterdir() if path.is_dir())) or "none"
        raise DataError(f"{missing[0]} is no folder in {base}; sets that are there (--set): {known}")
    return sorted({path for folder in folders for path in _images_below(folder)})


def _images_below(folder: Path) -> list[Path]:
    found = files_in(folder, SUFFIXES, below=True)
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _found(written: str, folder: Path, where: str | Path, outside: bool) -> Path:
    """find_file; DataError, too, unless `outside`, for what lies neither in the folder nor in the one above."""
    path, root = find_file(written, folder, where), folder.absolute().parent.resolve()
    if not outside and not path.resolve().is_relative_to(root):
        raise DataError(f"{where}: {written!r:.200} lies outside {root}; --allow-outside reads it all the same")
    return path


def _in_list(source: Path, outside: bool) -> list[Path]:
    """The images of a list, each once; DataError names the line of one that is not there."""
    images: dict[Path, None] = {}
    for number, line in enumerate(text_lines(source), 1):
        if _BOXES.fullmatch(line):
            raise DataError(f"{source}:{number}: {line!r:.80} has boxes: an annotation list; pack it by --dataset list")
        if line.strip():
            images[_found(line.strip(), source.parent, f"{source}:{number}", outside)] = None
    if not images:
        raise DataError(f"{source} lists no images")
    return list(images)
