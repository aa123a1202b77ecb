"""Every registered EfficientDet: shapes, parameters, a training step, detection, options, freezing."""

import json
from typing import Any

import numpy as np
import pytest

from boxes.effdet_assigner import effdet_anchors
from common.errors import OptionError
from common.sizes import input_size
from machine.runtime import mx
from model.symbol_check import load_symbol
from symbol.detector.efficientdet import CLASS_BIAS
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.symbol_factory import check_any_size, feature_maps, get_assigner, get_symbol, get_symbol_train, label_names
from tests.symbol.network_cases import CLASSES, parameter_shapes, without_det

EFFDETS = pytest.mark.parametrize("network", list(EFFDET_NETWORKS))
LIGHT = ["efficientdet_mini", "efficientdet_small", "efficientdet_d0", "efficientdet_lite0"]
LIGHTS = pytest.mark.parametrize("network", LIGHT)
NETWORK = "efficientdet_mini"
SIZES = [256, 512, (256, 768)]
SMALLEST = (128, 256)
OUTPUTS = ["cls_loss_loss", "reg_loss_loss", "det_out_output"]  # make_loss calls its output so

# (anchors at 512, millions of parameters) for 20 classes.
COUNTS = {
    "efficientdet_d0": (49104, 3.839),
    "efficientdet_d1": (49104, 6.57),
    "efficientdet_d2": (49104, 8.026),
    "efficientdet_d3": (49104, 11.931),
    "efficientdet_d4": (49104, 20.582),
    "efficientdet_d5": (49104, 33.471),
    "efficientdet_d6": (49104, 51.629),
    "efficientdet_d7": (49104, 51.629),
    "efficientdet_d7x": (49140, 76.905),
    "efficientdet_lite0": (49104, 3.203),
    "efficientdet_lite1": (49104, 4.192),
    "efficientdet_lite2": (49104, 5.181),
    "efficientdet_mini": (49104, 0.22),
    "efficientdet_small": (49104, 0.661),
}


@EFFDETS
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_have_the_documented_shapes(network: str, size: Any) -> None:
    data = (2, 3, *input_size(size))
    assert get_symbol(network, size, CLASSES).infer_shape(data=data)[1] == [(2, 200, 6)]
    training, assigner = get_symbol_train(network, size, CLASSES), get_assigner(network, size, CLASSES)
    assert training.list_outputs() == OUTPUTS
    assert assigner is not None
    shapes = assigner.shapes(input_size(size))
    assert shapes["cls_target"] == (sum(m.height * m.width * m.anchors for m in feature_maps(network, size)),)
    labels = {name: (2, *shape) for name, shape in shapes.items()}
    assert training.infer_shape(data=data, **labels)[1] == [(2,), (2,), (2, 200, 6)]


@EFFDETS
def test_anchors_and_parameters_are_those_of_the_table(network: str) -> None:
    shapes = parameter_shapes(get_symbol(network, 512, 20), 512)
    millions = round(sum(map(np.prod, shapes.values())) / 1e6, 3)
    places = sum(m.height * m.width * m.anchors for m in feature_maps(network, 512))
    assert (places, millions) == COUNTS[network]


@pytest.mark.parametrize("network", ["efficientdet_mini", "efficientdet_small"])
def test_the_small_networks_keep_levels_cells_and_shared_heads(network: str) -> None:
    row = EFFDET_NETWORKS[network]
    assert (row.levels, row.cells >= 2, row.attention, row.anchor_scale) == (5, True, True, 4.0)
    nodes = json.loads(get_symbol(network, 128, CLASSES).tojson())["nodes"]
    weight = next(k for k, node in enumerate(nodes) if node["name"] == "cls_0_depthwise_weight")
    assert sum([weight, 0, 0] in node["inputs"] for node in nodes) == row.levels


def test_the_largest_network_has_a_sixth_map_and_d7_larger_anchors() -> None:
    assert [m.height for m in feature_maps("efficientdet_d7x", 512)] == [64, 32, 16, 8, 4, 2]
    scales = [get_assigner(f"efficientdet_{name}", 512, CLASSES).anchor_scale for name in ("d6", "d7", "d7x")]  # type: ignore[union-attr]
    assert scales == [4.0, 5.0, 4.0]
    assert get_assigner("efficientdet_d7", 512, CLASSES, anchor_scale=2.0).anchor_scale == 2.0  # type: ignore[union-attr]


