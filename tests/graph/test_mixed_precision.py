"""Training graphs in mixed precision: types of every network, what stays float32."""

import numpy as np
import pytest

from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from graph.mixed_precision import BFLOAT16, FLOAT16, FLOAT32, LOSS_SCALE, scaled, to_mixed
from graph.number_formats import supports_bfloat16
from graph.onednn_training import suit_training
from graph.symbol_graph import graph_of
from machine.runtime import mx
from symbol.registry import list_networks
from symbol.symbol_factory import get_assigner, get_symbol_train
from tests.graph.test_onednn_training import values
from tests.train.tiny import CLASSES, write_record
from train.stages import without_det

BATCH, SIZE = 2, 384
ROUNDING = 2.0**-8  # of bfloat16: 8 bits of mantissa with the hidden one


def types(symbol):
    """{name of an output inside: name of its type}."""
    internals = symbol.get_internals()
    found = internals.infer_type()[1]
    return {
        name: BFLOAT16 if np.dtype(kind).names else np.dtype(kind).name
        for name, kind in zip(internals.list_outputs(), found, strict=True)
    }


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("record") / "train.rec", BATCH)


def input_shapes(network, size, record):
    """Of data and labels, by name."""
    assigner = get_assigner(network, size, len(CLASSES))
    batches = open_batches(BatchSpec(record, BATCH, size, assigner=assigner, augment=None, workers=0))
    try:
        return {desc.name: desc.shape for desc in (*batches.provide_data, *batches.provide_label)}
    finally:
        batches.close()


# One of each kind; the others repeat what these have.
QUICK = frozenset(
    {"densenet-tiny", "efficientdet_d0", "efficientdet_lite0", "efficientdet_mini", "efficientnet_lite0", "mobilenet"}
    | {"mobilenet_v2", "resnet50", "vgg16_reduced", "yolov3_spp_mini", "yolov3_tiny"}
)
NETWORKS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_networks()]


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_types_and_narrow_convolutions(network, dtype, record):
    size = 512 if network == "efficientdet_d7x" else SIZE
    symbol, shapes = without_det(get_symbol_train(network, size, len(CLASSES))), input_shapes(network, size, record)
    suited = suit_training(symbol, shapes) if dtype == BFLOAT16 else scaled(symbol)
    mixed = to_mixed(suited, shapes, dtype)
    found = types(mixed)
    assert {found[name] for name in mixed.list_inputs()} == {FLOAT32}
    assert {found[name] for name in mixed.list_outputs()} == {FLOAT32}
    convolutions = [node for node in graph_of(mixed).nodes() if node.op == "Convolution"]
    narrow = [node for node in convolutions if found[f"{node.name}_output"] == dtype]
    assert len(narrow) > 0.6 * len(convolutions)  # the others have no whole blocks
    more = {LOSS_SCALE} if dtype == FLOAT16 else set()
    assert set(mixed.list_arguments()) == {*symbol.list_arguments(), *more}
    assert set(mixed.list_auxiliary_states()) >= set(symbol.list_auxiliary_states())


# What follows a convolution in bfloat16, and whether it goes on in it.
FOLLOWERS = {
    "norm": (lambda net: mx.sym.BatchNorm(net, name="next", fix_gamma=False), True),
    "relu": (lambda net: mx.sym.Activation(net, name="next", act_type="relu"), True),
    "leaky": (lambda net: mx.sym.LeakyReLU(net, name="next", act_type="leaky", slope=0.1), True),
    "pool": (lambda net: mx.sym.Pooling(net, name="next", kernel=(2, 2), stride=(2, 2), pool_type="max"), True),
    "sum": (lambda net: mx.sym.elemwise_add(net, mx.sym.UpSampling(pooled(net), scale=2, sample_type="nearest"),
                                            name="next"), True),
    "concat": (lambda net: mx.sym.Concat(net, mx.sym.tanh(net), name="next"), True),
    "clip": (lambda net: mx.sym.clip(net, name="next", a_min=0, a_max=6), True),
    "transpose": (lambda net: mx.sym.transpose(net, name="next", axes=(0, 2, 3, 1)), False),
    "upsampling": (lambda net: mx.sym.UpSampling(net, name="next", scale=2, sample_type="nearest"), False),
    "prelu": (lambda net: mx.sym.LeakyReLU(net, mx.sym.var("slope"), name="next", act_type="prelu"), False),
    "gate": (lambda net: mx.sym.broadcast_mul(net, pooled(net, global_pool=True), name="next"), False),
    "dropout": (lambda net: mx.sym.Dropout(net, name="next", p=0.0), False),
    "norm of length": (lambda net: mx.sym.L2Normalization(net, name="next", mode="channel"), False),
}  # fmt: skip


def pooled(net, **options):
    return mx.sym.Pooling(net, kernel=(2, 2), stride=(2, 2), pool_type="avg", **options)


@pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_an_operator_after_a_convolution_gives_float32s_values_and_gradients_to_a_rounding(follower):
    follow, is_narrow = FOLLOWERS[follower]
    net = mx.sym.Convolution(mx.sym.var("data"), name="first", num_filter=32, kernel=(3, 3), pad=(1, 1))
    symbol, shape = follow(net), (2, 16, 12, 12)
    mixed = to_mixed(symbol, {"data": shape}, BFLOAT16)
    assert (types(mixed)["next_output"] == BFLOAT16) == is_narrow
    (outputs, gradients, _), (expected, expected_gradients, _) = values(mixed, shape), values(symbol, shape)
    assert outputs[0].dtype == np.float32
    assert np.linalg.norm(outputs[0] - expected[0]) < 4 * ROUNDING * np.linalg.norm(expected[0])
    longest = max(np.linalg.norm(array) for array in expected_gradients.values())
    for name, wanted in expected_gradients.items():  # where a rounding changes a sign or a largest one, more moves
        assert np.linalg.norm(gradients[name] - wanted) < 0.1 * np.linalg.norm(wanted) + ROUNDING * longest


def test_a_graph_in_which_nothing_is_a_loss_cannot_be_scaled():
    with pytest.raises(ValueError, match="next: relu is no loss|next: Activation is no loss"):
        scaled(mx.sym.Activation(mx.sym.var("data"), act_type="relu", name="next"))


def test_layers_that_are_not_of_whole_blocks_stay_float32_in_bfloat16_alone():
    net = mx.sym.Convolution(mx.sym.var("data"), name="odd", num_filter=24, kernel=(1, 1))
    net = mx.sym.Convolution(net, name="even", num_filter=32, kernel=(1, 1))
    net = mx.sym.Convolution(net, name="whole", num_filter=32, kernel=(1, 1))
    names = ("odd", "even", "whole")
    kinds = {dtype: types(to_mixed(net, {"data": (1, 16, 4, 4)}, dtype)) for dtype in (BFLOAT16, FLOAT16)}
    assert [kinds[BFLOAT16][f"{name}_output"] for name in names] == [FLOAT32, FLOAT32, BFLOAT16]
    assert [kinds[FLOAT16][f"{name}_output"] for name in names] == [FLOAT16] * 3


@pytest.mark.parametrize("has_norm", [True, False])
def test_the_convolution_of_a_picture_is_narrow_where_no_norm_follows(has_norm):
    net = mx.sym.Convolution(mx.sym.var("data"), name="first", num_filter=32, kernel=(1, 1))
    net = mx.sym.BatchNorm(net, name="norm") if has_norm else net
    found = types(to_mixed(net, {"data": (1, 3, 4, 4)}, BFLOAT16))
    assert found["first_output"] == (FLOAT32 if has_norm else BFLOAT16)


# side of the map, kernel, stride, pad; in oneDNN 2.4 the first four leave weight gradients as the memory was
@pytest.mark.skipif(not supports_bfloat16(), reason="the CPU has no bfloat16")
@pytest.mark.parametrize("layer", [(1, 3, 2, 1), (1, 5, 2, 2), (2, 3, 3, 1), (2, 7, 3, 3), (2, 3, 2, 1), (1, 3, 1, 1)])
def test_weights_that_meet_padding_alone_have_gradients_of_zero(layer):
    side, kernel, stride, pad = layer
    shapes, weight = {"data": (4, 32, side, side)}, (32, 32, kernel, kernel)
    net = mx.sym.Convolution(
        mx.sym.var("data"), num_filter=32, kernel=(kernel,) * 2, stride=(stride,) * 2, pad=(pad,) * 2, name="net"
    )
    found = []
    for symbol in (mx.sym.make_loss(net, name="loss"), to_mixed(mx.sym.make_loss(net, name="loss"), shapes, BFLOAT16)):
        _fill_free_memory(weight)
        executor = symbol.simple_bind(mx.cpu(), **shapes)
        for name, array in executor.arg_dict.items():
            array[:] = np.random.default_rng(len(name)).normal(size=array.shape)
        for _ in range(2):
            _fill_free_memory(weight)
            executor.forward(is_train=True)
            executor.backward()
        found.append(executor.grad_dict["net_weight"].asnumpy())
    np.testing.assert_allclose(found[1], found[0], atol=8 * ROUNDING * np.abs(found[0]).max())


def _fill_free_memory(shape):
    """Arrays of NaN that are given back: who allocates such a one and leaves it as it is has NaN."""
    arrays = [mx.nd.full(shape, np.nan) for _ in range(8)]
    narrow = [mx.nd.amp_cast(array, dtype=BFLOAT16) for array in arrays]
    mx.nd.waitall()
    del arrays, narrow
