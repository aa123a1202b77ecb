"""What scores say equals what loops over thresholds and bins say."""

import numpy as np
import pytest

from evaluate.error_types import IGNORED, RIGHT, judge
from evaluate.score_curves import BINS, NO_DETECTION, ScoreCurve, calibration, score_curves
from evaluate.voc_eval import VOCRule, voc_eval
from tests.evaluate.test_error_types import NAMES, made_up, one_image


def curves_of(results):
    return score_curves(results, voc_eval(results.detections, results.truths, NAMES, VOCRule()))


def rounded(results):
    """The same with scores of one digit: many are equal."""
    for image in results.images:
        image.found[:, 1] = np.round(image.found[:, 1], 1)
    return results


@pytest.mark.parametrize("seed", range(2))
def test_precision_and_recall_are_those_of_the_detections_that_are_left(seed):
    results = rounded(made_up(seed, difficult=0.1))
    for k, curve in enumerate(curves_of(results)):
        for score, precision, recall in zip(curve.scores, curve.precision, curve.recall, strict=True):
            left = results.detections[results.detections[:, 2] >= score]
            one = voc_eval(left, results.truths, NAMES, VOCRule()).classes[k]
            judged = one.true_positives + one.false_positives
            assert (precision, recall) == (one.true_positives / max(judged, 1), one.true_positives / one.npos)
        assert (np.diff(curve.scores) < 0).all()
        best = max(range(len(curve.scores)), key=lambda at: curve.f1[at])
        assert curve.best == (curve.scores[best], curve.precision[best], curve.recall[best], curve.f1[best])


def test_curves_are_read_at_any_score():
    curve = ScoreCurve("a", np.array([0.9, 0.5]), np.array([1.0, 0.5]), np.array([0.25, 0.5]))
    precision, recall, f1 = curve.at(np.array([1.0, 0.9, 0.6, 0.5, 0.0]))
    np.testing.assert_array_equal(precision, [np.nan, 1, 1, 0.5, 0.5])
    np.testing.assert_array_equal(recall, [0, 0.25, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(f1, [0, 0.4, 0.4, 0.5, 0.5])


def test_a_class_without_detections_or_objects_has_no_best_score():
    for results in (one_image([[0, 1, 1, 9, 9]], []), one_image([], [[0, 0.9, 1, 1, 9, 9]])):
        score, *others = curves_of(results)[0].best
        assert score == NO_DETECTION
        assert np.isnan(others).all()


def test_calibration_is_the_mean_gap_of_the_bins():
    judged = judge(made_up(3, difficult=0.2))
    counts = judged.kind != IGNORED
    scores, right = judged.scores[counts], judged.kind[counts] == RIGHT
    found = calibration(scores, right)
    gap = 0.0
    for k in range(BINS):
        inside = (scores >= k / BINS) & (scores < (k + 1) / BINS)
        assert found.counts[k] == inside.sum()
        gap += abs(scores[inside].sum() - right[inside].sum()) / len(scores)
    assert found.error == pytest.approx(gap)


def test_calibration_of_extremes():
    perfect = calibration([1.0, 1.0, 0.0], [True, True, False])
    assert (perfect.counts[0], perfect.counts[-1], perfect.error) == (1, 2, 0)
    assert np.isnan(calibration([], []).error)
