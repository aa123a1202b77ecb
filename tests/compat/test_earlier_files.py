"""Files that commit 0d2970b wrote: read, run and continued as if today's code had written them.

Only doors that stay are used: the commands, Detector, symbol_factory, mxnet. README.md has the whys of the tolerances.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.compat.runs import (
    CLASSES,
    DATA,
    RECORD,
    RUNS,
    SIDE,
    command,
    detections,
    difference,
    digest,
    load,
    mxnet,
    resume,
)

TRAINED = ("ssd", "yolo", "effdet")  # runs whose weights detect something
FLOAT_TOLERANCE = 1e-5  # of scores, and of coordinates as fractions of the picture
INT8_SCORE, INT8_BOX, INT8_TOP = 0.05, 0.05, 0.5  # INT8_TOP: the score from which a detection is compared
NEXT_TOLERANCE = {"ssd": 0.05, "yolo": 0.05, "effdet": 0.05, "staged": 0.3}  # as `difference` measures it
KINDS = ("params", "optim.params")
MODELS = {"ssd": "float32", "yolo": "onnx", "effdet": "effdet-model"}  # expected detections of the exported run


@pytest.fixture
def run(tmp_path):
    """A function that copies the files of a run in data/ and returns their new prefix."""

    def copied(name: str, folder: str = "run") -> str:
        shutil.copytree(DATA / name, tmp_path / folder)
        return str(tmp_path / folder / "run")

    return copied


@pytest.fixture
def folder(tmp_path):
    """A function that copies a model folder of data/ and returns the copy."""
    return lambda name: shutil.copytree(DATA / "folders" / name, tmp_path / name)


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / "expected" / f"{name}.npz") as arrays:
        return dict(arrays)


def check_rows(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], score=FLOAT_TOLERANCE, box=FLOAT_TOLERANCE):
    """Each wanted row has one of its class within the tolerances, and no more are found; ties may change places."""
    assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in wanted.items()}
    for name, rows in wanted.items():
        check_each(found[name], rows, score, box)


def check_each(found: np.ndarray, wanted: np.ndarray, score: float, box: float) -> None:
    limits = np.array([0, score, *[box * SIDE] * 4])
    near = (np.abs(found[None] - wanted[:, None]) <= limits).all(axis=2)  # (wanted, found)
    assert near.any(axis=1).all(), f"not found: {wanted[~near.any(axis=1)]}"


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_detects_as_before(run, name):
    check_rows(detections(run(name)), expected(name))


@pytest.mark.parametrize("name", TRAINED)
def test_the_best_checkpoint_is_known(run, name):
    prefix = run(name)
    assert json.loads(Path(f"{prefix}-best.json").read_text())["epoch"] == RUNS[name].epoch
    check_rows(detections(prefix, epoch="best"), expected(name))


@pytest.mark.parametrize("name", ["float32", "onnx"])
def test_a_folder_detects_as_before(folder, name):
    check_rows(detections(folder(name)), expected(name))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_onnx_file_of_a_folder_detects_as_mxnet_did(folder, engine):
    pytest.importorskip(engine)
    check_rows(detections(folder("onnx"), engine), expected("onnx"), score=1e-4, box=1e-4)


def test_an_int8_folder_detects_as_before(folder):
    """What is clear remains: rounding to 255 steps is the same on every CPU, sums and their order are not."""
    found, wanted = detections(folder("int8")), expected("int8")
    assert sum((rows[:, 1] >= INT8_TOP).sum() for rows in wanted.values()) >= 10
    for name, rows in wanted.items():
        check_each(found[name], rows[rows[:, 1] >= INT8_TOP], INT8_SCORE, INT8_BOX)
        check_each(rows, found[name][found[name][:, 1] >= INT8_TOP + INT8_SCORE], INT8_SCORE, INT8_BOX)


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_checkpoint_says_builds_its_network(run, name):
    """The detection symbol of its options takes its weights, all and no others; so does the symbol in its file."""
    from symbol import symbol_factory

    prefix, mx = run(name), mxnet()
    meta = json.loads(Path(f"{prefix}-{RUNS[name].epoch:04d}.json").read_text())
    assert tuple(meta["class_names"]) == CLASSES
    options = symbol_factory.rebuilding_options(meta["network"], meta["options"], prefix)
    built = symbol_factory.get_symbol(meta["network"], tuple(meta["data_shape"]), len(CLASSES), **options)
    arrays = load(f"{prefix}-{RUNS[name].epoch:04d}.params")
    for symbol in (built, mx.sym.load(f"{prefix}-symbol.json")):
        names = {f"arg:{word}" for word in symbol.list_arguments()} | {
            f"aux:{word}" for word in symbol.list_auxiliary_states()
        }
        assert arrays.keys() <= names
    shapes, _, states = built.infer_shape(data=(1, 3, *meta["data_shape"]))
    found = dict(zip(built.list_arguments(), shapes, strict=True)) | dict(
        zip(built.list_auxiliary_states(), states, strict=True)
    )
    assert {word.partition(":")[2]: array.shape for word, array in arrays.items()} == {
        word: shape for word, shape in found.items() if word != "data"
    }


@pytest.mark.parametrize("name", TRAINED)
def test_evaluation_repeats_the_validation_of_the_run(run, tmp_path, name):
    """By the record, its sidecar and its classes. The validation's images are few: one more hit is some hundredths."""
    prefix, result = run(name), tmp_path / "result.json"
    command("evaluate.py", "--prefix", prefix, "--rec-path", RECORD, "--workers", "0", "--cpu", "--json", str(result))
    validation = metrics(prefix)[-1]["validation"]
    found = json.loads(result.read_text())
    assert list(found["AP"]) == list(CLASSES)
    assert found["mAP"] == pytest.approx(validation["mAP"], abs=0.05)


