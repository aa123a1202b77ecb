"""What every source of annotations gives: class names and annotated images, in pixels of the image as stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import DataError
from dataset.labels import OBJECT_WIDTH


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and its objects.

    name is its path relative to the data set's root, path the file. objects (n, 6) float64 has rows [id, xmin, ymin,
    xmax, ymax, difficult]; coordinates are pixel edges: 0 is the left or top edge of the image, its width or height the
    right or bottom one. size is (height, width) as the annotation has it, None if it does not say. dropped describes
    its boxes that were left out, a line each.
    """

    name: str
    path: Path
    objects: np.ndarray
    size: tuple[int, int] | None
    dropped: tuple[str, ...] = ()

    def normalised(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(objects (m, 6) float32 in [0, 1], kept (n,) bool) for an image of size (height, width).

        Boxes are clipped to the image; those that then have no area (they lie outside it) are not kept.
        """
        height, width = size
        objects = self.objects.astype(np.float64).reshape(-1, OBJECT_WIDTH)
        objects[:, 1:5] = np.clip(objects[:, 1:5] / (width, height, width, height), 0, 1)
        objects = objects.astype(np.float32)
        kept = (objects[:, 3] > objects[:, 1]) & (objects[:, 4] > objects[:, 2])
        return objects[kept], kept


class Imdb(Protocol):
    """A source of annotations; dropped describes the boxes it left out, a line each."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the ids."""

    @property
    def images(self) -> Sequence[AnnotatedImage]:
        """The images in the order of the source."""

    @property
    def dropped(self) -> Sequence[str]:
        """One line for each box that was left out."""


def require_inside(path: Path, folder: Path, root: Path) -> None:
    """Refuses a path that leaves its folder by '..', as an absolute name or by a symbolic link out of the root."""
    try:
        real = path.resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL byte, a loop of links
        raise DataError(f"{str(path)!r}: not a usable file name ({error})") from error
    if not (real.is_relative_to(folder.resolve()) or real.is_relative_to(root.resolve())) or ".." in path.parts:
        raise DataError(f"{path} lies outside {root}; names must stay inside the data set")
