"""uint8 pixels as input give what normalised input gives, at the borders, too."""

import numpy as np
import pytest

from deploy.precision import with_dtype
from detect.detector import Detector
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.folder import read_model_folder, write_model_folder
from model.load import inference_model, model_from_checkpoint
from tests.model.made_up import largest_error, predictions, run
from tests.model.tiny import MEAN, SIZE, picture, save_tiny

STD = (60.0, 55.0, 50.0)
FIRST = "conv_1_conv2d_output"


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), STD])
def test_every_pixel_of_the_first_map_is_the_same(tmp_path, std):
    checkpoint = load_checkpoint(save_tiny(tmp_path / "tiny", std=std), "auto")
    floats, pixels = (inference_model(model_from_checkpoint(checkpoint), uint8) for uint8 in (False, True))
    image = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    normalised = ((image - np.array(MEAN, np.float32)) / np.array(std, np.float32)).transpose(0, 3, 1, 2)
    for part in (lambda symbol: symbol.get_internals()[FIRST], predictions):
        expected = run(part(floats.symbol), floats.arg_params, {}, mx.nd.array(normalised))
        found = run(part(pixels.symbol), pixels.arg_params, {}, mx.nd.array(image, dtype="uint8"))
        assert largest_error(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["force", "letterbox"])
def test_detections_are_the_same_from_a_folder(tmp_path, mode, dtype):
    prefix = save_tiny(tmp_path / "tiny", std=STD, resize_mode=mode)
    folders = []
    for uint8 in (False, True):
        model = inference_model(model_from_checkpoint(load_checkpoint(prefix, "auto")), uint8)
        folders.append(tmp_path / f"model{uint8}")
        write_model_folder(folders[-1], with_dtype(model, dtype))
    assert read_model_folder(folders[1]).manifest.image_shape == (*SIZE, 3)
    image = picture(1, 70, 200)
    expected, found = (Detector(folder, engine="mxnet", threshold=0.0).detect(image) for folder in folders)
    assert len(expected) > 5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3 if dtype == "float32" else 2.0)
