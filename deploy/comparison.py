"""Whether two runtimes find the same in the same images."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-4  # of scores and normalised coordinates


class Comparison(NamedTuple):
    """Detections of two runtimes side by side.

    Attributes:
        detections: number that the first finds.
        in_place: those that the second has in the same row.
        unmatched: those of both that the other does not have at all, in whatever row.
        largest: difference of scores and coordinates among the rows in place.
    """

    detections: int
    in_place: int
    unmatched: int
    largest: float


NOTHING = Comparison(0, 0, 0, 0.0)


def compare(expected: np.ndarray, found: np.ndarray) -> Comparison:
    """Compares det (B, N, 6) of one input: rows match with equal ids, and all else within TOLERANCE."""
    return total(_compare_image(*pair) for pair in zip(expected, found, strict=True))


def total(results: Iterable[Comparison]) -> Comparison:
    """All of them together."""
    detections, in_place, unmatched, largest = zip(NOTHING, *results, strict=True)
    return Comparison(sum(detections), sum(in_place), sum(unmatched), max(largest))


def _compare_image(expected: np.ndarray, found: np.ndarray) -> Comparison:
    valid = expected[:, 0] >= 0
    difference = np.abs(expected - found).max(axis=1)
    same = valid & (difference <= TOLERANCE)
    matches = _matches(expected[valid], found[found[:, 0] >= 0])
    unmatched = int((~matches.any(axis=1)).sum() + (~matches.any(axis=0)).sum())
    return Comparison(int(valid.sum()), int(same.sum()), unmatched, float(difference[same].max(initial=0)))


def _matches(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Booleans (n, m): which rows (n, 6) and (m, 6) are the same detection."""
    return np.abs(left[:, None] - right).max(axis=2) <= TOLERANCE
