"""Boxes in a CSV file: a line for each, with the image's path, corners and the name of the class.

Without a header the columns are path, x1, y1, x2, y2, class, as keras-retinanet has them; a line with a path alone is
an image without objects. A header says where they are: path, filename, image, ...; x1 or xmin, ...; class, label or
name; perhaps width and height of the image, and difficult (1: it is). Coordinates are those of the annotations
(pixel_origin as in dataset/pascal_voc.py).
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DataError, did_you_mean
from common.files import is_file, text_lines
from common.sizes import Size
from dataset.imdb import AnnotatedImage, Mistakes, files_in, find_file, require_inside
from dataset.labels import OBJECT_WIDTH

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "filename", "file_name", "image", "image_path", "image_id", "file", "img", "frame"),
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
    "class": ("class", "label", "class_name", "name", "category"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "difficult": ("difficult",),
}
_NEEDED = tuple(COLUMNS)[:6]
_CORNERS = _NEEDED[1:5]
_FORM = "lines are path,x1,y1,x2,y2,class, or the first line names the columns"
_FIRST = "train"  # the set that is taken of several unless others are named
SUFFIX = ".csv"


@dataclass
class _Found:
    """What the lines say of an image: rows (number of the line, four corners), names of their classes, difficult."""

    size: Size | None = None
    rows: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)


class CsvBoxes:
    """The boxes of CSV files as an Imdb; found_names: the names of their classes, sorted."""

    def __init__(
        self,
        root: str | Path,
        sets: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        pixel_origin: int = 1,
        skip_bad: bool = False,
        every: bool = False,
        images: Path | None = None,
    ) -> None:
        """Reads everything but the images.

        root: a CSV file, or a folder with one, or with folders (sets) that hold one each, as Roboflow exports them. A
        path starts from the file's folder, its parent, or its images/; images: from that folder. class_names None takes
        the names found, sorted. DataError names file and all wrong lines; with skip_bad their images are left out, and
        `bad` holds the sentences.
        """
        mistakes = Mistakes(skip_bad)
        self.sources = csv_files(Path(root), sets, every)
        found: dict[Path, _Found] = {}
        for file in self.sources:
            _read(file, images, found, mistakes)
        mistakes.settle(len(found))
        self.bad = mistakes.lines
        self.found_names = tuple(sorted({name for one in found.values() for name in one.names}))
        self.class_names = tuple(class_names) if class_names else self.found_names
        _refuse_unknown(self.found_names, self.class_names, self.sources[0])
        base = images or (Path(root) if Path(root).is_dir() else Path(root).parent)
        self.images = [self._image(path, one, base, pixel_origin) for path, one in found.items()]
        self.dropped = [line for image in self.images for line in image.dropped]

    def _image(self, path: Path, found: _Found, base: Path, pixel_origin: int) -> AnnotatedImage:
        written = np.array(found.rows, np.float64).reshape(-1, 5)
        objects = np.zeros((len(written), OBJECT_WIDTH))
        objects[:, 0] = [self.class_names.index(name) for name in found.names]
        objects[:, 1:5] = written[:, 1:] - np.array([pixel_origin, pixel_origin, 0, 0])
        objects[:, 5] = found.difficult
        name = (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()
        kept = (written[:, 3:5] > written[:, 1:3]).all(axis=1)
        dropped = tuple(
            f"{name}: line {written[k, 0]:.0f} of the CSV has no area or is inverted" for k in np.flatnonzero(~kept)
        )
        return AnnotatedImage(name, path, objects, found.size, dropped, written).only(kept)


def csv_files(root: Path, sets: Sequence[str], every: bool) -> list[Path]:
    """The CSV files of a root: itself, the one in it, or those of its sets (train unless named; every: all)."""
    if root.is_file():
        return [root]
    own = files_in(root, {SUFFIX})
    if own and not sets:
        if len(own) > 1:
            raise DataError(f"{root} holds {len(own)} CSV files ({own[0].name}, ...); give --root one of them")
        return own
    known = {path.parent.name: path for path in sorted(root.glob("*/*.csv")) if not path.name.startswith("._")}
    known |= {path.stem: path for path in own}
    chosen = sets or (list(known) if every or _FIRST not in known else [_FIRST])
    missing = next((name for name in chosen if name not in known), None)
    if missing is not None or not chosen:
        raise DataError(f"{root} has no CSV of the set {missing}; sets that are there (--set): {', '.join(known)}")
    return [known[name] for name in chosen]


def _read(file: Path, images: Path | None, found: dict[Path, _Found], mistakes: Mistakes) -> None:
    """Adds the lines of a file to `found`; an image with a wrong line is taken out of it at the end."""
    spoiled: set[Path] = set()
    for number, cells in _lines(file):
        where = f"{file}:{number}"
        path: Path | None = None
        try:
            path = _path(cells.get("path", ""), file, images, where)
            one = found.setdefault(path, _Found(_size(cells)))
            if any(cells.get(key) for key in (*_CORNERS, "class")):
                one.rows.append([number, *(_number(cells, key, where) for key in _CORNERS)])
                one.names.append(_class_name(cells, where))
                one.difficult.append(cells.get("difficult", "").lower() in ("1", "true"))
        except DataError as error:
            mistakes.lines.append(str(error))
            spoiled |= {path} if path else set()
    for path in spoiled:
        found.pop(path, None)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, {column: text}) of the lines, without the header."""
    lines = text_lines(file)
    delimiter = ";" if lines[0].count(";") > lines[0].count(",") else ","
    columns: dict[str, int] | None = None
    for number, cells in enumerate(_cells(lines, delimiter, file), 1):
        texts = [cell.strip() for cell in cells]
        if not any(texts):
            continue
        if columns is None:
            columns = _header(texts, file)
            if columns is not None:
                continue
            columns = {name: k for k, name in enumerate(_NEEDED)}
        yield number, {name: texts[k] for name, k in columns.items() if k < len(texts)}


