"""Folded networks compute what the trained ones do.

uint8 pixels as input give what normalised input gives, at the borders, too.
"""

import json

import numpy as np
import pytest

from deploy.precision import with_dtype
from detect.detector import Detector
from graph.fold import fold_batch_norm, fold_constants
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, read_model_folder, write_model_folder
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.detector.ssd_rows import ROWS as SSD_NETWORKS
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from tests.model.made_up import images, largest_error, made_up, predictions, run
from tests.model.tiny import MEAN, SIZE, picture, save_tiny
from tests.symbol.network_cases import SAME_KIND, slow_unless

SMALL_EFFDETS = [name for name, row in EFFDET_NETWORKS.items() if row.channels <= 64]
ALL = [*SSD_NETWORKS, *YOLO_NETWORKS, *SMALL_EFFDETS]
FAMILIES = ["mobilenet", "yolov3_spp_mini", "efficientdet_mini"]
STD = (60.0, 55.0, 50.0)
FIRST = "conv_1_conv2d_output"


def _operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


@pytest.mark.parametrize("network", [slow_unless(name not in SAME_KIND, name) for name in ALL])
def test_predictions_stay_the_same_without_batch_norm(network):
    model = made_up(network)
    data = images(model)
    symbol, args, aux = fold_batch_norm(model.symbol, model.arg_params, model.aux_params)
    expected = run(predictions(model.symbol), model.arg_params, model.aux_params, data)
    found = run(predictions(symbol), args, aux, data)
    assert largest_error(found, expected) < 1e-5
    before, after = _operators(model.symbol), _operators(symbol)
    assert after.count("Convolution") == before.count("Convolution")
    if "densenet" not in network and "resnet" not in network:  # theirs precede the convolutions
        assert "BatchNorm" not in after
        assert not aux


@pytest.mark.parametrize("network", FAMILIES)
def test_constants_change_nothing_for_any_number_of_images(network):
    model = made_up(network)
    symbol, args, aux = fold_batch_norm(model.symbol, model.arg_params, model.aux_params)
    expected = run(symbol, args, aux, images(model, 2))[0]
    assert (expected[:, :, 0] >= 0).any()
    constant, constant_args = fold_constants(symbol, args, (1, 3, *model.manifest.size))
    np.testing.assert_allclose(run(constant, constant_args, aux, images(model, 2))[0], expected, atol=1e-6)
    assert "_contrib_MultiBoxPrior" not in _operators(constant)


def test_a_batch_norm_stays_where_something_else_reads_the_convolution():
    conv = mx.sym.Convolution(mx.sym.var("data"), num_filter=2, kernel=(1, 1), name="conv")
    symbol = mx.sym.elemwise_add(mx.sym.BatchNorm(conv, name="norm"), conv)
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 4, 4))[0], strict=True))
    args = {name: mx.nd.ones(shape) for name, shape in shapes.items() if name != "data"}
    aux = {"norm_moving_mean": mx.nd.ones(2), "norm_moving_var": mx.nd.ones(2)}
    assert "BatchNorm" in _operators(fold_batch_norm(symbol, args, aux)[0])


def test_gamma_is_one_where_the_norm_says_so():
    conv = mx.sym.Convolution(mx.sym.var("data"), num_filter=2, kernel=(1, 1), no_bias=True, name="conv")
    symbol = mx.sym.BatchNorm(conv, fix_gamma=True, eps=0, name="norm")
    args = {
        "conv_weight": mx.nd.ones((2, 1, 1, 1)),
        "norm_gamma": mx.nd.full(2, 9),
        "norm_beta": mx.nd.array([0.0, 5.0]),
    }
    aux = {"norm_moving_mean": mx.nd.array([1.0, 0.0]), "norm_moving_var": mx.nd.array([4.0, 1.0])}
    folded, params, _ = fold_batch_norm(symbol, args, aux)
    data = mx.nd.full((1, 1, 1, 1), 3)
    assert run(folded, params, {}, data)[0].ravel().tolist() == [1.0, 8.0]


def test_a_batch_norm_stays_where_the_weights_of_the_convolution_are_computed():
    weight = mx.sym.var("weight", shape=(2, 3, 1, 1)) * 2
    conv = mx.sym.Convolution(mx.sym.var("data"), weight, num_filter=2, kernel=(1, 1), no_bias=True, name="conv")
    symbol = mx.sym.BatchNorm(conv, name="norm")
    args = {"weight": mx.nd.ones((2, 3, 1, 1)), "norm_gamma": mx.nd.ones(2), "norm_beta": mx.nd.ones(2)}
    aux = {"norm_moving_mean": mx.nd.ones(2), "norm_moving_var": mx.nd.ones(2)}
    assert "BatchNorm" in _operators(fold_batch_norm(symbol, args, aux)[0])


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
