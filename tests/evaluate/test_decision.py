"""Numbers of a decision equal those of a plain computation, image by image and detection by detection."""

import json

import numpy as np
import pytest

from boxes.geometry import iou
from evaluate.decision import RATES, ap_at, decisions
from evaluate.detections import ImageResult, Results, measure

NAMES = ("a", "b", "none")


def some_results(seed, images=40):
    """Objects of two classes, some difficult, and detections near some of them, with scores that often are equal."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(images):
        count = rng.integers(0, 4)
        low = rng.uniform(0, 60, (count, 2))
        truth = np.column_stack(
            [rng.integers(0, 2, count), low, low + rng.uniform(10, 40, (count, 2)), rng.random(count) < 0.2]
        )
        near = truth[rng.random(count) < 0.8].repeat(rng.integers(1, 3), axis=0)
        boxes = np.concatenate([near[:, 1:5] + rng.normal(0, 3, (len(near), 4)), rng.uniform(0, 50, (2, 4))])
        boxes[-2:, 2:] += boxes[-2:, :2]
        ids = np.append(near[:, 0], rng.integers(0, 2, 2))
        found = np.column_stack([ids, np.round(rng.random(len(boxes)), 1), boxes])[rng.random(len(boxes)) < 0.9]
        made.append(ImageResult(f"{k}", (100, 100), truth, found))
    return Results(NAMES, tuple(made))


def plain_counts(results, classes, threshold, use_difficult=False):
    """[(objects, found ones, false alarms, whether a difficult one is there)] of each image, in plain loops."""
    rows = []
    for image in results.images:
        total = [0, 0, 0, False]
        for k in classes:
            truth, taken = [row for row in image.truth if row[0] == k], set()
            found = sorted((row for row in image.found if row[0] == k and row[1] >= threshold), key=lambda row: -row[1])
            easy = [use_difficult or not row[5] for row in truth]
            for row in found:
                overlaps = [iou(row[None, 2:], one[None, 1:5])[0, 0] for one in truth]
                best = int(np.argmax(overlaps)) if overlaps else -1
                if best < 0 or overlaps[best] <= 0.5 or (easy[best] and best in taken):
                    total[2] += 1
                elif easy[best]:
                    taken.add(best)
            total[0] += sum(easy)
            total[1] += len(taken)
            total[3] |= not all(easy)
        rows.append(total)
    return rows


@pytest.mark.parametrize("use_difficult", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
def test_images_and_counts(threshold, use_difficult):
    results = some_results(3)
    numbers = decisions(results, threshold, use_difficult=use_difficult)
    assert list(numbers) == [*NAMES, ""]
    for name, classes in (("a", [0]), ("b", [1]), ("none", [2]), ("", [0, 1, 2])):
        rows = plain_counts(results, classes, threshold, use_difficult)
        one = numbers[name]
        there = [row for row in rows if row[0]]
        assert (one.with_objects, one.escaped) == (len(there), sum(row[1] == 0 for row in there))
        assert one.incomplete == sum(row[1] < row[0] for row in there)
        without = [row for row in rows if not row[0] and not row[3]]
        assert (one.without, one.rejected) == (len(without), sum(row[2] > 0 for row in without))
        differences = [row[1] + row[2] - row[0] for row in rows]
        bias = sum(differences) / len(rows)
        spread = (sum((d - bias) ** 2 for d in differences) / (len(rows) - 1)) ** 0.5
        assert one.bias == pytest.approx(bias)
        assert one.limits == pytest.approx((bias - 1.96 * spread, bias + 1.96 * spread))
    assert 0 < numbers[""].escape_rate < 1 or threshold != 0.45
    assert np.isnan(numbers["none"].escape_rate)
    assert numbers["none"].false_reject_rate == 0


def test_thresholds_are_those_of_each_class():
    results = some_results(4)
    both = decisions(results, {"a": 0.2, "b": 0.8, "none": 0.5})
    assert both["a"] == decisions(results, 0.2)["a"]
    assert both["b"] == decisions(results, 0.8)["b"]


def plain_sensitivity(results, classes, rate):
    """The best share found over all thresholds that keep to a rate."""
    best = 0.0
    for threshold in [2.0, *{row[1] for image in results.images for row in image.found}]:
        rows = plain_counts(results, classes, threshold)
        if sum(row[2] for row in rows) / len(rows) <= rate:
            best = max(best, sum(row[1] for row in rows) / sum(row[0] for row in rows))
    return best


def test_froc():
    results = some_results(5)
    numbers = decisions(results, 0.5)
    for name, classes in (("a", [0]), ("", [0, 1, 2])):
        expected = [plain_sensitivity(results, classes, rate) for rate in RATES]
        assert numbers[name].sensitivity == pytest.approx(expected)
        assert numbers[name].froc == pytest.approx(np.mean(expected))
    assert np.isnan(numbers["none"].sensitivity).all()
    assert len(set(numbers["a"].sensitivity)) > 2


def test_nothing_at_all_has_no_numbers():
    one = decisions(Results(NAMES, ()), 0.5)[""]
    assert np.isnan([one.escape_rate, one.false_reject_rate, one.bias, one.froc]).all()


def test_ap_at_any_iou():
    results = some_results(6)
    found = ap_at(results, (0.3, 0.75), use_07_metric=True)
    for overlap, result in found.items():
        assert result.mean_ap == measure(results, ["voc07"], overlap)["voc07"].mean_ap
    assert found[0.3].mean_ap > found[0.75].mean_ap


@pytest.mark.slow
def test_froc_beside_picai_eval():
    """Boxes that touch nothing, as masks: their matching is by mask, ours by box."""
    evaluate = pytest.importorskip("picai_eval").evaluate
    rng = np.random.default_rng(0)
    images, masks, maps = [], [], []
    for k in range(30):
        mask, shown = np.zeros((1, 96, 96), np.int32), np.zeros((1, 96, 96), np.float32)
        truth, found = [], []
        for x in (4, 36, 68):
            for y in (4, 36, 68):
                box, score = np.array([x, y, x + 20, y + 20]), rng.uniform(0.01, 1)
                if rng.random() < 0.3:
                    mask[0, y : y + 20, x : x + 20] = 1
                    truth.append([0, *box, 0])
                if rng.random() < 0.5:
                    moved = box + rng.integers(-3, 4)
                    shown[0, moved[1] : moved[3], moved[0] : moved[2]] = score
                    found.append([0, np.float32(score), *moved])
        images.append(
            ImageResult(f"{k}", (96, 96), np.array(truth, float).reshape(-1, 6), np.array(found, float).reshape(-1, 6))
        )
        masks.append(mask)
        maps.append(shown)
    metrics = evaluate(y_det=maps, y_true=masks, min_overlap=0.5, num_parallel_calls=1, verbose=0)
    ours = decisions(Results(("lesion",), tuple(images)), 0.5)["lesion"]
    expected = [metrics.lesion_TPR_at_FPR(rate) for rate in RATES]
    assert ours.sensitivity == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 3


def test_the_command_tells_them(tmp_path, capsys):
    from evaluate.main import main

    truth = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 50, "width": 50} for k in range(3)],
        "categories": [{"id": 7, "name": "scratch"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 7, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
            for k in (0, 1)
        ],
    }
    found = [
        {"image_id": 0, "category_id": 7, "bbox": [5, 5, 20, 18], "score": 0.9},
        {"image_id": 2, "category_id": 7, "bbox": [5, 5, 20, 20], "score": 0.6},
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["--rec-path", f"{tmp_path}/truth.json", "--detections", f"{tmp_path}/found.json"]
    words += ["--json", f"{tmp_path}/result.json", "--decision", "--thresh", "0.7", "--ious", "0.3,0.95"]
    assert main(words) == 0
    content = json.loads((tmp_path / "result.json").read_text())
    one = content["decision"]["classes"]["scratch"]
    assert (one["escape_rate"], one["false_reject_rate"], one["count_bias"]) == (0.5, 0.0, pytest.approx(-1 / 3))
    assert one["froc"]["sensitivity"]["0.125"] == 0.5
    assert content["decision"]["threshold"] == 0.7
    assert content["AP_at_iou"]["0.3"]["mAP"] == pytest.approx(6 / 11)
    assert content["AP_at_iou"]["0.95"]["mAP"] == 0
    assert "scratch" in capsys.readouterr().out.split("escape")[1]
