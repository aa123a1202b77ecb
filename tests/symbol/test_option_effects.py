"""Every option of the networks has an effect, is refused, or is told: none is ignored in silence."""

import dataclasses
import pickle
from functools import cache
from typing import Any

import pytest

from common.errors import UserError
from symbol.registry import network_options_class
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train
from train.checks import idle_options
from train.options import train_options

SIZE = 256
CLASSES = 3
# Of each family and kind of body: with and without --width, traced, YOLOv3, EfficientDet.
CASES = ["mobilenet", "mobilenet_v2", "resnet50", "gluoncv:mobilenetv2_0.25", "yolov3_tiny", "efficientdet_mini"]
# Where half of the default, or another truth value, is no value of the option.
CHANGED: dict[str, Any] = {
    "targets": "mxnet",
    "taps": ("conv_11_relu", "conv_14_relu"),
    "extra_filters": (64, 64, 64, 64, 64),
    "anchor_sizes": ";".join(["0.2,0.3"] * 7),
    "anchor_ratios": "1,3",
    "freeze": "body",
    "min_neg_samples": 7,
    "variances": (0.2, 0.2, 0.2, 0.2),
    "post_process": "per_class",
    "nms_topk": 50,
    "keep_topk": 50,
    "yolo_anchors": "5,6, 7,8, 9,10, 11,12, 13,14, 15,16",
    "darknet_cfg": "[net]\n[convolutional]\nfilters=8\nsize=1\nstride=1\npad=1\nactivation=leaky\n",
    "box_loss": "ciou",
    "pos_iou": 0.6,
    "only_classes": (1,),
    "one_class": "product",
}
FEW_CLASSES = {"one_class": 1}  # options that are about so many


def changed(field: dataclasses.Field) -> Any:
    """Another value of the option than its default."""
    if field.name in CHANGED:
        return CHANGED[field.name]
    return not field.default if isinstance(field.default, bool) else field.default / 2 or 0.5


@cache
def built(network: str, **options: Any) -> tuple[str, str, bytes]:
    """The symbols and the assigner."""
    classes = min((FEW_CLASSES.get(name, CLASSES) for name in options), default=CLASSES)
    common = {"network": network, "data_shape": SIZE, "num_classes": classes, **options}
    texts = [door(**common).tojson() for door in (get_symbol_train, get_symbol)]
    return texts[0], texts[1], pickle.dumps(get_assigner(**common))


def outcome(network: str, name: str, value: Any) -> str:
    """What giving this value does."""
    try:
        default = {field.name: field.default for field in dataclasses.fields(network_options_class())}[name]
        if built(network, **{name: value}) != built(network, **{name: default}):
            return "effect"
    except UserError:
        return "refused"
    flag = f"--{name.replace('_', '-')} has no effect"
    told = idle_options(train_options(**{"network": network, name: value}))
    return "told" if any(line.startswith(flag) for line in told) else "ignored"


@pytest.mark.parametrize("field", dataclasses.fields(network_options_class()), ids=lambda field: field.name)
def test_no_option_is_ignored(field: dataclasses.Field) -> None:
    found = {network: outcome(network, field.name, changed(field)) for network in CASES}
    assert "ignored" not in found.values(), found
    assert "effect" in found.values() or field.name == "darknet_cfg", found  # it needs a network darknet:FILE
