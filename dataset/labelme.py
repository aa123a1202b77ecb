"""LabelMe annotations: a JSON file for each image, beside it or in a folder of its own.

Rectangles, polygons, circles and other shapes with an extent become the boxes around them; points are measured from the
edge. A shape with the flag `difficult` is a difficult object. What the file holds of the image itself is not used.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, did_you_mean
from common.files import is_file, open_regular
from common.sizes import Size
from dataset.image_check import IMAGE_SUFFIXES
from dataset.imdb import AnnotatedImage, Mistakes, files_in, require_inside
from dataset.labels import OBJECT_WIDTH

SUFFIX = ".json"
MAX_BYTES = 256 << 20  # a file may hold its image
_PEEK = 1 << 16  # bytes in which a file shows what it is
_SHAPES = re.compile(rb'"shapes"\s*:')  # the key; as a value it may be the name of a class
_FOLDERS = ("", "images", "annotations", "labels", "json")


@dataclass(frozen=True)
class _File:
    """One file: boxes (n, 4) float64 [x1, y1, x2, y2], names of their classes, difficult (n,)."""

    image: Path
    size: Size | None
    names: tuple[str, ...]
    boxes: np.ndarray
    difficult: np.ndarray


class LabelMe:
    """A folder of LabelMe's files as an Imdb; found_names: the names of the shapes, sorted."""

    def __init__(
        self,
        root: str | Path,
        sets: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        skip_bad: bool = False,
        annotations: Path | None = None,
        images: Path | None = None,
    ) -> None:
        """Reads everything but the images.

        sets: folders in the root, none = all files in the root, or below it where it has none itself. class_names None
        takes the names found, sorted. DataError names all files that are wrong; with skip_bad they are left out, and
        `bad` holds the sentences.
        """
        self.root = Path(root)
        files = labelme_files(annotations or self.root, sets)
        mistakes, read = Mistakes(skip_bad), list[_File]()
        for path in files:
            with mistakes.collected():
                read.append(_read(path, self.root, images))
        mistakes.settle(len(read))
        self.bad, self.sources = mistakes.lines, files
        self.found_names = tuple(sorted({name for file in read for name in file.names}))
        self.class_names = tuple(class_names) if class_names else self.found_names
        unknown = [name for name in self.found_names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"{self.root}: class {unknown[0]!r:.80} is not among the {len(self.class_names)} class names"
                f"{did_you_mean(unknown[0], self.class_names)}; add it to --class-names, or leave its objects out with "
                "--only-class-names"
            )
        self.images = [self._image(file, images or self.root) for file in read]
        self.dropped = [line for image in self.images for line in image.dropped]

    def _image(self, file: _File, base: Path) -> AnnotatedImage:
        count = len(file.names)
        objects = np.zeros((count, OBJECT_WIDTH))
        objects[:, 0] = [self.class_names.index(name) for name in file.names]
        objects[:, 1:5], objects[:, 5] = file.boxes, file.difficult
        name = (file.image.relative_to(base) if file.image.is_relative_to(base) else file.image).as_posix()
        found = AnnotatedImage(
            name, file.image, objects, file.size, (), np.column_stack([np.arange(count), file.boxes])
        )
        kept = (file.boxes[:, 2:] > file.boxes[:, :2]).all(axis=1)
        dropped = tuple(f"{name}: {found.shown(k)} ({file.names[k]}) has no area" for k in np.flatnonzero(~kept))
        return AnnotatedImage(name, file.image, objects, file.size, dropped, found.written).only(kept)


def labelme_files(folder: Path, sets: Sequence[str] = ()) -> list[Path]:
    """LabelMe's files of a folder or of folders in it; DataError for a folder that is missing or holds none."""
    found: list[Path] = []
    for part in [folder / name for name in sets] or [folder]:
        require_inside(part, folder, folder)
        if not part.is_dir():
            raise DataError(f"{part}: no such folder; --root names a folder with images and LabelMe's .json files")
        own = [path for path in files_in(part, {SUFFIX}) if is_labelme(path)]
        found += own or [path for path in files_in(part, {SUFFIX}, below=True) if is_labelme(path)]
    if not found:
        raise DataError(f"{folder} holds no files of LabelMe (.json with shapes)")
    return found


def is_labelme(path: Path) -> bool:
    """Whether a file begins as LabelMe writes it."""
    try:
        with open_regular(path) as file:
            return _SHAPES.search(file.read(_PEEK)) is not None
    except OSError:
        return False


def _read(path: Path, root: Path, images: Path | None) -> _File:
    content = _load(path)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path}: has no list of shapes, this is no file of LabelMe")
    return _File(
        _image_of(path, content.get("imagePath"), root, images),
        _size(content.get("imageHeight"), content.get("imageWidth")),
        tuple(_name(shape, number, path) for number, shape in enumerate(shapes)),
        np.array([_box(shape, number, path) for number, shape in enumerate(shapes)], np.float64).reshape(-1, 4),
        np.array([_is_difficult(shape.get("flags")) for shape in shapes], np.float64),
    )


def _is_difficult(flags: Any) -> bool:
    return isinstance(flags, dict) and flags.get("difficult") is True


def _size(height: Any, width: Any) -> Size | None:
    return (height, width) if type(height) is int and type(width) is int and min(height, width) > 0 else None


def _load(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB, this is no file of LabelMe")
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: has no shapes, this is no file of LabelMe")
    return content


def _image_of(path: Path, written: Any, root: Path, images: Path | None) -> Path:
    """The image: of the name that the file gives, or of its own, in the usual folders; else the likeliest path."""
    name = str(written or "").replace("\\", "/").rpartition("/")[2]
    names = [*([name] if name and name.isprintable() else []), *(f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES)]
    folders = [images] if images else [path.parent, *(root / folder for folder in _FOLDERS)]
    for folder in folders:
        for one in names:
            if is_file(folder / one):
                require_inside(folder / one, folder, root)
                return folder / one
    return folders[0] / names[0]


def _name(shape: dict[str, Any], number: int, path: Path) -> str:
    name = shape.get("label")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{path}: shape {number} has the label {name!r:.80}; correct it")
    return name.strip()


def _box(shape: dict[str, Any], number: int, path: Path) -> list[float]:
    """The box around a shape; of a circle, whose points are its centre and one of its edge, too."""
    points = shape.get("points")
    try:
        corners = np.array(points, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: shape {number} has the points {points!r:.80}, not pairs of numbers") from error
    if not len(corners) or not np.isfinite(corners).all():
        raise DataError(f"{path}: shape {number} has the points {points!r:.80}, not pairs of numbers")
    if shape.get("shape_type") == "circle" and len(corners) == 2:
        radius = float(np.hypot(*(corners[1] - corners[0])))
        return [*(corners[0] - radius), *(corners[0] + radius)]
    return [*corners.min(axis=0), *corners.max(axis=0)]
