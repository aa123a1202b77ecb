"""The door to the networks: options, sizes, names, independence of what was built before."""

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from config.command_line import parse_options
from machine.runtime import mx
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from symbol.layers import Layers
from symbol.registry import family_of
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names, rebuilding_options
from tests.symbol.network_cases import ALL, NETWORKS, objects, small_options, small_size, without_det
from train.options import network_options, train_options_class

DOORS = pytest.mark.parametrize("door", [get_symbol, get_symbol_train, get_assigner], ids=lambda f: f.__name__)
MOBILENET = {"network": "mobilenet", "data_shape": 64, "num_classes": 3}


def test_networks_never_influence_each_other() -> None:
    """Symbols are the same to the last character whatever was built before."""
    alone: dict[str, set[str]] = {network: set() for network in ALL}
    for network in [*ALL, *reversed(ALL)]:
        size = small_size(network)
        both = [get_symbol_train(network, size, 3, targets=t).tojson() for t in ("paper", "mxnet")]
        alone[network].add("".join([*both, get_symbol(network, size, 3).tojson()]))
        mx.sym.relu(mx.sym.var("data"))  # an automatic name outside
    for network in [*YOLO_NETWORKS, *reversed(YOLO_NETWORKS)]:
        texts = [door(network, 64, 3).tojson() for door in (get_symbol_train, get_symbol)]
        alone.setdefault(network, set()).add("".join(texts))
    for network in [*EFFDET_NETWORKS, *reversed(EFFDET_NETWORKS)]:
        texts = [door(network, 256, 3).tojson() for door in (get_symbol_train, get_symbol)]
        alone.setdefault(network, set()).add("".join(texts))
    assert all(len(texts) == 1 for texts in alone.values())


@NETWORKS
@pytest.mark.parametrize("targets", ["paper", "mxnet"])
def test_parameter_names_are_explicit(network: str, targets: str) -> None:
    """The same names with another number of classes, in training and in detection; none is numbered by MXNet."""
    size = small_size(network)
    names = get_symbol(network, size, 3).list_arguments()
    training = get_symbol_train(network, size, 20, targets=targets).list_arguments()
    assert [name for name in training if name not in label_names(network, targets=targets)] == names
    automatic = ("convolution", "batchnorm", "activation", "pooling", "var", "_")
    assert [name for name in names if name.startswith(automatic)] == []
    assert len(set(names)) == len(names)


@DOORS
@pytest.mark.parametrize("network", [n for n in [*ALL, "gluoncv:mobilenetv2_0.25"] if "mobilenet" not in n or ":" in n])
def test_a_width_that_the_body_does_not_take_is_refused(door: Any, network: str) -> None:
    door(network, 512, 3, width=1.0)
    with pytest.raises(OptionError, match=f"--width 0.5: {network} does not use it"):
        door(network, 512, 3, width=0.5)


def test_a_checkpoint_with_a_width_without_effect_is_built_again() -> None:
    assert rebuilding_options("resnet50", {"width": 0.5, "force": True}, "run") == {"force": True}
    assert rebuilding_options("mobilenet", {"width": 0.5}, "run") == {"width": 0.5}


def test_a_checkpoint_names_no_cfg_to_read() -> None:
    with pytest.raises(CheckpointError, match="run, epoch 1: its options hold no darknet_cfg"):
        rebuilding_options("darknet:/etc/passwd", {}, "run, epoch 1")
    assert rebuilding_options("darknet:gone.cfg", {"darknet_cfg": "[net]"}, "run") == {"darknet_cfg": "[net]"}


@DOORS
def test_an_unknown_network_lists_the_known_ones(door: Any) -> None:
    with pytest.raises(OptionError, match=r"resnet9000: unknown.*mobilenet, .*vgg16_reduced, .*gluoncv:NAME"):
        door("resnet9000", 300, 3)


