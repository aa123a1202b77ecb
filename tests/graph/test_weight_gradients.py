"""Weight gradients of bfloat16 beside the graph: each way gives float32's to a rounding, and the fastest is taken."""

import numpy as np
import pytest

from graph.mixed_precision import BFLOAT16, to_mixed
from graph.number_formats import supports_bfloat16
from graph.weight_gradients import (
    KERNEL,
    PROBE,
    PRODUCTS,
    WAYS,
    Layer,
    WeightGradients,
    expose,
    fastest_ways,
    layers_of,
    seconds_of_ways,
)
from machine.runtime import mx

pytestmark = pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
ROUNDING = 2.0**-8  # of bfloat16
SHAPE = (2, 16, 10, 12)
# (kernel, pad, dilate, without a bias)
CONVOLUTIONS = [
    ((3, 3), (1, 1), (1, 1), False),
    ((3, 3), (1, 1), (1, 1), True),
    ((1, 1), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (2, 2), True),
    ((1, 5), (0, 2), (1, 1), True),
    ((3, 3), (0, 0), (1, 1), True),
]


def net(kernel, pad, dilate, no_bias):
    """Two convolutions whose outputs have a gradient that is no constant."""
    first = mx.sym.Convolution(
        mx.sym.var("data"), name="one", num_filter=32, kernel=kernel, pad=pad, dilate=dilate, no_bias=no_bias
    )
    second = mx.sym.Convolution(first, name="two", num_filter=16, kernel=(1, 1), no_bias=True)
    return mx.sym.make_loss(mx.sym.sum(mx.sym.square(second)), name="loss")


def executor_of(symbol, seed=0):
    executor = symbol.simple_bind(mx.cpu(), data=SHAPE, grad_req="write")
    rng = np.random.default_rng(seed)
    for name, array in sorted(executor.arg_dict.items()):
        if not name.startswith(PROBE):
            array[:] = rng.normal(0, 1 if name == "data" else 0.1, array.shape)
    return executor


def run(executor, beside=None):
    executor.forward(is_train=True)
    executor.backward()
    if beside:
        beside.compute()
    mx.nd.waitall()
    names = [name for name in executor.grad_dict if not name.startswith(PROBE)]
    return {name: executor.grad_dict[name].asnumpy() for name in names}


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize(("kernel", "pad", "dilate", "no_bias"), CONVOLUTIONS)
def test_a_way_gives_the_gradients_of_float32_to_a_rounding_step_after_step(kernel, pad, dilate, no_bias, way):
    symbol = net(kernel, pad, dilate, no_bias)
    mixed, plain = to_mixed(symbol, {"data": SHAPE}, BFLOAT16), executor_of(symbol)
    layers = layers_of(mixed, {"data": SHAPE}, frozenset())
    assert set(layers) == {"one", "two"}
    ways = dict.fromkeys(layers, way)
    executor = executor_of(expose(mixed, ways))
    beside = WeightGradients(executor, layers, ways)
    assert [array.shape for array in executor.outputs][1:] == [layers[name].data for name in ways]
    for seed in (0, 1):
        for one in (plain, executor):
            one.arg_dict["data"][:] = np.random.default_rng(seed).normal(0, 1, SHAPE)
        expected, found = run(plain), run(executor, beside)
        for name, array in expected.items():
            assert np.linalg.norm(found[name] - array) < 4 * ROUNDING * np.linalg.norm(array), name


def test_layers_that_are_not_trained_or_not_simple_are_left_to_the_graph():
    data = mx.sym.var("data")
    strided = mx.sym.Convolution(data, name="strided", num_filter=16, kernel=(3, 3), stride=(2, 2), no_bias=True)
    groups = mx.sym.Convolution(strided, name="groups", num_filter=16, kernel=(1, 1), num_group=16, no_bias=True)
    frozen = mx.sym.Convolution(groups, name="frozen", num_filter=16, kernel=(1, 1), no_bias=True)
    made = mx.sym.Convolution(frozen, mx.sym.var("w") * 2, name="made", num_filter=16, kernel=(1, 1), no_bias=True)
    trained = mx.sym.Convolution(made, name="trained", num_filter=16, kernel=(1, 1), no_bias=True)
    mixed = to_mixed(trained, {"data": SHAPE, "w": (16, 16, 1, 1)}, BFLOAT16)
    assert set(layers_of(mixed, {"data": SHAPE, "w": (16, 16, 1, 1)}, frozenset({"frozen_weight"}))) == {"trained"}


def test_every_way_is_measured_and_the_fastest_taken_once_for_layers_alike(monkeypatch):
    layer = Layer("w", "", (3, 3), (1, 1), (1, 1), (1, 16, 8, 8), (1, 16, 8, 8))
    other = Layer("v", "", (1, 1), (0, 0), (1, 1), (1, 16, 8, 8), (1, 16, 8, 8))
    assert set(seconds_of_ways(layer)) == set(WAYS)
    biased = Layer("u", "b", (1, 1), (0, 0), (1, 1), (1, 16, 8, 8), (1, 16, 8, 8))
    assert min(seconds_of_ways(biased).values()) > 0
    asked = []

    def seconds(one):
        asked.append(one)
        fast = PRODUCTS if one.kernel == (3, 3) else KERNEL
        return {way: 1.0 if way == fast else 2.0 for way in WAYS}

    monkeypatch.setattr("graph.weight_gradients.seconds_of_ways", seconds)
    assert fastest_ways({"a": layer, "b": other, "c": layer}) == {"a": PRODUCTS, "c": PRODUCTS}
    assert asked == [layer, other]
