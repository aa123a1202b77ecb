"""Errors of detections: types and costs equal plain loops and the authors' own toolbox, confusions a loop."""

import numpy as np
import pytest

from boxes.geometry import iou
from evaluate.detections import ImageResult, Results
from evaluate.error_types import (
    ALL_FALSE,
    ALL_MISSED,
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    IGNORED,
    LOCALISATION,
    MOST_DETECTIONS,
    RIGHT,
    TYPES,
    confusion,
    error_costs,
    judge,
)
from evaluate.voc_eval import VOCRule, voc_eval

SIZE = (100, 120)
NAMES = ("a", "b", "c")


def made_up(seed, images=30, difficult=0.0, boxes=6, names=NAMES):
    """Results whose detections are objects shifted, of other classes, twice, or anywhere; scores all differ."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(images):
        count = int(rng.integers(0, boxes + 1))
        low = rng.uniform(0, 60, (count, 2))
        truth = np.column_stack(
            [
                rng.integers(0, len(names), count),
                low,
                low + rng.uniform(8, 40, (count, 2)),
                rng.random(count) < difficult,
            ]
        )
        copies = truth[rng.integers(0, max(count, 1), 3 * count)] if count else truth
        moved = copies[:, 1:5] + rng.normal(0, rng.choice([1, 5, 12], (len(copies), 1)), (len(copies), 4))
        swap = rng.random(len(copies)) < 0.2
        ids = np.where(swap, rng.integers(0, len(names), len(copies)), copies[:, 0])
        low = rng.uniform(0, 80, (4, 2))
        anywhere = np.column_stack([low, low + rng.uniform(5, 40, (4, 2))])
        ids = np.concatenate([ids, rng.integers(0, len(names), 4)])
        boxes_ = np.concatenate([moved, anywhere])
        rows = np.column_stack([ids, rng.random(len(ids)), np.sort(boxes_.reshape(-1, 2, 2), axis=1).reshape(-1, 4)])
        found.append(ImageResult(f"{k}.jpg", SIZE, truth, rows, k))
    return Results(names, tuple(found))


def one_image(truth, found, names=NAMES):
    truth = np.array([[*row, 0][:6] for row in truth], float).reshape(-1, 6)
    return Results(names, (ImageResult("x.jpg", SIZE, truth, np.array(found, float).reshape(-1, 6)),))


def kinds_of(results):
    return judge(results).kind.tolist()


A = [0, 10, 10, 30, 30]  # id and box


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([0, 0.9, 10, 10, 30, 30], RIGHT),
        ([1, 0.9, 10, 10, 30, 30], CLASSIFICATION),
        ([0, 0.9, 10, 10, 30, 18], LOCALISATION),
        ([1, 0.9, 10, 10, 30, 18], BOTH),
        ([0, 0.9, 60, 60, 80, 80], BACKGROUND),
        ([1, 0.9, 29, 29, 49, 49], BACKGROUND),
    ],
)
def test_the_types_are_those_of_the_paper(row, kind):
    assert kinds_of(one_image([A], [row])) == [kind]


def test_the_second_detection_of_an_object_is_a_duplicate_and_one_of_a_difficult_object_does_not_count():
    best, second = [0, 0.9, 10, 10, 30, 30], [0, 0.95, 10, 10, 30, 28]
    assert kinds_of(one_image([A], [best, second])) == [RIGHT, DUPLICATE]
    assert kinds_of(one_image([[*A, 1]], [best])) == [IGNORED]
    assert judge(one_image([[*A, 1]], [])).counts()["missed"] == 0


def test_an_object_that_an_error_is_about_is_not_missed():
    assert judge(one_image([A], [])).counts()["missed"] == 1
    assert judge(one_image([A], [[1, 0.9, *A[1:]]])).counts() == dict.fromkeys(TYPES, 0) | {"classification": 1}


def test_scores_below_the_threshold_of_their_class_are_left_out():
    results = one_image([A], [[0, 0.4, *A[1:]], [1, 0.4, *A[1:]]])
    assert judge(results, [0.4, 0.5, 1]).kind.tolist() == [RIGHT]
    assert len(judge(results, [0.5, 0.5, 1]).kind) == 0


def plain_match(image, classes_matter):
    """(rows by falling score, {row: object}) of an image by loops."""
    rows = sorted(range(len(image.found)), key=lambda k: -image.found[k, 1])[:MOST_DETECTIONS]
    taken, owner = set(), {}
    for row in rows:
        best, at = 0.5, None
        for k, truth in enumerate(image.truth):
            if k in taken or (classes_matter and truth[0] != image.found[row, 0]):
                continue
            overlap = iou(image.found[row : row + 1, 2:6], image.truth[k : k + 1, 1:5])[0, 0]
            if overlap >= best and (at is None or overlap > best):
                best, at = overlap, k
        if at is not None:
            taken.add(at)
            owner[row] = at
    return rows, owner


def plain_ap(rows, wanted):
    """Mean AP of {class: [(score, is right)]} and {class: objects}, by loops over the recall points."""
    values = []
    for k, count in wanted.items():
        if not count:
            continue
        points, right = [], 0
        for number, (_, hit) in enumerate(sorted(rows.get(k, []), key=lambda one: -one[0]), 1):
            right += hit
            points.append((right / count, right / number))
        values.append(np.mean([max((p for r, p in points if r >= x / 100), default=0) for x in range(101)]))
    return float(np.mean(values))


def plain_kind(overlap, same, used):
    """(type, object it is about) of a detection that has found nothing; overlap (g,) with all objects."""
    own, other, taken = (np.where(some, overlap, -1) for some in (same, ~same, same & used))
    if 0.1 <= own.max(initial=-1) <= 0.5:
        return "localisation", int(own.argmax())
    if other.max(initial=-1) >= 0.5:
        return "classification", int(other.argmax())
    if taken.max(initial=-1) >= 0.5:
        return "duplicate", None
    return "background" if overlap.max(initial=0) <= 0.1 else "both", None


def plain_points(results):
    """[(type, class, score, class of its object)] of all detections, numbers of those that win their object, classes of
    missed objects."""
    points, about, missed = [], {}, []
    for number, image in enumerate(results.images):
        rows, owner = plain_match(image, True)
        overlap = iou(image.found[:, 2:6], image.truth[:, 1:5])
        used = np.isin(np.arange(len(image.truth)), list(owner.values()))
        usable = set()
        for row in rows:
            id_, score = int(image.found[row, 0]), image.found[row, 1]
            kind, target = "right", None
            if row not in owner:
                kind, target = plain_kind(overlap[row], image.truth[:, 0] == id_, used)
            if target is not None and not used[target]:
                usable.add(target)
                about[number, target] = max(about.get((number, target), (-1,)), (score, len(points)))
            points.append((kind, id_, score, -1 if target is None else int(image.truth[target, 0])))
        lost = [k for k in range(len(image.truth)) if not used[k] and k not in usable]
        missed += image.truth[lost, 0].astype(int).tolist()
    return points, {at for _, at in about.values()}, missed


def plain_costs(results):
    """AP, AP without each type of error, and numbers of errors, by loops."""
    points, winners, missed = plain_points(results)
    wanted = {k: int((results.truths[:, 1] == k).sum()) for k in range(len(NAMES))}

    def ap(fixed, counts=wanted):
        rows = {}
        for at, (kind, id_, score, wanted_id) in enumerate(points):
            if kind != fixed:
                rows.setdefault(id_, []).append((score, kind == "right"))
            elif at in winners:
                rows.setdefault(wanted_id, []).append((score, True))
        return plain_ap(rows, counts)

    lost = {name: ap(name) for name in TYPES[:5]}
    lost["missed"] = ap(None, {k: count - missed.count(k) for k, count in wanted.items()})
    right = {k: [p[1] for p in points if p[0] == "right"].count(k) for k in wanted}
    lost[ALL_MISSED] = ap(None, right)
    only = {k: [(p[2], True) for p in points if p[0] == "right" and p[1] == k] for k in wanted}
    lost[ALL_FALSE] = plain_ap(only, wanted)
    return ap(None), lost, {name: sum(p[0] == name for p in points) for name in TYPES[:5]} | {"missed": len(missed)}


@pytest.mark.parametrize("seed", range(4))
def test_the_costs_are_those_of_plain_loops(seed):
    results = made_up(seed)
    judged = judge(results)
    ap, fixed, counts = plain_costs(results)
    costs = error_costs(judged)
    assert costs.ap == pytest.approx(ap, abs=1e-12)
    assert costs.lost == pytest.approx({name: max(value - ap, 0) for name, value in fixed.items()}, abs=1e-12)
    assert judged.counts() == counts
    assert min(counts.values()) > 0
    assert costs.lost["classification"] > 0 < costs.lost["missed"]


def test_without_objects_or_detections():
    nothing = Results(NAMES, ())
    assert np.isnan(error_costs(judge(nothing)).ap)
    assert confusion(nothing, [0.5] * 3).sum() == 0
    lone = error_costs(judge(one_image([A], [])))
    assert (lone.ap, lone.lost["missed"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_costs_are_those_of_the_authors_toolbox(seed):
    tidecv = pytest.importorskip("tidecv")
    results = made_up(seed + 10, images=60, boxes=40)
    assert max(len(image.found) for image in results.images) > MOST_DETECTIONS
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for k, image in enumerate(results.images):
        truth.add_image(k, str(k))
        for id_, *box, _ in image.truth.tolist():
            truth.add_ground_truth(k, int(id_), [box[0], box[1], box[2] - box[0], box[3] - box[1]])
        for id_, score, *box in image.found.tolist():
            found.add_detection(k, int(id_), score, [box[0], box[1], box[2] - box[0], box[3] - box[1]])
    tide = tidecv.TIDE()
    run = tide.evaluate(truth, found, mode=tidecv.TIDE.BOX)
    (main,), (special,) = (part.values() for part in tide.get_all_errors().values())
    expected = {name: value / 100 for name, value in {**main, **special}.items()}
    judged = judge(results)
    costs, names = error_costs(judged), dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), TYPES, strict=True))
    names |= {"FalsePos": ALL_FALSE, "FalseNeg": ALL_MISSED}
    assert costs.ap == pytest.approx(run.ap / 100, abs=1e-9)
    assert costs.lost == pytest.approx({names[name]: value for name, value in expected.items()}, abs=1e-9)
    counted = {names[error.short_name]: len(some) for error, some in run.error_dict.items()}
    assert judged.counts() == counted


def plain_confusion(results, thresholds):
    matrix = np.zeros((len(NAMES) + 1,) * 2, int)
    for image in results.images:
        kept = image.found[image.found[:, 1] >= np.array(thresholds)[image.found[:, 0].astype(int)]]
        image = ImageResult("", SIZE, image.truth, kept)
        rows, owner = plain_match(image, False)
        for row in rows:
            matrix[int(image.truth[owner[row], 0]) if row in owner else -1, int(kept[row, 0])] += 1
        for k, truth in enumerate(image.truth):
            matrix[int(truth[0]), -1] += k not in owner.values()
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_the_confusions_are_those_of_a_loop(seed):
    results, thresholds = made_up(seed, images=20), [0.2, 0.5, 0.0]
    np.testing.assert_array_equal(confusion(results, thresholds), plain_confusion(results, thresholds))


def test_a_detection_of_a_difficult_object_is_no_confusion():
    results = one_image([[*A, 1]], [[1, 0.9, *A[1:]], [1, 0.9, 60, 60, 90, 90]])
    expected = np.zeros((4, 4), int)
    expected[3, 1] = 1
    np.testing.assert_array_equal(confusion(results, [0.5] * 3), expected)


def test_the_right_ones_are_nearly_those_of_vocs_rule():
    results = made_up(7)
    found = voc_eval(results.detections, results.truths, NAMES, VOCRule())
    right = np.count_nonzero(judge(results).kind == RIGHT)
    assert right >= sum(one.true_positives for one in found.classes) > 0.9 * right