@DOORS
def test_an_unknown_option_is_refused_by_name(door: Any) -> None:
    with pytest.raises(OptionError, match="unknown option 'force_nms'"):
        door(**MOBILENET, force_nms=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "caffe"}, "--targets is one of paper, mxnet"),
        ({"width": 40.0}, "--width is at most 2.0"),
        ({"freeze": "("}, r"--freeze '\(' is not a regular expression"),
        ({"taps": ("conv_99_relu", "conv_14_relu")}, "--taps conv_99_relu: mobilenet has no such layer .*conv_14_relu"),
        ({"taps": ("conv_14_relu", "conv_14_relu")}, "--taps conv_14_relu,conv_14_relu: a layer is named twice"),
        ({"anchor_sizes": "0.1,0.2;0.3"}, "--anchor-sizes has 2 lists, but .* make 7 feature maps"),
        ({"anchor_sizes": "0.1;big"}, "--anchor-sizes '0.1;big': expected positive numbers"),
        ({"anchor_sizes": ";"}, "--anchor-sizes ';': expected positive numbers"),
        ({"anchor_ratios": "1;-2;1;1;1;1;1"}, "--anchor-ratios .*: expected positive numbers"),
        ({"anchor_ratios": "1;2"}, "--anchor-ratios has 2 lists, but .* make 7 feature maps"),
        (
            {"extra_filters": (64, 64)},
            r"--anchor-sizes has 7 lists \(the network's own\) and --anchor-ratios has 7 lists \(the network's own\), "
            "but .* make 4 feature maps; give --anchor-sizes with 4 lists and --anchor-ratios with 4 lists, or one for",
        ),
        (
            {"extra_filters": (64, 64), "anchor_sizes": "0.1;0.2;0.3"},
            r"^--anchor-sizes has 3 lists and --anchor-ratios has 7 lists \(the network's own\), but",
        ),
        (
            {"extra_filters": (64, 64), "anchor_sizes": "0.1;0.2;0.3;0.4"},
            r"^--anchor-ratios has 7 lists \(the network's own\), but .* give --anchor-ratios with 4 lists, or one",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get_symbol_train(**MOBILENET, **options)


@pytest.mark.parametrize("door", [get_symbol, get_symbol_train])
def test_a_network_without_classes_is_refused(door: Any) -> None:
    with pytest.raises(OptionError, match="at least one"):
        door("mobilenet", 64, 0)


@pytest.mark.parametrize(
    ("data_shape", "size"),
    [
        (300, (300, 300)),
        ((300,), (300, 300)),
        ((288, 384), (288, 384)),
        ([288, 384], (288, 384)),
        ((3, 288, 384), (288, 384)),
    ],
)
def test_a_data_shape_is_a_side_or_height_and_width(data_shape: Any, size: tuple[int, int]) -> None:
    assert get_symbol("mobilenet", data_shape, 3).tojson() == get_symbol("mobilenet", size, 3).tojson()


@DOORS
@pytest.mark.parametrize("network", ["inceptionv3", "legacy_vgg16_ssd_300", "legacy_vgg16_ssd_512"])
def test_every_network_works_from_its_smallest_side_on(
    door: Any, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    side = family_of(network).row(network, (300, 300), None).smallest_side
    with pytest.raises(OptionError, match=f"{network} needs a larger input, of at least {side} a side"):
        door(network, (400, side - 1), 3)
    door(network, (400, side), 3)
    assert get_symbol(network, side, 3).infer_shape(data=(1, 3, side, side))[1][0][2] == 6
    assert capsys.readouterr().out == ""


@DOORS
@pytest.mark.parametrize("data_shape", [128, (512, 128)])
def test_an_input_too_small_for_the_extra_layers_is_refused(
    door: Any, data_shape: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="vgg16_reduced needs a larger input.*--extra-filters"):
        door("vgg16_reduced", data_shape, 3)
    assert capsys.readouterr().out == ""


TAPS = {"taps": ("conv_6_relu", "conv_12_relu"), "extra_filters": (), "anchor_sizes": "0.1,0.2;0.3"}


def test_taps_and_anchors_of_the_user_replace_the_networks_own() -> None:
    assigner = get_assigner("mobilenet", (64, 96), 3, **TAPS, anchor_ratios="1,2,0.5")
    assert assigner is not None
    assert assigner.feature_shapes[64, 96] == ((8, 12), (4, 6))
    assert [layer.per_cell for layer in assigner.layers] == [4, 3]
    symbol = get_symbol("mobilenet", (64, 96), 3, **TAPS, anchor_ratios="1,2,0.5")
    assert symbol.infer_shape(data=(1, 3, 64, 96))[1] == [(1, 8 * 12 * 4 + 4 * 6 * 3, 6)]


def test_lists_that_fit_no_map_are_told_where_targets_are_made_first() -> None:
    with pytest.raises(OptionError, match="--anchor-sizes has 1 list and --anchor-ratios has 7 lists"):
        get_assigner("mobilenet", 300, 3, extra_filters=(), anchor_sizes="0.1")


def test_the_example_of_the_page_runs_as_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text("utf-8")
    (example,) = re.findall(r"^python train\.py (.*--taps(?:.*\\\n)*.*)$", page, re.MULTILINE)
    run = parse_options(train_options_class(), shlex.split(example.replace("\\\n", "")), "")
    assigner = get_assigner(run.input.network, run.input.data_shape, 3, **network_options(run))
    assert assigner is not None
    anchors = assigner.shapes((300, 300))["cls_target"][0]
    symbol = get_symbol(run.input.network, run.input.data_shape, 3, **network_options(run))
    assert symbol.infer_shape(data=(1, 3, 300, 300))[1] == [(1, anchors, 6)]
    assert len(assigner.layers) == 5


def test_extra_layers_of_the_user_halve_the_last_map() -> None:
    assigner = get_assigner("mobilenet", 256, 3, extra_filters=(64,), anchor_sizes="0.1;0.3;0.6", anchor_ratios="1")
    assert assigner is not None
    assert assigner.feature_shapes[256, 256] == ((16, 16), (8, 8), (4, 4))


@NETWORKS
def test_other_extra_layers_work_at_the_sizes_that_have_fixed_steps(network: str) -> None:
    for size in (300, 512):
        maps = len(family_of(network).row(network, (size, size), None).taps)
        options = {"extra_filters": (), "anchor_sizes": ";".join(["0.1,0.2"] * maps), "anchor_ratios": "1,2"}
        assigner = get_assigner(network, size, 3, **options)
        assert assigner is not None
        assert get_symbol(network, size, 3, **options).infer_shape(data=(1, 3, size, size))[1] == [
            (1, assigner.shapes((size, size))["cls_target"][0], 6)
        ]


@NETWORKS
def test_freezing_everything_freezes_every_batch_norm(network: str) -> None:
    symbol = get_symbol_train(network, small_size(network), 3, freeze=".*")
    nodes = json.loads(symbol.tojson())["nodes"]
    norms = [node["attrs"] for node in nodes if node["op"] == "BatchNorm"]
    assert all(attributes["use_global_stats"] == "True" for attributes in norms)
    assert bool(norms) == ("vgg16" not in network or network.endswith("_bn"))


def test_freezing_holds_for_batch_norm_too() -> None:
    symbol = get_symbol_train(**MOBILENET, freeze="conv_[1-3]_")
    nodes = {name: node.get("use_global_stats") for name, node in symbol.attr_dict().items()}
    frozen = {name for name, value in nodes.items() if name.endswith("batchnorm") and value == "True"}
    assert frozen == {f"conv_{k}_batchnorm" for k in ("1", "2", "2_dw", "3", "3_dw")}


def test_width_scales_the_channels_of_mobilenet_v2() -> None:
    """Table 2 of the paper at 1; below it the last convolution keeps its 1280 channels."""
    for width, first, last in ((1.0, 32, (1280, 320)), (0.5, 16, (1280, 160)), (2.0, 64, (2560, 640))):
        symbol = get_symbol("mobilenet_v2", 64, 3, width=width)
        shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 64, 64))[0], strict=True))
        assert shapes["conv_1_conv2d_weight"][0] == first
        assert shapes["conv_last_conv2d_weight"][:2] == last


