"""What a score says: precision, recall and F1 by score, the score where F1 is best, and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.detections import Results
from evaluate.voc_eval import VOCResult

BINS = 10  # of scores, as in figure 1 of Guo et al.
NO_DETECTION = 1.0  # the threshold of a class without detections


@dataclass(frozen=True)
class ScoreCurve:
    """What a class gives when detections below a score are left out.

    Attributes:
        name: of the class.
        scores: (m,) all different scores of its detections, falling.
        precision, recall: (m,) of the detections with that score or more; recall is nan without objects.
    """

    name: str
    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(m,) 2 P R / (P + R), 0 where both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / np.where(total > 0, total, 1)

    @property
    def best(self) -> tuple[float, float, float, float]:
        """(score, precision, recall, F1) where F1 is highest, the highest score of equals.

        Without detections or objects these are (NO_DETECTION, nan, nan, nan).
        """
        if not len(self.scores) or np.isnan(self.recall).any():
            return NO_DETECTION, float("nan"), float("nan"), float("nan")
        at = int(np.argmax(self.f1))
        precision, recall, f1 = float(self.precision[at]), float(self.recall[at]), float(self.f1[at])
        return float(self.scores[at]), precision, recall, f1

    def at(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(precision, recall, F1), each (s,), at these thresholds; above all detections nan, 0 and 0."""
        count = np.searchsorted(-self.scores, -scores, side="right")
        starts = ((np.nan, self.precision), (0.0, self.recall), (0.0, self.f1))
        precision, recall, f1 = (np.concatenate([[start], values])[count] for start, values in starts)
        return precision, recall, f1


def score_curves(results: Results, voc: VOCResult) -> list[ScoreCurve]:
    """The curve of each class by VOC's rule; voc: what voc_eval says of these results."""
    rows = results.detections[~np.isnan(results.detections[:, 2])]
    curves = []
    for k, one in enumerate(voc.classes):
        scores = -np.sort(-rows[rows[:, 1] == k, 2])
        last = np.flatnonzero(np.append(scores[:-1] != scores[1:], len(scores) > 0))  # equal scores stand together
        curves.append(ScoreCurve(one.name, scores[last], one.precision[last], one.recall[last]))
    return curves


@dataclass(frozen=True)
class Calibration:
    """Whether of detections with score 0.8 eight of ten are right (Guo, Pleiss, Sun and Weinberger, "On Calibration of
    Modern Neural Networks", ICML 2017, section 2).

    Attributes:
        counts: (BINS,) detections in equal ranges of the score.
        score, right: (BINS,) mean score and share of right ones; nan in an empty bin.
    """

    counts: np.ndarray
    score: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |right - score| over all detections; nan without any."""
        gaps = np.abs(np.nan_to_num(self.right) - np.nan_to_num(self.score))
        total = self.counts.sum()
        return float((gaps * self.counts).sum() / total) if total else float("nan")


def calibration(scores: np.ndarray | Sequence[float], right: np.ndarray | Sequence[bool]) -> Calibration:
    """Of detections with scores (n,) in [0, 1], which are clipped to that, and whether they are right (n,)."""
    scores = np.clip(np.asarray(scores, np.float64), 0, 1)
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, np.asarray(weights, np.float64), BINS) for weights in (scores, right))
    mean, share = (np.where(counts, one / np.maximum(counts, 1), np.nan) for one in sums)
    return Calibration(counts, mean, share)
