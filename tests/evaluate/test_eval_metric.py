"""mAP by the official VOC rule, as numpy core and as metric."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate import voc_eval as core
from evaluate.eval_metric import MApMetric, VOC07MApMetric
from evaluate.reports import format_table, save_pr_curves
from evaluate.voc_eval import VOCRule, average_precision, voc_eval
from machine.runtime import mx

BOX = (0.1, 0.1, 0.4, 0.4)
FAR = (0.6, 0.6, 0.9, 0.9)
CLASSES = ["cat", "dog"]
ROUNDING = 1e-12


def truth(image: int, label: int = 0, box: tuple[float, ...] = BOX, difficult: int = 0) -> list[float]:
    return [image, label, *box, difficult]


def detection(image: int, score: float, label: int = 0, box: tuple[float, ...] = BOX) -> list[float]:
    return [image, label, score, *box]


def batch(rows: Iterable[list[float]], images: int, width: int = 6) -> np.ndarray:
    """Batch (images, n, 6) of rows that begin with the image; unused rows are -1 and stand in front."""
    rows = list(rows)
    full = np.full((images, len(rows) + 1, width), -1, np.float32)
    for place, row in enumerate(rows):
        full[int(row[0]), place + 1] = row[1:]
    return full


def mean_ap(detections: list[list[float]], truths: list[list[float]], **options: Any) -> float:
    """VOC07 mAP by the metric, which must agree with the numpy core."""
    names = options.pop("class_names", CLASSES)
    images = 1 + int(max([row[0] for row in detections + truths], default=0))
    metric = VOC07MApMetric(class_names=names, **options)
    metric.update([mx.nd.array(batch(truths, images))], [mx.nd.array(batch(detections, images))])
    rule = VOCRule(use_07_metric=True, use_difficult=options.get("use_difficult", False))
    value = metric.get()[1][-1]
    np.testing.assert_equal(value, voc_eval(np.float32(detections), np.float32(truths), names, rule).mean_ap)
    return value


OFFICIAL = {
    "a hit on every object": ([detection(0, 0.9)], [truth(0)], 1.0),
    "only the difficult object is hit where an easy one is missed": (
        [detection(0, 0.9), detection(1, 0.8)],
        [truth(0, difficult=1), truth(0, box=FAR), truth(1)],
        6 / 11,
    ),
    "the only object of an image without detections is difficult": (
        [detection(0, 0.9)],
        [truth(0), truth(1, difficult=1)],
        1.0,
    ),
    "a false positive on an image without objects": ([detection(1, 0.9), detection(0, 0.8)], [truth(0)], 0.5),
    "detections that are not sorted": (
        [detection(0, 0.1, box=FAR), detection(0, 0.9), detection(1, 0.2, box=FAR), detection(1, 0.8)],
        [truth(0), truth(1)],
        1.0,
    ),
    "a class with detections but no objects": ([detection(0, 0.9), detection(0, 0.8, label=1)], [truth(0)], 1.0),
    "a class with objects but no detections": ([detection(0, 0.9)], [truth(0), truth(0, label=1)], 0.5),
    "the second hit of an object is false": (
        [detection(0, 0.9), detection(0, 0.8), detection(1, 0.7)],
        [truth(0), truth(1)],
        (6 + 5 * 2 / 3) / 11,
    ),
    "a taken object is not exchanged for the second best": (
        [detection(0, 0.9), detection(0, 0.8)],
        [truth(0), truth(0, box=(0.1, 0.1, 0.4, 0.38))],
        6 / 11,
    ),
    "a NaN score": ([detection(0, math.nan, box=FAR), detection(0, 0.9)], [truth(0)], 1.0),
    "an id outside the classes": (
        [detection(0, 0.9), detection(0, 0.95, label=7)],
        [truth(0), truth(0, label=7, box=FAR)],
        1.0,
    ),
    "a recall of exactly 3 / 10": (
        [detection(image, 0.9) for image in range(3)],
        [truth(image) for image in range(10)],
        3 / 11,
    ),
    "equal scores, the false positive in the earlier image": (
        [detection(1, 0.5), detection(0, 0.5, box=FAR)],
        [truth(1), truth(2)],
        0.5 * 6 / 11,
    ),
    "no detections": ([], [truth(0)], 0.0),
    "detections alone": ([detection(0, 0.9)], [], math.nan),
    "difficult objects alone": ([detection(0, 0.9)], [truth(0, difficult=1)], math.nan),
    "nothing": ([], [], math.nan),
    "a box that is not finite": ([detection(0, 0.9, box=(math.nan,) * 4), detection(0, 0.8)], [truth(0)], 0.5),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_value(name: str) -> None:
    detections, truths, want = OFFICIAL[name]
    assert mean_ap(detections, truths) == pytest.approx(want, nan_ok=True)


def test_difficult_objects_count_when_told() -> None:
    objects = [truth(0, difficult=1), truth(1)]
    assert mean_ap([detection(0, 0.9)], objects, use_difficult=True) == pytest.approx(6 / 11)
    assert mean_ap([detection(0, 0.9)], objects) == 0


def test_overlap_must_exceed_the_threshold() -> None:
    rows = np.array([detection(0, 0.9, box=(0, 0, 1, 0.5))]), np.array([truth(0, box=(0, 0, 1, 1))])
    assert voc_eval(*rows, CLASSES).mean_ap == 0
    assert voc_eval(*rows, CLASSES, VOCRule(inclusive=True)).mean_ap == 1


def test_area_is_that_under_the_monotone_curve() -> None:
    recall, precision = np.array([0.25, 0.25, 0.5, 0.75]), np.array([1.0, 0.5, 2 / 3, 0.75])
    assert average_precision(recall, precision) == pytest.approx(0.25 * 1 + 0.5 * 0.75)
    assert average_precision(recall, precision, use_07_metric=True) == pytest.approx((3 * 1 + 5 * 0.75) / 11)


def test_objects_of_unknown_classes_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mean_ap([], [truth(0, label=7)])
    assert "[7.0]" in caplog.text
    assert "2 classes" in caplog.text


def test_counts_and_curves_of_a_class() -> None:
    detections = [detection(0, 0.9), detection(0, 0.8, box=FAR), detection(1, 0.7)]
    one = voc_eval(
        np.array(detections), np.array([truth(0), truth(1), truth(1, box=FAR, difficult=1)]), ["cat"]
    ).classes[0]
    assert (one.npos, one.num_detections, one.true_positives, one.false_positives) == (2, 3, 2, 1)
    np.testing.assert_allclose(one.recall, [0.5, 0.5, 1])
    np.testing.assert_allclose(one.precision, [1, 0.5, 2 / 3])


def devkit_ap(detections: np.ndarray, truths: np.ndarray, threshold: float) -> float:
    """The devkit's loop over the detections of one class; area AP."""
    taken, outcome = set(), []
    npos = (truths[:, 6] == 0).sum()
    for row in detections[np.argsort(-detections[:, 2], kind="stable")]:
        found = [
            (core.paired_iou(row[None, 3:], truths[[j], 2:6])[0], -j) for j in np.flatnonzero(truths[:, 0] == row[0])
        ]
        overlap, j = max(found, default=(-1.0, 0))
        if overlap > threshold and truths[-j, 6]:
            continue
        outcome.append(overlap > threshold and j not in taken)
        taken |= {j} if outcome[-1] else set()
    hits = np.cumsum(outcome)
    return average_precision(hits / npos, hits / (1 + np.arange(len(hits)))) if npos else math.nan


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Random detections and objects of one class: a few images, boxes that often overlap, distinct scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, g = draw(st.integers(0, 25)), draw(st.integers(0, 10))

    def boxes(count: int) -> np.ndarray:
        low = rng.integers(0, 4, (count, 2))
        return np.concatenate([low, low + rng.integers(2, 6, (count, 2))], axis=1)

    detections = np.column_stack([rng.integers(0, 3, n), np.zeros(n), rng.permutation(n), boxes(n)])
    truths = np.column_stack([rng.integers(0, 3, g), np.zeros(g), boxes(g), rng.random(g) < 0.3])
    return detections.astype(np.float64), truths.astype(np.float64)


