"""Darknet's .names and .data files, and its labels: what a folder annotated for YOLO consists of.

    NAME.names    one class name a line
    NAME.data     key = value lines: classes, train, valid, names; the values are paths, nothing else is done with them
    list          a line for each image: its path
    labels        beside images/ (or in its folder) a .txt for each image: `class cx cy w h`, fractions of the image

Relative paths are those from the folder of the .data file, of its parent, or (lists) of the list. Source: Darknet,
src/option_list.c and src/data.c (fill_truth_detection).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import DataError
from common.files import text_lines, write_atomically
from common.sizes import Size
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES, image_header
from dataset.imdb import AnnotatedImage
from dataset.labels import OBJECT_WIDTH, TOLERANCE

MAX_LABEL_BYTES = 4 << 20
HEADER_BYTES = 1 << 20  # of an image, enough for its size; else all of it is read
LABEL_COLUMNS = 5
MAX_CLASSES = 10_000  # each gets a name
SHOWN = 5  # names of a list in a warning
KEYS = ("classes", "train", "valid", "names")
logger = logging.getLogger(__name__)
CLASSES = "classes.txt"  # names of the classes in a folder, as labelImg writes them
IGNORED = ("backup", "eval", "results", "top", "labels")


@dataclass(frozen=True)
class DarknetData:
    """A .data file: number of classes, paths as written; '' = not given."""

    classes: int
    train: str = ""
    valid: str = ""
    names: str = ""


def read_names(path: str | Path) -> tuple[str, ...]:
    """Class names, a line each; DataError for a file without names or with one twice."""
    names = tuple(line.strip() for line in text_lines(Path(path)) if line.strip())
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if not names:
        raise DataError(f"{path}: has no class names; write one on each line")
    if repeated:
        raise DataError(f"{path}: {repeated[0]!r} is listed twice; rename one of them, ids count the lines")
    return names


def write_names(path: Path, names: Sequence[str]) -> None:
    """Writes class names, a line each; DataError for one that would not come back."""
    write_atomically(path, names_content(path, names))


def names_content(path: Path, names: Sequence[str]) -> bytes:
    """The .names file that write_names writes to `path`; DataError for a name that would not come back."""
    for name in names:
        if name != name.strip() or not name or len(name.splitlines()) != 1:
            raise DataError(f"{path}: the class name {name!r} does not fit on a line of its own; rename the class")
    return "".join(f"{name}\n" for name in names).encode("utf-8")


def read_data(path: str | Path) -> DarknetData:
    """A .data file; DataError names a line that is no key=value, is unknown or given twice, and a missing `classes`."""
    values: dict[str, str] = {}
    for number, line in enumerate(text_lines(Path(path)), 1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        key, sign, value = (part.strip() for part in text.partition("="))
        if not sign or key not in KEYS + IGNORED or key in values:
            why = "is given twice" if key in values else f"expected one of {', '.join(KEYS)} = value"
            raise DataError(f"{path}:{number}: {text!r:.80}: {why}")
        values[key] = value
    classes = values.get("classes", "")
    if not re.fullmatch(r"\d{1,9}", classes, re.ASCII) or not 0 < int(classes) <= MAX_CLASSES:
        raise DataError(f"{path}: classes = {classes!r:.40} is not the number of classes, 1 to {MAX_CLASSES}")
    return DarknetData(int(classes), *(values.get(key, "") for key in KEYS[1:]))


def write_data(path: Path, data: DarknetData) -> None:
    """Writes a .data file atomically; DataError for a path that a line cannot hold."""
    values = {"classes": str(data.classes), "train": data.train, "valid": data.valid, "names": data.names}
    for key, value in values.items():
        if value != value.strip() or len(value.splitlines()) > 1:
            raise DataError(f"{path}: {key} = {value!r:.80} does not fit on one line")
    write_atomically(path, "".join(f"{k} = {v}\n" for k, v in values.items() if v).encode("utf-8"))


class Listing(NamedTuple):
    """Images, each once; the folder that their names are relative to; class names if there are some; the files that
    say all this."""

    images: list[Path]
    folder: Path
    names: tuple[str, ...] | None
    files: list[Path]


class YoloFolder:
    """Images with YOLO labels, as an Imdb: of the lists of a .data file, of a list (.txt), or of a folder with images/.

    dropped describes boxes without area. An image without a label file has no objects; a warning counts these. Of a
    folder, images of other formats count, too: packing names what is neither JPEG nor PNG.
    """

    def __init__(self, root: str | Path, sets: Sequence[str] = (), class_names: Sequence[str] | None = None) -> None:
        """Reads everything but the images' pixels.

        root: a .data file (sets then `train`, the default, or `valid`), a list of image paths, or a folder with images/
        and labels/ (sets then name folders in images/: none = all of it). class_names name the ids (a warning tells
        other names that are there); None takes the .names of the .data file, else one `*.names` or `classes.txt` in
        the folder, else class0, class1, ... DataError names file and line.
        """
        source = Path(root)
        names = tuple(class_names) if class_names else None
        paths, self.root, own_names, files = _listed(source, sets)
        report_renamed(source, names, own_names)
        names = names or own_names
        _report_unlabelled(paths)
        rows = [_read_labels(path, len(names) if names else None) for path in paths]
        highest = max((int(objects[:, 0].max()) for objects in rows if len(objects)), default=0)
        self.class_names = names or numbered_names(highest + 1)
        self.images = [self._image(path, objects) for path, objects in zip(paths, rows, strict=True)]
        self.dropped = [line for image in self.images for line in image.dropped]
        self.sources = [*files, *(label_path(path) for path in paths)]  # files that were read

    def _image(self, path: Path, centres: np.ndarray) -> AnnotatedImage:
        """Centre boxes, fractions of the image, as corners in its pixels; without area they are dropped."""
        size = _size(path) if len(centres) else None
        height, width = size or (1, 1)
        low, high = centres[:, 1:3] - centres[:, 3:5] / 2, centres[:, 1:3] + centres[:, 3:5] / 2
        kept = (centres[:, 3:5] > 0).all(axis=1)
        dropped = tuple(f"{label_path(path)}: object {row} has no area" for row in np.flatnonzero(~kept))
        objects = np.zeros((len(centres), OBJECT_WIDTH))
        objects[:, 0] = centres[:, 0]
        objects[:, 1:5] = np.concatenate([low, high], axis=1) * (width, height, width, height)
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return AnnotatedImage(name.as_posix(), path, objects[kept], size, dropped)


def label_path(image: Path) -> Path:
    """The label file of an image: the last folder `images` in its path becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _listed(source: Path, sets: Sequence[str]) -> Listing:
    """What a folder, a .data file or a list names."""
    if source.is_dir():
        return Listing(_in_folder(source, sets), source, names_in_folder(source), [source / CLASSES])
    if source.suffix == ".data":
        return _of_data(source, sets)
    if sets:
        raise DataError(f"{source} is one list of images: --set is for a folder or a .data file")
    return Listing(_in_list(source), source.parent, names_in_folder(source.parent), [source, source.with_name(CLASSES)])


