"""Training graphs rewritten for oneDNN: the same outputs, gradients and moving averages from other operators."""

import json

import numpy as np
import pytest

from graph.onednn_training import is_constant, suit_training, supports_batch_norm_relu
from machine.runtime import mx
from symbol.symbol_factory import get_symbol_train, label_names
from train.stages import without_det

BATCH, CLASSES = 2, 2


def conv(data, name, filters, kernel=1, **options):
    pad = options.pop("pad", kernel // 2)
    return mx.sym.Convolution(
        data, name=name, num_filter=filters, kernel=(kernel, kernel), pad=(pad, pad), no_bias=True, **options
    )


def norm(data, name, **options):
    return mx.sym.BatchNorm(data, name=name, **{"fix_gamma": False, **options})


def relu6_net(data, **options):
    net = mx.sym.clip(norm(conv(data, "a", 32, 3), "a_bn", **options), a_min=0, a_max=6)
    return conv(net, "b", 16)


def relu_net(data, **options):
    net = mx.sym.Activation(norm(conv(data, "a", 32, 3), "a_bn", **options), act_type="relu")
    return conv(net, "b", 16)


def same_net(data):
    wide = conv(data, "a", 16, 3, stride=(2, 2), pad=2)
    return mx.sym.slice(wide, begin=(None, None, 1, 1), end=(None,) * 4)


def odd_channels_net(data):
    net = norm(conv(norm(conv(data, "a", 24, 3), "a_bn"), "b", 40), "b_bn")
    biased = mx.sym.Convolution(net, name="c", num_filter=10, kernel=(3, 3), pad=(1, 1))
    return mx.sym.transpose(biased, axes=(0, 2, 3, 1))


def gated_net(data):
    """Squeeze and excitation, and a weighted sum, as EfficientDet has them."""
    net = conv(data, "a", 8)
    means = mx.sym.mean(net, axis=(2, 3), keepdims=True, name="means")
    gate = mx.sym.Activation(conv(means, "b", 8), act_type="sigmoid")
    gated = mx.sym.elemwise_mul(net, mx.sym.broadcast_like(gate, net), name="gated")
    weight = mx.sym.reshape(mx.sym.var("w_beta", shape=(1,)), shape=(1, 1, 1, 1))
    return mx.sym.elemwise_mul(gated, mx.sym.broadcast_like(weight, gated), name="weighted")


def depthwise_net(data):
    return conv(conv(data, "a", 32), "b", 32, 5, num_group=32)


def values(symbol, shape, noise=0.0):
    """(outputs, gradients, moving averages) of one training step of a symbol from weights given by their names.

    noise: of the data, relative to each value.
    """
    executor = symbol.simple_bind(mx.cpu(), data=shape)
    for name, array in sorted(executor.arg_dict.items()):
        scale = 1 if array.ndim == 1 else np.prod(array.shape[1:]) ** -0.5
        draw = np.random.default_rng(sum(name.encode()))
        array[:] = draw.normal(2.0 if name.endswith("beta") else 0, 2 if name == "data" else scale, array.shape)
    executor.arg_dict["data"] *= 1 + noise * mx.nd.array(np.random.default_rng(2).normal(size=shape))
    attributes = symbol.attr_dict()
    for name, array in executor.aux_dict.items():
        kind = json.loads(attributes[name]["__init__"])[0] if is_constant(name) else name.rsplit("_", 1)[1]
        array[:] = 1 if kind in ("one", "var") else 0
    found = executor.forward(is_train=True)
    executor.backward([mx.nd.array(np.random.default_rng(1).normal(size=out.shape)) for out in found])
    mx.nd.waitall()
    return (
        [out.asnumpy() for out in found],
        {name: array.asnumpy() for name, array in executor.grad_dict.items()},
        {name: array.asnumpy() for name, array in executor.aux_dict.items() if not is_constant(name)},
    )


def assert_same(symbol, shape):
    """The rewritten symbol gives what the symbol gives; returns its operators."""
    better = suit_training(symbol, {"data": shape})
    assert set(better.list_arguments()) == set(symbol.list_arguments())
    assert {name for name in better.list_auxiliary_states() if not is_constant(name)} == set(
        symbol.list_auxiliary_states()
    )
    (out, gradients, moving), (new_out, new_gradients, new_moving) = values(symbol, shape), values(better, shape)
    for old, new in zip(out, new_out, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)
    for old, new in ((gradients, new_gradients), (moving, new_moving)):
        assert set(old) == set(new)
        most = max((np.abs(array).max() for array in old.values()), default=0.0)
        for name in old:
            scale = max(np.abs(old[name]).max(), most / 10)  # some are zero but for rounding
            np.testing.assert_allclose(new[name] / scale, old[name] / scale, atol=1e-4, err_msg=name)
    return operators(better)


def operators(symbol):
    return [(node["op"], node.get("attrs", {})) for node in json.loads(symbol.tojson())["nodes"]]


@pytest.mark.parametrize("options", [{}, {"use_global_stats": True}, {"eps": 1e-2, "momentum": 0.5}])
def test_relu6_is_two_batch_norms(options):
    symbol = relu6_net(mx.sym.var("data"), **options)
    found = [op for op, _ in assert_same(symbol, (4, 3, 8, 8))]
    assert "clip" not in found
    assert found.count("_contrib_BatchNormWithReLU") == 2


@pytest.mark.parametrize("options", [{}, {"use_global_stats": True}, {"fix_gamma": True}])
def test_batch_norm_and_relu_are_one(options):
    found = [op for op, _ in assert_same(relu_net(mx.sym.var("data"), **options), (4, 3, 8, 8))]
    assert "Activation" not in found
    assert "BatchNorm" not in found


def test_same_padding_needs_no_slice():
    found = assert_same(same_net(mx.sym.var("data")), (2, 3, 8, 8))
    assert "slice" not in [op for op, _ in found]
    assert [attrs["kernel"] for op, attrs in found if op == "Convolution"] == ["(4, 4)"]


def test_same_padding_of_odd_maps_stays():
    assert "slice" in [op for op, _ in assert_same(same_net(mx.sym.var("data")), (2, 3, 9, 9))]


def test_convolutions_have_whole_blocks():
    found = assert_same(odd_channels_net(mx.sym.var("data")), (2, 3, 8, 8))
    assert [attrs["num_filter"] for op, attrs in found if op == "Convolution"] == ["32", "48", "16"]


def test_means_and_gates_are_products_of_matrices():
    found = [name for name, _ in assert_same(gated_net(mx.sym.var("data")), (2, 3, 5, 6))]
    assert not {"mean", "broadcast_like", "elemwise_mul"} & set(found)
    assert (found.count("dot"), found.count("batch_dot")) == (3, 1)


def test_means_and_gates_take_inputs_of_another_size():
    symbol = gated_net(mx.sym.var("data"))
    better, shape = suit_training(symbol, {"data": (2, 3, 5, 6)}), (2, 3, 8, 4)
    (out, gradients, _), (new_out, new_gradients, _) = values(symbol, shape), values(better, shape)
    np.testing.assert_allclose(new_out[0], out[0], rtol=1e-4, atol=1e-4)
    for name, expected in gradients.items():
        np.testing.assert_allclose(new_gradients[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


OTHER_MEANS = {
    "not kept": lambda net: mx.sym.mean(net, axis=(2, 3)),
    "of channels": lambda net: mx.sym.mean(net, axis=1, keepdims=True),
    "of rows": lambda net: mx.sym.mean(net, axis=3, keepdims=True),
    "of a matrix": lambda net: mx.sym.mean(mx.sym.Flatten(net), axis=1, keepdims=True),
    "spread over rows": lambda net: mx.sym.elemwise_mul(
        net, mx.sym.broadcast_like(mx.sym.mean(net, axis=3, keepdims=True), net)
    ),
    "spread over another map": lambda net: mx.sym.elemwise_mul(
        net, mx.sym.broadcast_like(mx.sym.slice_axis(net, axis=2, begin=0, end=1), mx.sym.tanh(net))
    ),
}


@pytest.mark.parametrize("net", OTHER_MEANS.values(), ids=OTHER_MEANS)
def test_other_means_and_gates_stay(net):
    found = [name for name, _ in assert_same(net(conv(mx.sym.var("data"), "a", 8)), (2, 3, 5, 6))]
    assert not {"dot", "batch_dot"} & set(found)


def test_large_depthwise_kernels_are_groups_of_blocks():
    found = assert_same(depthwise_net(mx.sym.var("data")), (2, 3, 24, 24))
    assert [attrs.get("num_group", "1") for op, attrs in found if op == "Convolution"] == ["1", "2"]
    small = assert_same(depthwise_net(mx.sym.var("data")), (2, 3, 8, 8))
    assert [attrs.get("num_group", "1") for op, attrs in small if op == "Convolution"] == ["1", "32"]


@pytest.mark.parametrize(
    "net",
    [
        lambda data: mx.sym.clip(norm(conv(data, "a", 24), "a_bn"), a_min=0, a_max=6),  # half a block
        lambda data: mx.sym.clip(norm(conv(data, "a", 32), "a_bn"), a_min=-1, a_max=6),
        lambda data: mx.sym.clip(norm(conv(data, "a", 32), "a_bn", fix_gamma=True), a_min=0, a_max=6),
        lambda data: (lambda n: mx.sym.Group([n, mx.sym.clip(n, a_min=0, a_max=6)]))(norm(conv(data, "a", 32), "a_bn")),
        lambda data: (lambda n: n + mx.sym.clip(n, a_min=0, a_max=6))(norm(conv(data, "a", 32), "a_bn")),
    ],
)
def test_other_clips_stay(net):
    assert "clip" in [op for op, _ in assert_same(net(mx.sym.var("data")), (4, 3, 8, 8))]


@pytest.mark.parametrize(
    ("network", "size", "width"),
    [
        ("efficientnet_lite0", 64, 1.0),
        ("efficientdet_lite0", 128, 1.0),
        ("efficientdet_mini", 128, 1.0),
        ("mobilenet", 64, 0.25),
        ("yolov3_spp_mini", 64, 1.0),
        ("gluoncv:mobilenetv2_0.5", 64, 1.0),
    ],
)
def test_whole_networks(network, size, width):
    """They change no more than by rounding, to which deep networks on few pixels are sensitive."""
    options = {"width": width} if width != 1 else {}
    options |= {"drop_connect": 0.0} if network.startswith("efficientdet") else {}  # random
    losses = without_det(get_symbol_train(network, size, CLASSES, **options))
    symbol = predictions(losses, set(label_names(network)))
    shape = (BATCH, 3, size, size)
    expected, disturbed = values(symbol, shape), values(symbol, shape, noise=1e-6)
    found = values(suit_training(symbol, {"data": shape}), shape)
    assert distance(found[0], expected[0]) < 10 * distance(disturbed[0], expected[0]) + 1e-5
    for part in (1, 2):  # gradients, moving averages
        names = [name for name in expected[part] if name != "data"]
        arrays = [[values_of[part][name] for name in names] for values_of in (found, disturbed, expected)]
        noise = distance(arrays[1], arrays[2])
        assert noise < 1e-3  # so that something is shown
        assert distance(arrays[0], arrays[2]) < 10 * noise + 1e-5


def distance(found, expected):
    """Of lists of arrays: the norm of the difference, relative to that of expected."""
    flat, wanted = (np.concatenate([array.ravel() for array in arrays]) for arrays in (found, expected))
    return np.linalg.norm(flat - wanted) / np.linalg.norm(wanted)


def predictions(symbol, labels):
    """A late convolution of a training symbol: at the very end some batch norms see one pixel of each image."""
    internals = symbol.get_internals()
    nodes = json.loads(symbol.tojson())["nodes"]
    found = [internals[f"{node['name']}_output"] for node in nodes if node["op"] == "Convolution"]
    found = [net for net in found if not labels & set(net.list_arguments())]
    return found[2 * len(found) // 3]


def test_support_is_found_here():
    assert supports_batch_norm_relu()
