"""Modules without gradients give what the symbol does, rewritten or not."""

import json

import numpy as np
import pytest

from boxes.effdet_assigner import EffDetAssigner
from evaluate.scoring import inference_module, is_rewritten
from machine.runtime import mx
from symbol.losses import EFFDET_LABELS
from symbol.symbol_factory import get_symbol_train
from tests.model.made_up import images, made_up, run

CPU = [mx.cpu()]


def data_descs(*arrays):
    return [mx.io.DataDesc(name, array.shape) for name, array in arrays]


@pytest.mark.parametrize("devices", [CPU, [mx.cpu(0), mx.cpu(1)]], ids=len)
@pytest.mark.parametrize(("network", "rewritten"), [("efficientdet_mini", True), ("mobilenet", False)])
def test_outputs_are_those_of_the_symbol(network, rewritten, devices):
    model = made_up(network)
    data = images(model, 3)
    module = inference_module(model.symbol, model.arg_params, model.aux_params, devices, data_descs(("data", data)))
    assert is_rewritten(model.symbol, devices) is rewritten
    assert ("_backward_Activation" in {node["op"] for node in json.loads(module.symbol.tojson())["nodes"]}) is rewritten
    module.forward(mx.io.DataBatch([data]), is_train=False)
    expected = run(model.symbol, model.arg_params, model.aux_params, data)[0]
    assert (expected[:, :, 0] >= 0).any()
    np.testing.assert_allclose(module.get_outputs()[0].asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_gpu_runs_the_symbol_as_it_is():
    assert not is_rewritten(made_up("efficientdet_mini").symbol, [mx.cpu(), mx.gpu(0)])


def test_losses_beside_the_detections():
    model = made_up("efficientdet_mini")
    data = images(model, 2)
    objects = np.array([[0, 0.1, 0.1, 0.4, 0.5, 0], [2, 0.5, 0.2, 0.9, 0.8, 0]], np.float32)
    targets = EffDetAssigner()(objects, model.manifest.size)
    labels = [(name, mx.nd.array(np.stack([targets[name]] * 2))) for name in EFFDET_LABELS]
    symbol = get_symbol_train("efficientdet_mini", model.manifest.size, 3, drop_connect=0.2)
    batch = mx.io.DataBatch([data], [array for _, array in labels])
    outputs = []
    for rewritten in (True, False):
        parts = symbol, model.arg_params, model.aux_params
        if rewritten:
            module = inference_module(*parts, CPU, data_descs(("data", data)), data_descs(*labels))
        else:
            module = mx.mod.Module(symbol, label_names=EFFDET_LABELS)
            module.bind(data_descs(("data", data)), data_descs(*labels), for_training=False)
            module.set_params(*parts[1:])
        module.forward(batch, is_train=False)
        outputs.append([array.asnumpy() for array in module.get_outputs()])
    assert len(outputs[0]) == 3
    assert all((loss > 0).all() for loss in outputs[0][:2])
    for found, expected in zip(*outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
