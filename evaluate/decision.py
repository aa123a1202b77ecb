"""Numbers of a decision that detections lead to: whole images that are missed or raised by mistake, counts, FROC.

A detection is right as VOC's rule has it (evaluate/voc_eval.py), and one on a difficult object counts for nothing.
docs/evaluation.md has the definitions and their sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.detections import Results
from evaluate.voc_eval import VOCResult, VOCRule, judge_class, voc_eval

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives an image where FROC is read
NORMAL_95 = 1.96  # standard deviations of the limits of agreement
_NAN = float("nan")


@dataclass(frozen=True)
class Judged:
    """The detections of one class, by falling score.

    Attributes:
        image, score: (n,) of each.
        true, false: (n,) bool; neither on a difficult object.
        objects: (images,) how many there are to find in each image.
        difficult: (images,) bool, whether an image has objects that do not count.
    """

    image: np.ndarray
    score: np.ndarray
    true: np.ndarray
    false: np.ndarray
    objects: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Decision:
    """The numbers of one class, or of all together, at one threshold of each class.

    Attributes:
        with_objects, escaped, incomplete: images with objects to find, those in which none of them is found, and those
            in which not all are.
        without, rejected: images without objects, and those of them with a detection.
        bias, spread: mean and standard deviation (n - 1) over images of detections less objects.
        sensitivity: share of the objects found at each of RATES false positives an image, whatever the threshold.
    """

    with_objects: int
    escaped: int
    incomplete: int
    without: int
    rejected: int
    bias: float
    spread: float
    sensitivity: tuple[float, ...]

    @property
    def escape_rate(self) -> float:
        """Share of the images with objects in which none is found; nan without such images."""
        return self.escaped / self.with_objects if self.with_objects else _NAN

    @property
    def incomplete_rate(self) -> float:
        """Share of the images with objects in which one is missed at least; nan without such images."""
        return self.incomplete / self.with_objects if self.with_objects else _NAN

    @property
    def false_reject_rate(self) -> float:
        """Share of the images without objects that have a detection; nan without such images."""
        return self.rejected / self.without if self.without else _NAN

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of agreement of the counts: 95 % of the images lie between them, if differences are normal."""
        return self.bias - NORMAL_95 * self.spread, self.bias + NORMAL_95 * self.spread

    @property
    def froc(self) -> float:
        """The mean sensitivity over RATES."""
        return float(np.mean(self.sensitivity))


def judged(results: Results, overlap: float = 0.5, use_difficult: bool = False) -> tuple[Judged, ...]:
    """The detections of each class, judged at an IoU above `overlap`; one with a score of NaN is left out."""
    rule, images = VOCRule(iou_threshold=overlap, use_difficult=use_difficult), len(results.images)
    detections, truths = results.detections, results.truths
    detections = detections[~np.isnan(detections[:, 2])]
    classes = []
    for k in range(len(results.class_names)):
        found, there = detections[detections[:, 1] == k], truths[truths[:, 1] == k]
        order, true, false, _ = judge_class(found, there, rule)
        counted = np.full(len(there), use_difficult) | (there[:, 6] == 0)
        image, owner = found[order, 0].astype(np.int64), there[:, 0].astype(np.int64)
        objects = np.bincount(owner[counted], minlength=images)
        difficult = np.bincount(owner[~counted], minlength=images) > 0
        classes.append(Judged(image, found[order, 2], true, false, objects, difficult))
    return tuple(classes)


def decisions(
    results: Results, thresholds: float | Mapping[str, float], overlap: float = 0.5, use_difficult: bool = False
) -> dict[str, Decision]:
    """{class: its numbers}, and under "" those of all classes together.

    thresholds: lowest score that counts, of all classes or of each by name. Together: an image has escaped if nothing
    is found of all its objects, and is rejected if it has no object at all and any detection; counts are sums.
    """
    classes = judged(results, overlap, use_difficult)
    names = results.class_names
    limits = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(names, thresholds)
    found = [_counts(one, limits[name]) for one, name in zip(classes, names, strict=True)]
    numbers = {name: _decision([one], [counts]) for name, one, counts in zip(names, classes, found, strict=True)}
    return {**numbers, "": _decision(classes, found)}


def _counts(one: Judged, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(true, false) (images,) positives of each image at a threshold."""
    shown, images = one.score >= threshold, len(one.objects)
    true, false = (np.bincount(one.image[shown & hit], minlength=images) for hit in (one.true, one.false))
    return true, false


def _decision(classes: Sequence[Judged], counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Decision:
    objects = np.sum([one.objects for one in classes], axis=0)
    difficult = np.any([one.difficult for one in classes], axis=0)
    true, false = (np.sum(parts, axis=0) for parts in zip(*counts, strict=True))
    there, without = objects > 0, (objects == 0) & ~difficult
    differences = true + false - objects
    return Decision(
        with_objects=int(there.sum()),
        escaped=int((there & (true == 0)).sum()),
        incomplete=int((there & (true < objects)).sum()),
        without=int(without.sum()),
        rejected=int((without & (false > 0)).sum()),
        bias=float(differences.mean()) if len(differences) else _NAN,
        spread=float(differences.std(ddof=1)) if len(differences) > 1 else _NAN,
        sensitivity=tuple(_sensitivity(classes, int(objects.sum()), len(objects)).tolist()),
    )


def _sensitivity(classes: Sequence[Judged], objects: int, images: int) -> np.ndarray:
    """(RATES,) the largest share of the objects that is found with at most so many false positives an image.

    One threshold for all the classes; detections of one score are shown together.
    """
    if not objects:
        return np.full(len(RATES), _NAN)
    score, true, false = (np.concatenate([getattr(one, key) for one in classes]) for key in ("score", "true", "false"))
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True) if len(order) else np.zeros(0, bool)
    shares = np.append(0.0, np.cumsum(true[order])[last] / objects)
    alarms = np.append(0.0, np.cumsum(false[order])[last] / images)
    return shares[np.searchsorted(alarms, RATES, side="right") - 1]


def ap_at(
    results: Results, overlaps: Sequence[float], use_07_metric: bool = False, use_difficult: bool = False
) -> dict[float, VOCResult]:
    """VOC's AP at each of these IoUs."""
    return {
        overlap: voc_eval(
            results.detections, results.truths, results.class_names, VOCRule(overlap, use_07_metric, use_difficult)
        )
        for overlap in overlaps
    }