@pytest.mark.parametrize(("width", "channels"), [(1.0, 32), (0.5, 16), (0.25, 8), (0.125, 8), (0.75, 24)])
def test_width_scales_the_channels_of_mobilenet(width: float, channels: int) -> None:
    symbol = get_symbol("mobilenet", 64, 3, width=width)
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 64, 64))[0], strict=True))
    assert shapes["conv_1_conv2d_weight"][0] == channels


def test_the_graph_matches_by_itself_with_targets_mxnet() -> None:
    assert get_assigner(**MOBILENET, targets="mxnet") is None
    assert label_names("mobilenet", targets="mxnet") == ("label",)
    assert "label" in get_symbol_train(**MOBILENET, targets="mxnet").list_arguments()


def test_an_assigner_travels_to_the_workers() -> None:
    assigner = get_assigner(**MOBILENET)
    assert assigner is not None
    copy = pickle.loads(pickle.dumps(assigner))
    for name, array in assigner(objects(), (64, 64)).items():
        np.testing.assert_array_equal(copy(objects(), (64, 64))[name], array)


def test_symbols_hold_no_input_size_where_anchors_have_no_steps() -> None:
    assert get_symbol("mobilenet", 64, 3).tojson() == get_symbol("mobilenet", (96, 128), 3).tojson()


