"""bfloat16: convolutions alone, near to float32."""

import dataclasses
import json

import pytest

from engines.mxnet_engine import bind
from graph.number_formats import supports_bfloat16, to_bfloat16
from machine.runtime import mx
from model.folder import inference_model
from tests.model.made_up import images, largest_error, made_up, predictions, run

FAMILIES = ["mobilenet", "yolov3_spp_mini", "efficientdet_mini"]


@pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
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


def test_cpus_without_it_run_float32_and_say_so(monkeypatch, caplog):
    model = inference_model(made_up("mobilenet"))
    short = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, dtype="bfloat16"))
    monkeypatch.setattr("engines.mxnet_engine.supports_bfloat16", lambda: False)
    found, expected = (bind(one, mx.cpu(), 1).run(images(model)) for one in (short, model))
    assert (found == expected).all()
    assert "AVX-512" in caplog.text
