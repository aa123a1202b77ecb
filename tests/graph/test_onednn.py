"""What is rewritten for oneDNN computes what it did."""

import dataclasses
import json

import numpy as np
import pytest

from deploy.precision import calibrate, with_dtype
from engines.mxnet_engine import bind
from graph.fold import fold_constants
from graph.number_formats import fuse, supports_bfloat16, to_bfloat16
from graph.onednn import BLOCK, has_squeeze_excitation, pad_predictions, suit_onednn, supports_swish
from graph.symbol_graph import graph_of
from machine.runtime import mx
from model.folder import inference_model
from model.manifest import Calibration
from symbol.symbol_factory import get_symbol
from tests.model.made_up import images, largest_error, made_up, predictions, run

EFFDETS = ["efficientdet_mini", "efficientdet_small", "efficientdet_d0"]
OTHERS = ["mobilenet", "yolov3_spp_mini", "yolov3_tiny"]
SIZE = (2, 8, 6, 6)
# network, input side, options, and the first array after the predictions have been put in order
NETWORKS = (
    ("mobilenet", 96, {"width": 0.25}, "multibox_cls_pred_output"),
    ("yolov3_tiny", 96, {"width": 0.125}, "detection_output"),
    ("efficientdet_mini", 128, {}, "cls_pred_output"),
)


def _operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


def _parts(model):
    return model.symbol, model.arg_params, model.aux_params


def _shape(model, count):
    return (count, *model.manifest.image_shape)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("exported", [False, True], ids=["checkpoint", "folder"])
@pytest.mark.parametrize("network", EFFDETS)
def test_networks_detect_what_they_did(network, exported, count):
    model = made_up(network)
    data = images(model, count)
    expected = run(*_parts(model), data)[0]
    assert (expected[:, :, 0] >= 0).sum() > 20 * count
    symbol, args, aux = suit_onednn(*_parts(inference_model(model) if exported else model), _shape(model, count))
    np.testing.assert_allclose(run(symbol, args, aux, data)[0], expected, rtol=1e-5, atol=1e-5)
    maps = run(predictions(symbol), args, aux, data)
    assert largest_error(maps, run(predictions(model.symbol), model.arg_params, model.aux_params, data)) < 1e-5
    slow = {"mean", "elemwise_mul", "broadcast_like"} | ({"slice"} if count > 1 else {"slice", "broadcast_mul"})
    left = [op for op in _operators(predictions(symbol)) if op in slow]
    assert not left


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("network", ["efficientdet_lite0", "efficientnet_lite0"])
def test_lite_networks_detect_what_they_did(network, count):
    model = inference_model(made_up(network))
    data = images(model, count)
    expected = run(*_parts(model), data)[0]
    symbol, args, aux = suit_onednn(*_parts(model), _shape(model, count))
    np.testing.assert_allclose(run(symbol, args, aux, data)[0], expected, rtol=1e-4, atol=1e-4)
    slow = [node for node in graph_of(predictions(symbol)).nodes() if node.op in ("slice", "clip")]
    assert all(node.op == "clip" and node.inputs[0].node.op == "Convolution" for node in slow)
    assert not has_squeeze_excitation(model.symbol)
    short = bind(with_dtype(model, "bfloat16"), mx.cpu(), count).run(data)
    assert np.abs(short[:, :5, 1] - expected[:, :5, 1]).max() < 0.03


def test_bfloat16_goes_on_through_relu6():
    model = inference_model(made_up("efficientnet_lite0"))
    symbol, _ = to_bfloat16(*suit_onednn(*_parts(model), _shape(model, 1))[:2])
    clips = [node for node in graph_of(symbol).nodes() if node.op == "clip"]
    assert len(clips) > 20
    assert {node.inputs[0].node.op for node in clips} == {"Convolution"}


def test_int8_takes_thresholds_of_layers_that_had_not_been_joined_with_their_relu6():
    model = inference_model(made_up("efficientnet_lite0"))
    data = images(model, 2)
    fused = fuse(*suit_onednn(*_parts(model), data.shape))
    thresholds = calibrate(fused, [data], "naive")
    joined = [name for name, values in thresholds.items() if values[0] == 0 and name in fused.layers]
    assert len(joined) > 20
    found = []
    for given in (thresholds, thresholds | dict.fromkeys(joined[:1], (-7.0, thresholds[joined[0]][1]))):
        manifest = dataclasses.replace(model.manifest, dtype="int8", calibration=Calibration("", "naive", 2, given))
        found.append(bind(dataclasses.replace(model, manifest=manifest), mx.cpu(), 2).run(data))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("network", OTHERS)
def test_networks_without_squeeze_excitation_stay_as_they_are(network):
    model = made_up(network)
    assert not has_squeeze_excitation(model.symbol)
    assert suit_onednn(*_parts(model), _shape(model, 2)) == _parts(model)