def test_post_processing_options_reach_the_symbol() -> None:
    options = {"nms": 0.3, "nms_topk": 17, "force": True, "score_threshold": 0.2}
    attributes = get_symbol(**MOBILENET, **options).list_attr()
    assert {name: attributes[name] for name in ("nms_threshold", "nms_topk", "force_suppress", "threshold")} == {
        "nms_threshold": "0.3",
        "nms_topk": "17",
        "force_suppress": "True",
        "threshold": "0.2",
    }


def test_the_sum_over_contexts_is_one_context() -> None:
    """Two CPU contexts with half of the batch each give the gradient of the whole batch (no batch norm here)."""
    whole, halves = (_gradients([mx.cpu(k) for k in range(count)]) for count in (1, 2))
    assert whole.keys() == halves.keys()
    for name, gradient in whole.items():
        np.testing.assert_allclose(halves[name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max())


def _gradients(contexts: list[Any]) -> dict[str, np.ndarray]:
    """Gradients, summed over the contexts, of a training step on four images with 0, 3, 6 and 9 objects."""
    options = {**TAPS, **small_options("mobilenet"), "anchor_ratios": "1", "freeze": ".*"}
    symbol = without_det(get_symbol_train("mobilenet", 64, 3, **options))
    assigner = get_assigner("mobilenet", 64, 3, **options)
    assert assigner is not None
    targets = [assigner(objects(k, 3 * k), (64, 64)) for k in range(4)]
    labels = {name: np.stack([one[name] for one in targets]) for name in targets[0]}
    labels["normaliser"][:] = labels["normaliser"].sum()
    module = mx.mod.Module(symbol, label_names=list(labels), context=contexts)
    module.bind([("data", (4, 3, 64, 64))], [(name, array.shape) for name, array in labels.items()])
    mx.random.seed(3)
    module.init_params(mx.init.Xavier(magnitude=2))
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, (4, 3, 64, 64)))
    module.forward_backward(mx.io.DataBatch([data], [mx.nd.array(array) for array in labels.values()]))
    group = module._exec_group
    return {
        name: sum(array.asnumpy() for array in arrays)
        for name, arrays in zip(group.param_names, group.grad_arrays, strict=True)
    }


def test_layers_keep_the_size_unless_told_otherwise() -> None:
    conv = Layers().conv(mx.sym.var("data"), "conv", 4, 3, dilate=6)
    assert conv.infer_shape(data=(1, 2, 19, 23))[1] == [(1, 4, 19, 23)]


@pytest.mark.parametrize("name", ["nms_topk", "keep_topk"])
def test_numbers_of_boxes_have_a_bound(name):
    with pytest.raises(OptionError, match=rf"{name.replace('_', '.')} is at most 1000000, not 99999999999"):
        get_symbol("mobilenet", 64, 3, **{name: 99_999_999_999})