def _of_data(source: Path, sets: Sequence[str]) -> Listing:
    data = read_data(source)
    paths: dict[str, str] = {"train": data.train, "valid": data.valid}
    images: list[Path] = []
    files = [source]
    for name in sets or ("train",):
        if not paths.get(name):
            given = ", ".join(key for key, path in paths.items() if path)
            remedy = f"--set can be {given}" if given else "add a line like `train = train.txt`, a list of images"
            raise DataError(f"{source}: has no list `{name}`; {remedy}")
        files.append(find_file(paths[name], source.parent, source))
        images += _in_list(files[-1])
    if data.names:
        files.append(find_file(data.names, source.parent, source))
    names = read_names(files[-1]) if data.names else None
    if names and len(names) != data.classes:
        raise DataError(f"{source}: classes = {data.classes}, but {data.names} has {len(names)} names")
    names = names or numbered_names(data.classes)
    return Listing(list(dict.fromkeys(images)), source.parent, names, files)


def _in_folder(source: Path, sets: Sequence[str]) -> list[Path]:
    base = source / "images"
    if not base.is_dir():
        raise DataError(
            f"{source}: has no folder images/; --root names a folder with images/ and labels/, a list, or a .data"
        )
    folders = [base / name for name in sets] or [base]
    missing = [
        folder
        for folder in folders
        if not folder.is_dir() or base.resolve() not in (folder.resolve(), *folder.resolve().parents)
    ]
    if missing:
        known = ", ".join(sorted(path.name for path in base.iterdir() if path.is_dir())) or "none"
        raise DataError(f"{missing[0]} is no folder in {base}; sets that are there (--set): {known}")
    suffixes = {*IMAGE_SUFFIXES, *OTHER_SUFFIXES}
    found = {path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in suffixes}
    if not found:
        raise DataError(f"{folders[0]} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found)


def _in_list(source: Path) -> list[Path]:
    """The images of a list, each once; DataError names the line of one that is not there."""
    images: dict[Path, None] = {}
    for number, line in enumerate(text_lines(source), 1):
        if line.strip():
            images[find_file(line.strip(), source.parent, f"{source}:{number}")] = None
    if not images:
        raise DataError(f"{source} lists no images")
    return list(images)


def find_file(written: str, folder: Path, where: str | Path) -> Path:
    """A path as written, relative to the folder of the file it stands in, or to that folder's parent."""
    if "\0" in written:
        raise DataError(f"{where}: {written!r:.80} is not a path")
    candidates = [folder / written, folder.parent / written]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise DataError(f"{where}: {written!r:.200} is missing (looked in {folder} and its parent)")
    return found


def names_in_folder(folder: Path) -> tuple[str, ...] | None:
    """The class names of the one .names file of a folder, or of its classes.txt; None without one."""
    found = sorted(folder.glob("*.names")) or sorted(folder.glob(CLASSES))
    return read_names(found[0]) if len(found) == 1 else None


def report_renamed(source: Path, given: Sequence[str] | None, own: Sequence[str] | None) -> None:
    """A warning where ids get other names than those that stand beside them; names made from numbers are none."""
    if given and own and tuple(given) != tuple(own) and tuple(own) != numbered_names(len(given)):
        logger.warning(
            "%s: its class ids are named by --class-names (%s), not by its own names (%s); --only-class-names chooses "
            "among its own",
            source, _first(given), _first(own),
        )  # fmt: skip


def numbered_names(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class{k}" for k in range(count))


def _first(names: Sequence[str]) -> str:
    return ",".join(names[:SHOWN]) + (",..." if len(names) > SHOWN else "")


def _report_unlabelled(images: Sequence[Path]) -> None:
    bare = [path for path in images if not label_path(path).is_file()]
    if bare:
        logger.warning(
            "%d of %d images have no label file and count as images without objects, first %s (expected %s)",
            len(bare), len(images), bare[0], label_path(bare[0]),
        )  # fmt: skip


def _read_labels(image: Path, num_classes: int | None) -> np.ndarray:
    """Objects (n, 5) of an image: class, cx, cy, w, h; DataError names file and line."""
    path = label_path(image)
    if not path.is_file():
        return np.zeros((0, LABEL_COLUMNS))
    lines = [(number, line.split()) for number, line in enumerate(text_lines(path, MAX_LABEL_BYTES), 1) if line.strip()]
    objects = np.array([_row(words, f"{path}:{number}") for number, words in lines]).reshape(-1, LABEL_COLUMNS)
    limit = MAX_CLASSES if num_classes is None else num_classes
    ids = objects[:, 0]
    rules: Mapping[str, np.ndarray] = {
        "a value is not finite": ~np.isfinite(objects).all(axis=1),
        f"the class is not one of 0 to {limit - 1}": (ids < 0) | (ids >= limit) | (ids != np.floor(ids)),
        "cx cy w h are fractions of the image, in [0, 1]": (
            (objects[:, 1:] < 0) | (objects[:, 1:] > 1 + TOLERANCE)
        ).any(axis=1),
    }
    for rule, wrong in rules.items():
        if wrong.any():
            number, words = lines[int(np.argmax(wrong))]
            raise DataError(f"{path}:{number}: {' '.join(words)!r:.80}: {rule}; correct the label")
    return objects


def _row(words: list[str], where: str) -> list[float]:
    try:
        if len(words) == LABEL_COLUMNS:
            return [float(word) for word in words]
    except ValueError:
        pass
    raise DataError(f"{where}: {' '.join(words)!r:.80} is not `class cx cy w h`; correct the label")


def _size(path: Path) -> Size | None:
    """(height, width) by the header; None for a file that cannot be used, which packing names."""
    for count in (HEADER_BYTES, -1):
        try:
            with open(path, "rb") as file:
                return image_header(file.read(count)).size
        except (DataError, OSError):
            continue
    return None
