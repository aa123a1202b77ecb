"""Names of classes in files: one on each line (.names, .txt), YAML, JSON, or on one line with commas; and those that
stand beside labels.

    YAML    a list, {0: cat, 1: dog}, or a mapping with one of these under `names`, as data.yaml of YOLO trainers
    JSON    the same; or a COCO annotation file: its categories by id; or the sidecar of a record
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import text_lines
from config.preset import read_yaml
from dataset.sidecar import read_sidecar

CLASSES = "classes.txt"  # names of the classes in a folder, as labelImg writes them
YAML_SUFFIXES = (".yaml", ".yml")
NAME_SUFFIXES = (".txt", ".names", ".json", ".csv", ".pbtxt", ".xml", ".data", ".md", *YAML_SUFFIXES)
DATA_YAML = ("data.yaml", "data.yml", "dataset.yaml")
_MAX_BYTES = 1 << 20
_MAX_JSON_BYTES = 64 << 20
_NO_NAMES = re.compile(  # a line of protobuf text, YAML, JSON, XML or numbers
    r"\s*(item\s*\{.*|[A-Za-z_]+\s*:(\s.*)?|\d+\s*:\s.*|[{}<].*|\[.*[^\]]|-\s.*|\d+(\.\d+)?(\s+-?\d*\.\d+){3,}.*)\s*"
)
_FORMS = "write one name on each line, in the order of the ids"


def names_in_file(path: Path) -> tuple[str, ...]:
    """The names in a file, which its suffix tells the form of; DataError or OptionError naming it for anything else."""
    if path.suffix.lower() == ".json":
        return _of_json(path)
    if path.suffix.lower() in YAML_SUFFIXES:
        return checked(names_of_mapping(read_yaml(path), path), path)
    if path.suffix.lower() in (".txt", ".names", ""):
        return _of_lines(path)
    raise DataError(f"{path}: is no list of names that can be read (.txt, .names, .yaml, .json); {_FORMS}")


def names_of_mapping(content: Any, path: Path) -> list[Any]:
    """The names in what YAML or JSON holds; DataError for another form, and for ids that are not 0, 1, 2, ..."""
    if isinstance(content, dict) and "names" in content:
        content = content["names"]
    if isinstance(content, dict) and "categories" in content:
        entries = content["categories"]
        try:
            return [entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"])]
        except (TypeError, KeyError) as error:
            raise DataError(f"{path}: its categories have no id and name; {_FORMS}") from error
    if isinstance(content, dict):
        by_id = {int(key): name for key, name in content.items() if str(key).isdecimal()}
        if len(by_id) != len(content) or sorted(by_id) != list(range(len(by_id))):
            ids = ", ".join(map(repr, content))
            raise DataError(f"{path}: names by the ids {ids:.80}, which are not 0, 1, 2, ...; {_FORMS}")
        return [by_id[key] for key in range(len(by_id))]
    if isinstance(content, str):
        return list(split_names(content))
    if not isinstance(content, list):
        raise DataError(f"{path}: has no list `names`; {_FORMS}")
    return content


def split_names(text: str) -> tuple[str, ...]:
    """The names of a line `cat,dog` or `['cat', 'dog']`."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return tuple(_unquoted(part) for part in inner.split(",") if part.strip())


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def checked(names: Sequence[Any], path: Path | str) -> tuple[str, ...]:
    """The names as texts without outer blanks; DataError for none at all, one that is no text, and one twice."""
    found = tuple(str(name).strip() for name in names)
    wrong = [name for name in names if isinstance(name, (dict, list)) or name is None or not str(name).strip()]
    if wrong:
        raise DataError(f"{path}: {wrong[0]!r:.80} is no name of a class; {_FORMS}")
    if not found:
        raise DataError(f"{path}: has no class names; write one on each line")
    repeated = [name for k, name in enumerate(found) if name in found[:k]]
    if repeated:
        raise DataError(f"{path}: {repeated[0]!r} is listed twice; rename one of them, ids count the lines")
    return found


def _of_lines(path: Path) -> tuple[str, ...]:
    """Names on lines, in files that end these as Windows does, too; a single line may hold several with commas."""
    lines = [line.strip() for line in text_lines(path, _MAX_BYTES) if line.strip()]
    if len(lines) == 1 and ("," in lines[0] or lines[0].startswith("[")):
        return checked(split_names(lines[0]), path)
    strange = next((line for line in lines if _NO_NAMES.fullmatch(line) or "\0" in line), None)
    if strange is not None:
        raise DataError(f"{path}: {strange!r:.80} is no name of a class; {_FORMS}")
    return checked(lines, path)


def _of_json(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise DataError(f"{path}: larger than {_MAX_JSON_BYTES >> 20} MiB, this is no list of names")
        content = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    if isinstance(content, dict) and "class_names" in content:
        sidecar = read_sidecar(path)
        return sidecar.class_names if sidecar else ()
    return checked(names_of_mapping(content, path), path)


def names_beside(folder: Path, strict: bool = True) -> tuple[tuple[str, ...] | None, Path | None]:
    """(class names of a folder with labels, the file that has them); (None, None) without one.

    Looked for: the one *.names, classes.txt in the folder, in labels/ or in images/, data.yaml. DataError where two of
    these disagree; not strict: the first of them.
    """
    found: dict[Path, tuple[str, ...]] = {}
    own = sorted(path for path in folder.glob("*.names") if not path.name.startswith("._"))
    places = [*(own if len(own) == 1 else []), *(folder / sub / CLASSES for sub in (".", "labels", "images"))]
    for path in (*places, *(folder / name for name in DATA_YAML)):
        if path.is_file() and (path.suffix not in YAML_SUFFIXES or _has_names(path)):
            found[path] = names_in_file(path)
    if strict and len(set(found.values())) > 1:
        files = ", ".join(str(path) for path in found)
        raise DataError(f"the names of the classes differ: {files}; choose one of these files with --class-names")
    return next(((names, path) for path, names in found.items()), (None, None))


def _has_names(path: Path) -> bool:
    content = read_yaml(path)
    return isinstance(content, dict) and "names" in content


def looks_like_path(text: str) -> bool:
    """Whether a word for --class-names is a file rather than a name."""
    return "/" in text or "\\" in text or Path(text).suffix.lower() in NAME_SUFFIXES or os.path.isfile(text)
