"""Which detections are right, matched once: what intervals, comparisons and thresholds are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluate.coco_metric import COCORule, judge
from evaluate.detections import COCO, Results, coco_rows, voc_rule
from evaluate.voc_eval import VOCRule, judge_class


@dataclass(frozen=True)
class ClassHits:
    """The detections of one class by falling score, and its objects.

    Attributes:
        unit: (n,) the image of each detection, or its group of images.
        score: (n,) falling.
        true, false: (T, n) bools, a row for each IoU threshold; a detection that does not count is neither.
        objects: (units,) objects to find.
    """

    unit: np.ndarray
    score: np.ndarray
    true: np.ndarray
    false: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class Hits:
    """The detections of all classes, judged.

    Attributes:
        kind: of config.groups.METRICS: how precision and recall become AP.
        class_names: K names.
        classes: K ClassHits.
        iou_thresholds: T values.
        images: (units,) how many images each unit has, 1 if images are the units.
    """

    kind: str
    class_names: tuple[str, ...]
    classes: tuple[ClassHits, ...]
    iou_thresholds: tuple[float, ...]
    images: np.ndarray

    def grouped(self, group: np.ndarray) -> "Hits":
        """With groups of units in place of units; group (units,) numbers each one's from 0."""
        size = int(group.max(initial=-1)) + 1
        classes = tuple(
            replace(one, unit=group[one.unit], objects=_summed(group, one.objects, size)) for one in self.classes
        )
        return replace(self, classes=classes, images=_summed(group, self.images, size))


def hits_of(results: Results, kind: str, overlap: float = 0.5, use_difficult: bool = False) -> Hits:
    """The hits of a set by the rule of a kind of metric, as evaluate.detections.measure applies it."""
    count, names = len(results.images), results.class_names
    if kind == COCO:
        return coco_hits(*coco_rows(results.detections, results.truths, use_difficult), names, count)
    rule = voc_rule(kind, overlap, use_difficult)
    return voc_hits(kind, results.detections, results.truths, names, rule, count)


def voc_hits(
    kind: str, detections: np.ndarray, truths: np.ndarray, class_names: Sequence[str], rule: VOCRule, images: int
) -> Hits:
    """Hits by VOC's rule: rows as voc_eval takes them, of images 0 to images - 1, also those without any row."""
    detections = np.asarray(detections, np.float64)
    detections = detections[~np.isnan(detections[:, 2])]
    truths = np.asarray(truths, np.float64)
    classes = []
    for index in range(len(class_names)):
        own, there = detections[detections[:, 1] == index], truths[truths[:, 1] == index]
        order, true, false, _ = judge_class(own, there, rule)
        wanted = there if rule.use_difficult else there[there[:, 6] <= 0]
        objects = np.bincount(wanted[:, 0].astype(np.int64), minlength=images)
        unit, score = own[order, 0].astype(np.int64), own[order, 2]
        classes.append(ClassHits(unit, score, true[None], false[None], objects))
    return Hits(kind, tuple(class_names), tuple(classes), (rule.iou_threshold,), np.ones(images))


def coco_hits(
    detections: np.ndarray, truths: np.ndarray, class_names: Sequence[str], images: int, rule: COCORule | None = None
) -> Hits:
    """Hits by COCO's rule in all areas: rows as coco_eval takes them, of images 0 to images - 1."""
    rule = rule or COCORule()
    judged = judge(detections, truths, class_names, rule)
    found, truth = judged.detections, judged.truths[~judged.ignored[0]]
    bounds = np.searchsorted(found[:, 1], np.arange(len(class_names) + 1))
    classes = []
    for index, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        rows = begin + np.argsort(-found[begin:end, 2], kind="stable")
        objects = np.bincount(truth[truth[:, 1] == index, 0].astype(np.int64), minlength=images)
        true, false = judged.true[0][:, rows], judged.false[0][:, rows]
        classes.append(ClassHits(found[rows, 0].astype(np.int64), found[rows, 2], true, false, objects))
    return Hits(COCO, tuple(class_names), tuple(classes), tuple(rule.iou_thresholds), np.ones(images))


def _summed(group: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=size).astype(values.dtype)
