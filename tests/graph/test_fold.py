"""Folded networks compute what the trained ones do."""

import json

import numpy as np
import pytest

from graph.constants import fold_constants
from graph.fold import fold_batch_norm
from machine.runtime import mx
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.detector.ssd_rows import ROWS as SSD_NETWORKS
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from tests.model.made_up import images, largest_error, made_up, predictions, run

SMALL_EFFDETS = [name for name, row in EFFDET_NETWORKS.items() if row.channels <= 64]
ALL = [*SSD_NETWORKS, *YOLO_NETWORKS, *SMALL_EFFDETS]
FAMILIES = ["mobilenet", "yolov3_spp_mini", "efficientdet_mini"]


def _operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


@pytest.mark.parametrize("network", ALL)
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
