"""AP of resampled images: what an accuracy might have been with other images of the same kind.

The bootstrap (Efron and Tibshirani 1993) draws as many images as there are, with replacement. Detections were matched
once; a draw only changes how often each image counts. So the AP of a draw is that of curves weighted by these numbers,
which is exactly the AP of the set with the images repeated.
"""

import numpy as np

from evaluate.hits import VOC, VOC07, ClassHits, Hits
from evaluate.voc_eval import RECALL_POINTS

AT_ONCE = 1 << 21  # numbers of a working array: 16 MB
COCO_POINTS = np.linspace(0.0, 1.0, 101)
_POINTS = {VOC07: RECALL_POINTS, VOC: None}


def draw_counts(units: int, draws: int, seed: int) -> np.ndarray:
    """(draws, units) how often each unit is drawn when as many as there are are drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)


def weighted_ap(hits: Hits, counts: np.ndarray) -> np.ndarray:
    """AP (K, T, draws) of each class and IoU threshold when unit u counts counts[draw, u] times; nan without objects.

    Only true positives raise precision and recall, so that curves are read at these alone.
    """
    values = np.full((len(hits.classes), len(hits.iou_thresholds), len(counts)), np.nan)
    points = _POINTS.get(hits.kind, COCO_POINTS)
    for one, out in zip(hits.classes, values, strict=True):
        if not one.objects.any():
            continue
        step = max(1, AT_ONCE // max(1, len(one.unit)))
        for begin in range(0, len(counts), step):
            out[:, begin : begin + step] = _class_ap(one, counts[begin : begin + step], points)
    return values


def _class_ap(one: ClassHits, counts: np.ndarray, points: np.ndarray | None) -> np.ndarray:
    """(T, draws) AP of one class."""
    objects = counts @ one.objects
    length = int(np.flatnonzero(one.true.any(axis=0)).max(initial=-1)) + 1
    seen = np.cumsum(np.take(counts, one.unit[:length], axis=1), axis=1)  # (draws, n)
    values = np.empty((len(one.true), len(counts)))
    for true, false, out in zip(one.true[:, :length], one.false[:, :length], values, strict=True):
        rows = np.flatnonzero(true)
        found = np.cumsum(np.take(counts, one.unit[rows], axis=1), axis=1)  # (draws, true positives)
        judged = seen[:, rows] - _passed_over(one.unit[:length], ~(true | false), rows, counts)
        out[:] = _area(found, judged, objects, points)
    out_of = np.where(objects > 0, 0.0, np.nan)
    return values + out_of


def _passed_over(unit: np.ndarray, ignored: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> np.ndarray | float:
    """(draws, rows) how many detections before each of the rows do not count."""
    passed = np.flatnonzero(ignored)
    if not len(passed):
        return 0.0
    total = np.cumsum(np.take(counts, unit[passed], axis=1), axis=1)
    total = np.pad(total, ((0, 0), (1, 0)))
    return total[:, np.searchsorted(passed, rows)]


def _area(found: np.ndarray, judged: np.ndarray, objects: np.ndarray, points: np.ndarray | None) -> np.ndarray:
    """AP (draws,) of curves (draws, true positives); points: where the precision is read, None = everywhere."""
    if not found.shape[1]:
        return np.zeros(len(found))
    precision = np.divide(found, judged, out=np.zeros_like(found), where=judged > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(objects, 1)[:, None]
    if points is not None:
        recall = np.searchsorted(points, recall, side="right") / len(points)
    return (np.diff(recall, axis=1, prepend=0.0) * envelope).sum(axis=1)