SLOW = pytest.mark.slow
RESUMED = [pytest.param(name, marks=() if name in ("ssd", "yolo") else SLOW) for name in RUNS]


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_is_resumed_exactly_and_as_before(run, name):
    """From epoch k to k + 2, at once or stopped after k + 1: the same bits. The first epoch is what the version that
    wrote the files made of it; with a lost optimizer state it would be another (README.md)."""
    k, whole, parts = RUNS[name].epoch, run(name, "whole"), run(name, "parts")
    resume(name, whole, k, k + 2)
    resume(name, parts, k, k + 1)
    assert digests(parts, k + 1) == digests(whole, k + 1)
    found, wanted = digest(parts, k + 1), expected_digest(name)
    for kind in KINDS:
        assert difference(found[kind], wanted[kind]) < NEXT_TOLERANCE[name], kind
    resume(name, parts, k + 1, k + 2)
    assert digests(parts, k + 2) == digests(whole, k + 2)
    assert [line["epoch"] for line in metrics(parts)][-3:] == [k, k + 1, k + 2]


def digests(prefix: str, epoch: int) -> list[str]:
    """sha256 of the weights and of the optimizer's state."""
    paths = (f"{prefix}-{epoch:04d}.{kind}" for kind in KINDS)
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def expected_digest(name: str) -> dict[str, dict[str, np.ndarray]]:
    stored = expected(f"{name}-next")
    return {kind: dict(zip(stored[f"{kind} names"].tolist(), stored[f"{kind} values"], strict=True)) for kind in KINDS}


def metrics(prefix: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"{prefix}-metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_is_exported_as_before(run, tmp_path, name):
    model = tmp_path / "model"
    command("deploy.py", "--prefix", run(name), "--output", str(model))
    check_rows(detections(model), expected(MODELS[name]))


@pytest.mark.parametrize("name", ["float32", "int8", "onnx"])
def test_demo_shows_what_a_folder_detects(folder, tmp_path, name):
    words = ["--output", "", "--json", str(tmp_path / "found.json"), "--thresh", "0.3", "--engine", "mxnet"]
    command("demo.py", "--model", str(folder(name)), "--images", str(DATA / "pictures"), *words)
    found = {
        Path(entry["image"]).stem: entry["detections"] for entry in json.loads((tmp_path / "found.json").read_text())
    }
    for picture, rows in expected(name).items():
        ids = sorted(rows[rows[:, 1] >= 0.3, 0].astype(int))
        assert sorted(entry["id"] for entry in found[picture]) == ids
        assert all(entry["class"] == CLASSES[entry["id"]] for entry in found[picture])
