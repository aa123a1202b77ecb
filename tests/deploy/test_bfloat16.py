"""bfloat16: convolutions alone, near to float32."""

import json

import pytest

from deploy.bfloat16 import to_bfloat16
from deploy.export import inference_model
from tests.deploy.made_up import images, largest_error, made_up, predictions, run

FAMILIES = ["mobilenet", "yolov3_spp_mini", "efficientdet_mini"]


@pytest.mark.parametrize("network", FAMILIES)
def test_predictions_are_near_and_come_out_as_float32(network):
    model = inference_model(made_up(network))
    data = images(model)
    expected = run(predictions(model.symbol), model.arg_params, {}, data)
    symbol, args = to_bfloat16(predictions(model.symbol), model.arg_params)
    found = run(symbol, args, {}, data)
    assert all(array.dtype == "float32" for array in found)
    assert 0 < largest_error(found, expected) < 0.1
    det = run(*to_bfloat16(model.symbol, model.arg_params), {}, data)[0]
    assert det.shape[2] == 6


@pytest.mark.parametrize("network", FAMILIES)
def test_nothing_but_layers_and_what_goes_with_them_is_bfloat16(network):
    model = inference_model(made_up(network))
    symbol, _ = to_bfloat16(model.symbol, model.arg_params)
    nodes = json.loads(symbol.tojson())["nodes"]
    short = {k for k, n in enumerate(nodes) if n["op"] == "amp_cast" and n["attrs"]["dtype"] == "bfloat16"}
    for number, node in enumerate(nodes):
        reads = [entry[0] for entry in node["inputs"]]
        if node["op"] in ("Activation", "LeakyReLU", "Pooling", "elemwise_add", "Convolution"):
            short |= {number} if any(k in short for k in reads) else set()
        elif node["op"] != "amp_cast":
            assert not any(k in short for k in reads), node["name"]