def _cells(lines: Sequence[str], delimiter: str, file: Path) -> Iterator[list[str]]:
    """The cells of the lines; DataError for what is no CSV: carriage returns alone as ends of lines, endless cells."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{file}:{reader.line_num}: is no line of a CSV file ({error}); save the table as CSV in UTF-8 anew"
        ) from error


def _header(cells: Sequence[str], file: Path) -> dict[str, int] | None:
    """{column: its place} if these cells name columns; DataError if one that is needed is not among them."""
    words = [cell.lower() for cell in cells]
    found = {
        name: next(words.index(word) for word in synonyms if word in words)
        for name, synonyms in COLUMNS.items()
        if any(word in words for word in synonyms)
    }
    if not set(_CORNERS) & set(found):
        return None
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise DataError(f"{file}: its first line {','.join(cells)!r:.120} names no column {missing[0]}; {_FORM}")
    return found


def _path(written: str, file: Path, images: Path | None, where: str) -> Path:
    if not written:
        raise DataError(f"{where}: has no path of an image; {_FORM}")
    base = images or file.parent
    inner = base / "images" / written
    found = inner if images is None and is_file(inner) else find_file(written, base, where)
    require_inside(found, base, base.absolute().parent if images is None else base)
    return found


def _size(cells: Mapping[str, str]) -> Size | None:
    height, width = cells.get("height", ""), cells.get("width", "")
    return (
        (int(height), int(width)) if height.isdecimal() and width.isdecimal() and int(height) and int(width) else None
    )


def _number(cells: Mapping[str, str], key: str, where: str) -> float:
    try:
        value = float(cells.get(key, ""))
        if np.isfinite(value):
            return value
    except ValueError:
        pass
    raise DataError(f"{where}: {key} is {cells.get(key, '')!r:.40}, not a number; {_FORM}")


def _class_name(cells: Mapping[str, str], where: str) -> str:
    if not cells.get("class"):
        raise DataError(f"{where}: has no class; {_FORM}")
    return cells["class"]


def _refuse_unknown(found: Sequence[str], class_names: Sequence[str], file: Path) -> None:
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise DataError(
            f"{file}: class {unknown[0]!r:.80} is not among the {len(class_names)} class names"
            f"{did_you_mean(unknown[0], class_names)}; add it to --class-names, or leave its objects out with "
            "--only-class-names"
        )
