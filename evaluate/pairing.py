"""Pairs of detections and objects that belong together (same image, or image and class), a bounded number at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PAIRS_AT_ONCE = 1 << 20  # detection-object pairs held in memory, about 200 bytes each


@dataclass(frozen=True)
class Pairs:
    """A run of detections and all their pairs, which lie one detection after the other.

    Attributes:
        rows: (r,) the detections.
        detection, truth: (p,) what each pair consists of.
        starts: (r,) the first pair of each detection.
        counts: (r,) its number of pairs, at least 1.
    """

    rows: np.ndarray
    detection: np.ndarray
    truth: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def pairs_by_group(detection_groups: np.ndarray, truth_groups: np.ndarray) -> Iterator[Pairs]:
    """All pairs of equal groups, detections (n,) in any order, objects (g,) sorted; detections without any are left
    out."""
    first = np.searchsorted(truth_groups, detection_groups, side="left")
    count = np.searchsorted(truth_groups, detection_groups, side="right") - first
    for rows in _chunks(count):
        counts = count[rows]
        ends = np.cumsum(counts)
        truth = np.arange(ends[-1]) + np.repeat(first[rows] - (ends - counts), counts)
        yield Pairs(rows, np.repeat(rows, counts), truth, ends - counts, counts)


def _chunks(count: np.ndarray) -> list[np.ndarray]:
    """Splits the rows with count > 0 into runs of about PAIRS_AT_ONCE pairs."""
    rows = np.flatnonzero(count)
    ends = np.cumsum(count[rows])
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, total, PAIRS_AT_ONCE))
    return [run for run in np.split(rows, cuts) if len(run)]
