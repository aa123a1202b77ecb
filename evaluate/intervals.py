"""How sure an accuracy is, and a difference of two, had there been other images of the same kind: the bootstrap.

The bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993) draws as many images as there are, with
replacement. Detections were matched once; a draw only changes how often each image counts. So the AP of a draw is that
of curves weighted by these numbers, which is exactly the AP of the set with the images repeated.

An interval is that of a normal variable on the logit scale, so that it stays between 0 and 1, by Student's t for few
images, around the value; of COCO's AP less COCO_BIAS times the bias that the draws show, as the precision that is made
monotone lies too high where a curve has few points. Percentiles of the draws cover less with few images, and less bias
in VOC's AP makes it worse: it is small there, and what the draws show of it is noise (benchmarks/interval_coverage.py).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evaluate.detections import COCO, VOC07
from evaluate.hits import ClassHits, Hits
from evaluate.voc_eval import RECALL_POINTS

AT_ONCE = 1 << 21  # numbers of a working array: 16 MB
COCO_POINTS = np.linspace(0.0, 1.0, 101)
_POINTS = {VOC07: RECALL_POINTS, COCO: COCO_POINTS}  # others: everywhere


CONFIDENCE = 0.95
POWER = 0.8  # chance to tell a difference of POINT with the images that are named
POINT = 0.01
COCO_BIAS = 2.0  # the bias falls with the root of the images, of which the draws see the last part alone
SEED = 0
_EDGE = 1e-3  # of the logit scale
_ROUNDING = 1e-12
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A value, and the CONFIDENCE interval of what it stands for; both ends are nan where the images tell none.

    error: standard deviation of the value.
    """

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Draws:
    """The values of a set and of its draws, by name: those of the classes, then the means.

    Attributes:
        values: {name: (1 + draws,)}: the set's own value first; nan where a draw has no object.
        units: {name: images, or groups, that have an object that counts}.
        images: all units.
        bias_factor: how much of the bias of the draws that of the value is.
    """

    values: dict[str, np.ndarray]
    units: dict[str, int]
    images: int
    bias_factor: float = 0.0


def draw_values(hits: Hits, draws: int, seed: int = SEED) -> Draws:
    """AP of each class, and mAP of VOC's rules or AP and AP50 of COCO's, of the set and of its draws.

    The same seed and number of units give the same draws: those of two models on one set are pairs.
    """
    count = len(hits.images)
    counts = np.concatenate([np.ones((1, count)), draw_counts(count, draws, seed)])
    ap = weighted_ap(hits, counts)  # (K, T, 1 + draws)
    by_class = ap.mean(axis=1)
    values = dict(zip(hits.class_names, by_class, strict=True))
    units = {name: int((one.objects > 0).sum()) for name, one in zip(hits.class_names, hits.classes, strict=True)}
    means = {"mAP": by_class} if hits.kind != COCO else {"AP": by_class, "AP50": ap[:, 0]}
    any_class = np.any([one.objects > 0 for one in hits.classes], axis=0)
    values |= {name: _mean_of_classes(part) for name, part in means.items()}
    units |= dict.fromkeys(means, int(any_class.sum()))
    return Draws(values, units, count, COCO_BIAS if hits.kind == COCO else 0.0)


def intervals(draws: Draws) -> dict[str, Interval]:
    """The interval of each value."""
    return {name: _interval(values, draws.units[name], draws.bias_factor) for name, values in draws.values.items()}


def _interval(values: np.ndarray, units: int, bias_factor: float) -> Interval:
    """The interval of a value between 0 and 1, which is the first of `values`, from those of its draws."""
    value, spread = float(values[0]), _spread(values, units)
    if not spread:
        return Interval(value, math.nan, math.nan, math.nan)
    inside = min(max(value, _EDGE), 1 - _EDGE)
    bias = bias_factor * (float(np.nanmean(values[1:])) - value)
    middle = _logit(min(max(value - bias, _EDGE), 1 - _EDGE))
    half = _student(units) * spread / (inside * (1 - inside))
    return Interval(value, _sigmoid(middle - half), _sigmoid(middle + half), spread)


@dataclass(frozen=True)
class Difference:
    """What B is better than A by, on the same images, and how many images like these would show POINT.

    same: every draw gives A and B the same.
    """

    interval: Interval
    images: int
    needed: float
    same: bool

    @property
    def told(self) -> bool:
        """Whether the images tell a difference."""
        return self.interval.low > 0 or self.interval.high < 0


def differences(first: Draws, second: Draws) -> dict[str, Difference]:
    """The differences, second minus first, of two sets of draws of the same images by the same seed."""
    return {name: _difference(first, second, name) for name in first.values if name in second.values}


def _difference(first: Draws, second: Draws, name: str) -> Difference:
    values, units = second.values[name] - first.values[name], first.units[name]
    value, spread = float(values[0]), _spread(values, units)
    if not np.nan_to_num(values).any():
        return Difference(Interval(value, value, value, 0.0), first.images, 0.0, not math.isnan(value))
    if not spread:
        return Difference(Interval(value, math.nan, math.nan, math.nan), first.images, math.nan, False)
    half = _student(units) * spread
    both = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2) + _NORMAL.inv_cdf(POWER)
    needed = first.images * (both * spread / POINT) ** 2
    return Difference(Interval(value, value - half, value + half, spread), first.images, needed, False)


def _mean_of_classes(ap: np.ndarray) -> np.ndarray:
    """(draws,) mean of AP (K, draws) over the classes that have objects; nan without any."""
    there = ~np.isnan(ap)
    total = np.where(there, ap, 0.0).sum(axis=0)
    return np.divide(total, there.sum(axis=0), out=np.full(len(total), np.nan), where=there.any(axis=0))


def _spread(values: np.ndarray, units: int) -> float:
    """Standard deviation of the value; 0 where draws do not differ, or there are too few units or draws."""
    draws = values[1:][~np.isnan(values[1:])]
    if units < 2 or len(draws) < 2 or math.isnan(values[0]) or np.ptp(draws) < _ROUNDING:
        return 0.0
    return float(draws.std(ddof=1)) * math.sqrt(units / (units - 1))


def _student(units: int) -> float:
    """Quantile of Student's t with units - 1 degrees of freedom (Abramowitz and Stegun, 26.7.5, two terms)."""
    z, freedom = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2), units - 1
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _logit(value: float) -> float:
    return math.log(value / (1 - value))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def draw_counts(units: int, draws: int, seed: int) -> np.ndarray:
    """(draws, units) how often each unit is drawn when as many as there are are drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)


def weighted_ap(hits: Hits, counts: np.ndarray) -> np.ndarray:
    """AP (K, T, draws) of each class and IoU threshold when unit u counts counts[draw, u] times; nan without objects.

    Only true positives raise precision and recall, so that curves are read at these alone.
    """
    values = np.full((len(hits.classes), len(hits.iou_thresholds), len(counts)), np.nan)
    points = _POINTS.get(hits.kind)
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
