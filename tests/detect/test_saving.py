"""demo.py --save leaves a data set that the readers read back to the boxes that were found; --json - is pure JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from dataset.sources import AUTO, Wanted, read_source
from detect.detector import Detector
from detect.main import main
from engines.preprocess import encode_image
from model.checkpoint import load_checkpoint
from model.folder import model_from_checkpoint, write_model_folder
from tests.model.tiny import CLASSES, picture, save_tiny

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    write_model_folder(root / "m", model_from_checkpoint(load_checkpoint(save_tiny(root / "tiny"), 3)))
    return root / "m"


@pytest.fixture
def photos(tmp_path):
    """Two pictures of one name, and one in which nothing is found at a high threshold."""
    for k, name in enumerate(("one/a.png", "two/A.jpg", "two/b <1>.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_image(picture(k, 120, 161), path.suffix))
    return tmp_path


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco", "csv"])
def test_boxes_are_read_back(folder, photos, kind):
    files = [photos / "one/a.png", photos / "two/A.jpg", photos / "two/b <1>.png"]
    words = [*map(str, files), "--model", str(folder), "--engine", "mxnet", "--thresh", "0.3", "--output", ""]
    assert main([*words, "--save", kind, "--save-dir", f"{photos}/new/set"]) == 0
    names = None if kind in ("coco", "yolo") else CLASSES
    source, found = read_source(Wanted(AUTO, photos / "new/set", names=names, every=True))
    assert found == {"voc": "pascal"}.get(kind, kind)
    assert tuple(source.class_names) == CLASSES
    expected = Detector(folder, engine="mxnet", threshold=0.3).detect(files)
    assert sum(map(len, expected)) > 5
    saved = {image.path.read_bytes(): image.objects for image in source.images}
    for file, rows in zip(files, expected, strict=True):
        objects = saved[file.read_bytes()]
        objects = objects[np.lexsort(objects.T)]
        wanted = np.column_stack([rows[:, [0, 2, 3, 4, 5]], np.zeros(len(rows))]).astype(float)
        np.testing.assert_allclose(objects, wanted[np.lexsort(wanted.T)], rtol=0, atol=1e-6)


def test_scores_stand_beside_the_boxes(folder, photos):
    words = [f"{photos}/one", "--model", str(folder), "--engine", "mxnet", "--output", ""]
    assert main([*words, "--save", "coco", "--save-dir", f"{photos}/set", "--json", f"{photos}/found.json"]) == 0
    saved = json.loads((photos / "set/annotations/instances_train.json").read_text())["annotations"]
    found = json.loads((photos / "found.json").read_text("utf-8"))[0]["detections"]
    assert [one["score"] for one in saved] == pytest.approx([one["score"] for one in found], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["one", "--save", "labelme"], "--save is one of voc, yolo, coco, csv"),
        (["one", "--save", "voc", "--save-dir", "one"], "--save-dir one: holds files, and none is replaced"),
        (["one", "--save", "voc", "--save-dir", "one/a.png"], "--save-dir one/a.png: is a file"),
        (["one", "film.mp4", "--save", "voc"], "film.mp4 has frames, which are no files; name pictures alone"),
    ],
)
def test_mistakes_are_told_before_the_work(photos, monkeypatch, words, sentence):
    monkeypatch.chdir(photos)
    Path("film.mp4").write_bytes(b"")
    monkeypatch.setattr("detect.main._load", lambda options: pytest.fail("the model was loaded"))
    with pytest.raises(OptionError) as caught:
        main(words)
    assert sentence in str(caught.value)


def test_json_on_standard_output_is_nothing_else(folder, photos):
    words = [sys.executable, str(ROOT / "demo.py"), f"{photos}/one", "--model", str(folder), "--output", ""]
    done = subprocess.run([*words, "--json", "-"], capture_output=True, text=True, cwd=photos, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert [record["image"] for record in json.loads(done.stdout)] == [f"{photos}/one/a.png"]
    assert "1 images" in done.stderr
    assert not (photos / "-").exists()
