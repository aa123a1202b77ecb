"""Intervals and differences of AP: weighted AP beside sets with images repeated, coverage, and two models."""

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import BenchmarkOptions, coverage
from benchmarks.populations import COCO_LEVELS, POPULATIONS, draw_hits
from evaluate.coco_metric import coco_eval
from evaluate.hits import coco_hits, voc_hits
from evaluate.intervals import differences, draw_counts, draw_values, intervals, weighted_ap
from evaluate.voc_eval import VOCRule, voc_eval
from tests.evaluate.coco_cases import random_set

IMAGES, CLASSES = 12, ("0", "1", "2")
EXACT = 1e-12


def untied_set(seed):
    """(detections (n, 7), truths (g, 8)) as coco_eval takes them, without equal scores."""
    found, truths = random_set(seed, IMAGES, len(CLASSES), 6, 40)
    found[:, 2] = np.random.default_rng(seed).permutation(len(found)) / len(found)
    return found, truths


def as_corners(found, truths):
    """The same set as voc_eval takes it."""
    found, truths = found.copy(), truths[:, [0, 1, 2, 3, 4, 5, 7]]
    found[:, 5:7] += found[:, 3:5]
    truths[:, 4:6] += truths[:, 2:4]
    return found, truths


def repeated(rows, counts):
    """Rows of a set in which each image stands as often as counts say."""
    images = np.repeat(np.arange(len(counts)), counts.astype(int))
    parts = [np.empty((0, rows.shape[1])), *(rows[rows[:, 0] == image] for image in images)]
    numbers = np.repeat(np.arange(len(images)), [len(part) for part in parts[1:]])
    return np.column_stack([numbers, np.concatenate(parts)[:, 1:]])


def counts_with_the_set_itself(draws=5):
    return np.concatenate([np.ones((1, IMAGES)), draw_counts(IMAGES, draws, 3)])


@pytest.mark.parametrize("seed", [5, 6])
def test_ap_of_a_draw_is_that_of_the_set_with_images_repeated_by_coco(seed):
    found, truths = untied_set(seed)
    counts = counts_with_the_set_itself()
    values = weighted_ap(coco_hits(found, truths, CLASSES, IMAGES), counts)
    for k, row in enumerate(counts):
        expected = coco_eval(repeated(found, row), repeated(truths, row), CLASSES).precision[0].mean(axis=-1)
        np.testing.assert_allclose(values[:, :, k], expected.T, atol=EXACT)


@pytest.mark.parametrize("kind", ["voc07", "voc"])
def test_ap_of_a_draw_is_that_of_the_set_with_images_repeated_by_voc(kind):
    found, truths = as_corners(*untied_set(5))
    rule = VOCRule(use_07_metric=kind == "voc07")
    counts = counts_with_the_set_itself()
    values = weighted_ap(voc_hits(kind, found, truths, CLASSES, rule, IMAGES), counts)
    for k, row in enumerate(counts):
        expected = voc_eval(repeated(found, row), repeated(truths, row), CLASSES, rule)
        np.testing.assert_allclose(values[:, 0, k], [one.ap for one in expected.classes], atol=EXACT)


def test_groups_are_drawn_whole():
    """Each image four times, in groups: as certain as the images alone; taken for so many images, twice as certain."""
    hits = draw_hits(POPULATIONS["clustered"], 60, np.random.default_rng(0))
    one = hits.classes[0]
    unit = np.repeat(one.unit, 4) * 4 + np.tile(np.arange(4), len(one.unit))
    copied = type(one)(
        unit, *(np.repeat(part, 4, axis=-1) for part in (one.score, one.true, one.false)), np.repeat(one.objects, 4)
    )
    many = type(hits)(hits.kind, hits.class_names, (copied,), hits.iou_thresholds, np.ones(240))
    grouped = many.grouped(np.arange(240) // 4)
    alone, together, wrong = (intervals(draw_values(part, 400))["mAP"] for part in (hits, grouped, many))
    np.testing.assert_array_equal(grouped.images, np.full(60, 4))
    assert together.value == pytest.approx(alone.value)
    assert together.error == pytest.approx(alone.error)
    assert wrong.error == pytest.approx(alone.error / 2, rel=0.2)


def test_no_objects_and_one_image_give_no_interval():
    truths = np.array([[0, 0, 0, 0, 10, 10, 0.0]])
    hits = voc_hits("voc", np.empty((0, 7)), truths, ("a", "b"), VOCRule(), 1)
    found = intervals(draw_values(hits, 50))
    assert (found["a"].value, math.isnan(found["a"].low)) == (0.0, True)
    assert math.isnan(found["b"].value)
    assert math.isnan(found["b"].low)


def test_the_interval_stays_between_0_and_1_and_holds_the_value():
    hits = draw_hits(POPULATIONS["cells"], 15, np.random.default_rng(2))
    found = intervals(draw_values(hits, 200))
    assert 0 < found["mAP"].low < found["mAP"].value < found["mAP"].high < 1
    assert found["class0"].value == 1
    assert math.isnan(found["class0"].low), "every draw has AP 1"


def test_a_model_beside_itself_does_not_differ():
    hits = draw_hits(POPULATIONS["clustered"], 30, np.random.default_rng(0), COCO_LEVELS)
    draws = draw_values(hits, 50)
    for one in differences(draws, draw_values(hits, 50)).values():
        assert (one.interval.low, one.interval.value, one.interval.high) == (0, 0, 0)
        assert one.same
        assert not one.told


def test_the_same_seed_gives_the_same_draws():
    hits = draw_hits(POPULATIONS["clustered"], 30, np.random.default_rng(0))
    np.testing.assert_array_equal(draw_values(hits, 20).values["mAP"], draw_values(hits, 20).values["mAP"])


def test_a_better_model_is_told_where_pairs_tell_it():
    """B has every detection of A and some that A misses: the difference is surer than either value."""
    rng = np.random.default_rng(1)
    hits = draw_hits(POPULATIONS["clustered"], 150, rng)
    one = hits.classes[0]
    kept = ~one.true[0] | (rng.random(len(one.unit)) < 0.9)
    worse = type(one)(one.unit[kept], one.score[kept], one.true[:, kept], one.false[:, kept], one.objects)
    first = draw_values(type(hits)(hits.kind, hits.class_names, (worse,), hits.iou_thresholds, hits.images), 200)
    found = differences(first, draw_values(hits, 200))["mAP"]
    assert found.told
    assert found.interval.low > 0
    assert found.interval.error < intervals(first)["mAP"].error
    assert found.needed < 10000


def test_intervals_hold_the_truth():
    """A small version of benchmarks/interval_coverage.py: 4 standard deviations below 95 %."""
    options = BenchmarkOptions(draws=60, bootstrap=100)
    rng = np.random.default_rng(0)
    population = POPULATIONS["cells"]
    truth = float(draw_values(draw_hits(population, 20000, rng), 0).values["mAP"][0])
    covered = float(coverage(population, "voc", 40, truth, options, rng)[1])
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / options.draws)
