"""Thresholds that keep a requirement: its text, its bounds, and that the promise holds on simulated populations."""

import math

import numpy as np
import pytest

from benchmarks.populations import POPULATIONS
from benchmarks.threshold_coverage import requirements_of, simulate
from common.errors import OptionError
from evaluate.bounds import Evidence, binomial_tail, refuted, units_needed
from evaluate.hits import ClassHits, Hits
from evaluate.thresholds import GRID, choose, counts_of, parse_requirement, sentences, try_requirement

NAMES = ("RBC", "WBC")


def hits_of_images(scores, missed=0, false=()):
    """One class: an image with one object for each score, so many images whose object is missed, and false
    detections of these scores, one in each of the first images."""
    units = len(scores) + missed
    unit = np.concatenate([np.arange(len(scores)), np.arange(len(false))]).astype(int)
    score = np.concatenate([scores, false])
    right = np.arange(len(unit)) < len(scores)
    order = np.argsort(-score, kind="stable")
    true = right[order][None]
    one = ClassHits(unit[order], score[order], true, ~true, np.ones(units, int))
    return Hits("voc", ("WBC",), (one,), (0.5,), np.ones(units))


@pytest.mark.parametrize(
    ("text", "measure", "scope", "target"),
    [
        ("recall(WBC) >= 0.98 @ 95%", "recall", "WBC", 0.98),
        ("precision>=0.9@95%", "precision", "", 0.9),
        ("precision(each) >= .9 @ 95 %", "precision", "each", 0.9),
        ("false alarms per image <= 0.1 @ 95%", "false alarms", "", 0.1),
        ("false alarms(RBC) per image <= 2 @ 95%", "false alarms", "RBC", 2.0),
        ("false alarms per image (RBC) <= 2 @ 95%", "false alarms", "RBC", 2.0),
    ],
)
def test_a_requirement_is_read(text, measure, scope, target):
    found = parse_requirement(text, NAMES)
    assert (found.measure, found.scope, found.target, found.confidence) == (measure, scope, target, 0.95)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("recall > 0.9", "write 'recall"),
        ("recall(WCB) >= 0.9 @ 95%", "did you mean WBC"),
        ("recall <= 0.9 @ 95%", "other side"),
        ("recall >= 1 @ 95%", "between 0 and 1"),
        ("false alarms per image <= 0 @ 95%", "above 0"),
        ("recall >= 0.9 @ 100%", "confidence"),
        ("recall >= 0.9.1 @ 95%", "no number"),
    ],
)
def test_what_is_no_requirement_is_refused(text, part):
    with pytest.raises(OptionError, match=part):
        parse_requirement(text, NAMES)


def test_counts_are_those_of_comparing_scores_as_float32():
    scores = np.float32([0.29, 0.3, 0.5, 0.999]).astype(np.float64)
    counts = counts_of(hits_of_images(scores, missed=1, false=np.float64([0.4])), [0])
    for place, threshold in enumerate(GRID):
        assert counts.true[:, place].sum() == (scores.astype(np.float32) >= np.float32(threshold)).sum()
        assert counts.false[:, place].sum() == (threshold <= 0.4)
    assert counts.objects.sum() == 5


def test_objects_without_a_miss_are_bounded_as_by_the_binomial_distribution():
    """0.98 ** 149 < 0.05 < 0.98 ** 148: the rule of three."""
    requirement = parse_requirement("recall(WBC) >= 0.98 @ 95%", ("WBC",))
    assert try_requirement(requirement, hits_of_images(np.full(149, np.float32(0.8))))[0].kept.sum() == 80
    one = try_requirement(requirement, hits_of_images(np.full(148, np.float32(0.8))))[0]
    assert not one.kept.any()
    assert one.needed == pytest.approx(math.log(0.05) / math.log(0.98))


def test_the_sentence_says_what_the_images_show():
    requirement = parse_requirement("recall(WBC) >= 0.98 @ 95%", ("WBC",))
    choice = choose(hits_of_images(np.full(72, np.float32(0.8))), [requirement])
    assert choice.thresholds == {"WBC": None}
    assert "72 images cannot show it" in sentences(choice)[0]
    assert "about 150 like these would" in sentences(choice)[0]
    failing = choose(hits_of_images(np.full(72, np.float32(0.8)), missed=20), [requirement])
    assert "the model does not keep it on these 92 images: at best 0.7826" in sentences(failing)[0]
    shown = choose(hits_of_images(np.full(200, np.float32(0.8))), [requirement])
    assert shown.thresholds == {"WBC": 0.8}
    assert "0.80 is chosen, with 1 on these 200 images" in sentences(shown)[0]


def test_two_requirements_share_a_threshold_or_say_that_none_does():
    hits = hits_of_images(np.linspace(0.5, 0.9, 300), false=np.linspace(0.1, 0.4, 200))
    both = ["recall >= 0.9 @ 95%", "precision >= 0.9 @ 95%"]
    found = choose(hits, [parse_requirement(text, ("WBC",)) for text in both])
    assert 0.3 < found.thresholds["WBC"] < 0.55
    wrong = hits_of_images(np.linspace(0.1, 0.4, 300), false=np.linspace(0.35, 0.5, 100))
    against = ["recall >= 0.9 @ 95%", "false alarms per image <= 0.1 @ 95%"]
    none = choose(wrong, [parse_requirement(text, ("WBC",)) for text in against])
    assert none.thresholds == {"WBC": None}
    assert "by none that holds the other" in sentences(none)[0]


def test_without_a_requirement_the_best_f1_is_chosen():
    hits = hits_of_images(np.float32([0.9, 0.8, 0.7]), false=np.float32([0.6, 0.2]))
    assert choose(hits, []).thresholds == {"WBC": 0.7}


def test_each_class_shares_the_error():
    one = hits_of_images(np.full(149, np.float32(0.8)))
    two = Hits("voc", NAMES, one.classes * 2, (0.5,), one.images)
    each = parse_requirement("recall(each) >= 0.98 @ 95%", NAMES)
    assert not any(test.kept.any() for test in try_requirement(each, two))
    assert choose(two, [parse_requirement("recall(WBC) >= 0.98 @ 95%", NAMES)]).thresholds["WBC"] == 0.8


def test_binomial_tail():
    assert binomial_tail(0, 10, 0.1) == pytest.approx(0.9**10)
    assert binomial_tail(2, 5, 0.5) == pytest.approx(0.5)
    assert binomial_tail(5, 5, 0.5) == 1


def test_misses_that_come_together_need_more_images():
    """The same recall: one object in each image, or ten in each tenth of them."""
    alone = Evidence(np.ones((300, 1)), np.zeros((300, 1)), 0.05, np.array([0.95]))
    together = Evidence(np.full((30, 1), 10.0), np.zeros((30, 1)), 0.05, np.array([9.5]))
    assert refuted(alone, 0.05).all()
    assert not refuted(together, 0.05).any()
    assert units_needed(together, 0.05) > 30
    assert units_needed(Evidence(np.ones((9, 1)), np.ones((9, 1)), 0.05, np.array([0.95])), 0.05) == math.inf


@pytest.mark.parametrize("name", ["clustered", "drifting mix"])
def test_the_promise_is_kept(name):
    """A small version of benchmarks/threshold_coverage.py."""
    rng = np.random.default_rng(0)
    draws, most = 40, 0.05
    for requirement, truth in requirements_of(POPULATIONS[name], 20000, 1 - most, rng):
        outcome = simulate(POPULATIONS[name], requirement, truth, 150, draws, rng)
        assert outcome.broken <= most + 3 * math.sqrt(most * (1 - most) / draws)
