"""The label of a detection record: [A, B, extras..., objects...] as im2rec --pack-label and ImageDetRecordIter have it.

A is the width of the header (itself included), B the width of an object: id, xmin, ymin, xmax, ymax, and from 6 on
difficult. We write A = 2, B = 6.
"""

from collections.abc import Iterator

import numpy as np

from common.errors import DataError

OBJECT_WIDTH = 6
HEADER_WIDTH = 2
MIN_OBJECT_WIDTH = 5
TOLERANCE = 1e-3  # rounding of annotation tools, relative to the image
# The last column of all rows of a padding sample, -1 in unused rows of others: a metric that sees labels alone can tell
# it from an image without objects.
PADDING = -2.0
PIXELS_ABOVE = 2.0  # no normalised coordinate is that large by rounding


def label_width(max_objects: int) -> int:
    """Values of a label of max_objects >= 1 objects."""
    return HEADER_WIDTH + OBJECT_WIDTH * max_objects


def pack_label(objects: np.ndarray) -> np.ndarray:
    """Objects (n, 6) -> flat label (2 + 6 n,) float32; n = 0 gives the header alone."""
    objects = np.asarray(objects, np.float32).reshape(-1, OBJECT_WIDTH)
    return np.concatenate([np.array([HEADER_WIDTH, OBJECT_WIDTH], np.float32), objects.ravel()])


def parse_label(flat: np.ndarray, where: str) -> np.ndarray:
    """A flat label of any classic header -> objects (n, 6) float32, unchecked beyond the layout.

    difficult is 0 for objects of width 5, columns from the seventh on are dropped, and so are rows that are all -1 (the
    usual dummy of images without objects). `where` names the record in the DataError of a wrong layout.
    """
    flat = np.asarray(flat, np.float32).ravel()
    header, width = _header(flat, where)
    if flat.size == header:  # no array is as wide as a label without objects may say that they would be
        return np.zeros((0, OBJECT_WIDTH), np.float32)
    rows = flat[header:].reshape(-1, width)
    rows = rows[~(rows == -1).all(axis=1)]
    objects = np.zeros((len(rows), OBJECT_WIDTH), np.float32)
    columns = min(width, OBJECT_WIDTH)
    objects[:, :columns] = rows[:, :columns]
    return objects


def _header(flat: np.ndarray, where: str) -> tuple[int, int]:
    """(A, B) of a flat label, checked."""
    if flat.size < HEADER_WIDTH:
        raise DataError(
            f"{where}: the label has {flat.size} values, not a detection label; pack with objects (im2rec --pack-label)"
        )
    header, width = (int(v) if v.is_integer() else -1 for v in flat[:2].tolist())
    if not HEADER_WIDTH <= header <= flat.size:
        raise DataError(f"{where}: the label's header width is {flat[0]:g}, not between 2 and its {flat.size} values")
    if width < MIN_OBJECT_WIDTH:
        raise DataError(f"{where}: the label's object width is {flat[1]:g}; it must be a whole number of at least 5")
    if (flat.size - header) % width:
        raise DataError(f"{where}: {flat.size - header} label values are not a multiple of the object width {width}")
    return header, width


def validate(objects: np.ndarray, num_classes: int | None, where: str) -> None:
    """Raises DataError for the first object of (n, 6) that cannot be trained on; n = 0 is fine.

    Refused: NaN and infinity, a class id that is no whole number in 0..num_classes-1 (for None any id >= 0),
    coordinates outside [0, 1] by more than 0.001, xmax <= xmin, ymax <= ymin.
    """
    objects = np.asarray(objects)
    for wrong, rule in _broken_rules(objects, num_classes):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{where}, {_shown(objects, row)}: {rule}; correct the annotation and pack again")


def mistakes_of(objects: np.ndarray, num_classes: int | None) -> list[str]:
    """A sentence for each object of (n, 6) that validate refuses: its number, its values and the first rule that it
    breaks."""
    objects = np.asarray(objects)
    found: dict[int, str] = {}
    for wrong, rule in _broken_rules(objects, num_classes):
        for row in np.flatnonzero(wrong).tolist():
            found.setdefault(row, f"{_shown(objects, row)}: {rule}")
    return [found[row] for row in sorted(found)]


def _broken_rules(objects: np.ndarray, num_classes: int | None) -> Iterator[tuple[np.ndarray, str]]:
    """(which objects break a rule (n,) bool, the rule), rule by rule."""
    ids, boxes = objects[:, 0], objects[:, 1:5]
    yield ~np.isfinite(objects).all(axis=1), "a value is not finite"
    limit = np.inf if num_classes is None else num_classes
    known = "from 0 on" if num_classes is None else f"0 to {num_classes - 1}"
    yield (ids < 0) | (ids >= limit) | (ids != np.floor(ids)), f"class ids are whole numbers {known}"
    yield (np.abs(boxes) > PIXELS_ABOVE).any(axis=1), "coordinates must lie in [0, 1]: pixel coordinates?"
    yield ((boxes < -TOLERANCE) | (boxes > 1 + TOLERANCE)).any(axis=1), "coordinates must lie in [0, 1]"
    yield (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]), "the box is inverted or has no area"


def _shown(objects: np.ndarray, row: int) -> str:
    return f"object {row} [{' '.join(f'{value:g}' for value in objects[row])}]"
