"""Darknet's .names and .data files.

    NAME.names    one class name a line
    NAME.data     key = value lines: classes, train, valid, names; the values are paths, nothing else is done with them

Source: Darknet, src/option_list.c.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import text_lines, write_atomically

MAX_CLASSES = 10_000  # each gets a name
KEYS = ("classes", "train", "valid", "names")
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


def numbered_names(count: int) -> tuple[str, ...]:
    """Names for classes that have none; a line says so."""
    return tuple(f"class{k}" for k in range(count))
