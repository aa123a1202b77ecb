"""Average precision and recall of boxes by the rule of COCO (pycocotools' COCOeval), in numpy for all images at once.

The rule: in each image and class the 100 best detections are taken by descending score. Each takes, at every IoU
threshold, the free object that it overlaps most (IoU >= threshold; the later of equals); only if there is none, an
ignored one: a crowd, which several may take and whose IoU is the share of the detection inside it, or an object whose
area lies outside the range looked at. Detections with an ignored object, or with none and an area outside the range, do
not count. AP is the mean over IoU thresholds 0.50:0.05:0.95, 101 recall points and classes with objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.voc_eval import pairs_by_group

DETECTION_COLUMNS = 7  # image, id, score, x, y, width, height
TRUTH_COLUMNS = 8  # image, id, x, y, width, height, area, crowd
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
HIGHEST_THRESHOLD = 1 - 1e-10  # a threshold of 1 lets rounding pass
EPSILON = np.spacing(1)  # in the denominator of the precision
_NAN = float("nan")


@dataclass(frozen=True)
class COCORule:
    """What is measured; the defaults are COCO's.

    Attributes:
        iou_thresholds: ascending; AP50 and AP75 are the values at 0.5 and 0.75, nan if these are not among them.
        recall_points: where the precision is read.
        max_detections: three limits for an image and class, ascending; AP uses the last.
        area_ranges: four inclusive ranges in square pixels: all, small, medium, large.
        use_classes: False = one class of everything.
    """

    iou_thresholds: Sequence[float] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    recall_points: Sequence[float] = tuple(np.linspace(0.0, 1.0, 101).tolist())
    max_detections: Sequence[int] = (1, 10, 100)
    area_ranges: Sequence[tuple[float, float]] = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))
    use_classes: bool = True


@dataclass(frozen=True)
class COCOResult:
    """Outcome; nan where a class has no object of an area range.

    Attributes:
        class_names: K names.
        precision: (A, T, K, R) by area range, IoU threshold, class and recall point, at the last of max_detections.
        recall: (A, T, K, M) the last recall for each of max_detections.
        rule: what was measured.
    """

    class_names: tuple[str, ...]
    precision: np.ndarray
    recall: np.ndarray
    rule: COCORule

    @property
    def stats(self) -> dict[str, float]:
        """The twelve numbers of COCO by STAT_NAMES; nan where there is nothing to find."""
        at = [np.flatnonzero(np.isclose(self.rule.iou_thresholds, value)) for value in (0.5, 0.75)]
        values = [_mean(self.precision[0]), *(_mean(self.precision[0, rows]) for rows in at)]
        values += [_mean(self.precision[area]) for area in (1, 2, 3)]
        values += [_mean(self.recall[0, ..., limit]) for limit in (0, 1, 2)]
        values += [_mean(self.recall[area, ..., -1]) for area in (1, 2, 3)]
        return dict(zip(STAT_NAMES, values, strict=True))

    @property
    def class_ap(self) -> dict[str, float]:
        """AP (all areas) of each class; nan without objects."""
        return {name: _mean(self.precision[0, :, k]) for k, name in enumerate(self.class_names)}


def coco_eval(
    detections: np.ndarray, truths: np.ndarray, class_names: Sequence[str], rule: COCORule | None = None
) -> COCOResult:
    """Precision and recall of all classes.

    Args:
        detections: (n, 7) rows [image, id, score, x, y, width, height], x and y of the left upper corner, in any order;
            a NaN score drops a row. Equal scores are taken by image, then as given.
        truths: (g, 8) rows [image, id, x, y, width, height, area, crowd]. area NaN lies in no range but the first.
        class_names: names by id; rows of other ids are left out.
        rule: default COCORule().
    """
    rule = rule or COCORule()
    judged = judge(detections, truths, class_names, rule)
    return _accumulate(judged, tuple(class_names) if rule.use_classes else ("all",), rule)


@dataclass(frozen=True)
class Judged:
    """What coco_eval's rule makes of each detection, by class and image, then falling score.

    Attributes:
        detections: (n, 7) the best of each class and image.
        rank: (n,) their place in that.
        truths: (g, 8) the objects, by class and image.
        ignored: (A, g) whether an object does not count in an area range.
        true, false: (A, T, n) bools; a detection that does not count is neither.
    """

    detections: np.ndarray
    rank: np.ndarray
    truths: np.ndarray
    ignored: np.ndarray
    true: np.ndarray
    false: np.ndarray


def judge(detections: np.ndarray, truths: np.ndarray, class_names: Sequence[str], rule: COCORule) -> Judged:
    """Which detections are right; arguments as of coco_eval."""
    detections = np.asarray(detections, np.float64).reshape(-1, DETECTION_COLUMNS)
    truths = np.asarray(truths, np.float64).reshape(-1, TRUTH_COLUMNS)
    classes = np.arange(len(class_names))
    detections = detections[np.isin(detections[:, 1], classes) & ~np.isnan(detections[:, 2])]
    truths = truths[np.isin(truths[:, 1], classes)]
    if not rule.use_classes:
        detections, truths = _as_one_class(detections), _as_one_class(truths)
    found, rank, group, truths, truth_group = _in_order(detections, truths, rule.max_detections[-1])
    areas = _within(truths[:, 6], rule)
    areas[1:] &= ~np.isnan(truths[:, 6])
    ignored = ~areas | (truths[:, 7] != 0)
    matched, free = _match(found, group, truths, truth_group, ignored, np.array(rule.iou_thresholds))
    free |= ~matched & ~_within(found[:, 5] * found[:, 6], rule)[:, None]
    return Judged(found, rank, truths, ignored, matched & ~free, ~matched & ~free)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else _NAN


def _as_one_class(rows: np.ndarray) -> np.ndarray:
    """Rows by class, then as given, all with id 0."""
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    rows[:, 1] = 0
    return rows


def _within(area: np.ndarray, rule: COCORule) -> np.ndarray:
    """(A, n) whether areas (n,) lie in each range; NaN does."""
    low, high = np.array(rule.area_ranges, np.float64).T[:, :, None]
    return ~((area < low) | (area > high))


def _in_order(
    detections: np.ndarray, truths: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(detections, their rank, their group, truths, their group), sorted by group, which is class and image.

    Detections lie by falling score in their group, where the `limit` best remain.
    """
    images, index = np.unique(np.concatenate([detections[:, 0], truths[:, 0]]), return_inverse=True)
    groups = np.concatenate([detections[:, 1], truths[:, 1]]).astype(np.int64) * len(images) + index
    group, truth_group = groups[: len(detections)], groups[len(detections) :]
    order = np.lexsort((-detections[:, 2], group))
    detections, group = detections[order], group[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    kept = rank < limit
    truth_order = np.argsort(truth_group, kind="stable")
    return detections[kept], rank[kept], group[kept], truths[truth_order], truth_group[truth_order]


def _overlapping(
    found: np.ndarray, group: np.ndarray, truths: np.ndarray, truth_group: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detection, truth and IoU (p,) of the pairs of one group with IoU >= least."""
    kept = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for pairs in pairs_by_group(group, truth_group):
        with np.errstate(invalid="ignore", over="ignore"):  # a box that is not finite overlaps nothing
            overlap = _iou(found[pairs.detection, 3:7], truths[pairs.truth, 2:6], truths[pairs.truth, 7] != 0)
        near = overlap >= least
        kept.append((pairs.detection[near], pairs.truth[near], overlap[near]))
    detection, truth, overlap = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return detection, truth, overlap


def _iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (p,) of boxes [x, y, width, height] (p, 4); where crowd, the share of a inside b."""
    common = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.where((common > 0).all(axis=1), common[:, 0] * common[:, 1], 0.0)
    area = a[:, 2] * a[:, 3]
    union = np.where(crowd, area, area + b[:, 2] * b[:, 3] - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _match(
    found: np.ndarray,
    group: np.ndarray,
    truths: np.ndarray,
    truth_group: np.ndarray,
    ignored: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, T, n) bools: which detections have an object, and which an ignored one.

    In each round every group gives its next detection that overlaps something: at most max_detections rounds.
    """
    limits = np.minimum(thresholds, HIGHEST_THRESHOLD)
    detection, truth, overlap = _overlapping(found, group, truths, truth_group, float(limits.min()))
    candidates, place = np.unique(detection, return_inverse=True)
    turn = (np.arange(len(candidates)) - np.searchsorted(group[candidates], group[candidates]))[place]
    order = np.lexsort((truth, overlap, detection, turn))  # the best of a detection's pairs comes last
    detection, truth, overlap, turn = detection[order], truth[order], overlap[order], turn[order]
    shape = (len(ignored), len(limits))
    taken = np.zeros((*shape, len(truths)), bool)
    matched, free = np.zeros((*shape, len(found)), bool), np.zeros((*shape, len(found)), bool)
    crowd = truths[:, 7] != 0
    bounds = np.searchsorted(turn, np.arange(turn.max(initial=-1) + 2))
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        pairs = slice(begin, end)
        which = truth[pairs]
        usable = (overlap[pairs] >= limits[:, None]) & (crowd[which] | ~taken[..., which])
        starts = np.flatnonzero(np.diff(detection[pairs], prepend=-1))
        best = _best(usable, ~ignored[:, None, which], starts)
        area, threshold, one = np.nonzero(best >= 0)
        winner = which[best[area, threshold, one]]
        taken[area, threshold, winner] = True
        row = detection[pairs][starts[one]]
        matched[area, threshold, row] = True
        free[area, threshold, row] = ignored[area, winner]
    return matched, free


def _best(usable: np.ndarray, regular: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(A, T, d) the last usable pair of each detection, of regular objects if there is one; -1 without any."""
    count = usable.shape[-1]
    value = np.where(usable, np.arange(count) + count * regular, -1)
    best = np.maximum.reduceat(value, starts, axis=-1)
    return np.where(best >= count, best - count, best)


def _accumulate(judged: Judged, class_names: tuple[str, ...], rule: COCORule) -> COCOResult:
    """Curves of every class."""
    found, rank, true, false = judged.detections, judged.rank, judged.true, judged.false
    areas, thresholds = true.shape[:2]
    precision = np.full((areas, thresholds, len(class_names), len(rule.recall_points)), _NAN)
    recall = np.full((areas, thresholds, len(class_names), len(rule.max_detections)), _NAN)
    bounds = np.searchsorted(found[:, 1], np.arange(len(class_names) + 1))
    for k, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        wanted = (~judged.ignored[:, judged.truths[:, 1] == k]).sum(axis=1)
        some = np.flatnonzero(wanted)
        rows = begin + np.argsort(-found[begin:end, 2], kind="stable")
        true_sum, false_sum = (np.cumsum(hits[some][..., rows], axis=-1, dtype=np.float64) for hits in (true, false))
        precision[some, :, k] = _read_precision(true_sum, false_sum, wanted[some], np.array(rule.recall_points))
        for m, limit in enumerate(rule.max_detections):
            hits = (true[some, :, begin:end] & (rank[begin:end] < limit)).sum(axis=-1)
            recall[some, :, k, m] = hits / wanted[some, None]
    return COCOResult(class_names, precision, recall, rule)


def _read_precision(true: np.ndarray, false: np.ndarray, wanted: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(A, T, R) best precision at each recall or above, from counts (A, T, n) by falling score and objects (A,)."""
    precision = true / (true + false + EPSILON)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    envelope = np.concatenate([envelope, np.zeros((*envelope.shape[:2], 1))], axis=-1)
    areas, thresholds, count = true.shape
    recall = (true / wanted[:, None, None]).reshape(areas * thresholds, count)
    first = np.array([np.searchsorted(curve, points) for curve in recall], np.int64)
    return np.take_along_axis(envelope, first.reshape(areas, thresholds, len(points)), axis=-1)
