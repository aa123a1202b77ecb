"""What is wrong with detections: the error types of TIDE, what AP each costs, and which classes are confused.

TIDE: Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
section 2. In each image the best detections, by falling score, take the free object of their class that they overlap
most, with IoU >= 0.5. What is left has one of TYPES. Difficult objects are found by nobody: a detection with IoU >= 0.5
with one of its class, and with no other object, does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from boxes.geometry import paired_iou
from evaluate.detections import Results
from evaluate.voc_eval import pairs_by_group

TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(TYPES))
RIGHT, IGNORED = -1, -2  # detections without an error
ALL_FALSE, ALL_MISSED = "false positives", "false negatives"
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # t_f and t_b of section 2.2
MOST_DETECTIONS = 100  # of an image, as in the authors' toolbox (tidecv)
RECALL_POINTS = np.arange(101) / 100  # of AP, as there


@dataclass(frozen=True)
class Overlaps:
    """Pairs (p,) of a detection and an object of its image that overlap, and their IoU > 0; those of a detection are
    neighbours, the best first, of equals the first object."""

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def only(self, chosen: np.ndarray) -> "Overlaps":
        """Some of the pairs; chosen: (p,) bool."""
        return Overlaps(self.detection[chosen], self.truth[chosen], self.iou[chosen])

    def best(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The highest IoU (count,) of each detection, 0 without a pair, and its object (count,), -1 without."""
        iou, truth = np.zeros(count), np.full(count, -1)
        rows, first = np.unique(self.detection, return_index=True)
        iou[rows], truth[rows] = self.iou[first], self.truth[first]
        return iou, truth


def overlaps(detections: np.ndarray, truths: np.ndarray) -> Overlaps:
    """Of detections (n, 7) and objects (g, 7), rows as those of Results, objects sorted by image; any classes."""
    kept = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for pairs in pairs_by_group(detections[:, 0], truths[:, 0]):
        with np.errstate(invalid="ignore"):  # a box that is not finite overlaps nothing
            iou = paired_iou(detections[pairs.detection, 3:7], truths[pairs.truth, 2:6])
        some = iou > 0
        kept.append((pairs.detection[some], pairs.truth[some], iou[some]))
    detection, truth, iou = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.lexsort((truth, -iou, detection))
    return Overlaps(detection[order], truth[order], iou[order])


def match(pairs: Overlaps, images: np.ndarray, objects: int) -> np.ndarray:
    """The object (n,) that each detection takes, -1 for none: in the order of an image each takes the free one of its
    pairs that it overlaps most.

    images: (n,) of the detections, which are sorted by it; objects: their number. In each round every image gives one
    detection that has pairs.
    """
    owner, taken = np.full(len(images), -1), np.zeros(objects, bool)
    candidates, place = np.unique(pairs.detection, return_inverse=True)
    own = images[candidates]
    turn = (np.arange(len(own)) - np.searchsorted(own, own))[place]
    by_turn = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[by_turn], np.arange(turn.max(initial=-1) + 2))
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        rows = by_turn[begin:end]
        free = rows[~taken[pairs.truth[rows]]]
        chosen, first = np.unique(pairs.detection[free], return_index=True)
        owner[chosen] = pairs.truth[free[first]]
        taken[owner[chosen]] = True
    return owner


