"""What evaluate.py tells of intervals, groups, another model and thresholds, from detections as it has them."""

import json

import numpy as np
import pytest

from common.errors import DataError, OptionError
from evaluate.certainty import CertaintyOptions, Rule, certainty_of, comparison_sentence
from evaluate.detections import ImageResult, Results, measure
from evaluate.intervals import Difference, Interval
from evaluate.main import main

BOX = np.array([10, 10, 50, 50])
NAMES = ("cat", "dog")
RULE = Rule(("voc07", "coco"), 0.5, False)


def results(chance=0.8, seed=0, count=40):
    """Images with a cat, of which so many are found, and false dogs in some."""
    rng = np.random.default_rng(seed)
    images = []
    for k in range(count):
        found = [[0, 0.5 + rng.random() / 2, *BOX]] if rng.random() < chance else []
        found += [[1, rng.random(), *(BOX + 60)]] if k % 4 == 0 else []
        truth = np.array([[0, *BOX, 0], [1, *(BOX + 60 * (k % 8 == 0)), 0]], float)
        images.append(ImageResult(f"film{k // 4}_{k}.jpg", (200, 200), truth, np.array(found).reshape(-1, 6), k))
    return Results(NAMES, tuple(images))


def test_values_are_those_of_the_metrics_and_json_can_hold_all():
    options = CertaintyOptions(bootstrap=50, require=("recall(cat) >= 0.5 @ 95%", "precision(dog) >= 0.9 @ 95%"))
    found = certainty_of(options, results(), RULE, "ours")
    content = json.loads(json.dumps(found.content, allow_nan=False))
    measured = measure(results(), RULE.kinds)
    assert content["intervals"]["voc07"]["mAP"]["value"] == pytest.approx(measured["voc07"].mean_ap)
    assert content["intervals"]["voc07"]["cat"]["value"] == pytest.approx(measured["voc07"].classes[0].ap)
    assert content["intervals"]["coco"]["AP"]["value"] == pytest.approx(measured["coco"].stats["AP"])
    assert content["intervals"]["coco"]["AP50"]["value"] == pytest.approx(measured["coco"].stats["AP50"])
    assert content["thresholds"]["cat"] is not None
    assert (content["thresholds"]["dog"], found.kept) == (None, False)
    assert content["requirements"][1]["sentence"] in found.lines


def test_groups_are_units_and_a_pattern_without_a_match_is_refused():
    found = certainty_of(CertaintyOptions(bootstrap=20, group_by=r"(film\d+)_"), results(), RULE)
    assert found.content["bootstrap"]["unit"] == "groups"
    assert "resamples of 10 groups" in found.lines[0]
    with pytest.raises(DataError, match="matches no name, as film0_0.jpg"):
        certainty_of(CertaintyOptions(group_by="clip"), results(), RULE)


def test_nothing_but_thresholds_without_the_bootstrap():
    found = certainty_of(CertaintyOptions(bootstrap=0), results(), RULE)
    assert found.lines == ()
    assert found.content.keys() == {"thresholds", "requirements"}


def test_a_model_beside_itself_and_a_better_one():
    options = CertaintyOptions(bootstrap=100, compare="theirs")
    same = certainty_of(options, results(), RULE, "ours", results())
    assert "voc07: no difference: ours and theirs have the same mAP on every resample" in same.lines
    assert same.content["comparison"]["voc07"]["differences"]["mAP"] == {
        "value": 0,
        "low": 0,
        "high": 0,
        "images_needed": None,
    }
    better = certainty_of(options, results(0.3), RULE, "ours", results(1.0))
    assert any(line.startswith("voc07: theirs is better than ours by") for line in better.lines)
    worse = certainty_of(options, results(1.0), RULE, "ours", results(0.3))
    assert any(line.startswith("voc07: ours is better than theirs by") for line in worse.lines)


def test_the_sentence_says_how_many_images_would_tell():
    unsure = Difference(Interval(0.01, -0.02, 0.04, 0.0153), 72, 1323.0, False)
    assert comparison_sentence("mAP", unsure, "A", "B") == (
        "no difference of mAP can be told with 72 images (B less A, points, 95 %: -2.0 to 4.0); "
        "about 1400 would show 1 point"
    )
    sure = Difference(Interval(0.021, 0.004, 0.039, 0.009), 72, 400.0, False)
    assert comparison_sentence("mAP", sure, "A", "B") == "B is better than A by 2.1 points of mAP (95 %: 0.4 to 3.9)"


def test_other_classes_and_other_images_are_refused():
    options = CertaintyOptions(bootstrap=10, compare="theirs")
    with pytest.raises(OptionError, match="--compare theirs: was measured on other images"):
        certainty_of(options, results(), RULE, "ours", results(count=39))
    with pytest.raises(OptionError, match="classes"):
        certainty_of(options, results(), RULE, "ours", Results(("cat",), results().images))


@pytest.fixture
def files(tmp_path):
    """A COCO annotation file of 30 images with a cat each, and two files of detections: all cats, and every third."""
    truth = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 100, "height": 100} for k in range(30)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
            for k in range(30)
        ],
    }
    found = [{"image_id": k, "category_id": 7, "bbox": [10, 10, 40, 40], "score": 0.5 + k / 100} for k in range(30)]
    for name, content in (("truth", truth), ("all", found), ("some", found[::3])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_the_command_tells_compares_and_requires(files, capsys):
    words = ["--rec-path", f"{files}/truth.json", "--detections", f"{files}/some.json", "--metrics", "voc,coco"]
    target = files / "result.json"
    words += ["--compare", f"{files}/all.json", "--bootstrap", "50", "--json", str(target)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"voc: {files}/all.json is better than {files}/some.json by 66.7 points of mAP" in told
    content = json.loads(target.read_text())
    assert content["mAP"] == content["intervals"]["voc"]["mAP"]["value"] == pytest.approx(1 / 3)
    assert content["thresholds"] == {"cat": 0.5}
    assert main([*words, "--require", "recall(cat) >= 0.9 @ 95%"]) == 1
    assert "the model does not keep it on these 30 images" in capsys.readouterr().out
    shown = ["--detections", f"{files}/all.json", "--compare", "", "--require", "recall(cat) >= 0.9 @ 95%"]
    assert main([*words, *shown]) == 0
    assert "0.50 is chosen, with 1 on these 30 images" in capsys.readouterr().out


def test_a_requirement_that_cannot_be_read_is_refused_before_the_work(files):
    words = ["--rec-path", f"{files}/truth.json", "--detections", f"{files}/all.json"]
    with pytest.raises(OptionError, match="--require 'recall > 1'"):
        main([*words, "--require", "recall > 1"])
    with pytest.raises(OptionError, match="--compare none: there is no such"):
        main([*words, "--compare", "none"])
    with pytest.raises(OptionError, match="--group-by"):
        main([*words, "--group-by", "("])
