"""The numbers of a report, each made once, of the detections and objects of a set.

docs/evaluation.md has the definition of each number and its source.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from evaluate.coco_metric import COCOResult, coco_eval
from evaluate.detections import Results, coco_rows
from evaluate.error_types import IGNORED, RIGHT, ErrorCosts, Judged, confusion, error_costs, judge
from evaluate.label_errors import KINDS, Suspect, find_suspects
from evaluate.score_curves import Calibration, ScoreCurve, calibration, score_curves
from evaluate.voc_eval import VOCResult, VOCRule, voc_eval

SIZES = ("small", "medium", "large")
Interval = tuple[float, float]
Intervals = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Findings:
    """All numbers of a report, each made once.

    overlap: IoU of VOC's rule; intervals: {kind of metric (config.groups.METRICS): {class or mean: 95 % interval}}, as
    far as they are known.
    """

    results: Results
    overlap: float = 0.5
    intervals: Intervals = field(default_factory=dict)

    def interval(self, kind: str, name: str) -> Interval | None:
        """The interval of a number, None where it is not known (nan)."""
        ends = self.intervals.get(kind, {}).get(name)
        return None if ends is None or any(math.isnan(end) for end in ends) else ends

    def _voc(self, use_07_metric: bool) -> VOCResult:
        rule = VOCRule(self.overlap, use_07_metric)
        return voc_eval(self.results.detections, self.results.truths, self.results.class_names, rule)

    @cached_property
    def voc(self) -> VOCResult:
        """By the area under the curve."""
        return self._voc(False)

    @cached_property
    def voc07(self) -> VOCResult:
        """By eleven points."""
        return self._voc(True)

    @cached_property
    def coco(self) -> COCOResult:
        """COCO's numbers."""
        return coco_eval(*coco_rows(self.results.detections, self.results.truths), self.results.class_names)

    @cached_property
    def curves(self) -> list[ScoreCurve]:
        """What each class gives by score."""
        return score_curves(self.results, self.voc)

    @cached_property
    def thresholds(self) -> list[float]:
        """(K,) the score of the best F1 of each class."""
        return [one.best[0] for one in self.curves]

    @cached_property
    def judged(self) -> Judged:
        """All detections."""
        return judge(self.results)

    @cached_property
    def shown(self) -> Judged:
        """Detections at the thresholds and above."""
        return judge(self.results, self.thresholds)

    @cached_property
    def costs(self) -> ErrorCosts:
        """What errors cost."""
        return error_costs(self.judged)

    @cached_property
    def confusions(self) -> np.ndarray:
        """(K + 1, K + 1) at the thresholds."""
        return confusion(self.results, self.thresholds)

    @cached_property
    def calibrations(self) -> tuple[Calibration, Calibration]:
        """Of all detections, and of those at the thresholds and above."""
        both = []
        for judged in (self.judged, self.shown):
            counts = judged.kind != IGNORED
            both.append(calibration(judged.scores[counts], judged.kind[counts] == RIGHT))
        return both[0], both[1]

    @cached_property
    def suspects(self) -> list[Suspect]:
        """Likely label errors."""
        return find_suspects(self.judged, self.thresholds)


def numbers_of(findings: Findings) -> dict[str, Any]:
    """What report.json tells: the numbers of the page; None where there is nothing to find."""
    all_scores, shown = findings.calibrations
    return {
        "images": len(findings.results.images),
        "objects": sum(one.npos for one in findings.voc.classes),
        "detections": len(findings.results.detections),
        "iou_threshold": findings.overlap,
        "mAP": _number(findings.voc.mean_ap),
        "mAP_voc07": _number(findings.voc07.mean_ap),
        "coco": {name: _number(value) for name, value in findings.coco.stats.items()},
        "classes": {row["name"]: _numbers(row) for row in class_rows(findings)},
        "errors": {
            "AP": _number(findings.costs.ap),
            "lost": {name: _number(value) for name, value in findings.costs.lost.items()},
            "counts": findings.judged.counts(),
            "counts_at_thresholds": findings.shown.counts(),
        },
        "confusions": findings.confusions.tolist(),
        "calibration": {"all": _number(all_scores.error), "at_thresholds": _number(shown.error)},
        "label_errors": {kind: sum(one.kind == kind for one in findings.suspects) for kind in KINDS},
        "intervals": {
            kind: {name: [_number(end) for end in ends] for name, ends in some.items()}
            for kind, some in findings.intervals.items()
        },
    }


def class_rows(findings: Findings) -> Iterator[dict[str, Any]]:
    """A row of the table for each class."""
    precision = findings.coco.precision
    for k, (one, old, curve) in enumerate(
        zip(findings.voc.classes, findings.voc07.classes, findings.curves, strict=True)
    ):
        sizes = {name: _mean(precision[area, :, k]) for area, name in enumerate(SIZES, 1)}
        score, *best = curve.best
        yield {
            "name": one.name,
            "objects": one.npos,
            "detections": one.num_detections,
            "AP": one.ap,
            "AP VOC07": old.ap,
            "COCO AP": findings.coco.class_ap[one.name],
            **sizes,
            **dict(zip(("score", "P", "R", "F1"), (score if one.num_detections else math.nan, *best), strict=True)),
        }


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in row.items() if name != "name"}


def _number(value: float) -> float | None:
    return None if value != value else value
