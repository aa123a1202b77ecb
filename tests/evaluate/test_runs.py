"""A checkpoint, its folder in each engine and its detections in a file have the same numbers, on any form of a set."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, OptionError
from dataset.imdb import AnnotatedImage
from dataset.packing import pack_dataset
from dataset.sources import Joined
from dataset.writers import FORMATS
from deploy.onnx_files import onnx_files
from detect.detector import Detector
from detect.main import main as demo
from engines.preprocess import encode_image
from evaluate.main import main
from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, write_model_folder
from model.manifest import INT8
from tests.model.tiny import CLASSES, picture, save_tiny

ROOT = Path(__file__).parent.parent.parent
IMAGES = 8
KINDS = "voc07,voc,coco"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint, its model folder, and pictures in which the boxes that it finds, a bit moved, are the truth."""
    root = tmp_path_factory.mktemp("runs")
    checkpoint = load_checkpoint(save_tiny(root / "tiny"), 3)
    model = inference_model(model_from_checkpoint(checkpoint))
    write_model_folder(root / "model", model, onnx_files(model))
    pixels = {f"p{k}.png": picture(k, 60 + 10 * k, 150 - 10 * k) for k in range(IMAGES)}
    detector, rng = Detector(root / "model", engine="mxnet", threshold=0.1), np.random.default_rng(0)
    images = []
    for name, one in pixels.items():
        rows = detector.detect(one)[:6]
        boxes = np.round(rows[:, 2:] + rng.uniform(-4, 4, (len(rows), 4)), 1).astype(float)
        height, width = one.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        objects = np.column_stack([rows[:, 0], boxes, rng.random(len(rows)) < 0.2])
        kept = (boxes[:, 2:] > boxes[:, :2] + 2).all(axis=1)
        images.append(AnnotatedImage(name, root / "voc/JPEGImages" / name, objects[kept], (height, width)))
    for folder, kind in (("voc", "voc"), ("coco", "coco")):
        form = FORMATS[kind]
        where = root / folder / form.pictures("")
        where.mkdir(parents=True)
        for name, one in pixels.items():
            (where / name).write_bytes(encode_image(one, ".png"))
        for path, content in form.annotations({"": images}, CLASSES, 0):
            (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / path).write_bytes(content)
    pack_dataset(Joined(CLASSES, images, [], [], []), root / "set.lst", seed=None, workers=1)
    return root


def evaluated(root, *words, on="set.rec", kinds=KINDS):
    """What --json says, without what tells the way."""
    target = root / "result.json"
    folder = ["--pixel-origin", "0"] if on == "voc" else []
    words = [word.replace("ROOT", str(root)) for word in words]
    assert main(["--rec-path", f"{root}/{on}", *words, "--metrics", kinds, "--json", str(target), *folder]) == 0
    content = json.loads(target.read_text())
    return {key: content[key] for key in ("AP", "mAP", "metrics", "images")}


@pytest.fixture(scope="module")
def expected(root):
    found = evaluated(root, "--prefix", "ROOT/tiny", "--workers", "0", "--coco-json", "ROOT/found.json")
    assert 0.1 < found["mAP"] < 0.95
    return found


@pytest.mark.parametrize("engine", ["mxnet", "onnxruntime", "openvino"])
def test_the_folder_has_the_numbers_of_the_checkpoint(root, expected, engine):
    found = evaluated(root, "--model", "ROOT/model", "--engine", engine, "--batch-size", "3")
    for kind, values in expected["metrics"].items():
        for key in ("AP", "mAP"):
            assert found["metrics"][kind].get(key) == pytest.approx(values.get(key), abs=1e-3), (kind, key)


@pytest.mark.parametrize("on", ["set.rec", "voc", "coco/annotations/instances_train.json"])
def test_detections_read_back_have_exactly_the_same_numbers(root, expected, on):
    """The annotation file has ids of its own: the detections are written again, with these."""
    file = "found.json"
    if on.endswith(".json"):
        words = ["--images", "ROOT/coco/images/train", "--coco-json", "ROOT/named.json", "--workers", "1"]
        assert evaluated(root, "--prefix", "ROOT/tiny", *words, on=on) == expected
        file = "named.json"
        hidden = root / "coco/images"
        hidden = hidden.rename(root / "hidden")  # the pictures need not be there
    names = ["--class-names", ",".join(CLASSES)] if on == "voc" else []
    assert evaluated(root, "--detections", f"ROOT/{file}", *names, on=on) == expected
    if on.endswith(".json"):
        hidden.rename(root / "coco/images")


