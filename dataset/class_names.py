"""Class names as --class-names gives them (a list, or a file of several forms), and classes chosen by them.

Objects of classes that are not chosen are left out, as the classic readers leave them out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import DataError, OptionError, did_you_mean
from dataset.imdb import AnnotatedImage, Imdb
from dataset.names_file import looks_like_path, names_in_file, split_names

_WORD = 5  # letters of a name in which one letter may be a slip
SHOWN = 20  # names of the annotations in an error or a warning
logger = logging.getLogger(__name__)


def read_class_names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names on the command line, or in the file that they name (dataset/names_file.py); None without any.

    OptionError for a file that is missing or holds no names, and for a name that is given twice.
    """
    if not given:
        return None
    if len(given) == 1 and looks_like_path(given[0]):
        path = Path(given[0])
        if not path.is_file():
            raise OptionError(
                f"--class-names {path}: {'a folder' if path.is_dir() else 'no such file'}; check the path"
            )
        try:
            return names_in_file(path)
        except (DataError, OptionError) as error:
            raise OptionError(f"--class-names {error}") from error
    names = split_names(",".join(given))
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if repeated or not names:
        raise OptionError(f"--class-names: {f'{repeated[0]!r} is given twice' if repeated else 'no names found'}")
    files = [name for name in names if looks_like_path(name) and Path(name).is_file()]
    if files:
        raise OptionError(f"--class-names {','.join(given)}: {files[0]} is a file; give one file, or names alone")
    return names


@dataclass(frozen=True)
class ChosenClasses:
    """A data set with the objects of some classes alone, as an Imdb; left_out: objects of the others by class."""

    class_names: tuple[str, ...]
    images: Sequence[AnnotatedImage]
    dropped: Sequence[str]
    left_out: dict[str, int]


def choose_classes(imdb: Imdb, class_names: Sequence[str]) -> ChosenClasses:
    """The images of imdb, all of them, with their objects of class_names; ids count in the order of class_names.

    A name that is no class of imdb is logged as a warning; DataError if none is one.
    """
    known = imdb.class_names
    _check_known(class_names, known)
    new_ids = np.array([class_names.index(name) if name in class_names else -1 for name in known])
    images = [_chosen(image, new_ids) for image in imdb.images]
    ids = np.concatenate([np.zeros(0), *(image.objects[:, 0] for image in imdb.images)]).astype(np.int64)
    counts = np.where(new_ids < 0, np.bincount(ids, minlength=len(known)), 0)
    left_out = {known[k]: int(counts[k]) for k in np.flatnonzero(counts)}
    return ChosenClasses(tuple(class_names), images, imdb.dropped, left_out)


def _chosen(image: AnnotatedImage, new_ids: np.ndarray) -> AnnotatedImage:
    """The image with its objects whose new id is not -1; new_ids (classes,)."""
    ids = new_ids[image.objects[:, 0].astype(np.int64)]
    return replace(image, objects=np.column_stack([ids, image.objects[:, 1:]])).only(ids >= 0)


def _check_known(class_names: Sequence[str], known: Sequence[str]) -> None:
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    theirs = f"the annotations have {', '.join(known[:SHOWN])}{rest}"
    unknown = [name for name in class_names if name not in known]
    if len(unknown) == len(class_names):
        raise DataError(f"--class-names {','.join(class_names)}: none of them is there, {theirs}; correct the names")
    for name in unknown:
        logger.warning("--class-names: there is no class %r%s; %s", name, did_you_mean(name, known), theirs)


def similar_names(names: Sequence[str]) -> list[str]:
    """A sentence for each pair of class names that differ by case, blanks and dashes, or by one letter of several."""
    lines = []
    for k, name in enumerate(names):
        for other in names[:k]:
            if _plain(name) == _plain(other) or _one_letter(name, other):
                lines.append(f"the classes {other!r} and {name!r} are nearly of one name: are they one class?")
    return lines


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "").replace("_", "")


def _one_letter(a: str, b: str) -> bool:
    """Whether one letter, no digit, is wrong, missing or exchanged with its neighbour, in words of five and more."""
    if min(len(a), len(b)) < _WORD or abs(len(a) - len(b)) > 1:
        return False
    begin = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[begin:], b[begin:]
    wrong = rest_a[1:] == rest_b[1:] or rest_a[1:] == rest_b or rest_a == rest_b[1:]
    exchanged = rest_a[:2] == rest_b[1::-1] and rest_a[2:] == rest_b[2:]
    return (wrong or exchanged) and not any(one[:1].isdigit() for one in (rest_a, rest_b))
