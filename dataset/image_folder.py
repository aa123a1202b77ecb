"""Image lists made from a folder of images, line for line those of mxnet's im2rec --list."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import DataError, OptionError
from dataset.image_list import ImageRoot

CLASSIC_SEED = 100  # of the shuffle, as in mxnet's im2rec
_ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 > 1


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


def split(images: list[FoundImage], chunks: int, train: float, test: float, shuffle: bool) -> dict[str, list]:
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