@pytest.mark.parametrize("network", [*EFFDETS[:1], *OTHERS[:2]])
def test_bound_models_run_any_number_of_images(network):
    model = made_up(network)
    data = images(model, 3)
    expected = run(*_parts(model), data)[0]
    np.testing.assert_allclose(bind(model, mx.cpu(), 3).run(data.asnumpy()), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bind(model, mx.cpu(), 1).run(data[1:2]), expected[1:2], rtol=1e-5, atol=1e-5)


def test_a_second_image_is_not_seen_with_the_gates_of_the_first():
    model = made_up(EFFDETS[0])
    data = images(model, 2)
    bound = bind(model, mx.cpu(), 1)
    together = bind(model, mx.cpu(), 2).run(data)
    np.testing.assert_array_equal(np.concatenate([bound.run(data[k : k + 1]) for k in range(2)]), together)
    np.testing.assert_array_equal(bound.run(data[:1]), together[:1])


@pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
def test_bfloat16_runs_the_rewritten_network():
    model = inference_model(made_up(EFFDETS[0]))
    data = images(model)
    symbol, args, aux = suit_onednn(*_parts(model), data.shape)
    short, short_args = to_bfloat16(predictions(symbol), args)
    assert largest_error(run(short, short_args, aux, data), run(predictions(symbol), args, aux, data)) < 0.05
    bound = bind(with_dtype(model, "bfloat16"), mx.cpu(), 1)
    assert np.abs(bound.run(data)[:, :5, 1] - bind(model, mx.cpu(), 1).run(data)[:, :5, 1]).max() < 0.02


def test_int8_runs_with_the_thresholds_of_another_number_of_images():
    model = inference_model(made_up(EFFDETS[0]))
    data = images(model, 4)
    thresholds = calibrate(fuse(*suit_onednn(*_parts(model), data.shape)), [data], "naive")
    manifest = dataclasses.replace(model.manifest, dtype="int8", calibration=Calibration("", "naive", 4, thresholds))
    found = bind(dataclasses.replace(model, manifest=manifest), mx.cpu(), 4).run(data)
    assert np.abs(found[:, :5, 1] - bind(model, mx.cpu(), 4).run(data)[:, :5, 1]).max() < 0.02


def test_swish_is_there():
    assert supports_swish()


