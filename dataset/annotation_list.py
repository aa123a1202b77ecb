"""Annotation lists: a line `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...` for each image.

They are what the voc_annotation scripts of Keras and PyTorch trainers write. Words stand apart by blanks, so that a
path has none; coordinates are those of the annotations (pixel_origin as in dataset/pascal_voc.py), classes ids from 0.
A path alone is an image without objects.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import text_lines, write_atomically
from dataset.darknet_data import find_file, names_in_folder, numbered_names, report_renamed
from dataset.imdb import AnnotatedImage
from dataset.labels import OBJECT_WIDTH

_COLUMNS = 5
MAX_CLASS = 10**4


class AnnotationList:
    """An annotation list as an Imdb; dropped describes its boxes without area."""

    def __init__(self, path: str | Path, class_names: Sequence[str] | None = None, pixel_origin: int = 1) -> None:
        """Reads everything but the images.

        Relative paths are those from the list's folder or from its parent. class_names None takes the one `*.names`
        or `classes.txt` beside the list, else class0, class1, ... DataError names file and line: an image that is
        missing or is listed twice, an object that is not five numbers, a class without name.
        """
        source = Path(path)
        own_names = names_in_folder(source.parent)
        report_renamed(source, class_names, own_names)
        names = tuple(class_names) if class_names else own_names
        self.images: list[AnnotatedImage] = []
        seen: dict[Path, int] = {}
        highest = 0
        for number, line in enumerate(text_lines(source), 1):
            words, where = line.split(), f"{source}:{number}"
            if not words:
                continue
            image = find_file(words[0], source.parent, where)
            if seen.setdefault(image, number) != number:
                raise DataError(f"{where}: {words[0]!r:.200} is already in line {seen[image]}; join the two lines")
            rows = _objects(words[1:], len(names) if names else None, where)
            highest = max([highest, *rows[:, 4].astype(int)])
            name = image.relative_to(source.parent) if image.is_relative_to(source.parent) else image
            objects, dropped = _kept(rows, pixel_origin, where)
            self.images.append(AnnotatedImage(name.as_posix(), image, objects, None, dropped))
        if not self.images:
            raise DataError(f"{source} lists no images")
        self.class_names = names or numbered_names(highest + 1)
        self.dropped = [line for one in self.images for line in one.dropped]
        self.sources = [source, source.with_name("classes.txt")]  # files that were read


def _kept(rows: np.ndarray, pixel_origin: int, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Objects (n, 6) of rows x1, y1, x2, y2, class, without those that have no area, and a line for each of these."""
    kept = (rows[:, 2:4] > rows[:, :2]).all(axis=1)
    objects = np.zeros((len(rows), OBJECT_WIDTH))
    objects[:, 0] = rows[:, 4]
    objects[:, 1:5] = rows[:, :4] - np.array([pixel_origin, pixel_origin, 0, 0])
    lines = tuple(f"{where}: object {row + 1} has no area or is inverted" for row in np.flatnonzero(~kept))
    return objects[kept], lines


def write_annotation_list(path: Path, images: Iterable[AnnotatedImage], pixel_origin: int = 1) -> None:
    """Writes images, atomically, with absolute paths; difficult objects are left out.

    DataError for a path with blanks, which a line cannot hold.
    """
    lines = [_line(image, pixel_origin) for image in images]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))


def listed_path(image: AnnotatedImage) -> str:
    """The path of an image as a line has it; DataError for one with blanks."""
    name = str(image.path.absolute())
    if len(name.split()) != 1:
        raise DataError(f"{name!r}: an annotation list cannot hold a path with blanks; rename the file or its folder")
    return name


def _line(image: AnnotatedImage, pixel_origin: int) -> str:
    name = listed_path(image)
    boxes = image.objects[:, 1:5] + np.array([pixel_origin, pixel_origin, 0, 0])
    rows = zip(boxes, image.objects[:, 0], image.objects[:, 5], strict=True)
    objects = [
        ",".join(f"{value:.10g}" for value in (*box, number)) for box, number, difficult in rows if not difficult
    ]
    return " ".join([name, *objects])


def _objects(words: Sequence[str], num_classes: int | None, where: str) -> np.ndarray:
    """Rows (n, 5) x1, y1, x2, y2, class of the words of a line."""
    rows = np.array([_row(word, where) for word in words]).reshape(-1, _COLUMNS)
    ids, limit = rows[:, 4], MAX_CLASS if num_classes is None else num_classes
    wrong = (ids < 0) | (ids >= limit) | (ids != np.floor(ids))
    if wrong.any():
        word = words[int(np.argmax(wrong))]
        raise DataError(f"{where}: {word!r:.80}: the class is not one of 0 to {limit - 1}; correct the line")
    return rows


def _row(word: str, where: str) -> list[float]:
    try:
        values = [float(value) for value in word.split(",")]
        if len(values) == _COLUMNS and np.isfinite(values).all():
            return values
    except ValueError:
        pass
    raise DataError(f"{where}: {word!r:.80} is not `x1,y1,x2,y2,class` (paths have no blanks); correct the line")