@dataclass(frozen=True)
class Judged:
    """Detections and objects with what became of them.

    Attributes:
        detections: (n, 7) rows as those of Results, by image, the best first, MOST_DETECTIONS of each at most.
        truths: (g, 7) rows as those of Results, by image.
        classes: their number.
        pairs: which overlap.
        owner: (n,) the object that a right detection has found, -1 for others.
        kind: (n,) number of its error in TYPES, RIGHT or IGNORED.
        target: (n,) the object that an error of classification or localisation is about, -1 for others.
    """

    detections: np.ndarray
    truths: np.ndarray
    classes: int
    pairs: Overlaps
    owner: np.ndarray
    kind: np.ndarray
    target: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """(n,) the classes of the detections."""
        return self.detections[:, 1].astype(np.int64)

    @property
    def truth_ids(self) -> np.ndarray:
        """(g,) the classes of the objects."""
        return self.truths[:, 1].astype(np.int64)

    @property
    def scores(self) -> np.ndarray:
        """(n,) the scores of the detections."""
        return self.detections[:, 2]

    @cached_property
    def found(self) -> np.ndarray:
        """(g,) bool: objects that a detection has found."""
        return _marked(self.owner, len(self.truths))

    @cached_property
    def missed(self) -> np.ndarray:
        """(g,) bool: objects that count and that nothing has found, nor would if its class or box were right."""
        wanted = self.truths[:, 6] == 0
        return wanted & ~self.found & ~_marked(self.target, len(self.truths))

    def counts(self) -> dict[str, int]:
        """How many errors there are of each type."""
        errors = np.bincount(self.kind[self.kind >= 0], minlength=len(TYPES))
        errors[MISSED] = np.count_nonzero(self.missed)
        return dict(zip(TYPES, errors.tolist(), strict=True))


