"""Every registered SSD: shapes, anchors, a training step, detection."""

from typing import Any

import numpy as np
import pytest

from boxes.anchors import AnchorLayer, multibox_prior, ssd_priors
from boxes.geometry import corners_to_centres
from common.sizes import input_size
from machine.runtime import mx
from symbol.detector.ssd import clip_centre_form
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names
from tests.symbol.network_cases import (
    CLASSES,
    NETWORKS,
    RUNS,
    SIZES,
    parameter_shapes,
    small_options,
    small_size,
    without_det,
)


def anchor_count(network: str, size: int | tuple[int, int], **options: Any) -> int:
    assigner = get_assigner(network, size, CLASSES, **options)
    assert assigner is not None
    return assigner.shapes(input_size(size))["cls_target"][0]


def symbol_anchors(symbol: Any, size: tuple[int, int]) -> np.ndarray:
    """(A, 4) anchors by the symbol's own MultiBoxPrior nodes, run on maps of the inferred shapes."""
    nodes = symbol.get_internals()["multibox_anchors_output"].get_children()
    anchors = []
    for name in nodes.list_outputs():
        node = nodes[name]
        shape = node.get_children().infer_shape(data=(1, 3, *size))[1][0]
        anchors.append(mx.nd.contrib.MultiBoxPrior(mx.nd.zeros(shape), **node.list_attr()).asnumpy()[0])
    corners = mx.nd.array(np.concatenate(anchors)[None])
    if "multibox_anchors_clipped_output" in symbol.get_internals().list_outputs():
        graph = clip_centre_form(mx.sym.var("corners"))
        corners = graph.bind(mx.cpu(), args={"corners": corners}).forward()[0]
    return corners.asnumpy()[0]


@NETWORKS
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_have_the_documented_shapes(network: str, size: int | tuple[int, int]) -> None:
    count = anchor_count(network, size)
    data = (2, 3, *input_size(size))
    assert get_symbol(network, size, CLASSES).infer_shape(data=data)[1] == [(2, count, 6)]
    paper = get_symbol_train(network, size, CLASSES)
    labels = {"cls_target": (2, count), "loc_target": (2, count, 4), "normaliser": (2, 1)}
    assert paper.infer_shape(data=data, **labels)[1] == [(2,), (2,), (2, count, 6)]
    classic = get_symbol_train(network, size, CLASSES, targets="mxnet")
    assert classic.list_outputs() == ["cls_prob_output", "loc_loss_output", "cls_label_output", "det_out_output"]
    shapes = [(2, CLASSES + 1, count), (2, 4 * count), (2, count), (2, count, 6)]
    assert classic.infer_shape(data=data, label=(2, 7, 6))[1] == shapes


@NETWORKS
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_assigner_has_the_anchors_of_the_symbol(network: str, size: int | tuple[int, int]) -> None:
    size = input_size(size)
    assigner = get_assigner(network, size, CLASSES)
    assert assigner is not None
    maps = zip(assigner.feature_shapes[size], assigner.layers, strict=True)
    anchors = np.concatenate([multibox_prior(shape, layer) for shape, layer in maps])
    np.testing.assert_array_equal(anchors, symbol_anchors(get_symbol(network, size, CLASSES), size))


