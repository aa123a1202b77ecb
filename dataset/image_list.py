"""The classic image list, NAME.lst: a line `index TAB label... TAB path` for each image.

The label is one class number, or a detection label as dataset/labels.py has it. Indices are the ids of the records
packed from the list.

Lists made from a folder of images are line for line those of mxnet's im2rec --list.
"""

import math
import os
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from common.errors import DataError, OptionError
from dataset.labels import parse_label, validate

MAX_INDEX = 2**63 - 1
MAX_INDEX_DIGITS = 19
MAX_BYTES = 1 << 30
_FIELDS = 3
CLASSIC_SEED = 100  # of the shuffle, as in mxnet's im2rec
_ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 > 1


@dataclass(frozen=True)
class ListEntry:
    """A line of a list: index >= 0, label of at least one finite float, path as written, number of the line from 1."""

    index: int
    label: tuple[float, ...]
    path: str
    line: int


@dataclass(frozen=True)
class ListLabels:
    """Flat labels one after the other: values (k,) float32, that of the i-th record from bounds[i] to bounds[i + 1]."""

    values: np.ndarray
    bounds: np.ndarray
    max_objects: int

    def of(self, position: int) -> np.ndarray:
        """The flat label of the record at `position`."""
        return self.values[self.bounds[position] : self.bounds[position + 1]]


def read_list(path: str | Path) -> list[ListEntry]:
    """All lines of a list in order; blank ones do not count.

    A line that cannot be used raises DataError with its number: fields separated by spaces, no label, no path, an
    index that is no whole number >= 0 or is listed twice, a label that is no finite number of float32. So does a
    list without lines, or a file that is no text in UTF-8. Paths are taken as they are; see ImageRoot.
    """
    lines = _text(Path(path)).split("\n")  # splitlines() would also split at separators that a file name may hold
    entries = [_entry(line, f"{path}, line {n}", n) for n, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise DataError(f"{path} lists no images")
    first_lines: dict[int, int] = {}
    for entry in entries:
        first = first_lines.setdefault(entry.index, entry.line)
        if first != entry.line:
            raise DataError(f"{path}, line {entry.line}: index {entry.index} is already in line {first}; renumber")
    return entries


def image_names(rec_path: str | Path, list_path: str, ids: Sequence[int]) -> list[str]:
    """Names of records: id and path, where the list given, or the one beside the record, tells it; else the id.

    list_path: "" = none is given. For messages: a list that cannot be read tells nothing.
    """
    paths = listed_paths(rec_path, list_path)
    return [f"{number} ({paths[number]})" if number in paths else str(number) for number in ids]


def listed_paths(rec_path: str | Path, list_path: str = "") -> dict[int, str]:
    """{id: path} by the list given, or the one beside the record; empty where it is missing or cannot be read."""
    try:
        return {entry.index: entry.path for entry in read_list(list_path or Path(rec_path).with_suffix(".lst"))}
    except (DataError, OSError):
        return {}


def format_list(entries: Iterable[tuple[int, Sequence[str], str]]) -> bytes:
    """The content of a list of (index, label as texts, path)."""
    lines = ("\t".join([str(index), *label, _writable(path)]) + "\n" for index, label, path in entries)
    return "".join(lines).encode("utf-8")


def read_labels(path: str | Path, ids: np.ndarray, num_classes: int | None) -> ListLabels:
    """The labels that a list of detection labels gives the records with these ids (n,), in their order.

    Lines of other records are ignored. DataError names a record without a line, and a line whose label has a wrong
    layout or an object that cannot be trained on (num_classes as in labels.validate).
    """
    entries = {entry.index: entry for entry in read_list(path)}
    missing = [index for index in ids.tolist() if index not in entries]
    if missing:
        raise DataError(f"{path} has no line for record {missing[0]} ({len(missing)} of {len(ids)} records miss one)")
    used = [entries[index] for index in ids.tolist()]
    counts = [len(objects) for objects in checked_objects(used, path, num_classes)]
    bounds = np.cumsum([0, *(len(entry.label) for entry in used)])
    values = np.fromiter((value for entry in used for value in entry.label), np.float32, int(bounds[-1]))
    return ListLabels(values, bounds, max(counts))


def checked_objects(entries: Sequence[ListEntry], path: str | Path, num_classes: int | None) -> list[np.ndarray]:
    """The objects (n, 6) of each detection label, fit for training; DataError naming the line otherwise."""
    places = [f"{path}, line {entry.line}" for entry in entries]
    labels = [parse_label(np.array(entry.label), where) for entry, where in zip(entries, places, strict=True)]
    try:
        validate(np.concatenate(labels), num_classes, str(path))  # all at once: ten times as fast
    except DataError:
        for objects, where in zip(labels, places, strict=True):
            validate(objects, num_classes, where)
        raise
    return labels


class ImageRoot:
    """The folder that the paths of a list are relative to; nothing outside it is opened, unless by a link in it."""

    def __init__(self, root: str | Path, follow_links: bool = False) -> None:
        """follow_links: whether links in it may lead out. DataError if there is no such folder."""
        if not Path(root).is_dir():
            raise DataError(f"{root}: no such folder; it must be the one that the paths of the list start from")
        self._root = os.path.abspath(root)
        self._real_root = os.path.realpath(root)
        self._follow_links = follow_links
        self._is_inside = cache(self._folder_is_inside)

    def find(self, path: str) -> str:
        """The file that a list's path names (whether or not it exists).

        DataError with the reason alone if it lies outside the root: absolute, by `..` or by a symbolic link.
        """
        full = os.path.normpath(os.path.join(self._root, path))
        if os.path.isabs(path) or ".." in path.split("/"):
            raise DataError(f"it lies outside {self._root}; paths must stay inside the folder of the images")
        if not self._follow_links and not self._stays_inside(full):
            raise DataError(f"it lies outside {self._root} by a symbolic link; --follow-links takes it")
        return full

    def _stays_inside(self, full: str) -> bool:
        folder_is_inside = self._is_inside(os.path.dirname(full))
        return folder_is_inside and (not os.path.islink(full) or self._is_inside(os.path.realpath(full)))

    def _folder_is_inside(self, folder: str) -> bool:
        real = os.path.realpath(folder)
        return real == self._real_root or real.startswith(os.path.join(self._real_root, ""))


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB, this is not a list of images")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error


def _entry(line: str, where: str, number: int) -> ListEntry:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) < _FIELDS:
        spaces = len(line.split()) >= _FIELDS and len(fields) == 1
        what = "its fields are separated by spaces" if spaces else "it has fewer than three fields"
        raise DataError(f"{where}: {what}; a line is `index TAB label... TAB path`")
    index, *label, path = fields
    if not index.isascii() or not index.isdecimal() or len(index) > MAX_INDEX_DIGITS or int(index) > MAX_INDEX:
        raise DataError(f"{where}: the index {index!r:.40} is not a whole number from 0 on")
    if not path or "\0" in path:
        raise DataError(f"{where}: the path {path!r:.80} is not a file name")
    return ListEntry(int(index), tuple(_number(text, where) for text in label), path, number)


