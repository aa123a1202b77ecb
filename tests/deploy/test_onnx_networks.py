"""Whole networks in ONNX find what they find in MXNet."""

import numpy as np
import pytest

from deploy.onnx_files import compare
from symbol.symbol_factory import get_symbol
from tests.deploy.onnx_runtimes import RUNTIMES, exported, run, run_mxnet
from tests.model.tiny import deterministic_params

NEARLY_ALL = 0.98  # rounding may exchange rows whose scores are equal but for it
DEEP = ("resnet50", "yolov3_spp")  # whose sums grow from block to block
# (network, size, classes, options)
NETWORKS = [
    ("mobilenet", (128, 96), 3, {"width": 0.25}),
    ("mobilenet", (128, 96), 3, {"width": 0.25, "post_process": "per_class", "keep_topk": 50, "nms_topk": 40}),
    ("mobilenet", (128, 96), 3, {"width": 0.25, "post_process": "per_class", "force": True}),
    ("mobilenet", (128, 96), 3, {"width": 0.25, "post_process": "pooled", "nms_topk": 90}),
    ("mobilenet", (128, 96), 3, {"width": 0.25, "post_process": "clipped"}),
    ("mobilenet_v2", (96, 96), 2, {"force": True}),
    ("vgg16_ssd_voc", (304, 304), 2, {}),
    ("densenet-tiny", (128, 128), 2, {}),
    ("yolov3_tiny", (96, 128), 4, {"nms_topk": 100}),
    ("yolov3_spp_mini", (96, 128), 1, {"multi_label": False}),
    ("yolov3_spp_mini", (64, 96), 5, {"only_classes": (1, 3), "force": True}),
    ("efficientnet_lite0", (128, 96), 3, {}),
    ("efficientdet_lite0", (64, 192), 2, {}),
    ("efficientdet_mini", (128, 256), 4, {}),
    ("efficientdet_mini", (128, 128), 1, {"force": True, "keep_topk": 30}),
]

SLOW_NETWORKS = [
    (network, size, 3, {})
    for network, size in (
        ("inceptionv3", (304, 304)),
        ("legacy_vgg16_ssd_300", (300, 300)),
        ("resnet50", (128, 160)),
        ("gluoncv:resnet18_v1", (128, 128)),
        ("gluoncv:mobilenetv3_small", (128, 128)),
        ("yolov3_spp", (64, 96)),
        ("efficientdet_d0", (256, 256)),
    )
]


def params_of(symbol, size, heads):
    """Weights that saturate no score, so that the order of detections is clear, and biases of all kinds.

    heads: by how much weights of the predicting convolutions are smaller than those of other layers.
    """
    rng = np.random.default_rng(0)
    params = deterministic_params(symbol, size)
    for name, array in params.items():
        if name.endswith(("_w1", "_w2")):  # of BiFPN's fusions
            array[:] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith(("_bias", "_beta")):
            array[:] = rng.normal(0, 0.2, array.shape)
        elif "pred" in name:
            array *= heads
        elif name.endswith("running_var"):  # of gluoncv's layers, whose sums grow with each residual block
            array[:] = 2
    return params


@pytest.fixture(
    scope="module",
    params=[*NETWORKS, *(pytest.param(network, marks=pytest.mark.slow) for network in SLOW_NETWORKS)],
    ids=lambda network: network[0],
)
def in_both(request):
    """(what MXNet finds, the ONNX model, its data) of a network, once for all runtimes."""
    network, size, classes, options = request.param
    symbol = get_symbol(network, size, classes, score_threshold=0.01, **options)
    params = params_of(symbol, size, 0.002 if network in DEEP else 0.2)
    data = np.random.default_rng(0).normal(0, 1, (2, 3, *size)).astype(np.float32)
    return run_mxnet(symbol, params, data), exported(symbol, params, data, classes), data


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network(in_both, runtime):
    expected, model, data = in_both
    found = run(runtime, model, data)
    result = compare(expected, found)
    assert expected.shape == found.shape
    assert result.detections > 5
    assert result.unmatched == 0
    assert result.in_place >= NEARLY_ALL * result.detections


def test_no_weight_has_a_name_that_quantizers_give():
    """relu4_3_scale, a weight of VGG's SSD, would be what onnxruntime.quantization calls the scale of relu4_3."""
    size = (304, 304)
    symbol = get_symbol("vgg16_ssd_voc", size, 2)
    model = exported(symbol, params_of(symbol, size, 0.2), np.zeros((1, 3, *size), np.float32), 2)
    names = {weight.name for weight in model.graph.initializer}
    assert any(name.startswith("relu4_3_scale") for name in names)
    assert not any(name.endswith(("_scale", "_zero_point")) for name in names)
