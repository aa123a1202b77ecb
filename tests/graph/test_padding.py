import numpy as np
import pytest

from graph.constants import fold_constants
from graph.nodes import graph_of
from graph.padding import BLOCK, pad_predictions
from machine.runtime import mx
from symbol.symbol_factory import get_symbol

# network, input side, options, and the first array after the predictions have been put in order
NETWORKS = (
    ("mobilenet", 96, {"width": 0.25}, "multibox_cls_pred_output"),
    ("yolov3_tiny", 96, {"width": 0.125}, "detection_output"),
    ("efficientdet_mini", 128, {}, "cls_pred_output"),
)


def with_weights(symbol, shape):
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=shape)
    rng = np.random.default_rng(0)
    args = {
        name: mx.nd.array(rng.normal(0, 0.1, side))
        for name, side in zip(symbol.list_arguments(), arg_shapes, strict=True)
        if name != "data"
    }
    states = zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)
    return args, {name: mx.nd.ones(side) for name, side in states}


def run(symbol, output, args, aux, data):
    executor = symbol.get_internals()[output].simple_bind(mx.cpu(), grad_req="null", data=data.shape)
    executor.copy_params_from(args, aux, allow_extra_params=True)
    return executor.forward(is_train=False, data=mx.nd.array(data))[0].asnumpy()


@pytest.mark.parametrize(("network", "side", "options", "output"), NETWORKS)
def test_predictions_have_whole_blocks_of_channels_and_keep_their_values(network, side, options, output):
    data = np.random.default_rng(1).normal(size=(2, 3, side, side)).astype(np.float32)
    symbol = get_symbol(network, side, 5, **options)
    args, aux = with_weights(symbol, data.shape)
    symbol, args = fold_constants(symbol, args, (1, *data.shape[1:]))
    given = dict(args)
    padded, longer = pad_predictions(symbol, args)
    heads = [node for node in graph_of(padded).nodes() if node.op == "Convolution" and "pred" in node.name]
    filters = [int(node.attrs["num_filter"]) for node in heads]
    assert heads
    assert all(count <= BLOCK or count % BLOCK == 0 for count in filters)
    assert args == given
    np.testing.assert_allclose(run(padded, output, longer, aux, data), run(symbol, output, args, aux, data), atol=1e-4)


def test_predictions_of_predictions_have_whole_blocks_as_well():
    net = mx.sym.var("data")
    for name in ("first", "second"):
        net = mx.sym.Convolution(net, num_filter=20, kernel=(1, 1), name=name)
        net = mx.sym.transpose(net, axes=(0, 2, 3, 1), name=f"{name}_turned")
    data = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    args, aux = with_weights(net, data.shape)
    padded, longer = pad_predictions(net, args)
    heads = [node for node in graph_of(padded).nodes() if node.op == "Convolution"]
    assert [node.attrs["num_filter"] for node in heads] == ["32", "32"]
    expected = run(net, "second_turned_output", args, aux, data)
    np.testing.assert_allclose(run(padded, padded.list_outputs()[0], longer, aux, data), expected, atol=1e-5)
