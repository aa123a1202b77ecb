"""Average precision by the rule of the PASCAL VOC devkit (voc_eval of py-faster-rcnn), in numpy.

The rule: detections of a class are taken by descending score over all images. Each looks at the object of its class and
image that it overlaps most, whether or not that object is taken. Is the overlap above the threshold, then a difficult
object makes the detection count for nothing, a free object makes it a true positive, a taken one a false positive.
Otherwise it is a false positive. Difficult objects do not count in the recall.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boxes.geometry import paired_iou

PAIRS_AT_ONCE = 1 << 20  # detection-object pairs held in memory, about 200 bytes each
RECALL_POINTS = np.arange(0.0, 1.1, 0.1)  # VOC2007; as in the devkit, point 3 lies above a recall of exactly 3 / 10
DETECTION_COLUMNS = 7  # image, id, score, xmin, ymin, xmax, ymax
TRUTH_COLUMNS = 7  # image, id, xmin, ymin, xmax, ymax, difficult
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class VOCRule:
    """What distinguishes the variants of the metric.

    Attributes:
        iou_threshold: overlap that makes a hit.
        use_07_metric: 11-point AP of VOC2007; False = area under the monotone precision-recall curve (VOC2010 on).
        use_difficult: count difficult objects like all others.
        inclusive: IoU equal to the threshold is a hit.
        border: added to widths and heights, 1 for VOC's inclusive pixel coordinates.
    """

    iou_threshold: float = 0.5
    use_07_metric: bool = False
    use_difficult: bool = False
    inclusive: bool = False
    border: float = 0.0


@dataclass(frozen=True)
class ClassResult:
    """Outcome of one class.

    Attributes:
        name: class name.
        ap: average precision; nan without objects to find, 0 without detections.
        npos: objects to find, difficult ones left out.
        num_detections: detections, those on difficult objects included.
        true_positives, false_positives: their numbers.
        recall, precision: (num_detections,) after each detection by descending score; recall is nan where npos is 0.
    """

    name: str
    ap: float
    npos: int
    num_detections: int
    true_positives: int
    false_positives: int
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class VOCResult:
    """Outcome of all classes, in the order of their ids."""

    classes: tuple[ClassResult, ...]
    rule: VOCRule

    @property
    def mean_ap(self) -> float:
        """Mean AP over the classes that have objects to find; nan if none has."""
        found = [one.ap for one in self.classes if one.npos]
        return float(np.mean(found)) if found else float("nan")


def voc_eval(
    detections: np.ndarray, truths: np.ndarray, class_names: Sequence[str] | None = None, rule: VOCRule | None = None
) -> VOCResult:
    """AP of every class.

    Args:
        detections: (n, 7) rows [image, id, score, xmin, ymin, xmax, ymax] in any order; a NaN score drops a row. Equal
            scores are taken by image number, then as given.
        truths: (g, 7) rows [image, id, xmin, ymin, xmax, ymax, difficult].
        class_names: names by id; rows of other ids are left out, with a warning if they are objects. None = one class
            for each id that occurs, named by its number.
        rule: default VOCRule().

    Returns:
        The outcome of each class, also of those without objects or detections.
    """
    rule = rule or VOCRule()
    detections = np.asarray(detections, np.float64).reshape(-1, DETECTION_COLUMNS)
    truths = np.asarray(truths, np.float64).reshape(-1, TRUTH_COLUMNS)
    detections = detections[~np.isnan(detections[:, 2])]
    if class_names is None:
        names = {index: f"{index:g}" for index in np.union1d(detections[:, 1], truths[:, 1])}
    else:
        names = dict(enumerate(class_names))
        _warn_about_unknown_classes(truths[:, 1], len(names))
    return VOCResult(
        tuple(
            _evaluate_class(name, detections[detections[:, 1] == index], truths[truths[:, 1] == index], rule)
            for index, name in names.items()
        ),
        rule,
    )


def average_precision(recall: np.ndarray, precision: np.ndarray, use_07_metric: bool = False) -> float:
    """AP of a curve (n,), recall ascending; 0 for an empty curve.

    11-point: mean over the recall points of the best precision at that recall or above. Otherwise the area under the
    precision that is made monotone from the right.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if use_07_metric:
        best = np.append(envelope, 0.0)[np.searchsorted(recall, RECALL_POINTS)]
        return float(best.sum() / len(RECALL_POINTS))
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _evaluate_class(name: str, detections: np.ndarray, truths: np.ndarray, rule: VOCRule) -> ClassResult:
    _, true, false, npos = judge_class(detections, truths, rule)
    true_sum, false_sum = np.cumsum(true), np.cumsum(false)
    recall = true_sum / npos if npos else np.full(len(true), np.nan)
    precision = true_sum / np.maximum(true_sum + false_sum, 1)
    ap = average_precision(recall, precision, rule.use_07_metric) if npos else float("nan")
    return ClassResult(name, ap, npos, len(true), int(true.sum()), int(false.sum()), recall, precision)