def module_and_batch(network: str, size: tuple[int, int], images: int = 2) -> tuple[Any, Any]:
    """A Module of the losses with weights at their start, and a batch with an object on an anchor of every map."""
    assigner = get_assigner(network, size, CLASSES)
    assert assigner is not None
    anchors = effdet_anchors(size)
    starts = np.cumsum([0, *(m.height * m.width * m.anchors for m in feature_maps(network, size))])[:-1]
    x, y, w, h = (anchors[starts] / np.array([size[1], size[0]] * 2)).T
    rows = np.stack([np.arange(len(starts)) % CLASSES, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0 * x], axis=1)
    labels = assigner(rows.astype(np.float32), size)
    assert tuple(labels) == label_names(network)
    labels = {name: np.repeat(label[None], images, axis=0) for name, label in labels.items()}
    labels["normaliser"][:] = images
    arrays = [mx.nd.array(label) for label in labels.values()]
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, (images, 3, *size)))
    module = mx.mod.Module(without_det(get_symbol_train(network, size, CLASSES)), label_names=list(labels))
    module.bind([("data", data.shape)], [(name, array.shape) for name, array in zip(labels, arrays, strict=True)])
    mx.random.seed(1)
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 0.1, "rescale_grad": 1.0, "wd": 0.0})
    return module, mx.io.DataBatch([data], arrays)


@LIGHTS
def test_a_training_step_reaches_every_parameter(network: str) -> None:
    module, batch = module_and_batch(network, SMALLEST)
    before = {name: array.asnumpy() for name, array in module.get_params()[0].items()}
    module.forward_backward(batch)
    assert all(np.isfinite(output.asnumpy()).all() for output in module.get_outputs())
    gradients = {name: module._exec_group.execs[0].grad_dict[name].asnumpy() for name in before}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    module.update()
    after = module.get_params()[0]
    unchanged = [name for name in before if (before[name] == after[name].asnumpy()).all()]
    assert [name for name in unchanged if not name.endswith("_gamma")] == []  # some steps are below float32 at 1


def test_lite_has_relu6_and_plain_sums_and_no_squeeze_excitation() -> None:
    """google/automl, efficientdet/hparams_config.py; anchors of three cells."""
    nodes = json.loads(get_symbol("efficientdet_lite1", 384, CLASSES).tojson())["nodes"]
    layers = [node for node in nodes if node["name"].startswith(("body_", "bifpn_", "cls_", "box_"))]
    assert {"Activation", "elemwise_mul", "mean"}.isdisjoint(node["op"] for node in layers)
    assert {(n["attrs"]["a_min"], n["attrs"]["a_max"]) for n in layers if n["op"] == "clip"} == {("0.0", "6.0")}
    assert not any(node["name"].endswith(("_w1", "_w2")) for node in layers)
    assert get_assigner("efficientdet_lite1", 384, CLASSES).anchor_scale == 3.0  # type: ignore[union-attr]
    blocks = {node["name"].split("_")[1] for node in layers if node["name"].endswith("_project_conv")}
    assert len(blocks) == 1 + 3 + 3 + 4 + 4 + 5 + 1  # Lite1: depth 1.1, but for the first and the last stage


