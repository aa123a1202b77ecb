"""Rounding in place of bfloat16: to the nearest even number, at each place where mixed precision is narrow."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.bfloat16_accuracy import main, rounded, to_rounded
from graph.mixed_precision import BFLOAT16, FLOAT16, to_mixed
from graph.number_formats import supports_bfloat16
from graph.symbol_graph import graph_of
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from tests.train.tiny import NETWORK, write_record
from train.options import train_options
from train.training import run_training

SHAPES = {"data": (4, 16, 3, 3)}
STEP = 2.0**-7  # from 1 to the next number of bfloat16


@given(arrays(np.float32, (40,), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)))
def test_the_nearest_number_with_eight_bits_is_taken(values):
    found = rounded(values)
    assert not (found.view(np.uint32) & 0xFFFF).any()
    exponents = np.frexp(values)[1]
    spacing = np.ldexp(1.0, exponents - 8)
    expected = np.rint(values.astype(np.float64) / spacing) * spacing  # rint: of two as near the even one
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_more_values_than_are_rounded_at_a_time():
    values = np.linspace(1, 2, 200_001, dtype=np.float32).reshape(3, 66667)
    np.testing.assert_array_equal(rounded(values), np.rint(values / STEP) * STEP)


def test_values_and_gradients_are_those_of_rounded_products():
    """Two layers of 1x1 with a ReLU between them, as numpy computes them."""
    random = np.random.default_rng(0)
    net = mx.sym.Convolution(mx.sym.var("data"), name="first", num_filter=16, kernel=(1, 1), no_bias=True)
    net = mx.sym.Activation(net, name="relu", act_type="relu")
    net = mx.sym.Convolution(net, name="second", num_filter=16, kernel=(1, 1), no_bias=True)
    executor = to_rounded(net, SHAPES, BFLOAT16).simple_bind(mx.cpu(), **SHAPES)
    values = {name: random.normal(size=array.shape).astype(np.float32) for name, array in executor.arg_dict.items()}
    for name, array in executor.arg_dict.items():
        array[:] = values[name]
    top = random.normal(size=executor.forward(is_train=True)[0].shape).astype(np.float32)
    executor.backward([mx.nd.array(top)])
    data = rounded(values["data"]).transpose(1, 0, 2, 3).reshape(16, -1)
    first, second = (rounded(values[f"{name}_weight"]).reshape(16, 16) for name in ("first", "second"))
    before = rounded(first @ data)
    middle = np.maximum(before, 0)
    above = rounded(top.transpose(1, 0, 2, 3).reshape(16, -1))
    below = rounded(rounded(second.T @ above) * (before > 0))
    expected = {"data": first.T @ below, "first_weight": below @ data.T, "second_weight": above @ middle.T}
    _assert_near(executor.outputs[0].asnumpy(), second @ middle, "output")
    for name, wanted in expected.items():
        _assert_near(executor.grad_dict[name].asnumpy(), wanted, name)


def _assert_near(found, products, name):
    """As products, rounded; a sum in another order may round to the next number."""
    found = found.transpose(1, 0, 2, 3).reshape(found.shape[1], -1) if found.shape[2:] == (3, 3) else found.squeeze()
    wanted = rounded(products)
    assert (found == wanted).mean() > 0.95, name
    np.testing.assert_allclose(found, wanted, rtol=STEP, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


FOLLOWERS = {
    "norm": lambda net: mx.sym.BatchNorm(net, fix_gamma=False),
    "leaky": lambda net: mx.sym.LeakyReLU(net, act_type="leaky", slope=0.1),
    "pooling": lambda net: mx.sym.Pooling(net, kernel=(2, 2), pool_type="avg"),
    "sum": lambda net: mx.sym.elemwise_add(net, mx.sym.tanh(net)),
    "concat": lambda net: mx.sym.Concat(net, mx.sym.tanh(net)),
}


# Slow, as it has not been run: no CPU with AVX-512 was at hand when it was written.
@pytest.mark.slow
@pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_values_are_nearer_to_bfloat16s_own_than_float32s_are(follower):
    net = mx.sym.Convolution(mx.sym.var("data"), name="first", num_filter=32, kernel=(3, 3), pad=(1, 1))
    net = mx.sym.Convolution(FOLLOWERS[follower](net), name="last", num_filter=32, kernel=(1, 1))
    native, rounding, float32 = (
        _values(symbol) for symbol in (*(how(net, SHAPES, BFLOAT16) for how in (to_mixed, to_rounded)), net)
    )
    assert _distance(rounding["output"], native["output"]) < 0.5 * _distance(float32["output"], native["output"])
    longest = max(map(np.linalg.norm, native.values()))
    for name, wanted in native.items():
        assert _distance(rounding[name], wanted) < 0.1 * np.linalg.norm(wanted) + STEP * longest, name


def _distance(found, expected):
    return np.linalg.norm(found - expected)


def _values(symbol):
    random = np.random.default_rng(0)
    executor = symbol.simple_bind(mx.cpu(), **SHAPES)
    for array in executor.arg_dict.values():
        array[:] = random.normal(size=array.shape)
    for name, array in executor.aux_dict.items():
        array[:] = float("var" in name)
    output = executor.forward(is_train=True)[0]
    executor.backward([mx.nd.array(random.normal(size=output.shape))])
    return {"output": output.asnumpy()} | {name: array.asnumpy() for name, array in executor.grad_dict.items()}


def test_what_mixed_precision_leaves_alone_is_not_rounded():
    net = mx.sym.Convolution(mx.sym.var("data"), name="odd", num_filter=24, kernel=(1, 1))
    assert "Custom" not in {node.op for node in graph_of(to_rounded(net, SHAPES, BFLOAT16)).nodes()}
    net = mx.sym.Convolution(mx.sym.var("data"), name="whole", num_filter=32, kernel=(1, 1))
    net = mx.sym.transpose(mx.sym.log_softmax(net, axis=1, name="float32"), axes=(0, 2, 3, 1))
    nodes = graph_of(to_rounded(net, SHAPES, BFLOAT16)).nodes()
    rounded_nodes = sorted(node.inputs[0].node.name for node in nodes if node.op == "Custom")
    assert rounded_nodes == ["data", "whole", "whole_bias", "whole_weight"]


def test_float16_is_refused():
    with pytest.raises(ValueError, match="bfloat16 alone"):
        to_rounded(mx.sym.var("data"), SHAPES, FLOAT16)


def test_the_command_trains_rounded_and_says_that_it_is_bfloat16(tmp_path, monkeypatch):
    for module, name in (("module", "to_mixed"), ("preflight", "supports_bfloat16"), ("measuring", "has_amx")):
        owner = sys.modules[f"train.{module}"]
        monkeypatch.setattr(owner, name, getattr(owner, name))  # what main() replaces comes back
    record = write_record(tmp_path / "train.rec", 4)
    weights = {}

    def run(words):
        dtype = words[-1]
        prefix = str(tmp_path / dtype / "t")
        options = {**NETWORK, "train_path": record, "val_path": "", "batch_size": 4, "end_epoch": 1, "workers": 0}
        run_training(train_options(**options, prefix=prefix, dtype=dtype))
        found = load_checkpoint(prefix, 1)
        weights[dtype] = {name: array.asnumpy() for name, array in found.arg_params.items()}
        assert found.meta.precision == ({"dtype": BFLOAT16} if dtype == BFLOAT16 else {})

    monkeypatch.setattr("train.main.main", run)
    run(["float32"])
    main([])
    moved = [name for name, array in weights["float32"].items() if (array != weights[BFLOAT16][name]).any()]
    assert len(moved) > 0.5 * len(weights["float32"])
