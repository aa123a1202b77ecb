"""Annotation lists: a line `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...` for each image.

They are what the voc_annotation scripts of Keras and PyTorch trainers write. Words stand apart by blanks; those in a
path are understood where such a file is there. Coordinates are those of the annotations (pixel_origin as in
dataset/pascal_voc.py), classes ids from 0. A path alone is an image without objects.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import is_file, text_lines, write_atomically
from dataset.imdb import AnnotatedImage, Mistakes, find_file
from dataset.labels import OBJECT_WIDTH
from dataset.names_file import names_beside
from dataset.yolo import NO_NAMES, report_renamed

_COLUMNS = 5


class AnnotationList:
    """An annotation list as an Imdb; dropped describes its boxes without area."""

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str] | None = None,
        pixel_origin: int = 1,
        skip_bad: bool = False,
    ) -> None:
        """Reads everything but the images.

        Relative paths are those from the list's folder or from its parent. class_names None takes the names that stand
        beside the list (dataset/names_file.py). DataError names file and all wrong lines: an image that is missing or
        is listed twice, an object that is not five numbers, a class without name; with skip_bad these lines are left
        out, and `bad` has the sentences. A list whose classes have no names is refused.
        """
        source = Path(path)
        lines = text_lines(source)
        if source.suffix.lower() in (".yaml", ".yml", ".json", ".xml"):
            raise DataError(f"{source}: is no list of `path x1,y1,x2,y2,class` lines; --dataset auto says what it is")
        own_names, file = names_beside(source.parent, strict=not class_names)
        report_renamed(source, class_names, own_names)
        names = tuple(class_names) if class_names else own_names
        if names is None:
            raise DataError(f"{source}: {NO_NAMES}")
        self.class_names = names
        self.images: list[AnnotatedImage] = []
        mistakes, seen = Mistakes(skip_bad), dict[Path, int]()
        for number, line in enumerate(lines, 1):
            with mistakes.collected():
                if line.strip():
                    self.images.append(self._image(line, number, source, seen, pixel_origin))
        mistakes.settle(len(self.images))
        if not self.images:
            raise DataError(f"{source} lists no images")
        self.bad = mistakes.lines
        self.dropped = [line for one in self.images for line in one.dropped]
        self.sources = [source, *([file] if file else [])]  # files that were read

    def _image(self, line: str, number: int, source: Path, seen: dict[Path, int], pixel_origin: int) -> AnnotatedImage:
        """The image of a line; seen: {image: line} of those before it."""
        where = f"{source}:{number}"
        image, words = _path_and_objects(line, source.parent, where)
        if seen.setdefault(image, number) != number:
            raise DataError(f"{where}: {image.name!r:.200} is already in line {seen[image]}; join the two lines")
        rows = _objects(words, len(self.class_names), where)
        name = image.relative_to(source.parent) if image.is_relative_to(source.parent) else image
        kept = (rows[:, 2:4] > rows[:, :2]).all(axis=1)
        objects = np.zeros((len(rows), OBJECT_WIDTH))
        objects[:, 0] = rows[:, 4]
        objects[:, 1:5] = rows[:, :4] - np.array([pixel_origin, pixel_origin, 0, 0])
        lines = tuple(f"{where}: object {row + 1} has no area or is inverted" for row in np.flatnonzero(~kept))
        written = np.column_stack([np.arange(1, len(rows) + 1), rows[:, :4]])
        return AnnotatedImage(name.as_posix(), image, objects[kept], None, lines, written[kept])


def _path_and_objects(line: str, folder: Path, where: str) -> tuple[Path, list[str]]:
    """(the image, words of the objects) of a line; a path with blanks ends before the words with commas at the end."""
    words = line.split()
    try:
        return find_file(words[0], folder, where), words[1:]
    except DataError:
        count = next((k for k, word in enumerate(reversed(words)) if "," not in word), len(words))
        path = line.strip().rsplit(maxsplit=count)[0] if count < len(words) - 1 else ""
        if path and "\0" not in path and (is_file(folder / path) or is_file(folder.parent / path)):
            return find_file(path, folder, where), words[len(words) - count :]
        raise


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


def _objects(words: Sequence[str], num_classes: int, where: str) -> np.ndarray:
    """Rows (n, 5) x1, y1, x2, y2, class of the words of a line."""
    rows = np.array([_row(word, where) for word in words]).reshape(-1, _COLUMNS)
    ids = rows[:, 4]
    wrong = (ids < 0) | (ids >= num_classes) | (ids != np.floor(ids))
    if wrong.any():
        word = words[int(np.argmax(wrong))]
        raise DataError(f"{where}: {word!r:.80}: the class is not one of 0 to {num_classes - 1}; correct the line")
    return rows


def _row(word: str, where: str) -> list[float]:
    try:
        values = [float(value) for value in word.split(",")]
        if len(values) == _COLUMNS and np.isfinite(values).all():
            return values
    except ValueError:
        pass
    raise DataError(f"{where}: {word!r:.80} is not `x1,y1,x2,y2,class` (paths have no blanks); correct the line")