def _rewritten(build, shape=SIZE):
    """Operators of a rewritten graph that gives what it did; beside it stands a mean, as of squeeze-excitation."""
    data = mx.sym.var("data")
    symbol = mx.sym.Group([*build(data), mx.sym.mean(data, axis=(2, 3), keepdims=True)])
    rng = np.random.default_rng(1)
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=shape)[0], strict=True))
    args = {n: mx.nd.array(rng.normal(0, 1, s)) for n, s in shapes.items() if n != "data"}
    images = mx.nd.array(rng.normal(0, 1, shape))
    expected = run(symbol, args, {}, images)
    found, found_args, found_aux = suit_onednn(symbol, args, {}, shape)
    for a, b in zip(run(found, found_args, found_aux, images), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return _operators(found)


def _conv(data, name, kernel=3, pad=1, **options):
    return mx.sym.Convolution(data, name=name, num_filter=8, kernel=(kernel, kernel), pad=(pad, pad), **options)


def _swish(data):
    return data * mx.sym.Activation(data, act_type="sigmoid")


def test_swish_is_one_operator():
    operators = _rewritten(lambda data: [_swish(_conv(data, "conv")), _swish(data)])
    assert operators.count("_backward_Activation") == 2
    assert not {"elemwise_mul", "Activation"} & set(operators)


def test_products_that_only_look_like_swish_stay():
    def build(data):
        conv = _conv(data, "conv")
        gate = mx.sym.Activation(conv, act_type="sigmoid")
        return [gate * data, gate * gate, conv * mx.sym.Activation(conv, act_type="tanh"), gate]

    operators = _rewritten(build)
    assert operators.count("elemwise_mul") == 3
    assert "_backward_Activation" not in operators


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shape", [SIZE, (1, 8, 8, 12)], ids=str)
def test_a_cut_convolution_has_a_wider_kernel(kernel, shape):
    def build(data):
        return [_cut(_conv(data, "conv", kernel, (kernel + 1) // 2, stride=(2, 2)))]

    assert "slice" not in _rewritten(build, shape)


def _cut(data):
    return mx.sym.slice(data, begin=(None, None, 1, 1), end=(None, None, None, None))


def test_a_convolution_that_something_else_reads_is_cut_as_before():
    def build(data):
        conv = _conv(data, "conv", 3, 2, stride=(2, 2))
        return [_cut(conv), mx.sym.relu(conv)]

    def two_outputs(data):
        conv = _conv(data, "conv", 3, 2, stride=(2, 2))
        return [_cut(conv), conv]

    def other_cut(data):
        return [mx.sym.slice(_conv(data, "conv", 3, 2, stride=(2, 2)), begin=(None, None, 0, 1), end=(None,) * 4)]

    for one in (build, two_outputs, other_cut):
        assert "slice" in _rewritten(one)


@pytest.mark.parametrize(("kernel", "shape"), [((3, 5), SIZE), ((3, 3), (1, 8, 7, 7))], ids=str)
def test_convolutions_that_would_give_another_shape_are_cut_as_before(kernel, shape):
    def build(data):
        return [_cut(mx.sym.Convolution(data, name="conv", num_filter=8, kernel=kernel, pad=(2, 2), stride=(2, 2)))]

    assert "slice" in _rewritten(build, shape)


def test_means_over_the_other_axes_stay():
    def mean(data):
        return mx.sym.mean(data, axis=(2, 3), keepdims=True, exclude=True)

    assert "mean" in _rewritten(lambda data: [mean(data)])
    assert not has_squeeze_excitation(mean(mx.sym.var("data")))


def test_convolutions_that_share_weights_keep_theirs():
    def build(data):
        weight = mx.sym.var("shared")
        cut = _cut(_conv(data, "first", 3, 2, stride=(2, 2), weight=weight))
        return [cut, _conv(data, "second", weight=weight)]

    assert "slice" not in _rewritten(build)


def test_the_best_class_is_found_by_pooling():
    operators = _rewritten(lambda data: [mx.sym.max(mx.sym.reshape(data, shape=(0, 0, -1)), axis=2)])
    assert "max" not in operators
    assert "max" in _rewritten(lambda data: [mx.sym.max(data, axis=2)])


def test_weighted_sums_scale_by_batch_norm():
    operators = _rewritten(lambda data: [mx.sym.add_n(_swish(data) * 0.25, data * -3.0), data * 0.5])
    assert operators.count("BatchNorm") == 2
    assert operators.count("_mul_scalar") == 1


def _gated(data, factor):
    return data * mx.sym.broadcast_like(factor, data)


@pytest.mark.parametrize("count", [1, 2])
def test_gates_of_a_single_image_are_a_batch_norm(count):
    def build(data):
        net = _swish(_conv(data, "conv"))
        factor = mx.sym.Activation(mx.sym.mean(net, axis=(2, 3), keepdims=True), act_type="sigmoid")
        return [_gated(net, factor), factor]

    operators = _rewritten(build, (count, *SIZE[1:]))
    assert operators.count("BatchNorm") == (count == 1)
    assert operators.count("broadcast_mul") == (count > 1)


def test_gates_are_not_folded_into_a_convolution():
    data = mx.sym.var("data")
    mean = mx.sym.mean(data, axis=(2, 3), keepdims=True)
    symbol, args, aux = suit_onednn(
        _gated(_conv(data, "conv", no_bias=True), mean), {"conv_weight": mx.nd.ones((8, 8, 3, 3))}, {}, (1, *SIZE[1:])
    )
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, *SIZE[1:]))
    executor.copy_params_from(args, aux)
    outputs = []
    for value in (1, 2):
        executor.arg_dict["data"][:] = value
        outputs.append(executor.forward(is_train=False)[0].asnumpy())
    np.testing.assert_allclose(outputs[1], 4 * outputs[0], rtol=1e-6)


def test_a_model_of_pixels_is_rewritten_too():
    model = inference_model(made_up(EFFDETS[0]), uint8_input=True)
    data = np.random.default_rng(3).integers(0, 255, (2, *model.manifest.image_shape), dtype=np.uint8)
    expected = run(*_parts(model), mx.nd.array(data, dtype="uint8"))[0]
    np.testing.assert_allclose(bind(model, mx.cpu(), 2).run(data), expected, rtol=1e-4, atol=1e-4)


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


def output_of(symbol, output, args, aux, data):
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
    found, expected = output_of(padded, output, longer, aux, data), output_of(symbol, output, args, aux, data)
    if output == "detection_output":  # by falling score, where rounding lets near ones change places
        assert farthest(found, expected) < 1e-4
        assert farthest(expected, found) < 1e-4
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4)


def farthest(rows, others):
    """The largest distance of a row from the nearest of the others in its image; (B, N, 6) both."""
    return np.abs(rows[:, :, None] - others[:, None]).max(axis=3).min(axis=2).max()


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
    expected = output_of(net, "second_turned_output", args, aux, data)
    np.testing.assert_allclose(output_of(padded, padded.list_outputs()[0], longer, aux, data), expected, atol=1e-5)
