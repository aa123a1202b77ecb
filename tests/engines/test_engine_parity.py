"""A deployed folder gives the same boxes in every engine, with mxnet alone and with onnxruntime alone."""

import dataclasses

import numpy as np
import pytest

from config.groups import DeviceOptions
from deploy.onnx_file import onnx_files
from detect.detector import Detector
from engines.preprocess import encode_image
from model.checkpoint import load_checkpoint
from model.folder import write_model_folder
from model.load import inference_model, model_from_checkpoint
from tests.examples.test_examples import LOWEST, agree, found_by
from tests.model.tiny import picture, save_tiny

IMAGES = [picture(seed, 60 + 30 * seed, 150 - 20 * seed) for seed in range(3)]
LETTERBOX = {"resize_mode": "letterbox", "fill": 114, "std": (58.0, 57.0, 59.0)}


@pytest.fixture(scope="module", params=["stretched", "letterbox", "uint8"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    checkpoint = load_checkpoint(save_tiny(root / "tiny"), 3)
    model = inference_model(model_from_checkpoint(checkpoint), request.param == "uint8")
    changes = LETTERBOX if request.param == "letterbox" else {}
    model = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **changes))
    write_model_folder(root / "model", model, onnx_files(model))
    return root / "model"


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_agree(folder, engine, batch_size):
    detectors = [
        Detector(folder, engine=name, batch_size=batch_size, threshold=0.2, ctx=DeviceOptions(cpu=True))
        for name in ("mxnet", engine)
    ]
    for expected, rows in zip(*(detector.detect(IMAGES) for detector in detectors), strict=True):
        assert len(expected) > 1
        np.testing.assert_array_equal(rows[:, 0], expected[:, 0])
        np.testing.assert_allclose(rows[:, 1], expected[:, 1], atol=1e-4)
        np.testing.assert_allclose(rows[:, 2:], expected[:, 2:], atol=1e-4 * 200)


def test_the_examples_agree(folder, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(IMAGES[1], ".png"))
    expected = Detector(folder, threshold=float(LOWEST), engine="onnxruntime").detect(path)
    agree(found_by("detect_onnxruntime.py", folder, path, tmp_path), expected)