def judge_class(
    detections: np.ndarray, truths: np.ndarray, rule: VOCRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(order, true, false, objects to find) of the detections (n, 7) and truths (g, 7) of one class.

    order (n,): the detections by falling score, equal ones by image, then as given; true and false (n,) bool in that
    order. What is judged of a detection depends on none of a lower score.
    """
    order = np.lexsort((detections[:, 0], -detections[:, 2]))
    truths = truths[np.argsort(truths[:, 0], kind="stable")]
    ignored = np.zeros(len(truths), bool) if rule.use_difficult else truths[:, 6] > 0
    true, false = _judge(detections[order], truths, ignored, rule)
    return order, true, false, int((~ignored).sum())


def _judge(
    detections: np.ndarray, truths: np.ndarray, ignored: np.ndarray, rule: VOCRule
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bools: true positives and false positives among sorted detections; a hit on an ignored object is neither."""
    overlap, owner = _best_truths(detections, truths, rule.border)
    hits = np.flatnonzero(overlap >= rule.iou_threshold if rule.inclusive else overlap > rule.iou_threshold)
    free = ignored[owner[hits]]
    candidates = hits[~free]
    _, first = np.unique(owner[candidates], return_index=True)  # the best-scored detection of each object
    true = np.zeros(len(detections), bool)
    true[candidates[first]] = True
    false = ~true
    false[hits[free]] = False
    return true, false


def _best_truths(detections: np.ndarray, truths: np.ndarray, border: float) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU (n,) of each detection among the objects of its image, and which object (n,), the first of equals.

    Truths are sorted by image. -1 and 0 where the image has no object.
    """
    best, owner = np.full(len(detections), -1.0), np.zeros(len(detections), np.int64)
    for pairs in pairs_by_group(detections[:, 0], truths[:, 0]):
        with np.errstate(invalid="ignore"):  # a box that is not finite overlaps nothing
            overlap = paired_iou(detections[pairs.detection, 3:7], truths[pairs.truth, 2:6], border)
        overlap = np.nan_to_num(overlap, nan=0.0)
        best[pairs.rows] = np.maximum.reduceat(overlap, pairs.starts)
        attained = np.where(overlap == np.repeat(best[pairs.rows], pairs.counts), pairs.truth, len(truths))
        owner[pairs.rows] = np.minimum.reduceat(attained, pairs.starts)
    return best, owner


def _warn_about_unknown_classes(ids: np.ndarray, num_classes: int) -> None:
    unknown = np.unique(ids[(ids < 0) | (ids >= num_classes) | (ids % 1 != 0)])
    if len(unknown):
        _log.warning("objects of classes %s are left out: there are %d classes", unknown.tolist(), num_classes)


def best_f1(result: VOCResult) -> dict[str, float]:
    """{"P": precision, "R": recall}: each class at the score where its F1 = 2 P R / (P + R) is largest, then the mean.

    Classes without objects to find are left out; one without detections counts 0; {} where there is no class.
    """
    points = [_best_point(one) for one in result.classes if one.npos]
    if not points:
        return {}
    precision, recall = np.mean(points, axis=0)
    return {"P": float(precision), "R": float(recall)}


def _best_point(one: ClassResult) -> tuple[float, float]:
    if not len(one.precision):
        return 0.0, 0.0
    total = one.precision + one.recall
    f1 = 2 * one.precision * one.recall / np.maximum(total, 1e-16)
    best = int(np.argmax(f1))
    return float(one.precision[best]), float(one.recall[best])
