"""Checkpoints of mxnet-ssd and of apache's example/ssd, in the file formats of MXNet 0.8 to 1.x."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError
from machine.runtime import mx
from model.weights import classic, vgg
from model.weights.fit import compare, expected_shapes
from symbol.backbone.mobilenet import BLOCKS
from symbol.symbol_factory import get_symbol, get_symbol_train
from tests.model.weights.formula import body, formula, formulas, old_json, outputs, params_v0, params_v1

CLASSIC = {"targets": "mxnet", "nms": 0.5, "nms_topk": 200, "force": True, "min_neg_samples": 3}
FORMATS = {"param": params_v0, "attr": params_v0, "attrs": params_v1}


def checkpoint(tmp_path, symbol_json, params):
    (tmp_path / "ssd-symbol.json").write_text(symbol_json)
    path = tmp_path / "ssd-0012.params"
    path.write_bytes(params)
    return path


@pytest.mark.parametrize("key", FORMATS)
def test_a_vgg16_checkpoint_of_each_age_gives_the_same_network_and_weights(tmp_path, key):
    symbol = get_symbol_train("vgg16_reduced", 300, 4, **CLASSIC)
    wanted, _ = expected_shapes("vgg16_reduced", 300, 4, **CLASSIC)
    # Large layers are cut down: their names are what is tested here.
    arrays = formulas({name: tuple(min(side, 8) for side in shape) for name, shape in wanted.items()})
    params = FORMATS[key]({f"arg:{name}": array for name, array in arrays.items()})
    path = checkpoint(tmp_path, old_json(symbol, key), params)
    found = classic.describe(path)
    assert (found.network, found.num_classes, found.data_shape, found.notes) == ("vgg16_reduced", 4, 300, ())
    assert get_symbol_train(found.network, 300, 4, **found.options).tojson() == symbol.tojson()
    arg, aux = classic.rename(classic.read(path), "vgg16_reduced", found.options)
    assert aux == {}
    assert arg.keys() == wanted.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(arg[name].ravel(), array.ravel())


def test_own_anchors_and_a_512_input_are_found(tmp_path):
    anchors = {"anchor_sizes": "0.07,0.1;" * 6 + "0.9,0.97", "anchor_ratios": "1,2,0.5"}
    symbol = get_symbol_train("vgg16_reduced", 512, 1, targets="mxnet", **anchors)
    found = classic.describe(checkpoint(tmp_path, old_json(symbol, "attr"), b""))
    assert (found.data_shape, found.num_classes) == (512, 1)
    assert get_symbol_train("vgg16_reduced", 512, 1, **found.options).tojson() == symbol.tojson()


def legacy_shapes():
    """Parameters of legacy_vgg16_ssd_300 by the names of mxnet-ssd, sides cut to 4."""
    wanted, _ = expected_shapes("vgg16_reduced", 300, 2)
    modern = {new: old for old, new in LEGACY.items()}
    shapes = {}
    for name, shape in wanted.items():
        layer, _, kind = name.rpartition("_")
        full = shape if layer == "conv1_1" else tuple(min(side, 4) for side in shape)
        shapes[f"{modern.get(layer, layer)}_{kind}"] = full
    return shapes


# Spelt out from mxnet-ssd's symbol/legacy_vgg16_ssd_300.py.
LEGACY = {
    "conv6": "fc6",
    "conv7": "fc7",
    "conv8_1": "multi_feat_2_conv_1x1_conv",
    "conv8_2": "multi_feat_2_conv_3x3_conv",
    "conv9_1": "multi_feat_3_conv_1x1_conv",
    "conv9_2": "multi_feat_3_conv_3x3_conv",
    "conv10_1": "multi_feat_4_conv_1x1_conv",
    "conv10_2": "multi_feat_4_conv_3x3_conv",
    "conv11_1": "multi_feat_5_conv_1x1_conv",
    "conv11_2": "multi_feat_5_conv_3x3_conv",
    "relu8_2_loc_pred_conv": "multi_feat_2_conv_3x3_relu_loc_pred_conv",
    "relu8_2_cls_pred_conv": "multi_feat_2_conv_3x3_relu_cls_pred_conv",
    "relu9_2_loc_pred_conv": "multi_feat_3_conv_3x3_relu_loc_pred_conv",
    "relu9_2_cls_pred_conv": "multi_feat_3_conv_3x3_relu_cls_pred_conv",
    "relu10_2_loc_pred_conv": "multi_feat_4_conv_3x3_relu_loc_pred_conv",
    "relu10_2_cls_pred_conv": "multi_feat_4_conv_3x3_relu_cls_pred_conv",
    "relu11_2_loc_pred_conv": "multi_feat_5_conv_3x3_relu_loc_pred_conv",
    "relu11_2_cls_pred_conv": "multi_feat_5_conv_3x3_relu_cls_pred_conv",
}


def test_legacy_names_become_those_of_vgg16_reduced_and_stay_for_the_legacy_network(tmp_path):
    arrays = {f"arg:{name}": formula(name, shape) for name, shape in legacy_shapes().items()}
    path = tmp_path / "ssd-0001.params"
    path.write_bytes(params_v0(arrays))
    arg, _ = classic.rename(classic.read(path), "vgg16_reduced", {})
    assert arg.keys() == expected_shapes("vgg16_reduced", 300, 2)[0].keys()
    np.testing.assert_array_equal(arg["fc6_weight"], arrays["arg:conv6_weight"])
    np.testing.assert_array_equal(
        arg["multi_feat_5_conv_3x3_relu_cls_pred_conv_bias"], arrays["arg:relu11_2_cls_pred_conv_bias"]
    )
    same, _ = classic.rename(classic.read(path), "legacy_vgg16_ssd_300", {})
    assert same.keys() == {name.removeprefix("arg:") for name in arrays}


def classic_mobilenet(width, **norm):
    """The body of mxnet-ssd's MobileNet, whose batch normalisations have the operator's defaults."""

    def block(net, name, filters, kernel, stride=1, groups=1):
        side, pad = (kernel, kernel), (kernel // 2,) * 2
        options = {"kernel": side, "pad": pad, "stride": (stride, stride), "num_group": groups, "no_bias": True}
        net = mx.sym.Convolution(net, num_filter=filters, name=f"{name}_conv2d", **options)
        return mx.sym.Activation(
            mx.sym.BatchNorm(net, name=f"{name}_batchnorm", **norm), act_type="relu", name=f"{name}_relu"
        )

    channels = int(32 * width)
    net = block(mx.sym.var("data"), "conv_1", channels, 3, 2)
    for number, (filters, stride) in enumerate(BLOCKS, start=2):
        net = block(net, f"conv_{number}_dw", channels, 3, stride, channels)
        channels = int(filters * width)
        net = block(net, f"conv_{number}", channels, 1)
    return net


@pytest.mark.parametrize("norm", [{}, {"fix_gamma": False, "eps": 2e-5}])
def test_a_classic_mobilenet_computes_the_same_with_its_epsilon_and_fixed_gamma(tmp_path, norm):
    symbol = classic_mobilenet(0.25, **norm)
    shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, 64, 64))
    arg = formulas(dict(zip(symbol.list_arguments(), shapes, strict=True)))
    aux = formulas(dict(zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)))
    aux = {name: array * 1e-2 if name.endswith("_var") else array for name, array in aux.items()}
    arg["fc_weight"] = formula("fc_weight", (2, 3))
    named = [("arg", arg), ("aux", aux)]
    params = params_v1({f"{kind}:{name}": a for kind, arrays in named for name, a in arrays.items() if name != "data"})
    path = checkpoint(tmp_path, symbol.tojson(), params)
    found = classic.describe(path)
    assert (found.network, found.num_classes, found.options) == ("mobilenet", None, {"width": 0.25})
    new_arg, new_aux = classic.rename(classic.read(path), "mobilenet", found.options)
    data = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = outputs(symbol, arg, aux, data)
    mine = outputs(body(get_symbol("mobilenet", 64, 2, width=0.25), "conv_14_relu"), new_arg, new_aux, data)
    assert expected.max() > 0.1
    np.testing.assert_allclose(mine, expected, rtol=5e-3, atol=1e-4)
    report = compare(expected_shapes("mobilenet", 300, 2, width=0.25)[0], new_arg)
    assert report.unused == ("fc_weight",)


def test_batch_norm_without_the_symbol_is_refused_because_its_epsilon_is_unknown(tmp_path):
    path = tmp_path / "ssd-0001.params"
    path.write_bytes(params_v1({"aux:bn_moving_var": np.ones(2)}))
    with pytest.raises(CheckpointError, match=r"ssd-symbol\.json: no such file"):
        classic.read(path)
    (tmp_path / "ssd-symbol.json").write_text(mx.sym.var("data").tojson())
    with pytest.raises(CheckpointError, match="no batch normalisation 'bn'"):
        classic.read(path)


def test_weights_of_another_network_are_refused():
    arrays = {"arg:conv_1_conv2d_weight": np.zeros((8, 3, 3, 3)), "arg:conv_14_conv2d_weight": np.zeros((8, 8, 1, 1))}
    with pytest.raises(CheckpointError, match="those of mobilenet, not of vgg16_reduced"):
        classic.rename(arrays, "vgg16_reduced", {})


def test_arrays_without_a_kind_are_refused(tmp_path):
    path = tmp_path / "ssd-0001.params"
    path.write_bytes(params_v0({"conv1_1_weight": np.ones(2)}))
    with pytest.raises(CheckpointError, match="neither arg"):
        classic.read(path)


@pytest.mark.parametrize(
    ("layers", "network"),
    [
        (("stage3_unit6_conv1", "conv0"), "resnet50"),
        (("stage3_unit6_conv1", "stage3_unit23_conv1"), "resnet101"),
        (("DBstage3_unit18_conv1", "DBstage4_unit16_conv1"), "densenet121"),
        (("DBstage3_unit18_conv1", "conv0"), "densenet-tiny"),
        (("conv1_1", "fc6", "fc7"), "vgg16_reduced"),
        (("conv1_1", "conv6", "conv11_2"), "legacy_vgg16_ssd_300"),
        (("conv1_1", "conv6", "conv11_2", "conv12_2"), "legacy_vgg16_ssd_512"),
        (("something",), None),
    ],
)
def test_networks_are_known_by_their_layers(layers, network):
    assert classic.network_of(layers) == network


def node(op, name, **attrs):
    return {"op": op, "name": name, "attrs": attrs, "inputs": []}


def described(tmp_path, *nodes):
    return classic.describe(checkpoint(tmp_path, json.dumps({"nodes": list(nodes), "heads": []}), b""))


def test_what_this_network_does_otherwise_is_noted(tmp_path):
    prior = node("_contrib_MultiBoxPrior", "p", sizes="[0.1, 0.2]", clip="1")
    found = described(tmp_path, prior, node("_contrib_MultiBoxDetection", "d", variances="(1, 1, 1, 1)"))
    assert len(found.notes) == 1
    assert found.options["variances"] == (1.0, 1.0, 1.0, 1.0)
    assert (found.network, found.data_shape, found.options["anchor_sizes"]) == (None, None, "0.1,0.2")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Convolution", "a_cls_pred_conv", num_filter="9")], "9 filters for 0 offsets"),
        ([node("Convolution", "c", num_filter="many")], "many"),
        ([node("MultiBoxPrior", "p", sizes="(inf,)")], "sizes"),
        ([{"op": "Convolution"}], "no op or no name"),
        ([{"op": "a", "name": "b", "param": {"x": [1]}}], "not texts"),
        ([[]], "no op"),
    ],
)
def test_symbols_that_contradict_themselves_are_refused(tmp_path, nodes, reason):
    with pytest.raises(CheckpointError, match=reason) as error:
        described(tmp_path, *nodes)
    assert "ssd-symbol.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"nodes": 3}', "[" * 100_000, '{"nodes": [' + "1" * 5000 + "]}", "\udcff"])
def test_damaged_json_is_refused(tmp_path, text):
    path = tmp_path / "ssd-0001.params"
    (tmp_path / "ssd-symbol.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="not a sound symbol JSON"):
        classic.describe(path)


def test_a_huge_json_is_not_read(tmp_path):
    with (tmp_path / "ssd-symbol.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than"):
        classic.describe(tmp_path / "ssd-0001.params")


SOUND = old_json(get_symbol_train("vgg16_reduced", 300, 2, targets="mxnet"), "param")
TEXTS = st.sampled_from(
    ["", "0", "-1", "1e308", "nan", "(", "null", "[]", "{}", '"', "(0.1,)", "True", "\\", "9" * 400]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND)), st.integers(0, 8), TEXTS), max_size=3), st.booleans())
def test_mutated_symbols_are_described_or_refused(tmp_path_factory, changes, cut):
    text = SOUND
    for place, length, new in changes:
        text = text[:place] + new + text[place + length :]
    path = checkpoint(tmp_path_factory.getbasetemp(), text[: len(text) // 2] if cut else text, b"")
    with contextlib.suppress(CheckpointError):
        assert isinstance(classic.describe(path), classic.Description)


def test_legacy_table_is_complete():
    assert LEGACY.items() <= vgg.LEGACY_NAMES.items()
