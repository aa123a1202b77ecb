"""Every registered YOLOv3: shapes, parameters, a training step, detection, options, freezing."""

import json
from typing import Any

import numpy as np
import pytest

from common.errors import OptionError
from common.sizes import input_size
from machine.runtime import mx
from model.symbol_check import load_symbol
from symbol.backbone.darknet import prior_bias
from symbol.symbol_factory import feature_maps, get_assigner, get_symbol, get_symbol_train, label_names
from tests.symbol.network_cases import CLASSES, SMALLEST, YOLOS, parameter_shapes, without_det

SIZES = [320, 512, (320, 384)]
NARROW = {"width": 0.125}  # quick to run
NETWORK = "yolov3_spp_mini"
LOSSES = ["box_loss_loss", "obj_loss_loss", "cls_loss_loss"]  # make_loss calls its output so

# (anchors at 320, anchors at 512, millions of parameters) for 20 classes.
COUNTS = {
    "yolov3": (6300, 16128, 61.626),
    "yolov3_spp": (6300, 16128, 62.676),
    "yolov3_spp_mini": (6300, 16128, 2.344),
    "yolov3_spp_small": (6300, 16128, 11.428),
    "yolov3_tiny": (1500, 3840, 8.714),
}


def places(network: str, size: Any, **options: Any) -> int:
    return sum(m.height * m.width * m.anchors for m in feature_maps(network, size, **options))


@YOLOS
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_have_the_documented_shapes(network: str, size: Any) -> None:
    data = (2, 3, *input_size(size))
    assert get_symbol(network, size, CLASSES).infer_shape(data=data)[1] == [(2, 200, 6)]
    training, assigner = get_symbol_train(network, size, CLASSES), get_assigner(network, size, CLASSES)
    assert training.list_outputs() == [*LOSSES, "det_out_output"]
    assert assigner is not None
    labels = {name: (2, *shape) for name, shape in assigner.shapes(input_size(size)).items()}
    assert training.infer_shape(data=data, **labels)[1] == [(2,), (2,), (2,), (2, 200, 6)]


@YOLOS
def test_anchors_and_parameters_are_those_of_the_table(network: str) -> None:
    shapes = parameter_shapes(get_symbol(network, 320, 20), 320)
    millions = round(sum(map(np.prod, shapes.values())) / 1e6, 3)
    assert (places(network, 320), places(network, 512), millions) == COUNTS[network]


@pytest.mark.parametrize("network", ["yolov3_spp_mini", "yolov3_spp_small"])
def test_the_small_networks_keep_spp_and_three_levels(network: str) -> None:
    names = get_symbol(network, 320, CLASSES).get_internals().list_outputs()
    assert len([name for name in names if name.endswith("_pool_output")]) == 3
    assert [m.name for m in feature_maps(network, 320)] == ["stride32", "stride16", "stride8"]


def module_and_batch(network: str, size: tuple[int, int], options: dict[str, Any]) -> tuple[Any, Any]:
    """A Module of the losses with weights at their start, and a batch of one image with objects for every map."""
    assigner = get_assigner(network, size, CLASSES, **options)
    assert assigner is not None
    sides = [(min(w / size[1], 0.95), min(h / size[0], 0.95)) for (w, h), *_ in assigner.anchors]
    rows = np.array([[k % CLASSES, 0.02, 0.02, 0.02 + w, 0.02 + h, 0] for k, (w, h) in enumerate(sides)], np.float32)
    labels = assigner(rows, size)
    assert tuple(labels) == label_names(network, **options)
    assert labels["normaliser"].all()  # every map has a positive
    data = mx.nd.array(np.random.default_rng(0).uniform(0, 1, (1, 3, *size)))
    arrays = [mx.nd.array(label[None]) for label in labels.values()]
    module = mx.mod.Module(without_det(get_symbol_train(network, size, CLASSES, **options)), label_names=list(labels))
    module.bind([("data", data.shape)], [(name, array.shape) for name, array in zip(labels, arrays, strict=True)])
    mx.random.seed(1)
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 0.1, "rescale_grad": 1.0, "wd": 0.0})
    return module, mx.io.DataBatch([data], arrays)


