"""The scripts of examples/ need nothing of this project, and find what Detector finds."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detect.detector import Detector
from engines.preprocess import encode_image
from machine.opencv import cv2
from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, write_model_folder
from tests.engines.tiny_onnx import with_onnx
from tests.model.tiny import CLASSES, picture, save_tiny

EXAMPLES = Path(__file__).parents[2] / "examples"
LOWEST = "0.2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_tiny(tmp_path_factory.mktemp("run") / "tiny"), 3)


def _export(checkpoint, folder, uint8=False, **manifest):
    model = inference_model(model_from_checkpoint(checkpoint), uint8)
    write_model_folder(folder, dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **manifest)))
    return folder


def output(script, folder, image, cwd, lowest=LOWEST):
    """What a script prints, run without the project: -I takes neither its folder nor the script's."""
    words = [sys.executable, "-I", str(EXAMPLES / script), str(folder), str(image), lowest]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found_by(script, folder, image, cwd):
    """Rows (n, 6) that a script prints."""
    lines = [line.split() for line in output(script, folder, image, cwd).splitlines()]
    return np.array([[CLASSES.index(name), *map(float, numbers)] for name, *numbers in lines])


def agree(rows, expected):
    """Each row has its counterpart, but for 1 in 50: made-up weights give boxes that hardly survive suppression."""
    assert len(expected) > 1
    limits = [0.5, 2e-3, *[0.2] * 4]  # pixels of two resizers may differ by 1
    close = (np.abs(rows[:, None] - expected) <= limits).all(axis=2)
    assert close.any(axis=0).mean() >= 0.98
    assert close.any(axis=1).mean() >= 0.98


@pytest.mark.parametrize("script", ["detect_mxnet.py", "detect_onnxruntime.py"])
def test_without_arguments_the_usage_is_told(script, tmp_path):
    words = [sys.executable, "-I", str(EXAMPLES / script)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"usage: python {script} FOLDER IMAGE [LOWEST_SCORE]\n"


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("manifest", [{}, {"resize_mode": "letterbox", "fill": 114, "std": (58.0, 57.0, 59.0)}])
def test_mxnet_alone(checkpoint, tmp_path, manifest, uint8):
    folder = _export(checkpoint, tmp_path / "model", uint8, **manifest)
    (tmp_path / "a.png").write_bytes(encode_image(picture(3, 131, 90), ".png"))
    expected = Detector(folder, threshold=float(LOWEST), engine="mxnet").detect(tmp_path / "a.png")
    agree(found_by("detect_mxnet.py", folder, tmp_path / "a.png", tmp_path), expected)


@pytest.mark.parametrize("manifest", [{}, {"resize_mode": "letterbox", "fill": 114, "std": (58.0, 57.0, 59.0)}])
@pytest.mark.parametrize(("size", "batch"), [((131, 90), "any"), ((40, 300), 2)])
def test_onnxruntime_alone(checkpoint, tmp_path, manifest, size, batch):
    folder = with_onnx(_export(checkpoint, tmp_path / "plain", **manifest), tmp_path / "model", batch=batch)
    (tmp_path / "a.png").write_bytes(encode_image(picture(3, *size), ".png"))
    expected = Detector(folder, threshold=float(LOWEST), engine="onnxruntime", batch_size=2).detect(tmp_path / "a.png")
    agree(found_by("detect_onnxruntime.py", folder, tmp_path / "a.png", tmp_path), expected)


@pytest.mark.parametrize("script", ["detect_mxnet.py", "detect_onnxruntime.py"])
def test_that_nothing_was_found_is_said(checkpoint, tmp_path, script):
    folder = with_onnx(_export(checkpoint, tmp_path / "plain"), tmp_path / "model")
    (tmp_path / "a.png").write_bytes(encode_image(picture(3, 131, 90), ".png"))
    assert output(script, folder, "a.png", tmp_path, "1.5") == "a.png: nothing above 1.5\n"


def test_the_resize_without_opencv_is_that_of_opencv():
    tree = ast.parse((EXAMPLES / "detect_onnxruntime.py").read_text("utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions = {"np": np}
    exec(compile(tree, "functions", "exec"), functions)
    image = picture(0, 120, 160)
    for height, width in ((72, 96), (75, 75), (104, 104), (175, 225), (120, 160), (60, 80), (1, 300)):
        found, expected = functions["resize"](image, height, width), cv2.resize(image, (width, height))
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
