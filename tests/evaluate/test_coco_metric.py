"""COCO AP against pycocotools on random sets with ties, crowds, ignored areas and too many detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate import pairing
from evaluate.coco_metric import STAT_NAMES, COCORule, coco_eval
from tests.evaluate.coco_cases import annotation_file, pycocotools_stats, random_set, results

EXACT = 1e-9
CLASSES = ("0", "1", "2")


def stats(detections, truths, rule=None, names=CLASSES):
    return np.array(list(coco_eval(detections, truths, names, rule).stats.values()))


def same_as_pycocotools(detections, truths, images, use_classes=True):
    pytest.importorskip("pycocotools")
    expected = pycocotools_stats(annotation_file(truths, images, len(CLASSES)), results(detections), use_classes)
    found = stats(detections, truths, COCORule(use_classes=use_classes))
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    most=st.integers(0, 8),
    detections=st.integers(0, 30),
    use_classes=st.booleans(),
)
def test_random_sets(seed, images, most, detections, use_classes):
    same_as_pycocotools(*random_set(seed, images, len(CLASSES), most, detections), images, use_classes)


@pytest.mark.parametrize("use_classes", [True, False])
def test_more_than_100_detections_in_an_image(use_classes):
    same_as_pycocotools(*random_set(3, 2, 1, 40, 400), 2, use_classes)


def test_pairs_in_several_portions(monkeypatch):
    sets = random_set(5)
    whole = stats(*sets)
    monkeypatch.setattr(pairing, "PAIRS_AT_ONCE", 7)
    np.testing.assert_array_equal(stats(*sets), whole)


BOX = [0, 0, 10, 10]


def truth(image=0, crowd=0, box=BOX, area=None):
    return [image, 0, *box, box[2] * box[3] if area is None else area, crowd]


def test_nothing_to_find_is_nan_and_nothing_found_is_0():
    assert np.isnan(stats(np.array([[0, 0, 0.9, *BOX]]), np.empty((0, 8)))).all()
    missed = dict(zip(STAT_NAMES, stats(np.empty((0, 7)), np.array([truth()])), strict=True))
    assert (missed["AP"], missed["AR100"], missed["APs"]) == (0, 0, 0)
    assert np.isnan([missed["APm"], missed["APl"]]).all()


def test_crowds_take_any_number_of_detections():
    """Half of the detection in the crowd is enough, although their IoU is small."""
    inside = [[0, 0, score, 1, 1, 5, 5] for score in (0.9, 0.8, 0.7)]
    found = np.array([*inside, [0, 0, 0.6, 50, 50, 10, 10]])
    both = np.array([truth(crowd=1, box=[0, 0, 40, 40]), truth(box=[50, 50, 10, 10])])
    assert stats(found, both)[0] == pytest.approx(1)


def test_a_nan_score_another_class_and_an_infinite_box():
    found = np.array([[0, 0, np.nan, *BOX], [0, 7, 0.9, *BOX], [0, 0, 0.8, *BOX], [0, 0, 0.1, 0, 0, np.inf, 1]])
    assert stats(found, np.array([truth(), [0, 9, *BOX, 100, 0]]))[0] == pytest.approx(1)


def test_an_area_that_is_not_known_counts_in_all_alone():
    found = dict(zip(STAT_NAMES, stats(np.array([[0, 0, 0.8, *BOX]]), np.array([truth(area=np.nan)])), strict=True))
    assert found["AP"] == pytest.approx(1)
    assert np.isnan([found["APs"], found["APm"], found["APl"]]).all()


def test_values_by_class():
    found = coco_eval(np.array([[0, 0, 0.8, *BOX]]), np.array([truth(), [0, 1, *BOX, 100, 0]]), CLASSES)
    assert found.class_ap == pytest.approx({"0": 1.0, "1": 0.0, "2": np.nan}, nan_ok=True)
