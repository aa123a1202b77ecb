"""COCO AP against pycocotools on random sets with ties, crowds, ignored areas and too many detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate import voc_eval
from evaluate.coco_metric import STAT_NAMES, COCORule, coco_eval
from evaluate.detections import frames_of, to_image_pixels
from evaluate.eval_metric import COCOMetric, ValidationMetric
from machine.runtime import mx
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
    monkeypatch.setattr(voc_eval, "PAIRS_AT_ONCE", 7)
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


INPUT = (64, 128)
# Rows of a batch's geometry: one image is stretched to the input, the other shrunk and put into its middle.
GEOMETRY = np.array([[100, 50, 0.64, 2.56, 0, 0], [400, 400, 0.16, 0.16, 0, 32]], np.float32)


def one_object(box, image, difficult=0, score=None):
    """A batch of two images with one row in one of them: a label, or a detection if there is a score."""
    rows = np.full((2, 1, 6), -1, np.float32)
    rows[image, 0] = [0, *box, difficult] if score is None else [0, score, *box]
    return rows


def values(metric):
    return dict(zip(*metric.get(), strict=True))


def test_frames_lead_back_to_the_pixels_of_the_image():
    boxes = np.array([[0.5, 0.25, 1.0, 1.5], [0.25, 0.0, 0.75, 0.5]])
    found = to_image_pixels(boxes, frames_of(GEOMETRY, INPUT))
    np.testing.assert_allclose(found, [[25, 25, 50, 100], [0, 0, 400, 200]], rtol=1e-6)


def test_areas_are_those_in_the_original_image():
    """The same part of the input is 12.5 x 50 pixels of one image and 200 x 200 of the other."""
    for image, size in ((0, "APs"), (1, "APl")):
        metric = COCOMetric(CLASSES)
        box = (0.375, 0, 0.625, 0.5)
        batch = one_object(box, image), one_object(box, image, score=0.9)
        metric.update([batch[0], frames_of(GEOMETRY, INPUT)], [batch[1]])
        found = values(metric)
        assert {name for name in ("APs", "APm", "APl") if not np.isnan(found[name])} == {size}
        assert (found["AP"], found[size]) == (pytest.approx(1), pytest.approx(1))


def test_without_frames_the_areas_are_those_of_the_image_size_or_unknown():
    truths, found = one_object((0, 0, 0.1, 0.1), 0), one_object((0, 0, 0.1, 0.087), 0, score=0.9)
    known, unknown = COCOMetric(CLASSES, image_size=(200, 100)), COCOMetric(CLASSES)
    for metric in (known, unknown):
        metric.update([mx.nd.array(truths)], [mx.nd.array(found)])
    assert values(known)["APs"] == values(known)["AP"] == values(unknown)["AP"] == pytest.approx(0.8)
    assert np.isnan([values(unknown)[name] for name in ("APs", "APm", "APl", "ARs", "ARm", "ARl")]).all()


def test_difficult_objects_neither_count_nor_harm():
    truths = np.concatenate([one_object((0, 0, 0.5, 0.5), 0, difficult=1), one_object((0.5, 0.5, 1, 1), 0)], axis=1)
    hits = [one_object((0, 0, 0.5, 0.5), 0, score=score) for score in (0.9, 0.8)]
    found = np.concatenate([*hits, one_object((0.5, 0.5, 1, 1), 0, score=0.1)], axis=1)
    for use_difficult, expected in ((False, 1.0), (True, (51 + 50 * 2 / 3) / 101)):
        metric = COCOMetric(CLASSES, use_difficult)
        metric.update(truths, found)
        assert values(metric)["AP"] == pytest.approx(expected)


def test_windows_of_several_metrics():
    """get covers what came since reset_local, get_global everything; a created copy has the same settings."""
    metric = ValidationMetric(("voc", "voc07", "coco"), CLASSES)
    box = (0, 0, 0.5, 0.5)
    metric.update([one_object(box, 0)], [one_object(box, 1, score=0.9)])
    metric.reset_local()
    metric.update([one_object(box, 0)], [one_object(box, 0, score=0.8)])
    names = [*CLASSES, "mAP", "mAP_voc07", *STAT_NAMES]
    assert metric.get()[0] == metric.get_global()[0] == names
    local, everything = values(metric), dict(metric.get_global_name_value())
    assert (local["mAP"], local["mAP_voc07"], local["AP"]) == (1, pytest.approx(1), pytest.approx(1))
    assert (everything["mAP"], everything["AP50"]) == (0.25, pytest.approx(51 / 2 / 101))
    metric.reset()
    assert np.isnan(metric.get()[1]).all()
    copy = mx.metric.create(**COCOMetric(CLASSES, image_size=(3, 4)).get_config())
    assert (copy.class_names, copy.image_size) == (list(CLASSES), (3, 4))