@given(scenes(), st.sampled_from([0.3, 0.5, 0.7]))
def test_ap_is_that_of_the_devkit_loop(scene: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    got = voc_eval(*scene, ["cat"], VOCRule(iou_threshold=threshold)).mean_ap
    assert got == pytest.approx(devkit_ap(*scene, threshold), nan_ok=True)


@given(scenes(), st.integers(0, 100))
def test_order_of_the_rows_does_not_matter(scene: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    detections, truths = scene
    shuffled = np.random.default_rng(seed).permutation(detections)
    np.testing.assert_equal(voc_eval(shuffled, truths, ["cat"]).mean_ap, voc_eval(*scene, ["cat"]).mean_ap)


@given(scenes())
def test_more_images_can_only_change_ap_as_they_should(scene: tuple[np.ndarray, np.ndarray]) -> None:
    detections, truths = scene
    value = voc_eval(detections, truths, ["cat"]).mean_ap
    with_difficult = np.vstack([truths, truth(9, difficult=1)])
    assert voc_eval(detections, with_difficult, ["cat"]).mean_ap == pytest.approx(value, nan_ok=True)
    with_miss = np.vstack([truths, truth(9)])
    assert not voc_eval(detections, with_miss, ["cat"]).mean_ap > value + ROUNDING
    with_false = np.vstack([detections, detection(9, 1e3)])
    assert not voc_eval(with_false, truths, ["cat"]).mean_ap > value + ROUNDING
    worst_false = np.vstack([detections, detection(9, -1)])
    assert voc_eval(worst_false, truths, ["cat"]).mean_ap == pytest.approx(value, nan_ok=True)


@given(scenes())
def test_the_size_of_the_chunks_does_not_matter(scene: tuple[np.ndarray, np.ndarray]) -> None:
    value = voc_eval(*scene, ["cat"]).mean_ap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "PAIRS_AT_ONCE", 3)
        np.testing.assert_equal(voc_eval(*scene, ["cat"]).mean_ap, value)


@given(scenes(), st.integers(1, 3))
def test_the_metric_is_the_same_for_every_batch_size(scene: tuple[np.ndarray, np.ndarray], size: int) -> None:
    detections, truths = scene
    preds, labels = batch(detections, 3), batch(truths, 3)
    metric = MApMetric(class_names=["cat"])
    for start in range(0, 3, size):
        metric.update([labels[start : start + size]], [preds[start : start + size]])
    np.testing.assert_equal(metric.get()[1][-1], voc_eval(*scene, ["cat"]).mean_ap)


def filled(**options: Any) -> MApMetric:
    """A metric that has seen one image with a perfect detection."""
    metric = MApMetric(class_names=CLASSES, **options)
    metric.update([batch([truth(0)], 1)], [batch([detection(0, 0.9)], 1)])
    return metric


def test_names_and_values_at_any_time() -> None:
    metric = MApMetric(class_names=tuple(CLASSES))
    for _ in range(2):
        assert metric.get()[0] == ["cat", "dog", "mAP"]
        assert np.isnan(metric.get()[1]).all()
        assert [name for name, _ in metric.get_name_value()] == ["cat", "dog", "mAP"]
        assert np.isnan(metric.get_global()[1]).all()
        metric.reset_local()
    metric = filled()
    assert metric.get_name_value()[0] == ("cat", 1.0)
    assert dict(metric.get_name_value())["mAP"] == 1.0
    metric.reset()
    assert np.isnan(metric.get()[1]).all()


def test_without_class_names_there_is_one_value() -> None:
    metric = MApMetric()
    name, value = metric.get()
    assert name == "mAP"
    assert np.isnan(value)
    metric.update([batch([truth(0), truth(0, label=3)], 1)], [batch([detection(0, 0.9)], 1)])
    assert metric.get() == ("mAP", 0.5)


def test_reset_local_keeps_the_global_value() -> None:
    metric = filled()
    metric.reset_local()
    assert np.isnan(metric.get()[1][-1])
    metric.update([batch([truth(0)], 1)], [batch([], 1)])
    assert metric.get()[1][-1] == 0
    assert metric.get_global()[1][-1] == 0.5
    assert dict(metric.get_global_name_value())["mAP"] == 0.5
    assert metric.result().mean_ap == 0.5


def test_values_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = filled()
    want = metric.get()
    monkeypatch.setattr("evaluate.eval_metric.voc_eval", lambda *_: pytest.fail("computed again"))
    assert metric.get() == want
    assert metric.get_global() == want


def test_padded_images_do_not_count() -> None:
    labels, preds = batch([truth(0), truth(1)], 2), batch([detection(0, 0.9)], 2)
    metric = MApMetric()
    metric.update([labels], [preds], pad=1)
    assert metric.get() == ("mAP", 1.0)


def test_labels_of_five_or_more_columns_are_read() -> None:
    narrow, wide = batch([truth(0)], 1)[:, :, :5], np.pad(batch([truth(0)], 1), ((0, 0), (0, 0), (0, 2)))
    for label in (narrow, wide):
        metric = MApMetric()
        metric.update([label], [batch([detection(0, 0.9)], 1)])
        assert metric.get() == ("mAP", 1.0)


def test_the_output_is_chosen_and_dictionaries_work() -> None:
    metric = MApMetric(pred_idx=1)
    preds = {"cls_prob_output": np.zeros((1, 3)), "det_output": batch([detection(0, 0.9)], 1)}
    metric.update_dict({"label": batch([truth(0)], 1)}, preds)
    assert metric.get() == ("mAP", 1.0)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 6\) and \(1, 1, 6\)"):
        MApMetric().update([batch([], 2)], [batch([], 1)])


def test_the_metric_can_be_created_by_name() -> None:
    metric = mx.metric.create("voc07mapmetric", class_names=CLASSES)
    assert isinstance(metric, VOC07MApMetric)
    copy = mx.metric.create(**metric.get_config())
    assert copy.class_names == CLASSES


def test_report_has_every_class_and_a_picture(tmp_path: Path) -> None:
    result = filled().result()
    lines = format_table(result).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "cat", "dog", "mAP"]
    assert lines[1].split()[1:] == ["1.0000", "1", "1", "1.0000"]
    assert lines[2].split()[1] == "-"
    for one in (result, MApMetric(class_names=CLASSES).result()):
        save_pr_curves(one, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
