"""The networks of the YOLOv3-SPP trainer as ours: weights made by formula under our names."""

from functools import cache
from typing import Any

import numpy as np

from config.options import from_mapping
from symbol.backbone.darknet import Level
from symbol.darknet_sections import layer_names
from symbol.detector import yolo
from symbol.detector.yolo import find_row as find_yolo_row
from symbol.network_options import YOLOOptions
from tests.golden.loader import Case, case_of, formula_parameters

SUFFIXES = {
    "Conv2d.weight": "conv_weight",
    "Conv2d.bias": "conv_bias",
    "BatchNorm2d.weight": "bn_gamma",
    "BatchNorm2d.bias": "bn_beta",
    "BatchNorm2d.running_mean": "bn_moving_mean",
    "BatchNorm2d.running_var": "bn_moving_var",
}


def own_name(network: str, name: str) -> str:
    """Our name of `module_list.N.LAYER.PARAMETER`; N is the number of the section."""
    _, number, suffix = name.split(".", 2)
    return f"{layer_names(find_yolo_row(network).sections)[int(number)]}_{SUFFIXES[suffix]}"


@cache
def parameters(network: str, gain: float) -> dict[str, np.ndarray]:
    """All parameters and states of a network under our names."""
    case = case_of("formula_params", network=network, gain=gain)
    return {own_name(network, name): array for name, array in formula_parameters(case)}


def options(case: Case, **others: Any) -> dict[str, Any]:
    """The network's options of a case."""
    return {"yolo_anchors": ", ".join(f"{w},{h}" for w, h in case.args["anchors_px"]), **others}


def levels(case: Case) -> list[Level]:
    """The raw predictions of a case's network."""
    network, size = case.args["network"], tuple(case.args["input_hw"])
    checked = from_mapping(YOLOOptions, options(case))
    return yolo.levels(network, find_yolo_row(network), size, case.args["num_classes"], checked)
