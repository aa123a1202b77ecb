"""Some classes of a data set: objects of the others are left out, as the classic readers leave them out."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.errors import DataError
from dataset.imdb import AnnotatedImage, Imdb

SHOWN = 20  # names of the annotations in an error or a warning
logger = logging.getLogger(__name__)


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
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        logger.warning("--class-names: there is no class %r%s; %s", name, hint, theirs)
