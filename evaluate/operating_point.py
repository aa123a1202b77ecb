"""Precision and recall of a detector at its best threshold."""

import numpy as np

from evaluate.voc_eval import ClassResult, VOCResult


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