@YOLOS
def test_a_training_step_reaches_every_parameter(network: str) -> None:
    module, batch = module_and_batch(network, SMALLEST, NARROW)
    before = {name: array.asnumpy() for name, array in module.get_params()[0].items()}
    module.forward_backward(batch)
    assert all(np.isfinite(output.asnumpy()).all() for output in module.get_outputs())
    gradients = {name: module._exec_group.execs[0].grad_dict[name].asnumpy() for name in before}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    module.update()
    after = module.get_params()[0]
    assert [name for name in before if (before[name] == after[name].asnumpy()).all()] == []


def test_predictors_start_with_few_objects() -> None:
    """Objectness -4.5, classes log(0.6 / (C - 0.99)), for each of the three anchors."""
    module, _ = module_and_batch(NETWORK, SMALLEST, NARROW)
    biases = [array.asnumpy() for name, array in module.get_params()[0].items() if name.startswith("pred_")]
    biases = [bias for bias in biases if bias.ndim == 1]
    anchor = [0, 0, 0, 0, -4.5, *[np.log(0.6 / (CLASSES - 0.99))] * CLASSES]
    assert len(biases) == 3
    np.testing.assert_allclose(biases, np.tile(anchor, (3, 3)), rtol=1e-6)
    assert prior_bias(18, 1)[5] == pytest.approx(np.log(60))