@pytest.mark.parametrize("size", [320, 448, (320, 384)], ids=str)
def test_the_last_map_of_a_lite_may_round_up(size: Any) -> None:
    height, width = input_size(size)
    maps = feature_maps("efficientdet_lite0", size)
    assert [(m.height, m.width) for m in maps] == [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    module, batch = module_and_batch("efficientdet_lite0", (height, width), images=1)
    module.forward_backward(batch)
    assert all(np.isfinite(output.asnumpy()).all() for output in module.get_outputs())


def test_classes_start_rare_and_fusions_even() -> None:
    """Class bias -log(99), fusion weights 1."""
    module, _ = module_and_batch(NETWORK, SMALLEST)
    weights = {name: array.asnumpy() for name, array in module.get_params()[0].items()}
    np.testing.assert_allclose(weights["cls_pred_pointwise_bias"], np.full(9 * CLASSES, -np.log(99)), rtol=1e-6)
    fusions = [array for name, array in weights.items() if name.endswith(("_w1", "_w2"))]
    assert len(fusions) == 8 * EFFDET_NETWORKS[NETWORK].cells
    assert all((array == 1).all() for array in fusions)
    assert pytest.approx(-np.log(99)) == CLASS_BIAS


def drops(symbol: Any) -> list[float]:
    nodes = [node for node in json.loads(symbol.tojson())["nodes"] if node["op"] == "Dropout"]
    assert all(node["attrs"]["axes"] == "(1, 2, 3)" for node in nodes)
    return [float(node["attrs"]["p"]) for node in nodes]


def test_drop_connect_grows_with_depth_and_is_off_at_inference() -> None:
    found = drops(get_symbol_train("efficientdet_d0", 128, CLASSES))
    # B0 has 16 blocks, nine of them with a residual.
    np.testing.assert_allclose(found, 0.2 * np.array([2, 4, 6, 7, 9, 10, 12, 13, 14]) / 16)
    assert drops(get_symbol_train("efficientdet_d0", 128, CLASSES, drop_connect=0.0)) == []
    assert drops(get_symbol("efficientdet_d0", 128, CLASSES)) == []


def test_batch_norm_averages_as_the_original_unless_told_otherwise() -> None:
    def momenta(**options: float) -> set[float]:
        nodes = json.loads(get_symbol_train(NETWORK, 128, CLASSES, **options).tojson())["nodes"]
        return {float(node["attrs"]["momentum"]) for node in nodes if node["op"] == "BatchNorm"}

    assert momenta() == {0.99}
    assert momenta(bn_momentum=0.9) == {0.9}


def random_arrays(symbol: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Random data and weights of a symbol without labels; batch norm does nothing."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(symbol, size)
    arrays = {name: rng.normal(0, np.sqrt(2 / max(1, np.prod(shape[1:]))), shape) for name, shape in shapes.items()}
    shapes |= dict(zip(symbol.list_auxiliary_states(), symbol.infer_shape(data=(1, 3, *size))[2], strict=True))
    arrays |= {name: np.ones(shape) for name, shape in shapes.items() if name.endswith(("gamma", "var", "_w1", "_w2"))}
    arrays |= {name: np.zeros(shape) for name, shape in shapes.items() if name.endswith(("beta", "mean", "bias"))}
    arrays["data"] = rng.normal(0, 1, (1, 3, *size))
    return {name: mx.nd.array(array) for name, array in arrays.items()}


def infer(symbol: Any, arrays: dict[str, Any]) -> list[np.ndarray]:
    args = {name: arrays[name] for name in symbol.list_arguments()}
    states = {name: arrays[name] for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), args=args, aux_states=states, grad_req="null")
    return [output.asnumpy() for output in executor.forward(is_train=False)]


@LIGHTS
def test_detection_training_and_exported_symbol_detect_the_same(network: str) -> None:
    detection, training = get_symbol(network, SMALLEST, CLASSES), get_symbol_train(network, SMALLEST, CLASSES)
    arrays = random_arrays(detection, SMALLEST)
    assigner = get_assigner(network, SMALLEST, CLASSES)
    assert assigner is not None
    labels = {name: mx.nd.array(array[None]) for name, array in assigner.ignored(SMALLEST).items()}
    det = infer(detection, arrays)[0]
    np.testing.assert_allclose(infer(training, arrays | labels)[-1], det, rtol=1e-4, atol=1e-5)
    exported = load_symbol(detection.tojson().encode(), "here")
    assert exported.tojson() == detection.tojson()
    np.testing.assert_array_equal(infer(exported, arrays)[0], det)
    found = det[0][det[0, :, 0] >= 0]
    assert len(found)
    assert (found[:, 0] < CLASSES).all()
    assert (np.diff(found[:, 1]) <= 0).all()  # best first
    assert (found[:, 1] > 0.01).all()
    assert ((found[:, 2:] >= 0) & (found[:, 2:] <= 1)).all()


def test_a_symbol_runs_on_any_size() -> None:
    built = get_symbol(NETWORK, 128, CLASSES)
    for size in ((128, 256), (256, 128)):
        fitting = get_symbol(NETWORK, size, CLASSES)
        assert fitting.tojson() == built.tojson()
        arrays = random_arrays(fitting, size)
        np.testing.assert_array_equal(infer(built, arrays)[0], infer(fitting, arrays)[0])


@pytest.mark.parametrize(
    ("network", "size"),
    [(NETWORK, (256, 256)), ("efficientdet_d7x", (256, 256)), ("efficientdet_lite0", (320, 320))],
)
def test_boxes_are_where_the_anchors_are(network: str, size: tuple[int, int]) -> None:
    """Predictions of 0: the best anchors' own boxes, inside of the input."""
    symbol = get_symbol(network, size, 2, nms=1.0, nms_topk=20000, keep_topk=20000, score_threshold=0.1)
    arrays = random_arrays(symbol, size)
    for name, array in arrays.items():
        if name.startswith(("cls_pred", "box_pred")):
            array[:] = 0
    bias = arrays["cls_pred_pointwise_bias"]
    bias[:] = -9
    bias[2 * 4 + 1] = 2  # class 1 of every place's fifth anchor
    det = infer(symbol, arrays)[0][0]
    found = det[det[:, 0] >= 0]
    row = EFFDET_NETWORKS[network]
    anchors = effdet_anchors(size, row.anchor_scale, row.levels)[4::9]
    corners = np.clip(
        np.concatenate([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], 1), 0, size[0]
    )
    assert (found[:, 0] == 1).all()
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-2)), rtol=1e-6)
    order = [np.lexsort(boxes.T.round(2)) for boxes in (corners, found[:, 2:] * size[0])]
    np.testing.assert_allclose(found[order[1], 2:] * size[0], corners[order[0]], atol=0.02)