@pytest.mark.parametrize("words", [["--prefix", "ROOT/tiny"], ["--model", "ROOT/model", "--engine", "onnxruntime"]])
def test_a_folder_has_the_numbers_of_the_record_packed_from_it(root, words):
    assert evaluated(root, *words, "--workers", "1", on="voc") == evaluated(root, *words, "--workers", "1")


def test_what_demo_writes_is_evaluated_too(root, tmp_path):
    """Its boxes are rounded to 0.001 pixels, and its model drops what is below the threshold."""
    words = [f"{root}/voc/JPEGImages", "--model", f"{root}/model", "--engine", "mxnet", "--thresh", "0"]
    for name in ("found.json", "found.jsonl"):
        assert demo([*words, "--output", "", "--json", f"{tmp_path}/{name}"]) == 0
        found = evaluated(root, "--detections", f"{tmp_path}/{name}")
        assert found["mAP"] == pytest.approx(
            evaluated(root, "--model", "ROOT/model", "--engine", "mxnet")["mAP"], abs=1e-3
        )


def test_all_engines_are_compared(root, tmp_path, capsys, monkeypatch):
    words = [
        "--rec-path",
        f"{root}/set.rec",
        "--model",
        f"{root}/model",
        "--all-engines",
        "--json",
        f"{tmp_path}/e.json",
    ]
    assert main(words) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["engines"]
    assert [(row["engine"], row["format"]) for row in rows] == [
        (n, "float32") for n in ("mxnet", "onnxruntime", "openvino")
    ]
    assert all(row["loss"] == pytest.approx(0, abs=1e-3) and row["seconds_per_image"] > 0 for row in rows)
    table = capsys.readouterr().out
    assert f"openvino      float32   {rows[2]['mAP']:.4f}  {rows[2]['AP']:.4f}" in table
    monkeypatch.setattr("engines.onnx_engines.OnnxEngine.run", lambda self, data: np.full((len(data), 1, 6), -1.0))
    assert main([*words, "--max-loss", "0.05"]) == 1
    assert "more than --max-loss 0.05 of mAP is lost by onnxruntime" in capsys.readouterr().out


def test_the_format_is_that_of_the_file_that_an_engine_runs(root):
    from engines.engine import format_of
    from model.manifest import ONNX_INT8, Calibration, read_manifest

    float32 = read_manifest(root / "model")
    bfloat16 = dataclasses.replace(float32, dtype="bfloat16")
    int8 = dataclasses.replace(float32, dtype=INT8, calibration=Calibration("r", "naive", 1, {}))
    both = dataclasses.replace(int8, files={**int8.files, ONNX_INT8: int8.files["model.onnx"]})
    formats = [[format_of(n, m) for n in ("mxnet", "onnxruntime", "openvino")] for m in (float32, bfloat16, int8, both)]
    assert formats == [
        ["float32", "float32", "float32"],
        ["bfloat16", "float32", "bfloat16"],
        ["int8", "float32", "bfloat16"],
        ["int8", "float32", "int8"],
    ]