def random_arrays(symbol: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Random data and weights of a symbol without labels, whose last map of predictions has the standard deviation 1.

    Batch norm does nothing here and there are no biases but the predictors', so that predictions scale with the data.
    """
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(symbol, size)
    arrays = {name: rng.normal(0, np.sqrt(2 / max(1, np.prod(shape[1:]))), shape) for name, shape in shapes.items()}
    states = zip(symbol.list_auxiliary_states(), symbol.infer_shape(data=(1, 3, *size))[2], strict=True)
    shapes |= dict(states)
    arrays |= {name: np.ones(shape) for name, shape in shapes.items() if name.endswith(("gamma", "var"))}
    arrays |= {name: np.zeros(shape) for name, shape in shapes.items() if name.endswith(("beta", "mean", "bias"))}
    arrays["data"] = rng.normal(0, 1, (1, 3, *size))
    found = {name: mx.nd.array(array) for name, array in arrays.items()}
    raw = [name for name in symbol.get_internals().list_outputs() if name.startswith("pred_")][-1]
    found["data"] /= infer(symbol.get_internals()[raw], found)[0].std()
    return found


def infer(symbol: Any, arrays: dict[str, Any]) -> list[np.ndarray]:
    args = {name: arrays[name] for name in symbol.list_arguments()}
    states = {name: arrays[name] for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), args=args, aux_states=states, grad_req="null")
    return [output.asnumpy() for output in executor.forward(is_train=False)]


@YOLOS
@pytest.mark.parametrize("multi_label", [True, False])
def test_detection_training_and_exported_symbol_detect_the_same(network: str, multi_label: bool) -> None:
    options = {"multi_label": multi_label, **NARROW}
    detection = get_symbol(network, SMALLEST, CLASSES, **options)
    training = get_symbol_train(network, SMALLEST, CLASSES, **options)
    arrays = random_arrays(detection, SMALLEST)
    assigner = get_assigner(network, SMALLEST, CLASSES, **options)
    assert assigner is not None
    labels = {name: mx.nd.array(array[None]) for name, array in assigner.ignored(SMALLEST).items()}
    det = infer(detection, arrays)[0]
    np.testing.assert_array_equal(infer(training, arrays | labels)[-1], det)
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
    """Inputs of another size than the symbol was built for: rectangular validation, multi-scale training."""
    options = NARROW | {"nms_topk": 60}
    built = get_symbol(NETWORK, 96, CLASSES, **options)
    for size in ((64, 128), (96, 96), (160, 32)):
        fitting = get_symbol(NETWORK, size, CLASSES, **options)
        arrays = random_arrays(fitting, size)
        np.testing.assert_array_equal(infer(built, arrays)[0], infer(fitting, arrays)[0])
    assert get_symbol(NETWORK, 96, CLASSES, **options).tojson() == get_symbol(NETWORK, 320, CLASSES, **options).tojson()


def test_boxes_are_where_the_cells_are() -> None:
    """Predictions of 0 and objectness in one cell alone: the box of its anchor in the middle of that cell."""
    symbol = get_symbol(NETWORK, (64, 96), CLASSES, **NARROW)
    arrays = random_arrays(symbol, (64, 96))
    for name, array in arrays.items():
        if name.startswith("pred_") and name.endswith("_weight"):
            array[:] = 0
        elif name.startswith("pred_"):
            array[:] = -20
    last = arrays[[name for name in arrays if name.startswith("pred_") and name.endswith("_bias")][-1]]
    last[:8] = np.array([0, 0, 0, 0, 20, -20, 20, -20])  # the first anchor of the map of stride 8, class 1
    det = infer(symbol, arrays)[0][0]
    found = det[det[:, 0] >= 0]
    assert len(found) == 96
    assert (found[:, 0] == 1).all()
    inner = found[(found[:, 2] > 0) & (found[:, 3] > 0) & (found[:, 4] < 1) & (found[:, 5] < 1)]
    pixels = inner[:, 2:] * [96, 64, 96, 64]
    np.testing.assert_allclose(pixels[:, 2:] - pixels[:, :2], np.tile([10, 13], (len(inner), 1)), rtol=1e-4)
    centres = (pixels[:, :2] + pixels[:, 2:]) / 2
    np.testing.assert_allclose(centres % 8, 4, rtol=1e-4)


def test_one_class_scores_by_objectness_alone() -> None:
    """Its class output is not learned."""
    symbol = get_symbol(NETWORK, 64, 1, **NARROW)
    arrays = random_arrays(symbol, (64, 64))
    det = infer(symbol, arrays)[0]
    for name, array in arrays.items():
        if name.startswith("pred_") and name.endswith("_bias"):
            array[5::6] = -9
    np.testing.assert_array_equal(infer(symbol, arrays)[0], det)
    assert (det[..., 0] == 0).any()
    assert LOSSES[-1] not in get_symbol_train(NETWORK, 64, 1).list_outputs()


@YOLOS
def test_parameter_names_are_explicit(network: str) -> None:
    """The same names with another number of classes, in training and in detection; none is numbered by MXNet."""
    names = get_symbol(network, 320, CLASSES).list_arguments()
    training = get_symbol_train(network, 64, 20).list_arguments()
    assert [name for name in training if name not in label_names(network)] == names
    assert [name for name in names if not name.startswith(("data", "body_", "head_", "pred_"))] == []


@pytest.mark.parametrize(("pattern", "parts"), [("body_", {"body"}), ("body_|head_", {"body", "head"})])
def test_freezing_holds_for_batch_norm_too(pattern: str, parts: set[str]) -> None:
    """The body alone, or all but the predictors."""
    nodes = json.loads(get_symbol_train(NETWORK, 64, CLASSES, freeze=pattern).tojson())["nodes"]
    norms = [node for node in nodes if node["op"] == "BatchNorm"]
    frozen = {node["name"].split("_")[0] for node in norms if node["attrs"]["use_global_stats"] == "True"}
    learnt = {node["name"].split("_")[0] for node in norms if node["attrs"]["use_global_stats"] == "False"}
    assert (frozen, learnt) == (parts, {"body", "head"} - parts)


def test_the_body_is_darknet53_whatever_follows() -> None:
    """The same names with and without SPP: weights of one body fit the other."""
    bodies = [
        {n: s for n, s in parameter_shapes(get_symbol(network, 320, 3), 320).items() if n.startswith("body_")}
        for network in ("yolov3", "yolov3_spp")
    ]
    assert bodies[0] == bodies[1]
    assert len([name for name in bodies[0] if name.endswith("_weight")]) == 52  # 53 with its classifier


ANCHORS = "5,6, 10,11, 20,21, 30,31, 40,41, 50,51, 60,61, 70,71, 80,81.5"


def test_anchors_of_the_user_replace_the_networks_own() -> None:
    assigner = get_assigner(NETWORK, 64, CLASSES, yolo_anchors=ANCHORS)
    assert assigner is not None
    assert assigner.anchors == (
        ((60, 61), (70, 71), (80, 81.5)),
        ((30, 31), (40, 41), (50, 51)),
        ((5, 6), (10, 11), (20, 21)),
    )
    own = get_symbol(NETWORK, 64, CLASSES).tojson()
    assert get_symbol(NETWORK, 64, CLASSES, yolo_anchors=ANCHORS).tojson() != own


@pytest.mark.parametrize(
    ("network", "size", "options", "message"),
    [
        (NETWORK, 300, {}, "data shape 300,300: yolov3_spp_mini needs sides that are multiples of 32; .* 288,288"),
        (NETWORK, (320, 350), {}, "data shape 320,350: .*--data-shape 320,352"),
        (NETWORK, 64, {"yolo_anchors": "1,2,3"}, "--yolo-anchors '1,2,3': expected widths and heights"),
        (NETWORK, 64, {"yolo_anchors": "1,2"}, "--yolo-anchors 1 anchors; this network takes 9"),
        (NETWORK, 64, {"targets": "mxnet"}, "--targets mxnet: yolov3_spp_mini does not use it; leave it out"),
        (NETWORK, 64, {"post_process": "per_class"}, "--post-process per_class: yolov3_spp_mini does not use it"),
        ("mobilenet", 64, {"yolo_anchors": ANCHORS}, " mobilenet does not use it"),
        ("mobilenet", 64, {"multi_label": False}, "--multi-label False: mobilenet does not use it"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(network: str, size: Any, options: dict[str, Any], message: str) -> None:
    for door in (get_symbol, get_symbol_train, get_assigner):
        with pytest.raises(OptionError, match=message):
            door(network, size, CLASSES, **options)


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_class_filter_leaves_the_other_detections_as_they_are(multi_label: bool) -> None:
    options = NARROW | {"multi_label": multi_label, "score_threshold": 0.2, "nms_topk": 1000, "keep_topk": 1000}
    everything = get_symbol(NETWORK, SMALLEST, CLASSES, **options)
    arrays = random_arrays(everything, SMALLEST)
    every = infer(everything, arrays)[0][0]
    some = infer(get_symbol(NETWORK, SMALLEST, CLASSES, only_classes=(0, 2), **options), arrays)[0][0]
    wanted = every[np.isin(every[:, 0], (0, 2))]
    assert len(wanted)
    np.testing.assert_array_equal(some[some[:, 0] >= 0], wanted)


def test_a_class_filter_of_no_class_is_refused() -> None:
    with pytest.raises(OptionError, match=f"--only-classes {CLASSES}: the ids of {CLASSES} classes are 0 to"):
        get_symbol(NETWORK, SMALLEST, CLASSES, only_classes=(0, CLASSES))


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(OptionError, match="--min-box 10 is not below --max-box 10: no box would be left"):
        get_symbol(NETWORK, SMALLEST, CLASSES, min_box=10.0, max_box=10.0)
    with pytest.raises(OptionError, match="--iou-t 1: no anchor would learn any object; lower it"):
        get_assigner(NETWORK, SMALLEST, CLASSES, iou_t=1.0)


def test_a_further_input_that_does_not_suit_the_network_is_refused() -> None:
    with pytest.raises(OptionError, match=r"data shape 64,80: .* multiples of 32"):
        get_assigner(NETWORK, 64, CLASSES, sizes=((96, 96), (64, 80)))


def test_a_width_that_makes_a_cfg_too_large_is_named() -> None:
    linear = "[convolutional]\nfilters=6\nsize=1\nactivation=linear"
    sections = ["[net]", "[convolutional]\nfilters=9000\nsize=1", linear]
    cfg = "\n".join([*sections, "[yolo]\nmask=0\nanchors=10,13\nclasses=1\n"])
    get_symbol("darknet:wide.cfg", 64, 1, darknet_cfg=cfg)
    with pytest.raises(OptionError, match=r"--network darknet:wide\.cfg, .*--width 2: section 0, .*18000 channels"):
        get_symbol("darknet:wide.cfg", 64, 1, darknet_cfg=cfg, width=2.0)
