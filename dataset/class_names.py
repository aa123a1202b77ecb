"""Class names as --class-names gives them (a list, a text file, the sidecar of a record), and classes chosen by them.

Objects of classes that are not chosen are left out, as the classic readers leave them out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import DataError, OptionError, did_you_mean
from dataset.imdb import AnnotatedImage, Imdb
from dataset.sidecar import read_sidecar

_MAX_NAMES_BYTES = 1 << 20
SHOWN = 20  # names of the annotations in an error or a warning
logger = logging.getLogger(__name__)


def read_class_names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names on the command line, in a text file, or in a sidecar."""
    if not given:
        return None
    names = given
    path = Path(given[0])
    if len(given) == 1 and path.suffix == ".json":
        sidecar = read_sidecar(path)
        if sidecar is None:
            raise OptionError(f"--class-names {path}: no such file")
        names = sidecar.class_names
    elif len(given) == 1 and path.is_file():
        names = _names_in(path)
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if repeated or not names:
        raise OptionError(f"--class-names: {f'{repeated[0]!r} is given twice' if repeated else 'no names found'}")
    return names


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_NAMES_BYTES:
            raise OptionError(f"--class-names {path}: too large for a list of names")
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--class-names {path}: not readable as a list of names ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


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
    return replace(image, objects=np.column_stack([ids, image.objects[:, 1:]])[ids >= 0])


def _check_known(class_names: Sequence[str], known: Sequence[str]) -> None:
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    theirs = f"the annotations have {', '.join(known[:SHOWN])}{rest}"
    unknown = [name for name in class_names if name not in known]
    if len(unknown) == len(class_names):
        raise DataError(f"--class-names {','.join(class_names)}: none of them is there, {theirs}; correct the names")
    for name in unknown:
        logger.warning("--class-names: there is no class %r%s; %s", name, did_you_mean(name, known), theirs)