# (anchors, millions of parameters) for 20 classes; those of the classic symbols are marked.
COUNTS = {
    ("densenet-tiny", 300): (8108, 3.860),
    ("densenet-tiny", 512): (24528, 3.860),
    ("densenet121", 300): (2006, 11.556),
    ("densenet121", 512): (6132, 11.556),
    ("efficientnet_lite0", 300): (8744, 5.115),
    ("efficientnet_lite0", 512): (24528, 5.115),
    ("efficientnet_lite1", 300): (8744, 5.88),
    ("efficientnet_lite1", 512): (24528, 5.88),
    ("efficientnet_lite2", 300): (8744, 6.58),
    ("efficientnet_lite2", 512): (24528, 6.58),
    ("gluoncv:mobilenetv2_0.25", 300): (8744, 3.862),
    ("gluoncv:mobilenetv2_0.25", 512): (6132, 5.855),
    ("gluoncv:resnet18_v1b", 300): (8744, 13.890),
    ("gluoncv:resnet18_v1b", 512): (6132, 15.662),
    ("inceptionv3", 300): (7134, 27.604),
    ("inceptionv3", 512): (5186, 29.199),  # classic: 5186, 29.2 M
    ("legacy_vgg16_ssd_300", 300): (8732, 26.285),  # classic geometry: 8732
    ("legacy_vgg16_ssd_300", 512): (24656, 26.285),
    ("legacy_vgg16_ssd_512", 300): (8766, 27.189),
    ("legacy_vgg16_ssd_512", 512): (24564, 27.189),  # SSD512 of the paper: 24564
    ("mobilenet", 300): (2280, 9.682),
    ("mobilenet", 512): (6144, 9.682),
    ("mobilenet_v2", 300): (2268, 8.231),
    ("mobilenet_v2", 512): (6132, 8.231),
    ("resnet101", 300): (2268, 50.132),
    ("resnet101", 512): (6132, 50.132),  # classic: 6132, 50.1 M
    ("resnet50", 300): (2268, 31.140),
    ("resnet50", 512): (6132, 31.140),  # classic: 6132, 31.1 M
    ("vgg16_reduced", 300): (8732, 26.285),  # classic: 8732, 26.3 M
    ("vgg16_reduced", 512): (24576, 26.959),  # classic: 24576, 27.0 M
    ("vgg16_reduced_bn", 300): (8732, 26.292),
    ("vgg16_reduced_bn", 512): (24576, 26.966),
    ("vgg16_ssd_coco", 300): (8732, 26.285),  # ssd.pytorch: 8732
    ("vgg16_ssd_coco", 512): (24564, 26.959),
    ("vgg16_ssd_torchvision", 300): (8732, 26.285),  # torchvision: 8732
    ("vgg16_ssd_torchvision", 512): (24656, 26.285),
    ("vgg16_ssd_voc", 300): (8732, 26.285),
    ("vgg16_ssd_voc", 512): (24564, 26.959),
}


# Names in the classic checkpoints, with shapes: weights from there must fit.
CLASSIC_NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet50": {
        "bn_data_gamma": (3,),
        "conv0_weight": (64, 3, 7, 7),
        "bn0_beta": (64,),
        "stage1_unit1_bn1_gamma": (64,),
        "stage1_unit1_sc_weight": (256, 64, 1, 1),
        "stage3_unit6_conv2_weight": (256, 256, 3, 3),
        "stage4_unit3_conv3_weight": (2048, 512, 1, 1),
    },
    "resnet101": {"stage3_unit23_bn3_gamma": (256,), "stage4_unit1_sc_weight": (2048, 1024, 1, 1)},
    "inceptionv3": {
        "conv_conv2d_weight": (32, 3, 3, 3),
        "conv_4_batchnorm_beta": (192,),
        "mixed_tower_conv_1_conv2d_weight": (64, 48, 5, 5),
        "mixed_3_tower_conv_2_conv2d_weight": (96, 96, 3, 3),
        "mixed_4_tower_1_conv_1_conv2d_weight": (128, 128, 7, 1),
        "mixed_8_tower_1_conv_3_conv2d_weight": (192, 192, 3, 3),
        "mixed_10_tower_1_mixed_conv_1_conv2d_weight": (384, 384, 3, 1),
        "ch_concat_mixed_7_chconcat_loc_pred_conv_weight": (24, 768, 3, 3),
    },
    "densenet121": {
        "DBstage1_unit1_conv1_weight": (128, 64, 1, 1),
        "TBstage3_conv1_weight": (512, 1024, 1, 1),
        "DBstage4_unit16_conv2_weight": (32, 128, 3, 3),
        "DBstage3_concat24_cls_pred_conv_bias": (84,),
    },
    "densenet-tiny": {"DBstage3_unit18_conv2_weight": (16, 64, 3, 3)},
    "legacy_vgg16_ssd_300": {
        "conv6_weight": (1024, 512, 3, 3),
        "conv7_weight": (1024, 1024, 1, 1),
        "conv8_1_weight": (256, 1024, 1, 1),
        "conv11_2_bias": (256,),
        "relu4_3_scale": (1, 512, 1, 1),
        "relu11_2_cls_pred_conv_weight": (84, 256, 3, 3),
    },
    "legacy_vgg16_ssd_512": {"conv12_2_weight": (256, 128, 4, 4), "relu12_2_loc_pred_conv_weight": (16, 256, 3, 3)},
}


@pytest.mark.parametrize("network", CLASSIC_NAMES)
def test_parameters_have_the_names_of_the_classic_checkpoints(network: str) -> None:
    shapes = parameter_shapes(get_symbol(network, 300, 20), 300)
    classic = CLASSIC_NAMES[network]
    assert {name: shapes.get(name) for name in classic} == classic


