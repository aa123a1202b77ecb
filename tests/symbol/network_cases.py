"""What the tests of networks run over: every registered SSD and YOLOv3, its sizes and parameters of a known size."""

from typing import Any

import numpy as np
import pytest

from common.sizes import input_size
from machine.runtime import mx
from symbol.detector.ssd_rows import ROWS as SSD_NETWORKS
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from symbol.symbol_factory import label_names

Symbol = Any

# Sides that suit every network, one of them not square; some networks have another row from 448.
SIZES = [300, 512, (320, 384)]
# The smallest inputs that leave something for all extra layers, and more than one pixel for every batch norm.
SMALL = {
    "inceptionv3": (107, 139),
    "legacy_vgg16_ssd_300": (272, 280),
    "legacy_vgg16_ssd_512": (272, 280),
    "vgg16_reduced": (272, 280),
    "vgg16_reduced_bn": (272, 280),
    "vgg16_ssd_coco": (272, 280),
    "vgg16_ssd_torchvision": (272, 280),
    "vgg16_ssd_voc": (272, 280),
}
SMALLEST = (64, 96)
CLASSES = 3

# Beside the registry's own: one classifier of gluoncv with residuals, one with depthwise convolutions.
TRACED = ["gluoncv:resnet18_v1b", "gluoncv:mobilenetv2_0.25"]
ALL = [*SSD_NETWORKS, *TRACED]
NETWORKS = pytest.mark.parametrize("network", ALL)
# Deeper than another one or with other priors, and else alike: what runs networks runs these in the slow tests.
SAME_KIND = (
    *("resnet101", "densenet121", "efficientnet_lite1", "efficientnet_lite2", "legacy_vgg16_ssd_512"),
    *("vgg16_ssd_coco", "vgg16_ssd_torchvision", "yolov3", "efficientdet_lite1", "efficientdet_lite2"),
)


def slow_unless(is_quick: bool, *values: Any) -> Any:
    """A parameter set, of a slow test or not."""
    return pytest.param(*values, marks=() if is_quick else pytest.mark.slow)


# Which targets are assigned changes the heads alone: one network of the default tests learns MXNet's.
RUNS = pytest.mark.parametrize(
    ("network", "targets"),
    [
        *(slow_unless(network not in SAME_KIND, network, "paper") for network in ALL),
        *(slow_unless(network == "mobilenet", network, "mxnet") for network in ALL),
    ],
)
YOLOS = pytest.mark.parametrize("network", list(YOLO_NETWORKS))


def small_size(network: str) -> tuple[int, int]:
    """An input (H, W) that is quick to train on and not square."""
    return SMALL.get(network, SMALLEST)


def small_options(network: str) -> dict[str, Any]:
    """Options that make the network quick."""
    return {"width": 0.25} if network in ("mobilenet", "mobilenet_v2") else {}


def objects(seed: int = 0, count: int = 4) -> np.ndarray:
    """(count, 6) label rows of one image."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (count, 2))
    high = low + rng.uniform(0.1, 0.5, (count, 2))
    ids = rng.integers(0, CLASSES, (count, 1))
    return np.concatenate([ids, low, high, np.zeros((count, 1))], axis=1).astype(np.float32)


def parameter_shapes(symbol: Symbol, size: int | tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of all learnt arguments."""
    inputs = {"data", *label_names("mobilenet"), *label_names("mobilenet", targets="mxnet")}
    inputs |= {*label_names("yolov3_spp"), *label_names("efficientdet_d0")}
    shapes, _, _ = symbol.infer_shape_partial(data=(1, 3, *input_size(size)))
    named = dict(zip(symbol.list_arguments(), shapes, strict=True))
    return {name: shape for name, shape in named.items() if name not in inputs}


def without_det(symbol: Symbol) -> Symbol:
    """The training outputs without the last."""
    return mx.sym.Group([symbol[k] for k in range(len(symbol.list_outputs()) - 1)])