def _number(text: str, where: str) -> float:
    """A label value that float32 can hold."""
    try:
        value = float(text)
        if math.isfinite(value):
            struct.pack("<f", value)  # OverflowError: infinite as float32
            return value
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{where}: the label {text!r:.40} is not a finite number")


def _writable(path: str) -> str:
    """A path that a line can hold."""
    if any(character in path for character in "\t\r\n") or path != path.strip() or not _is_utf8(path):
        raise DataError(f"{path!r}: a list cannot hold a file name with TABs, line ends, outer blanks or broken UTF-8")
    return path


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class FoundImage:
    """An image below the root: its number in the order of the walk, path relative to the root, class."""

    index: int
    path: str
    label: int


def find_images(
    root: str, suffixes: Sequence[str], recursive: bool, follow_links: bool = False
) -> tuple[list[FoundImage], list[str]]:
    """(images sorted by folder and name, folders in the order of their classes).

    recursive: every folder that holds images directly is a class, numbered from 0 in the order of the walk; otherwise
    the images of the root alone, all of class 0. Suffixes are compared in lower case. DataError if nothing is found or
    if an image or folder is a symbolic link out of the root and such links are not to be followed.
    """
    inside = ImageRoot(root, follow_links)
    images: list[FoundImage] = []
    classes: dict[str, int] = {}
    wanted = {f".{suffix.lower().lstrip('.')}" for suffix in suffixes}
    for folder, names in _folders(root) if recursive else [(".", sorted(os.listdir(root)))]:
        for name in names:
            path = os.path.normpath(os.path.join(folder, name))
            if os.path.splitext(name)[1].lower() in wanted and os.path.isfile(os.path.join(root, path)):
                _check_inside(inside, path)
                label = classes.setdefault(folder, len(classes)) if recursive else 0
                images.append(FoundImage(len(images), path, label))
    if not images:
        deeper = "" if recursive else "; --recursive also looks into its folders"
        raise DataError(f"{root} holds no images with the suffixes {' '.join(sorted(wanted))} (--exts){deeper}")
    return images, list(classes)


def split_images(images: list[FoundImage], chunks: int, train: float, test: float, shuffle: bool) -> dict[str, list]:
    """{suffix of the list's name: its images}: chunks `_0`, `_1`..., each of them parts `_test`, `_val`, `_train`.

    Without chunks and parts the suffix is "". The shuffle is that of mxnet's im2rec. OptionError if the ratios of a
    part's images add up to more than 1 or leave a list without images.
    """
    if train + test > 1 + _ROUNDING:
        raise OptionError(f"--train-ratio {train:g} and --test-ratio {test:g} add up to more than 1")
    if shuffle:
        images = list(images)
        random.Random(CLASSIC_SEED).shuffle(images)
    size = -(-len(images) // chunks)
    lists: dict[str, list] = {}
    for k in range(chunks):
        name = f"_{k}" if chunks > 1 else ""
        lists |= {name + part: some for part, some in _parts(images[k * size : (k + 1) * size], size, train, test)}
    empty = [name for name, some in lists.items() if not some]
    if empty:
        raise OptionError(
            f"--chunks {chunks}, --train-ratio {train:g}, --test-ratio {test:g}: the list {empty[0]} would be empty, "
            f"there are {len(images)} images"
        )
    return lists


def _parts(images: list[FoundImage], size: int, train: float, test: float) -> Iterator[tuple[str, list]]:
    """The lists of one chunk; size is that of a full chunk, which the ratios refer to."""
    if train == 1:
        yield "", images
        return
    begin = int(size * test)
    end = begin + int(size * train)
    if test:
        yield "_test", images[:begin]
    if train + test < 1:
        yield "_val", images[end:]
    yield "_train", images[begin:end]


def _folders(root: str) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to the root, sorted names in it) in sorted order; symbolic links are followed once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise DataError(f"{folder} leads to {real} a second time by a symbolic link; remove the link")
        seen.add(real)
        subfolders.sort()
        yield os.path.relpath(folder, root), sorted(names)


def _raise(error: OSError) -> None:
    raise error


def _check_inside(inside: ImageRoot, path: str) -> None:
    try:
        inside.find(path)
    except DataError as error:
        raise DataError(f"{path!r}: {error}") from error