def _marked(numbers: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: whether a number is among these, of which -1 is none."""
    marks = np.zeros(count, bool)
    marks[numbers[numbers >= 0]] = True
    return marks


def judge(results: Results, thresholds: Sequence[float] | np.ndarray | None = None) -> Judged:
    """Finds the errors of all detections, or of those of each class whose score reaches its threshold (K,).

    A detection without a score, or one or an object of an unknown class, is left out.
    """
    classes = len(results.class_names)
    truths = results.truths[np.isin(results.truths[:, 1], np.arange(classes))]
    detections = _in_order(results.detections, classes, thresholds)
    pairs, count = overlaps(detections, truths), len(detections)
    same = detections[pairs.detection, 1] == truths[pairs.truth, 1]
    wanted, hit = truths[pairs.truth, 6] == 0, pairs.iou >= FOREGROUND_IOU
    owner = match(pairs.only(same & wanted & hit), detections[:, 0], len(truths))
    own_iou, own = pairs.only(same & wanted).best(count)
    other_iou, other = pairs.only(~same & wanted).best(count)
    taken = pairs.only(same & wanted & _marked(owner, len(truths))[pairs.truth]).best(count)[0]
    tests = {
        LOCALISATION: (own_iou >= BACKGROUND_IOU) & (own_iou <= FOREGROUND_IOU),
        CLASSIFICATION: other_iou >= FOREGROUND_IOU,
        DUPLICATE: taken >= FOREGROUND_IOU,
        BACKGROUND: np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
    }
    kind = np.select(list(tests.values()), list(tests), BOTH)
    kind[pairs.only(same & ~wanted & hit).best(count)[1] >= 0] = IGNORED
    kind[owner >= 0] = RIGHT
    target = np.select([kind == LOCALISATION, kind == CLASSIFICATION], [own, other], -1)
    return Judged(detections, truths, classes, pairs, owner, kind, target)


def _in_order(detections: np.ndarray, classes: int, thresholds: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """Detections (n, 7) of the classes by image and falling score, the best of each image."""
    detections = detections[np.isin(detections[:, 1], np.arange(classes)) & ~np.isnan(detections[:, 2])]
    if thresholds is not None:
        least = np.asarray(thresholds, np.float64)[detections[:, 1].astype(np.int64)]
        detections = detections[detections[:, 2] >= least]
    detections = detections[np.lexsort((-detections[:, 2], detections[:, 0]))]
    rank = np.arange(len(detections)) - np.searchsorted(detections[:, 0], detections[:, 0])
    return detections[rank < MOST_DETECTIONS]


@dataclass(frozen=True)
class ErrorCosts:
    """ap: mean AP at IoU 0.5 by TIDE's rule; lost: how much higher it were without the errors of each of TYPES, and of
    all false positives, and of all objects not found; nan without objects."""

    ap: float
    lost: dict[str, float]


def error_costs(judged: Judged) -> ErrorCosts:
    """What AP each type of error costs (section 2.3: dAP), never below 0.

    An error of classification or localisation becomes right if it is the best of its object and nothing has found that,
    else it goes; other false detections go; missed objects no longer count. Classes without objects are left out. A
    type without which nothing is left to find costs 0.
    """
    wanted = np.bincount(judged.truth_ids[judged.truths[:, 6] == 0], minlength=judged.classes)
    right, counts = judged.kind == RIGHT, judged.kind != IGNORED
    ap = _mean_ap(judged.ids[counts], judged.scores[counts], right[counts], wanted, wanted)
    lost = {}
    winners = _winners(judged)
    for number, name in enumerate(TYPES[:MISSED]):
        ids, is_error = judged.ids, judged.kind == number
        won = winners & is_error
        kept = counts & (~is_error | won)
        ids[won] = judged.truth_ids[judged.target[won]]
        lost[name] = _mean_ap(ids[kept], judged.scores[kept], (right | won)[kept], wanted, wanted)
    fewer = wanted - np.bincount(judged.truth_ids[judged.missed], minlength=judged.classes)
    lost[TYPES[MISSED]] = _mean_ap(judged.ids[counts], judged.scores[counts], right[counts], fewer, wanted)
    lost[ALL_FALSE] = _mean_ap(judged.ids[right], judged.scores[right], right[right], wanted, wanted)
    fewer = np.bincount(judged.truth_ids[judged.found], minlength=judged.classes)
    lost[ALL_MISSED] = _mean_ap(judged.ids[counts], judged.scores[counts], right[counts], fewer, wanted)
    if np.isnan(ap):
        return ErrorCosts(ap, dict.fromkeys(lost, ap))
    return ErrorCosts(ap, {name: max(float(np.nan_to_num(value - ap)), 0.0) for name, value in lost.items()})


def _winners(judged: Judged) -> np.ndarray:
    """(n,) bool: the best of all errors that are about an object which nothing has found."""
    about = np.flatnonzero(judged.target >= 0)
    about = about[~judged.found[judged.target[about]]]
    about = about[np.argsort(-judged.scores[about], kind="stable")]
    winners = np.zeros(len(judged.kind), bool)
    winners[about[np.unique(judged.target[about], return_index=True)[1]]] = True
    return winners


def _mean_ap(ids: np.ndarray, scores: np.ndarray, right: np.ndarray, wanted: np.ndarray, all_: np.ndarray) -> float:
    """Mean of AP at 101 recall points over the classes that have objects at all (all_, (K,) > 0); nan without any.

    wanted: (K,) objects to find. A class that has none left counts 0, or not at all if it has no detections either.
    """
    order = np.argsort(-scores, kind="stable")
    ids, right = ids[order], right[order]
    values = []
    for k in np.flatnonzero(all_):
        hits = right[ids == k]
        if wanted[k]:
            values.append(_ap(hits, int(wanted[k])))
        elif len(hits):
            values.append(0.0)
    return float(np.mean(values)) if values else float("nan")


def _ap(hits: np.ndarray, wanted: int) -> float:
    """Mean of the best precision at each of RECALL_POINTS or above; hits: (m,) bool by falling score."""
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(found / wanted, RECALL_POINTS)].mean())


def confusion(results: Results, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """How often an object of each class is found as each: (K + 1, K + 1) counts, rows objects, columns detections.

    The last row counts detections without an object, the last column objects without a detection. Detections whose
    score reaches the threshold (K,) of their class take, by falling score, the free object of any class that they
    overlap most (IoU >= 0.5). One that has only difficult objects does not count.
    """
    classes = len(results.class_names)
    truths = results.truths[np.isin(results.truths[:, 1], np.arange(classes))]
    detections = _in_order(results.detections, classes, thresholds)
    pairs = overlaps(detections, truths)
    hits = pairs.only(pairs.iou >= FOREGROUND_IOU)
    wanted = truths[:, 6] == 0
    owner = match(hits.only(wanted[hits.truth]), detections[:, 0], len(truths))
    difficult = hits.only(~wanted[hits.truth]).best(len(detections))[1] >= 0
    alone = (owner < 0) & ~difficult
    lost = wanted & ~_marked(owner, len(truths))
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (truths[owner[owner >= 0], 1].astype(int), detections[owner >= 0, 1].astype(int)), 1)
    np.add.at(matrix[classes], detections[alone, 1].astype(int), 1)
    np.add.at(matrix[:, classes], truths[lost, 1].astype(int), 1)
    return matrix
