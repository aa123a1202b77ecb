"""Images with YOLO labels: a .txt for each, with lines `class cx cy w h`, fractions of the image.

The label of images/a.jpg is labels/a.txt, images/a.txt or one of these called a.jpg.txt; suffixes in any case. Source:
Darknet, src/data.c (fill_truth_detection).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files import is_file, text_lines
from common.sizes import Size
from dataset.darknet_data import MAX_CLASSES, numbered_names
from dataset.image_check import file_header
from dataset.imdb import AnnotatedImage, Mistakes
from dataset.labels import OBJECT_WIDTH, PIXELS_ABOVE
from dataset.yolo_folders import listed_images, listed_in

MAX_LABEL_BYTES = 4 << 20
LABEL_COLUMNS = 5
POLYGONS = ("refuse", "box")
NO_NAMES = "its classes have no names: put one on each line of classes.txt there, or give --class-names"
_SHOWN = 5  # names of a list in a warning
_LABEL = ".txt"
logger = logging.getLogger(__name__)


class YoloFolder:
    """Images with YOLO labels, as an Imdb: of all that dataset/yolo_folders.py lists.

    dropped describes boxes without area. An image without a label file has no objects; a warning counts these. Of a
    folder, images of other formats count, too: packing names what it cannot use.
    """

    def __init__(
        self,
        root: str | Path,
        sets: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        skip_bad: bool = False,
        every: bool = False,
        polygons: str = "refuse",
        labels: Path | None = None,
        images: Path | None = None,
        outside: bool = False,
    ) -> None:
        """Reads everything but the images' pixels.

        root: a .data file (sets then `train`, the default, or `valid`), a data.yaml (train, val, test), a list of image
        paths, or a folder (sets then name folders in images/: none = all of it; or before images/: none = train).
        every: without sets all of them. class_names name the ids (a warning tells other names that are there); None
        takes the names that stand beside the labels (dataset/names_file.py). polygons: what becomes of rows of corners
        `class x1 y1 x2 y2 x3 y3 ...`; box makes the box around them. labels, images: the folders of these, where
        they are no usual ones. outside: lists may name images out of their folder and the one above. DataError names
        all files and lines that are wrong, images if none of them has a label, and a set whose classes have no names;
        with skip_bad images with wrong labels are left out, and named in `bad`.
        """
        source = Path(root)
        names = tuple(class_names) if class_names else None
        if images is not None:
            listing = listed_in(images, [folder for folder in (labels, source) if folder], strict=names is None)
        else:
            listing = listed_images(source, sets, every, names is None, outside)
        paths, self.root, own_names, files = listing
        report_renamed(source, names, own_names)
        names = names or own_names
        if names is None:
            raise DataError(f"{source}: {NO_NAMES}")
        self.class_names = names
        find = LabelFinder(labels)
        found = {path: find(path) for path in paths}
        _report_unlabelled(source, found)
        mistakes = Mistakes(skip_bad)
        self.images: list[AnnotatedImage] = []
        for path, label in found.items():
            with mistakes.collected():
                lines, rows = read_labels(label, len(names), polygons) if label else ([], np.zeros((0, LABEL_COLUMNS)))
                self.images.append(self._image(path, label, np.array(lines), rows))
        mistakes.settle(len(self.images))
        self.bad = mistakes.lines
        self.dropped = [line for image in self.images for line in image.dropped]
        self.sources = [*files, *(label for label in found.values() if label)]  # files that were read

    def _image(self, path: Path, label: Path | None, lines: np.ndarray, centres: np.ndarray) -> AnnotatedImage:
        """Centre boxes, fractions of the image, as corners in its pixels; without area they are dropped."""
        size = _size(path) if len(centres) else None
        height, width = size or (1, 1)
        low, high = centres[:, 1:3] - centres[:, 3:5] / 2, centres[:, 1:3] + centres[:, 3:5] / 2
        kept = (centres[:, 3:5] > 0).all(axis=1)
        dropped = tuple(f"{label}:{lines[row]}: the object has no area" for row in np.flatnonzero(~kept))
        objects = np.zeros((len(centres), OBJECT_WIDTH))
        objects[:, 0] = centres[:, 0]
        objects[:, 1:5] = np.concatenate([low, high], axis=1) * (width, height, width, height)
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        written = np.column_stack([lines.reshape(-1), centres[:, 1:]])
        return AnnotatedImage(name.as_posix(), path, objects[kept], size, dropped, written[kept])


class LabelFinder:
    """Finds the label files of images; a folder is listed once, and only for what has not the usual name."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where all labels are, in place of the usual ones."""
        self._folder = folder
        self._listed: dict[Path, dict[str, Path]] = {}

    def __call__(self, image: Path) -> Path | None:
        """The label file of an image; None without one."""
        usual = self._folder / f"{image.stem}{_LABEL}" if self._folder else label_path(image)
        if is_file(usual):
            return usual
        for folder in [usual.parent] if self._folder else dict.fromkeys([usual.parent, image.parent]):
            labels = self._labels(folder)
            for name in (f"{image.stem}{_LABEL}", f"{image.name}{_LABEL}"):
                if name in labels:
                    return labels[name]
        return None

    def _labels(self, folder: Path) -> dict[str, Path]:
        """{file name with the suffix in lower case: path} of the labels of a folder."""
        if folder not in self._listed:
            found = sorted(folder.glob("*"), reverse=True) if folder.is_dir() else []
            texts = [path for path in found if path.suffix.lower() == _LABEL]
            self._listed[folder] = {f"{path.stem}{_LABEL}": path for path in texts}
        return self._listed[folder]


