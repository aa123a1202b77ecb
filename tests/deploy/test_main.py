"""deploy.py: what it writes and says, what it refuses."""

import json

import numpy as np
import pytest

from common.errors import DataError, OptionError, UserError
from deploy.main import main
from deploy.score_thresholds import read_thresholds
from detect.detector import Detector
from model.manifest import read_manifest
from tests.model.tiny import CLASSES, picture, save_tiny
from tests.train.tiny import write_record


def test_it_says_what_was_written_and_what_to_try(tmp_path, capsys):
    prefix = save_tiny(tmp_path / "tiny")
    assert main(["--prefix", prefix, "--nms", "0.3", "--force", "--output", str(tmp_path / "a b")]) == 0
    text = capsys.readouterr().out
    assert "epoch 3" in text
    assert f"python demo.py --model '{tmp_path}/a b'" in text
    post = read_manifest(tmp_path / "a b").postprocessing
    assert (post.nms, post.force) == (0.3, True)


def test_the_folder_stands_beside_the_checkpoint_by_default(tmp_path):
    main(["--prefix", save_tiny(tmp_path / "tiny")])
    assert (tmp_path / "tiny-deploy" / "manifest.json").is_file()


def test_a_model_gets_the_thresholds_of_an_evaluation(tmp_path, capsys):
    prefix, file = save_tiny(tmp_path / "tiny"), tmp_path / "result.json"
    file.write_text(json.dumps({"mAP": 0.9, "thresholds": {"red": 0.4, "grün": 1.0, "blue": 0.3}}))
    assert main(["--prefix", prefix, "--thresholds", str(file), "--output", str(tmp_path / "model")]) == 0
    assert read_manifest(tmp_path / "model").thresholds == {"red": 0.4, "grün": 1.0, "blue": 0.3}
    assert "thresholds red 0.4, grün 1, blue 0.3" in capsys.readouterr().out
    image = picture(1, 60, 90)
    folder = tmp_path / "model"
    own, said = Detector(folder).detect(image), Detector(folder, threshold=0.0).detect(image)
    limit = np.array([0.4, 1.0, 0.3], np.float32)[said[:, 0].astype(int)]
    np.testing.assert_array_equal(own, said[said[:, 1] >= limit])
    assert 0 < len(own) < len(said)


def test_a_labelled_record_gives_the_thresholds_of_the_best_f1_or_what_is_required(tmp_path, caplog):
    prefix = save_tiny(tmp_path / "tiny")
    record = write_record(tmp_path / "val.rec", 6, names=CLASSES)
    words = ["--prefix", prefix, "--eval-rec", record, "--output", str(tmp_path / "model")]
    assert main(words) == 0
    found = read_manifest(tmp_path / "model").thresholds
    assert found.keys() == set(CLASSES)
    assert all(0.01 <= value <= 0.99 for value in found.values())
    with pytest.raises(OptionError, match="--require: .*val.rec shows no threshold of red that keeps"):
        main([*words, "--require", "recall(red) >= 0.9 @ 95%"])
    with pytest.raises(OptionError, match="--require: is measured on --eval-rec"):
        main(["--prefix", prefix, "--require", "recall(red) >= 0.9 @ 95%"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ('{"mAP": 1}', "there are no thresholds in it"),
        ('{"thresholds": {"red": null, "grün": 0.1, "blue": 0.1}}', "red has none, as the images did not show"),
        ('{"thresholds": {"red": 0.5}}', "numbers from 0 to 1 of the model's classes"),
        ('{"thresholds": {"red": 2, "grün": 0.1, "blue": 0.1}}', "numbers from 0 to 1"),
    ],
)
def test_thresholds_that_are_none_of_the_model_are_refused(tmp_path, content, reason):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_thresholds(str(tmp_path / "result.json"), CLASSES)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dtype", "float"], "float"),
        (["--dtype", "int8"], "needs --calib-rec"),
        (["--dtype", "bfloat16", "--calib-rec", "a.rec"], "is for --dtype int8"),
    ],
)
def test_number_formats_that_cannot_be_written_are_refused(words, reason):
    with pytest.raises(OptionError, match=reason):
        main(words)


@pytest.mark.parametrize("shape", ["9000", "300,8193"])
def test_an_input_larger_than_any_model_has_is_an_options_fault(shape):
    with pytest.raises(OptionError, match="--data-shape is at most 8192"):
        main(["--prefix", "none", "--data-shape", shape])


def test_what_cannot_end_well_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    prefix = save_tiny(tmp_path / "tiny")
    monkeypatch.setattr("model.folder.model_from_checkpoint", lambda *_, **__: pytest.fail("it was computed"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match="the folder holds thesis.txt"):
        main(["--prefix", prefix, "--output", str(tmp_path / "full")])
    with pytest.raises(DataError, match="^--calib-rec none.rec: no such file"):
        main(["--prefix", prefix, "--dtype", "int8", "--calib-rec", "none.rec"])
    with pytest.raises(DataError, match="^--eval-rec none.rec: no such file"):
        main(["--prefix", prefix, "--eval-rec", "none.rec"])
    other = write_record(tmp_path / "other.rec", 1)
    with pytest.raises(OptionError, match="^--eval-rec .*other.rec holds the classes"):
        main(["--prefix", prefix, "--eval-rec", other])


def test_options_without_effect_are_told(tmp_path, caplog):
    main(["--prefix", save_tiny(tmp_path / "tiny"), "--num-calib", "9"])
    assert "--num-calib has no effect with --dtype float32" in caplog.text


def test_classic_flags_must_agree_with_the_checkpoint(tmp_path):
    prefix = save_tiny(tmp_path / "tiny")
    words = ["--prefix", prefix, "--output", str(tmp_path / "model")]
    with pytest.raises(OptionError, match="--num-class 20: .* leave the option out"):
        main([*words, "--num-class", "20"])
    assert not (tmp_path / "model").exists()
    main([*words, "--topk", "50", "--no-force"])
    assert read_manifest(tmp_path / "model").postprocessing.nms_topk == 50


def test_how_images_fill_the_input_can_be_said(tmp_path):
    prefix = save_tiny(tmp_path / "tiny")
    assert main(["--prefix", prefix, "--resize-mode", "letterbox", "--output", str(tmp_path / "model")]) == 0
    assert read_manifest(tmp_path / "model").resize_mode == "letterbox"
