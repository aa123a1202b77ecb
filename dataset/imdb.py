"""What every source of annotations gives: class names and annotated images, in pixels of the image as stored.

Parts of a data set are drawn from it at random: train, val, test. Mistakes in its labels are all collected; then it is
refused, or goes on without their images: packed without a label that cannot be read, an image would teach that its
object is none.

Files of its folders: macOS leaves a file `._NAME` beside each NAME on foreign disks and in archives, no picture
and no text; these are skipped and counted.
"""

import logging
import random
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import DataError, OptionError
from common.files import is_file
from common.sizes import Size
from dataset.labels import OBJECT_WIDTH

PARTS = ("train", "val", "test")
MAC_PREFIX, MAC_FOLDER = "._", "__MACOSX"
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_ROUNDING = 1e-9  # 0.81 + 0.09 < 0.9
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and its objects.

    name is its path relative to the data set's root, path the file. objects (n, 6) float64 has rows [id, xmin, ymin,
    xmax, ymax, difficult]; coordinates are pixel edges: 0 is the left or top edge of the image, its width or height the
    right or bottom one. size is (height, width) as the annotation has it, None if it does not say. dropped describes
    its boxes that were left out, a line each. written (n, 5) has the objects as their file has them: number and four
    coordinates; None if the source keeps none. scores (n,) are those of detections, None of annotations.
    """

    name: str
    path: Path
    objects: np.ndarray
    size: Size | None
    dropped: tuple[str, ...] = ()
    written: np.ndarray | None = None
    scores: np.ndarray | None = None

    def only(self, kept: np.ndarray) -> "AnnotatedImage":
        """The image with some of its objects; kept: (n,) bool, or rows."""
        written, scores = (None if one is None else one[kept] for one in (self.written, self.scores))
        return replace(self, objects=self.objects[kept], written=written, scores=scores)

    def shown(self, row: int) -> str:
        """An object for a message: its number and coordinates as its file has them."""
        number, *box = (row, *self.objects[row, 1:5]) if self.written is None else self.written[row]
        return f"object {number:.0f} [{' '.join(f'{value:g}' for value in box)}]"

    def normalised(self, size: Size) -> tuple[np.ndarray, np.ndarray]:
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
    """Refuses a path that leaves its folder by '..', as an absolute name or by a symbolic link out of the root.

    The folder and the root are the user's: they may have `..` in their own paths.
    """
    try:
        real = path.resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL byte, a loop of links
        raise DataError(f"{str(path)!r}: not a usable file name ({error})") from error
    below = path.parts[len(folder.parts) :] if path.is_relative_to(folder) else path.parts
    if not (real.is_relative_to(folder.resolve()) or real.is_relative_to(root.resolve())) or ".." in below:
        raise DataError(f"{path} lies outside {root}; names must stay inside the data set")


@dataclass(frozen=True)
class Part:
    """Some images of a data set, in its order, as an Imdb."""

    class_names: tuple[str, ...]
    images: Sequence[AnnotatedImage]
    dropped: Sequence[str] = ()


def split_dataset(
    imdb: Imdb, shares: Sequence[float], seed: int, group_by: re.Pattern[str] | None = None
) -> dict[str, Part]:
    """{train, val and, with three shares, test: its images}; a part of share 0 is left out.

    The images are drawn as the voc_annotation scripts do: train and val together out of all, train out of these,
    numbers rounded down, by Python's generator with this seed. So the same annotations in the same order make the same
    parts. With group_by whole groups of images are drawn (group_of). OptionError unless there are two or three shares
    with the sum 1, or if a part would be empty.
    """
    if len(shares) not in (2, 3) or abs(sum(shares) - 1) > _ROUNDING:
        given = ",".join(f"{share:g}" for share in shares)
        raise OptionError(f"--split {given}: give two or three shares (train, val, test) that add up to 1")
    total = len(imdb.images)
    if group_by:
        drawn = _draw_groups([group_of(image.name, group_by) for image in imdb.images], shares, seed)
    else:
        drawn = _draw(total, shares, seed)
    groups = dict(zip(PARTS, drawn, strict=True))
    parts = {}
    for name, share in zip(PARTS, shares, strict=False):
        if share and not groups[name]:
            whole = " in whole groups" if group_by else ""
            raise OptionError(f"--split: {share:g} of {total} images{whole} is none for {name}; give it a larger share")
        if share:
            images = [imdb.images[k] for k in sorted(groups[name])]
            parts[name] = Part(imdb.class_names, images, [line for image in images for line in image.dropped])
    return parts


def _draw(total: int, shares: Sequence[float], seed: int) -> tuple[set[int], set[int], set[int]]:
    """The numbers of the images of each of PARTS."""
    both = shares[0] + shares[1]
    generator = random.Random(seed)
    known = generator.sample(range(total), int(total * both + _ROUNDING))
    train = set(generator.sample(known, int(len(known) * shares[0] / both + _ROUNDING) if both else 0))
    return train, set(known) - train, set(range(total)) - set(known)


def group_of(name: str, group_by: re.Pattern[str]) -> tuple[str, ...]:
    """What a name has in common with those of its group: the groups of the pattern, or all that it matches.

    A name that it does not match is a group of its own.
    """
    found = group_by.search(name)
    if found is None:
        return ("", name)
    return ("group", *(part or "" for part in found.groups() or (found[0],)))


def _draw_groups(
    keys: Sequence[tuple[str, ...]], shares: Sequence[float], seed: int
) -> tuple[set[int], set[int], set[int]]:
    """The numbers of the images of each of PARTS, where images of equal keys stay together.

    The groups come in a random order, large ones first; each goes where the most images are still missing.
    """
    members: dict[tuple[str, ...], list[int]] = {}
    for number, key in enumerate(keys):
        members.setdefault(key, []).append(number)
    groups = list(members.values())
    random.Random(seed).shuffle(groups)
    parts: tuple[set[int], set[int], set[int]] = (set(), set(), set())
    wanted = [share * len(keys) for share in (*shares, 0.0)[: len(parts)]]
    for group in sorted(groups, key=len, reverse=True):
        missing = [want - len(part) for want, part in zip(wanted, parts, strict=True)]
        parts[missing.index(max(missing))].update(group)
    return parts


SHOWN = 10  # lines of a list in an error or a report


class Mistakes:
    """Sentences about labels that cannot be used, in `lines`."""

    def __init__(self, skip: bool = False) -> None:
        """skip: settle() refuses only a data set in which nothing else is left."""
        self.skip = skip
        self.lines: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps the sentence of a DataError in the block, which ends there; what follows goes on."""
        try:
            yield
        except DataError as error:
            self.lines.append(str(error))

    def settle(self, usable: int) -> None:
        """DataError with all that was collected, unless it may be skipped; with the first if nothing is usable.

        usable: images that are left.
        """
        if not self.lines:
            return
        if not self.skip and len(self.lines) == 1:
            raise DataError(self.lines[0])
        if not self.skip:
            listed = "; ".join(shortened(self.lines))
            raise DataError(
                f"labels that cannot be used: {len(self.lines)} (correct them, or leave their images out with "
                f"--skip-bad): {listed}"
            )
        if not usable:
            raise DataError(f"no annotation can be used: {self.lines[0]}")