def label_path(image: Path) -> Path:
    """The usual label file of an image: the last folder `images` in its path becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = "labels"
            break
    return Path(*parts).with_suffix(_LABEL)


def report_renamed(source: Path, given: Sequence[str] | None, own: Sequence[str] | None) -> None:
    """A warning where ids get other names than those that stand beside them; names made from numbers are none."""
    if given and own and tuple(given) != tuple(own) and tuple(own) != numbered_names(len(given)):
        logger.warning(
            "%s: its class ids are named by --class-names (%s), not by its own names (%s); --only-class-names chooses "
            "among its own",
            source, _first(given), _first(own),
        )  # fmt: skip


def _first(names: Sequence[str]) -> str:
    return ",".join(names[:_SHOWN]) + (",..." if len(names) > _SHOWN else "")


def _report_unlabelled(source: Path, labels: Mapping[Path, Path | None]) -> None:
    """A warning with the number of images without label; DataError if none has one."""
    bare = [path for path, label in labels.items() if label is None]
    if len(bare) == len(labels):
        raise DataError(
            f"{source}: none of its {len(labels)} images has a label file, as {label_path(bare[0])} or "
            f"{bare[0].with_suffix(_LABEL).name} beside {bare[0]}; put the labels there or name their folder with "
            "--annotations (an empty file says that an image has no objects)"
        )
    if bare:
        logger.warning(
            "%d of %d images have no label file and count as images without objects, first %s (expected %s)",
            len(bare), len(labels), bare[0], label_path(bare[0]),
        )  # fmt: skip


def read_labels(path: Path, num_classes: int, polygons: str = "refuse") -> tuple[list[int], np.ndarray]:
    """(numbers of the lines, objects (n, 5): class, cx, cy, w, h) of a label file; DataError names file and line.

    Boxes that reach over the image's edge are taken as they are.
    """
    lines = [(number, line.split()) for number, line in enumerate(text_lines(path, MAX_LABEL_BYTES), 1) if line.strip()]
    rows = [_row(words, f"{path}:{number}", polygons) for number, words in lines]
    objects = np.array(rows).reshape(-1, LABEL_COLUMNS)
    ids = objects[:, 0]
    rules: Mapping[str, np.ndarray] = {
        "a value is not finite": ~np.isfinite(objects).all(axis=1),
        f"the class is not one of 0 to {min(num_classes, MAX_CLASSES) - 1}": (
            (ids < 0) | (ids >= num_classes) | (ids != np.floor(ids))
        ),
        "cx cy w h are fractions of the image, in [0, 1]": (
            (np.abs(objects[:, 1:]) > PIXELS_ABOVE) | (objects[:, 1:] < (-1, -1, 0, 0))
        ).any(axis=1),
    }
    for rule, wrong in rules.items():
        if wrong.any():
            number, words = lines[int(np.argmax(wrong))]
            raise DataError(f"{path}:{number}: {' '.join(words)!r:.80}: {rule}; correct the label")
    return [number for number, _ in lines], objects


def _row(words: list[str], where: str, polygons: str) -> list[float]:
    text = f"{where}: {' '.join(words)!r:.80}"
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{text} is not `class cx cy w h`; correct the label") from error
    if len(values) == LABEL_COLUMNS:
        return values
    if len(values) == LABEL_COLUMNS + 1:
        raise DataError(f"{text} has a sixth column, as detections with a score or a track have; cut it off")
    if len(values) < 7 or len(values) % 2 == 0:  # a class and the corners of a triangle at least
        raise DataError(f"{text} is not `class cx cy w h`; correct the label")
    if polygons != "box":
        raise DataError(f"{text} is a polygon; --polygons box takes the box around it")
    corners = np.array(values[1:]).reshape(-1, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [values[0], *((low + high) / 2), *(high - low)]


def _size(path: Path) -> Size | None:
    """(height, width) by the header; None for a file that cannot be used, which packing names."""
    try:
        return file_header(path).size
    except (DataError, OSError):
        return None
