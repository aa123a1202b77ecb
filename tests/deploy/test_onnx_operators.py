"""Each operator in ONNX gives what it gives in MXNet, for batches of any size."""

import numpy as np
import pytest

from common.errors import OptionError
from machine.runtime import mx
from model.symbol_check import OPERATORS, VARIABLE
from tests.deploy.onnx_runtimes import RUNTIMES, exported, random_params, run, run_mxnet

from deploy.onnx_export.export import OF_SHAPES, TRANSLATIONS  # isort: skip  (needs onnx)

sym = mx.sym
IMAGE = (3, 9, 8)


# name: (symbol of data, shape of one image's data)
CASES = {
    "convolution": (lambda d: sym.Convolution(d, kernel=(3, 2), num_filter=4, pad=(1, 0), stride=(2, 1)), IMAGE),
    "dilated": (lambda d: sym.Convolution(d, kernel=(3, 3), num_filter=4, pad=(2, 2), dilate=(2, 2)), IMAGE),
    "grouped": (lambda d: sym.Convolution(d, kernel=(3, 3), num_filter=6, num_group=3, no_bias=True), IMAGE),
    "fixed gamma": (lambda d: sym.BatchNorm(d, fix_gamma=True, eps=1e-2), IMAGE),
    "gamma": (lambda d: sym.BatchNorm(d, fix_gamma=False), IMAGE),
    "dense": (lambda d: sym.FullyConnected(d, num_hidden=5), IMAGE),
    "dense rows": (lambda d: sym.FullyConnected(d, num_hidden=5, flatten=False), IMAGE),
    "l2 channel": (lambda d: sym.L2Normalization(d, mode="channel"), IMAGE),
    "l2 instance": (lambda d: sym.L2Normalization(d, mode="instance", eps=0.5), IMAGE),
    "l2 spatial": (lambda d: sym.L2Normalization(d, mode="spatial"), IMAGE),
    "leaky": (lambda d: sym.LeakyReLU(d, act_type="leaky", slope=0.1), IMAGE),
    "leaky default": (lambda d: sym.LeakyReLU(d), IMAGE),
    "elu": (lambda d: sym.LeakyReLU(d, act_type="elu", slope=0.3), IMAGE),
    "prelu": (lambda d: sym.LeakyReLU(d, act_type="prelu"), IMAGE),
    **{f"activation {a}": (lambda d, a=a: sym.Activation(d, act_type=a), IMAGE)
       for a in ("relu", "sigmoid", "tanh", "softrelu", "softsign")},
    "upsampling": (lambda d: sym.UpSampling(d, scale=3, sample_type="nearest"), IMAGE),
    "dropout": (lambda d: sym.Dropout(d, p=0.5), IMAGE),
    "global mean": (lambda d: sym.Pooling(d, global_pool=True, pool_type="avg", kernel=(1, 1)), IMAGE),
    "global maximum": (lambda d: sym.Pooling(d, global_pool=True, pool_type="max", kernel=(1, 1)), IMAGE),
    "cells": (lambda d: sym.contrib.AdaptiveAvgPooling2D(d, output_size=(4, 3)), IMAGE),
    "one cell": (lambda d: sym.contrib.AdaptiveAvgPooling2D(d, output_size=1), IMAGE),
    "reshape": (lambda d: sym.reshape(d, shape=(0, -3, 2, -1)), IMAGE),
    "reshape split": (lambda d: sym.reshape(d, shape=(0, -4, 3, -1, -2)), IMAGE),
    "reshape joined with the batch": (lambda d: sym.reshape(d, shape=(-3, 0, 0)), IMAGE),
    "flatten": (lambda d: sym.Flatten(d), IMAGE),
    "transpose": (lambda d: sym.transpose(d, axes=(0, 2, 3, 1)), IMAGE),
    "transpose all": (lambda d: sym.transpose(d), IMAGE),
    "swap": (lambda d: sym.swapaxes(d, dim1=1, dim2=3), IMAGE),
    "expand": (lambda d: sym.expand_dims(d, axis=-1), IMAGE),
    "slice": (lambda d: sym.slice(d, begin=(None, None, 1, 1), end=(None, None, None, None)), IMAGE),
    "slice back": (lambda d: sym.slice(d, begin=(None, 0, -2), end=(None, 2, 1), step=(None, 1, -2)), IMAGE),
    "slice axis": (lambda d: sym.slice_axis(d, axis=-1, begin=-5, end=-1), IMAGE),
    "slice like": (lambda d: sym.slice_like(d, sym.slice_axis(d, axis=3, begin=0, end=3), axes=(2, 3)), IMAGE),
    "slice to the end": (lambda d: sym.slice_axis(d, axis=2, begin=2, end=None), IMAGE),
    "concat": (lambda d: sym.concat(d, d * 2, dim=2), IMAGE),
    "stack": (lambda d: sym.stack(d, d + 1, axis=2), IMAGE),
    "pad": (lambda d: sym.pad(d, mode="constant", constant_value=2.0, pad_width=(0, 0, 0, 0, 1, 2, 3, 0)), IMAGE),
    "pad edge": (lambda d: sym.pad(d, mode="edge", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)), IMAGE),
    "pad reflect": (lambda d: sym.pad(d, mode="reflect", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)), IMAGE),
    "softmax": (lambda d: sym.softmax(d, axis=-1), IMAGE),
    "softmax of channels": (lambda d: sym.softmax(d, axis=1, temperature=2.0), IMAGE),
    "clip": (lambda d: sym.clip(d, a_min=-0.5, a_max=1.0), IMAGE),
    "scalars": (lambda d: (d * 2 + 3) / 7, IMAGE),
    "comparisons": (lambda d: sym.add_n(d > 0.5, 2 * (d < -0.5), 4 * (sym.floor(d) == 1)), IMAGE),
    "arithmetic": (lambda d: sym.exp(d) * d - sym.floor(d) + sym.relu(d) * sym.sigmoid(d), IMAGE),
    "broadcasting": (lambda d: sym.broadcast_div(
        sym.broadcast_mul(d, sym.var("v", shape=(1, 3, 1, 1))), sym.exp(sym.mean(d, axis=1, keepdims=True))), IMAGE),
    "broadcast minus": (lambda d: sym.broadcast_sub(d, sym.var("v", shape=(1, 3, 1, 1))), IMAGE),
    "maximum": (lambda d: sym.max(d, axis=(1, 3)), IMAGE),
    "minimum": (lambda d: sym.min(d, axis=-1, keepdims=True), IMAGE),
    "sum but one": (lambda d: sym.sum(d, axis=0, exclude=True), IMAGE),
    "mean of channels": (lambda d: sym.mean(d, axis=1, keepdims=True), IMAGE),
    "argmax": (lambda d: sym.argmax(sym.floor(d), axis=1), IMAGE),
    "argmax kept": (lambda d: sym.argmax(d, axis=2, keepdims=True), IMAGE),
    "topk": (lambda d: sym.topk(d, axis=2, k=4), IMAGE),
    "topk values": (lambda d: sym.topk(d, axis=1, k=2, ret_typ="value", is_ascend=True), IMAGE),
    "topk both": (lambda d: sym.concat(*sym.topk(d, axis=3, k=3, ret_typ="both"), dim=3), IMAGE),
    "ones": (lambda d: sym.ones_like(sym.slice_axis(d, axis=1, begin=0, end=1)) * 3, IMAGE),
    "numbers of images": (lambda d: sym.broadcast_add(
        d, sym.reshape(sym.contrib.arange_like(d, axis=0, start=1, step=3), shape=(-1, 1, 1, 1))), IMAGE),
    "numbers of columns": (lambda d: sym.broadcast_mul(
        d, sym.reshape(sym.contrib.arange_like(d, axis=3), shape=(1, 1, 1, -1))), IMAGE),
    "repeated": (lambda d: sym.concat(
        sym.broadcast_like(sym.mean(d, axis=(2, 3), keepdims=True), d), d, dim=1), IMAGE),
    "repeated alone": (lambda d: sym.broadcast_like(sym.mean(d, axis=(2, 3), keepdims=True), d), IMAGE),
    "repeated in a product": (lambda d: sym.elemwise_mul(
        d, sym.broadcast_like(sym.mean(d, axis=(2, 3), keepdims=True), d)), IMAGE),
    "repeated as both factors": (lambda d: (lambda r: sym.elemwise_mul(r, r))(
        sym.broadcast_like(sym.mean(d, axis=(2, 3), keepdims=True), d)), IMAGE),
    "gather": (lambda d: sym.gather_nd(d, sym.stack(
        sym.floor(sym.sigmoid(sym.sum(d, axis=(1, 2, 3)))), sym.floor(sym.sigmoid(sym.mean(d, axis=(1, 2, 3))) * 3),
        axis=0)), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_an_operator(name, runtime):
    build, shape = CASES[name]
    compare(build(sym.var("data")), shape, runtime)


def compare(symbol, shape, runtime, tolerance=1e-5):
    data = np.random.default_rng(1).normal(0, 1, (5, *shape)).astype(np.float32)
    params = random_params(symbol, (2, *shape))
    model = exported(symbol, params, data)
    for batch in (1, 2, 5):
        expected, found = run_mxnet(symbol, params, data[:batch]), run(runtime, model, data[:batch])
        assert expected.shape == found.shape
        assert np.abs(expected - found).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("convention", ["valid", "full"])
@pytest.mark.parametrize(("kind", "with_pad"), [("max", True), ("avg", True), ("avg", False)])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_pooling_conventions(convention, kind, with_pad, kernel, stride, pad):
    symbol = sym.Pooling(
        sym.var("data"),
        pool_type=kind,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        pooling_convention=convention,
        count_include_pad=with_pad,
    )
    compare(symbol, (2, 10, 11), "onnxruntime")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_maxima_see_the_numbers_of_a_border(value, runtime):
    """ONNX Runtime joins Pad and MaxPool into one that takes the border for nothing."""
    below = sym.var("data") + -10  # as a border of zeros would be the maximum
    padded = sym.pad(below, mode="constant", constant_value=value, pad_width=(0, 0, 0, 0, 0, 1, 2, 1))
    compare(sym.Pooling(padded, pool_type="max", kernel=(3, 3), stride=(2, 2), pad=(1, 0)), (2, 8, 8), runtime)


def test_every_operator_of_a_model_folder_has_a_translation():
    assert OPERATORS - {VARIABLE} <= TRANSLATIONS.keys() | OF_SHAPES


def test_an_operator_without_translation_is_named():
    symbol = sym.arccos(sym.var("data"), name="strange")
    with pytest.raises(OptionError, match=r"arccos \(strange\) has no translation"):
        exported(symbol, {}, np.zeros((1, 2, 2, 2), np.float32))


def test_the_largest_of_all_numbers_have_no_translation():
    with pytest.raises(OptionError, match="axis None"):
        exported(sym.topk(sym.var("data"), axis=None, k=2), {}, np.zeros((1, 2, 4, 4), np.float32))


def test_an_attribute_without_translation_is_named():
    symbol = sym.Pooling(sym.var("data"), pool_type="lp", p_value=2, kernel=(2, 2))
    with pytest.raises(OptionError, match="pool_type lp"):
        exported(symbol, {}, np.zeros((1, 2, 4, 4), np.float32))


def test_a_fixed_batch():
    data = np.random.default_rng(0).normal(0, 1, (3, *IMAGE)).astype(np.float32)
    symbol = sym.reshape(sym.transpose(sym.var("data")), shape=(-1, 0, 0))
    model = exported(symbol, {}, data, batch=3)
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim] == [3, *IMAGE]
    assert (run("onnxruntime", model, data) == run_mxnet(symbol, {}, data)).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bytes_as_input(runtime):
    data = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    symbol = sym.transpose(sym.Cast(sym.var("data"), dtype="float32"), axes=(0, 3, 1, 2)) * 0.5
    model = exported(symbol, {}, data)
    assert (run(runtime, model, data) == run_mxnet(symbol, {}, data)).all()


def test_what_no_image_changes_is_a_constant():
    numbers = sym.contrib.arange_like(sym.var("data"), axis=3)
    symbol = sym.broadcast_add(sym.var("data"), sym.reshape(sym.exp(numbers) / 2, shape=(1, 1, 1, -1)))
    model = exported(symbol, {}, np.zeros((1, *IMAGE), np.float32))
    assert [node.op_type for node in model.graph.node] == ["Add", "Identity"]
