"""The objects of an annotation on the image that is really there: scaled, clipped, and what is doubtful about them.

Boxes are in pixels of the image that the annotation tells the size of. Where the file has another size, it was resized
after it was annotated, or replaced: with the same proportions its boxes are scaled, with others nobody can know.
"""

from dataclasses import dataclass

import numpy as np

from boxes.geometry import paired_iou
from common.errors import DataError
from common.sizes import Size
from dataset.image_check import ImageInfo
from dataset.imdb import AnnotatedImage
from dataset.labels import TOLERANCE

TRUST = ("image", "annotation")
DUPLICATES = ("keep", "drop")
ALIKE = 0.95  # two boxes of a class with a larger IoU are likely one object, annotated twice
MIXED = 0.8  # two boxes of different classes with a larger IoU are likely one object, annotated as both
FAR = 0.5  # of the image's side: a box that reaches further out is likely a slip
_THIN = 2.0 - 1e-3  # pixels
_COMPARED = 1 << 20  # pairs of boxes that are compared at a time
_SLACK = 1.0  # pixels: annotations are rounded


@dataclass(frozen=True)
class Rules:
    """What to do where there is a choice: trust_size, None or one of TRUST: whose pixels boxes are in where the sizes
    differ; duplicates, one of DUPLICATES."""

    trust_size: str | None = None
    duplicates: str = "keep"


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Fitted:
    """objects (m, 6) float32 in [0, 1]; rows (m,) of the annotation's objects that they are; factor of its pixels,
    None = 1. clipped: how many were clipped. Lines for the user: scaled, dropped, far outside, thin (less than two
    pixels), the same as another, nearly the same.
    """

    objects: np.ndarray
    rows: np.ndarray
    factor: tuple[float, float] | None = None
    clipped: int = 0
    scaled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()


def fit_objects(image: AnnotatedImage, info: ImageInfo, rules: Rules) -> Fitted:
    """The objects of an annotation on an image of info.size.

    DataError, the reason alone, where the annotation is of the image as its EXIF orientation shows it, and where it is
    of an image with other proportions, unless rules.trust_size decides.
    """
    basis = basis_of(image, info, rules.trust_size)
    objects, kept = image.normalised(basis)
    dropped = tuple(f"{image.name}: {image.shown(row)} lies outside the image" for row in np.flatnonzero(~kept))
    rows = np.flatnonzero(kept)
    twice: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    if len(rows) > 1:
        first, twice, alike = _doubles(image, objects, rows)
        if rules.duplicates == "drop":
            objects, rows = objects[first], rows[first]
    outside, far, thin = _doubtful(image, objects, rows, basis, info.size)
    height, width = info.size
    return Fitted(
        objects,
        rows,
        None if basis == info.size else (width / basis[1], height / basis[0]),
        outside,
        (f"{image.name}: {_shown(basis)} annotated, {_shown(info.size)} decoded",) if basis != info.size else (),
        dropped,
        far,
        thin,
        twice,
        alike,
    )


def basis_of(image: AnnotatedImage, info: ImageInfo, trust: str | None = None) -> Size:
    """The size of the image whose pixels the boxes are in; trust: one of TRUST. DataError as of fit_objects."""
    size, real = image.size, info.size
    if size is None or size == real:
        return real
    if info.orientation >= 5 and size == real[::-1]:
        raise DataError(f"annotated as rotated by its EXIF orientation {info.orientation}; store it upright")
    if trust is not None or not len(image.objects):
        return size if trust == "annotation" else real
    what = f"{_shown(size)} annotated, {_shown(real)} decoded"
    remedy = "--trust-size annotation or image says whose pixels the boxes are in"
    if abs(size[1] * real[0] - size[0] * real[1]) > max(*size, *real):
        raise DataError(f"{what}, of other proportions; {remedy}")
    corners = image.objects[:, 3:5].max(axis=0)
    if (corners > np.array(size[::-1]) + _SLACK).any() and (corners <= np.array(real[::-1]) + _SLACK).all():
        raise DataError(f"{what}, and its boxes reach out of the annotated size, but not out of the other; {remedy}")
    return size


def _shown(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _doubtful(
    image: AnnotatedImage, objects: np.ndarray, rows: np.ndarray, basis: Size, real: Size
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """(number of boxes that were clipped, lines of those that reach far outside, of the thin ones)."""
    if not len(rows):
        return 0, (), ()
    raw = image.objects[rows, 1:5] / (basis[1], basis[0], basis[1], basis[0])
    outside = np.maximum(-raw.min(axis=1), raw.max(axis=1) - 1)
    thin = ((objects[:, 3:5] - objects[:, 1:3]) * (real[1], real[0])).min(axis=1) < _THIN
    far = outside > FAR
    return (
        int((outside > TOLERANCE).sum()),
        tuple(f"{image.name}: {image.shown(row)} of {_shown(basis)} pixels" for row in rows[far]),
        tuple(f"{image.name}: {image.shown(row)}" for row in rows[thin]),
    )


def _doubles(
    image: AnnotatedImage, objects: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """(places of the objects that are no repetition, lines of the repetitions, lines of pairs that are nearly one)."""
    _, first, group = np.unique(objects[:, :5], axis=0, return_index=True, return_inverse=True)
    partners = first[group.reshape(-1)]
    is_first = partners == np.arange(len(rows))
    kept, again = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    near = _near_partners(objects[kept], ALIKE, same_class=True)
    alike = np.flatnonzero(near >= 0)
    return (
        kept,
        _lines(image, rows[partners[again]], rows[again]),
        _lines(image, rows[kept[near[alike]]], rows[kept[alike]]),
    )


def mixed_classes(image: AnnotatedImage, fitted: Fitted) -> tuple[str, ...]:
    """A line for each object whose box is nearly that of an object of another class (IoU above MIXED)."""
    partners = _near_partners(fitted.objects, MIXED, same_class=False)
    found = np.flatnonzero(partners >= 0)
    return _lines(image, fitted.rows[partners[found]], fitted.rows[found])


def _near_partners(objects: np.ndarray, least: float, same_class: bool) -> np.ndarray:
    """(n,) for each object the first one before it with an IoU above `least` and its class, or another; -1 without one.

    Works on blocks of rows, so that an image of any number of objects takes little memory.
    """
    boxes, count = objects[:, 1:5], len(objects)
    # A corner of another box of that IoU is off by at most this share of a side.
    sides = (boxes[:, 2:] - boxes[:, :2]) * (1 / least - least)
    reach = np.concatenate([sides, sides], axis=1)
    partners = np.full(count, -1)
    step = max(1, _COMPARED // max(1, count))
    for start in range(0, count, step):
        block = slice(start, start + step)
        near = (np.abs(boxes[block, None] - boxes) <= reach[block, None]).all(axis=2)
        pairs = np.argwhere(near) + (start, 0)
        a, b = pairs[pairs[:, 0] < pairs[:, 1]].T
        wanted = (objects[a, 0] == objects[b, 0]) == same_class
        close = wanted & (paired_iou(boxes[a], boxes[b]) > least)
        later, first = np.unique(b[close], return_index=True)
        fresh = partners[later] < 0
        partners[later[fresh]] = a[close][first[fresh]]
    return partners


def _lines(image: AnnotatedImage, before: np.ndarray, after: np.ndarray) -> tuple[str, ...]:
    """A line for each pair of rows of the annotation."""
    return tuple(f"{image.name}: {image.shown(a)} and {image.shown(b)}" for a, b in zip(before, after, strict=True))
