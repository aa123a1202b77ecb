"""demo.py from the command line: pictures, JSON, and what it says about mistakes."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from deploy.main import export
from detect.detector import Detector
from detect.inputs import QUESTION
from detect.main import main
from drawing.boxes import draw, draw_heatmap, score_map
from engines.preprocess import encode_image, read_image
from tests.model.tiny import CLASSES, picture, save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(save_tiny(folder.parent / "tiny"), 3, folder)
    return folder


@pytest.fixture(autouse=True)
def _log_as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate(("one/a.png", "two/a.png", "two/b.jpg", "two/c.jpg")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_image(picture(k, 120, 160), path.suffix))
    (tmp_path / "two/c.jpg").write_bytes((tmp_path / "two/c.jpg").read_bytes()[:900])
    return tmp_path


def test_demo_by_subprocess(folder, photos):
    """Two folders with a name in common and a damaged image; a batch that is not filled."""
    words = [
        *(sys.executable, str(ROOT / "demo.py"), "--model", str(folder), f"{photos}/one", f"{photos}/two/*"),
        *("--output", f"{photos}/out", "--json", f"{photos}/new/found.json", "--thresh", "0.3", "--batch-size", "2"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=photos, env={"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {photos}/two/c.jpg: not a sound image")
    assert "3 images" in done.stderr
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["a-2.png", "a.png", "b.jpg"]
    records = json.loads((photos / "new/found.json").read_text("utf-8"))
    assert [record["image"] for record in records] == [f"{photos}/{n}" for n in ("one/a.png", "two/a.png", "two/b.jpg")]
    expected = Detector(folder, threshold=0.3, batch_size=2).detect([record["image"] for record in records])
    for record, rows in zip(records, expected, strict=True):
        assert (record["width"], record["height"]) == (160, 120)
        found = [[d["id"], d["score"], *d["box"]] for d in record["detections"]]
        np.testing.assert_allclose(np.reshape(found, (-1, 6)), rows, atol=6e-4)
        assert all(d["class"] == CLASSES[d["id"]] for d in record["detections"])
    assert any(record["detections"] for record in records)


def test_without_files_a_terminal_is_asked_for_them(folder, photos):
    """In a terminal of its own: a wrong path, then a right one."""
    terminal, stdin = pty.openpty()
    os.write(terminal, f"{photos}/none.png\n{photos}/one\n".encode())
    words = [sys.executable, str(ROOT / "demo.py"), "--model", str(folder), "--output", "", "--json", "found.json"]
    done = subprocess.run(words, stdin=stdin, capture_output=True, text=True, cwd=photos, check=False)
    os.close(stdin)
    os.close(terminal)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(QUESTION) == 2
    assert f"{photos}/none.png: no such file or folder" in done.stderr
    assert [r["image"] for r in json.loads((photos / "found.json").read_text("utf-8"))] == [f"{photos}/one/a.png"]


def test_heat_maps_show_boxes_below_the_threshold_too(folder, photos):
    words = [f"{photos}/one/a.png", "--model", str(folder), "--thresh", "0.45", "--heatmap", f"{photos}/heat"]
    assert main([*words, "--output", f"{photos}/out", "--json", f"{photos}/found.json"]) == 0
    original = read_image(photos / "one/a.png", "x")
    everything = Detector(folder, threshold=0.0).detect(original)
    shown = Detector(folder, threshold=0.45).detect(original)
    assert 0 < len(shown) < len(everything)
    heat = draw_heatmap(original, score_map(everything, original.shape[:2]))
    np.testing.assert_array_equal(read_image(photos / "heat/a.png", "x"), heat)
    np.testing.assert_array_equal(read_image(photos / "out/a.png", "x"), draw(original, shown, CLASSES))
    assert len(json.loads((photos / "found.json").read_text("utf-8"))[0]["detections"]) == len(shown)


def test_heat_maps_need_a_folder_of_their_own(folder, photos):
    words = [f"{photos}/one/a.png", "--model", str(folder), "--output", f"{photos}/out"]
    with pytest.raises(OptionError, match="--heatmap .*choose another folder"):
        main([*words, "--heatmap", f"{photos}/one/../out"])


def test_pictures_show_boxes_and_inputs_stay(folder, photos):
    before = (photos / "one/a.png").read_bytes()
    assert main([f"{photos}/one/a.png", "--model", str(folder), "--thresh", "0.45", "--output", f"{photos}/out"]) == 0
    assert (photos / "one/a.png").read_bytes() == before
    drawn, original = read_image(photos / "out/a.png", "x"), read_image(photos / "one/a.png", "x")
    detector = Detector(folder, threshold=0.45)
    np.testing.assert_array_equal(drawn, draw(original, detector.detect(original), CLASSES))
    assert (drawn != original).any()


def test_without_pictures(folder, photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert main(["--images", f"{photos}/one", "--model", str(folder), "--output", "", "--json", "found.json"]) == 0
    assert sorted(path.name for path in photos.iterdir()) == ["found.json", "one", "two"]


def test_cut_outs_may_go_beside_the_images(folder, photos):
    before = (photos / "one/a.png").read_bytes()
    words = [f"{photos}/one", "--crop", f"{photos}/one", "--output", "", "--json", "", "--thresh", "0.3"]
    assert main([*words, "--model", str(folder)]) == 0
    assert (photos / "one/a.png").read_bytes() == before
    assert len(list(photos.glob("one/*/a-*.png"))) > 0


@pytest.mark.parametrize(("thresh", "said"), [("1", "cut-outs: none, as nothing"), ("0.3", "cut-outs: FOLDER")])
def test_it_is_told_when_nothing_was_cut_out(folder, photos, caplog, thresh, said):
    words = [f"{photos}/one", "--crop", f"{photos}/cut", "--output", "", "--thresh", thresh, "--model", str(folder)]
    assert main(words) == 0
    assert [line for line in caplog.messages if line.startswith(said.replace("FOLDER", f"{photos}/cut"))]
    assert (photos / "cut").exists() == ("none" not in said)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.jpg"], "none.jpg: no such file or folder"),
        ([], "no images"),
        (["PHOTOS/one", "--model", "nowhere/x"], "neither a model folder nor the prefix"),
        (["PHOTOS/one", "--model", "MODEL", "--epoch", "4"], "is a model folder"),
        (["PHOTOS/one", "--output", "PHOTOS/one"], "is an image to read"),
        (["PHOTOS/one", "--output", "", "--heatmap", "PHOTOS/one"], "error: --heatmap"),
        (["PHOTOS/one", "--thresh", "2"], "--thresh is at most 1"),
        (["PHOTOS/one", "--model", "MODEL", "--gpus", "77"], "--gpus 77"),
        (["PHOTOS/one", "--model", "MODEL", "--num-class", "20"], "--num-class 20: MODEL has 3"),
        (["PHOTOS/one", "--model", "MODEL", "--nms", "0.1"], "--nms 0.1: MODEL was exported with 0.45"),
        (["PHOTOS/one", "--frame-resize", "big"], "--frame-resize big: expected width,height"),
        (["PHOTOS/one", "--engine", "onnxruntime", "--model", "MODEL"], "MODEL has no model.onnx; export it again"),
        (["PHOTOS/one", "--show", "--model", "MODEL"], "--show: there is no display"),
        (["PHOTOS/two/c.jpg", "--benchmark", "--model", "MODEL"], "c.jpg: not a sound image"),
    ],
)
def test_mistakes_are_one_sentence(folder, photos, words, sentence, monkeypatch, capsys):
    from machine.command import run_command

    words = [word.replace("PHOTOS", str(photos)).replace("MODEL", str(folder)) for word in words]
    monkeypatch.setattr(sys, "argv", ["demo.py", *words])
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(photos)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    *others, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert sentence.replace("MODEL", str(folder)) in error
    assert all(line.startswith("running on") for line in others)
    assert sorted(path.name for path in photos.iterdir()) == ["one", "two"]


def test_a_classic_line_detects_with_a_checkpoint(photos):
    """Booleans before an image; --nms and --force take the place of the checkpoint's own."""
    prefix = save_tiny(photos / "tiny")
    line = ["--prefix", prefix, "--epoch", "3", "--cpu", f"{photos}/one/a.png", "--no-timer", "--data-shape", "96,80"]
    line += ["--thresh", "0.1", "--output", "", "--json", f"{photos}/found.json"]
    numbers = []
    for flags in (["--nms", "1"], ["--nms", "0.1"], ["--nms", "0.1", "--force"]):
        assert main([*flags, *line]) == 0
        numbers.append(len(json.loads((photos / "found.json").read_text("utf-8"))[0]["detections"]))
    assert numbers[0] > numbers[1] > numbers[2]


@pytest.mark.parametrize("name", ["found.json", "new/found.jsonl"])
def test_a_json_file_that_could_not_be_written_is_refused_before_the_work(photos, tmp_path, monkeypatch, name):
    """As root every folder can be written: what os.access says is made up."""
    monkeypatch.setattr("detect.main._load", lambda options: pytest.fail("the model was loaded"))
    words = [f"{photos}/one", "--model", "none", "--json"]
    with pytest.raises(OptionError, match=r"--json .*a.png/new/found.json: .*/one/a.png is a file; choose another"):
        main([*words, f"{photos}/one/a.png/new/found.json"])
    with pytest.raises(OptionError, match=r"--json .*/one: a folder of that name is there"):
        main([*words, f"{photos}/one"])
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OptionError, match=f"--json .*{name}: no file can be written in {tmp_path}; choose another"):
        main([*words, f"{tmp_path}/{name}"])
    assert not (tmp_path / "new").exists()