@NETWORKS
@pytest.mark.parametrize("size", [300, 512])
def test_anchors_and_parameters_are_those_of_the_table(network: str, size: int) -> None:
    shapes = parameter_shapes(get_symbol(network, size, 20), size)
    millions = sum(map(np.prod, shapes.values())) / 1e6
    assert (anchor_count(network, size), round(millions, 3)) == COUNTS[network, size]


def test_vgg16_reduced_has_the_anchors_of_the_paper_at_300() -> None:
    """Steps of 8, 16, 32, 64, 100 and 300 pixels: the first centre of each map is half a step from the corner."""
    assigner = get_assigner("vgg16_reduced", 300, CLASSES)
    assert assigner is not None
    assert [shape[0] for shape in assigner.feature_shapes[300, 300]] == [38, 19, 10, 5, 3, 1]
    assert [layer.step[0] * 300 for layer in assigner.layers] == pytest.approx([8, 16, 32, 64, 100, 300])
    first = multibox_prior((38, 38), assigner.layers[0])[0]
    np.testing.assert_allclose((first[:2] + first[2:]) / 2 * 300, 4, rtol=1e-5)


# PriorBox configurations of ssd.pytorch (data/config.py) and, for 512, of Caffe SSD's examples.
PRIORS_300 = {
    "min_dim": 300,
    "feature_maps": [38, 19, 10, 5, 3, 1],
    "steps": [8, 16, 32, 64, 100, 300],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    "clip": True,
}
PRIORS_512 = {
    "min_dim": 512,
    "feature_maps": [64, 32, 16, 8, 4, 2, 1],
    "steps": [8, 16, 32, 64, 128, 256, 512],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]],
    "clip": True,
}


@pytest.mark.parametrize(
    ("network", "config", "edges"),
    [
        ("vgg16_ssd_voc", PRIORS_300, (30, 60, 111, 162, 213, 264, 315)),
        ("vgg16_ssd_coco", PRIORS_300, (21, 45, 99, 153, 207, 261, 315)),
        ("vgg16_ssd_voc", PRIORS_512, (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)),
        ("vgg16_ssd_coco", PRIORS_512, (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)),
    ],
)
def test_the_networks_of_ssd_pytorch_have_its_priors(
    network: str, config: dict[str, Any], edges: tuple[float, ...]
) -> None:
    size = (config["min_dim"],) * 2
    assigner = get_assigner(network, size, CLASSES)
    assert assigner is not None
    assert [shape[0] for shape in assigner.feature_shapes[size]] == config["feature_maps"]
    maps = zip(assigner.feature_shapes[size], assigner.layers, strict=True)
    anchors = corners_to_centres(np.concatenate([multibox_prior(shape, layer) for shape, layer in maps]))
    expected = ssd_priors(config | {"min_sizes": edges[:-1], "max_sizes": edges[1:]})
    np.testing.assert_allclose(anchors, expected, rtol=0, atol=1e-6)


def test_the_default_boxes_are_torchvisions() -> None:
    """Of its DefaultBoxGenerator: sides limited to 1, centres not."""
    assigner = get_assigner("vgg16_ssd_torchvision", 300, CLASSES)
    assert assigner is not None
    maps = zip(assigner.feature_shapes[300, 300], assigner.layers, strict=True)
    anchors = corners_to_centres(np.concatenate([multibox_prior(shape, layer) for shape, layer in maps]))
    edges = tuple(300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05))
    expected = ssd_priors(PRIORS_300 | {"min_sizes": edges[:-1], "max_sizes": edges[1:], "clip": False})
    expected[:, 2:] = np.minimum(expected[:, 2:], 1)
    assert (expected[:, :2] > 1).any()
    np.testing.assert_allclose(anchors, expected, rtol=0, atol=1e-6)


def test_anchors_are_square_in_pixels_in_a_wide_input() -> None:
    box = multibox_prior((16, 24), AnchorLayer(sizes=(0.2,), ratios=(1.0,)))[0]
    assert (box[2] - box[0]) * 24 == pytest.approx((box[3] - box[1]) * 16)


@RUNS
def test_a_training_step_reaches_every_parameter(network: str, targets: str) -> None:
    size, options = small_size(network), {"targets": targets, **small_options(network)}
    module, batch = _module_and_batch(network, size, options)
    before = {name: array.asnumpy() for name, array in module.get_params()[0].items()}
    module.forward_backward(batch)
    assert all(np.isfinite(output.asnumpy()).all() for output in module.get_outputs())
    executor = module._exec_group.execs[0]
    gradients = {name: executor.grad_dict[name].asnumpy() for name in before}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    module.update()
    after = module.get_params()[0]
    assert [name for name in before if (before[name] == after[name].asnumpy()).all()] == []