def shortened(lines: Sequence[str]) -> list[str]:
    """The first ten lines and how many more there are."""
    rest = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]


def files_in(folder: Path, suffixes: Collection[str], below: bool = False) -> list[Path]:
    """The files of a folder with these suffixes (in lower case), sorted; below: those of its folders, too.

    A folder that is not there has none. What macOS left is skipped, and the number logged as a warning.
    """
    found = folder.rglob("*") if below else folder.glob("*")
    files = [path for path in found if path.suffix.lower() in suffixes]
    kept = [path for path in files if not path.name.startswith(MAC_PREFIX) and MAC_FOLDER not in path.parts]
    if len(kept) < len(files):
        logger.warning("%s: %d files ._* that macOS left there were skipped", folder, len(files) - len(kept))
    return sorted(kept)


def holds(folder: Path, suffix: str) -> bool:
    """Whether a folder holds a file with this suffix itself, but for what macOS left there."""
    return any(path.suffix.lower() == suffix and not path.name.startswith(MAC_PREFIX) for path in folder.glob("*"))


def find_file(written: str, folder: Path, where: str | Path) -> Path:
    r"""A path as written in a file of `folder`: relative to that folder or to its parent.

    `images\a.jpg` is images/a.jpg; of `data/...`, as CVAT exports it, what follows may lie in the folder itself.
    DataError, which begins with `where`, for what is not there.
    """
    if "\0" in written:
        raise DataError(f"{where}: {written!r:.80} is not a path")
    slashed = written if WINDOWS_PATH.match(written) else written.replace("\\", "/")
    candidates = [folder / written, folder.parent / written, folder / slashed, folder.parent / slashed]
    if slashed.startswith("data/"):
        candidates.append(folder / slashed.removeprefix("data/"))
    found = next((path for path in candidates if is_file(path)), None)
    if found is None and WINDOWS_PATH.match(written):
        raise DataError(
            f"{where}: {written!r:.200} is a path of a Windows machine; write paths relative to {folder}, with /"
        )
    if found is None:
        raise DataError(f"{where}: {written!r:.200} is missing (looked in {folder} and its parent)")
    return found