BOX = {"bbox": [1.0, 2.0, 30.0, 20.0], "score": 0.5}
PICTURE = {"image": "voc/JPEGImages/p0.png", "width": 150, "height": 60, "detections": []}
OURS = {"class": "red", "id": 0, "score": 0.5, "box": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([{"image_id": 99, "category_id": 1, **BOX}], "entry 0 (image_id 99): image_id 99: the set has no image with"),
        ([{"image_id": 0, "category_id": 7, **BOX}], "entry 0 (image_id 0): category_id 7: known are 1, 2, 3"),
        ([{"image_id": 0, "category_id": 1, **BOX, "score": float("nan")}], "the score is nan, not a finite number"),
        ([{"image_id": 0, "category_id": 1, **BOX, "score": None}], "the score is None"),
        ([{"image_id": 0, "category_id": 1, "score": 1, "bbox": [1, 2, 3]}], "bbox is [1, 2, 3], not four finite"),
        ([{**PICTURE, "image": "other.png"}], "entry 0 ('other.png'): the set has no such image"),
        ([{**PICTURE, "width": 151}], "the picture is 151 x 60, in the set it is 150 x 60"),
        ([PICTURE, PICTURE], "entry 1 ('voc/JPEGImages/p0.png'): the picture is in entry 0, too"),
        ([{**PICTURE, "frame": 3}], "a frame of a video"),
        (
            [{**PICTURE, "detections": [OURS, {**OURS, "class": "cat"}]}],
            "detection 1: class 'cat': the set has red, grün",
        ),
        ([{"name": "x"}], "neither COCO's results"),
        ({"annotations": []}, "not a list of objects"),
    ],
)
def test_mistakes_in_a_file_of_detections_name_file_and_entry(root, tmp_path, entries, sentence):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError) as caught:
        main(["--rec-path", f"{root}/set.rec", "--detections", str(path)])
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "ROOT/model", "--prefix", "ROOT/tiny"], "exclude each other"),
        (["--model", "ROOT/model", "--detections", "ROOT/found.json"], "takes the place of a model"),
        (["--detections", "ROOT/none.json"], "no such file"),
        (["--rec-path", "ROOT/voc", "--detections", "ROOT/found.json"], "does not say their order; give --class-names"),
        (["--prefix", "ROOT/tiny", "--all-engines"], "is no model folder"),
        (["--model", "ROOT/model", "--nms", "0.1"], "was exported with 0.45"),
        (["--rec-path", "ROOT/sets", "--model", "ROOT/model"], "has the sets train, test: name the one to evaluate on"),
        (["--rec-path", "ROOT/other", "--model", "ROOT/model"], "an object of the class 'green', "),
    ],
)
def test_mistakes_of_the_command(root, expected, words, sentence):
    for name, old, new in (("sets", "", ""), ("other", "grün", "green")):
        if not (root / name).exists():
            shutil.copytree(root / "voc", root / name)
            for path in (root / name).glob("Annotations/*.xml"):
                path.write_text(path.read_text("utf-8").replace(old, new) if old else path.read_text("utf-8"), "utf-8")
    for part in ("train", "test"):
        (root / f"sets/ImageSets/Main/{part}.txt").write_text("p0\n")
    (root / "sets/ImageSets/Main/trainval.txt").unlink(missing_ok=True)
    words = [word.replace("ROOT", str(root)) for word in words]
    with pytest.raises(OptionError) as caught:
        main([*(["--rec-path", f"{root}/set.rec"] if "--rec-path" not in words else []), *words])
    assert sentence in str(caught.value)


def test_detections_need_neither_pictures_nor_a_network(root, expected, monkeypatch, caplog):
    """An image without detections is told."""
    content = json.loads((root / "found.json").read_text())
    (root / "some.json").write_text(json.dumps([one for one in content if one["image_id"]]))
    monkeypatch.setattr("engines.engine.open_engine", lambda *_: pytest.fail("a model was opened"))
    evaluated(root, "--detections", "ROOT/some.json")
    assert any("has nothing for 1 of the 8 images" in line and line.endswith("p0.png") for line in caplog.messages)


def test_neither_onnxruntime_nor_a_file_needs_mxnet(root, expected):
    code = "import sys; sys.modules['mxnet'] = None; from evaluate.main import main; sys.exit(main(sys.argv[1:]))"
    for words in (["--model", f"{root}/model", "--engine", "onnxruntime"], ["--detections", f"{root}/found.json"]):
        command = [sys.executable, "-c", code, "--rec-path", f"{root}/set.rec", *words, "--metrics", KINDS]
        done = subprocess.run([*command, "--decision"], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        shown = next(line for line in done.stdout.splitlines() if line.startswith("mAP"))
        assert float(shown.split()[1]) == pytest.approx(expected["mAP"], abs=2e-3)