@LIGHTS
def test_parameter_names_are_explicit(network: str) -> None:
    """The same names with another number of classes, in training and in detection; none is numbered by MXNet."""
    names = get_symbol(network, 128, CLASSES).list_arguments()
    training = get_symbol_train(network, 256, 20).list_arguments()
    assert [name for name in training if name not in label_names(network)] == names
    assert [name for name in names if not name.startswith(("data", "body_", "bifpn_", "cls_", "box_"))] == []


@pytest.mark.parametrize(
    ("pattern", "parts"), [("body", {"body"}), ("all-but-heads", {"body", "bifpn"}), ("cls_", {"cls"})]
)
def test_freezing_holds_for_batch_norm_too(pattern: str, parts: set[str]) -> None:
    nodes = json.loads(get_symbol_train(NETWORK, 128, CLASSES, freeze=pattern).tojson())["nodes"]
    norms = [node for node in nodes if node["op"] == "BatchNorm"]
    frozen = {node["name"].split("_")[0] for node in norms if node["attrs"]["use_global_stats"] == "True"}
    learnt = {node["name"].split("_")[0] for node in norms if node["attrs"]["use_global_stats"] == "False"}
    assert (frozen, learnt) == (parts, {"body", "bifpn", "cls", "box"} - parts)


@pytest.mark.parametrize(
    ("network", "size", "options", "message"),
    [
        (NETWORK, 300, {}, "data shape 300,300: efficientdet_mini needs sides that are multiples of 128; .* 256,256"),
        ("efficientdet_d7x", (256, 384), {}, "data shape 256,384: .*multiples of 256; .*--data-shape 256,512"),
        (NETWORK, 128, {"targets": "mxnet"}, "--targets mxnet: efficientdet_mini does not use it; leave it out"),
        (NETWORK, 128, {"width": 0.5}, "--width 0.5: efficientdet_mini does not use it"),
        (NETWORK, 128, {"multi_label": False}, "--multi-label False: efficientdet_mini does not use it"),
        ("mobilenet", 128, {"pos_iou": 0.6}, "--pos-iou 0.6: mobilenet does not use it"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(network: str, size: Any, options: dict[str, Any], message: str) -> None:
    for door in (get_symbol, get_symbol_train, get_assigner):
        with pytest.raises(OptionError, match=message):
            door(network, size, CLASSES, **options)


def test_options_that_contradict_each_other_are_named() -> None:
    with pytest.raises(OptionError, match="--neg-iou 0.6 is above --pos-iou 0.5"):
        get_assigner(NETWORK, 128, CLASSES, neg_iou=0.6)


def test_other_sizes_are_multiples_too() -> None:
    assert get_assigner(NETWORK, 128, CLASSES, sizes=[(256, 256)]) is not None
    with pytest.raises(OptionError, match="data shape 160,160: .* multiples of 128"):
        get_assigner(NETWORK, 128, CLASSES, sizes=[(160, 160)])
    with pytest.raises(OptionError, match="--rect-val: efficientdet_mini needs .* multiples of 128"):
        check_any_size(NETWORK, 128, "--rect-val")