def objects_of_every_map(network: str, size: tuple[int, int], options: dict[str, Any]) -> np.ndarray:
    """(maps, 6) objects in the place of one anchor of every map, so that every head has something to learn."""
    assigner = get_assigner(network, size, CLASSES, **options | {"targets": "paper"})
    assert assigner is not None
    maps = zip(assigner.feature_shapes[size], assigner.layers, strict=True)
    boxes = [multibox_prior(shape, layer)[shape[0] * shape[1] // 2 * layer.per_cell] for shape, layer in maps]
    return np.array([[k % CLASSES, *box, 0] for k, box in enumerate(boxes)], np.float32)


def _module_and_batch(network: str, size: tuple[int, int], options: dict[str, Any]) -> tuple[Any, Any]:
    """A Module of the training outputs with random weights, and a batch of one image."""
    symbol = without_det(get_symbol_train(network, size, CLASSES, **options))
    data = mx.nd.array(np.random.default_rng(0).normal(0, 50, (1, 3, *size)))
    assigner = get_assigner(network, size, CLASSES, **options)
    rows = objects_of_every_map(network, size, options)
    labels = {"label": rows} if assigner is None else assigner(rows, size)
    assert tuple(labels) == label_names(network, **options)
    arrays = [mx.nd.array(label[None]) for label in labels.values()]
    module = mx.mod.Module(symbol, label_names=list(labels))
    module.bind([("data", data.shape)], [(name, array.shape) for name, array in zip(labels, arrays, strict=True)])
    mx.random.seed(1)
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 0.1, "rescale_grad": 1.0, "wd": 0.0})
    return module, mx.io.DataBatch([data], arrays)


@RUNS
def test_detection_and_training_symbol_detect_the_same(network: str, targets: str) -> None:
    """det of get_symbol is the last output of get_symbol_train; rows are [id, score, corners], id -1 = none."""
    size, options = small_size(network), small_options(network)
    detection = get_symbol(network, size, CLASSES, **options)
    training = get_symbol_train(network, size, CLASSES, targets=targets, **options)
    arrays = _random_arrays(detection, size)
    count = anchor_count(network, size, **options)
    labels = {"cls_target": (1, count), "loc_target": (1, count, 4), "normaliser": (1, 1), "label": (1, 2, 6)}
    labels = {name: mx.nd.zeros(labels[name]) - 1 for name in label_names(network, targets=targets)}
    det = _infer(detection, arrays)[0]
    np.testing.assert_array_equal(_infer(training, arrays | labels)[-1], det)
    found = det[0][det[0, :, 0] >= 0]
    assert len(found)
    assert (found[:, 0] < CLASSES).all()
    assert ((found[:, 1] >= 0.01) & (found[:, 1] <= 1)).all()
    assert (det[0][det[0, :, 0] < 0, 0] == -1).all()


def _random_arrays(symbol: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Random data, arguments and states of a detection symbol."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(symbol, size)
    arrays = {name: rng.normal(0, np.sqrt(2 / max(1, np.prod(shape[1:]))), shape) for name, shape in shapes.items()}
    arrays["data"] = rng.normal(0, 1, (1, 3, *size))
    states = zip(symbol.list_auxiliary_states(), symbol.infer_shape(data=(1, 3, *size))[2], strict=True)
    arrays |= {name: np.ones(shape) if name.endswith("var") else np.zeros(shape) for name, shape in states}
    return {name: mx.nd.array(array) for name, array in arrays.items()}


def _infer(symbol: Any, arrays: dict[str, Any]) -> list[np.ndarray]:
    args = {name: arrays[name] for name in symbol.list_arguments()}
    states = {name: arrays[name] for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), args=args, aux_states=states, grad_req="null")
    return [output.asnumpy() for output in executor.forward(is_train=False)]


def test_lite_bodies_are_read_as_the_next_block_widens_them_too() -> None:
    symbol = get_symbol("efficientnet_lite0", 64, 2, taps=("c3_expand", "c4_expand", "c5"))
    arguments = symbol.list_arguments()
    shapes = dict(zip(arguments, symbol.infer_shape(data=(1, 3, 64, 64))[0], strict=True))
    heads = [shapes[f"{name}_cls_pred_conv_weight"][1] for name in ("c3_expand", "c4_expand", "c5")]
    assert heads == [240, 672, 320]
    body = {name for name in get_symbol("efficientnet_lite0", 64, 2).list_arguments() if name.startswith("body_")}
    assert body <= set(arguments)
