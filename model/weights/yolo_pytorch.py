"""State_dicts of the YOLOv3-SPP trainer in PyTorch, and of the ultralytics/yolov3 that it comes from (2019, 2020).

module_list.N is the N-th section of the .cfg, [net] not counted: module_list.N.Conv2d.weight and .bias,
module_list.N.BatchNorm2d.weight, .bias, .running_mean, .running_var. Arrays keep their values: same order of
anchors and of their numbers, no background, RGB / 255.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.errors import CheckpointError
from config.options import from_mapping
from model.weights.darknet import Arrays, split_auxiliary
from model.weights.pytorch import read
from symbol.darknet_sections import layer_names
from symbol.detector.yolo import YOLOv3, find_row
from symbol.registry import family_of, network_options_class

__all__ = ["read", "rename"]

NAME = re.compile(r"(?:module\.)?module_list\.(\d{1,4})\.(Conv2d|BatchNorm2d)\.(\w+)")
KINDS = {
    ("Conv2d", "weight"): "_conv_weight",
    ("Conv2d", "bias"): "_conv_bias",
    ("BatchNorm2d", "weight"): "_bn_gamma",
    ("BatchNorm2d", "bias"): "_bn_beta",
    ("BatchNorm2d", "running_mean"): "_bn_moving_mean",
    ("BatchNorm2d", "running_var"): "_bn_moving_var",
}
UNUSED = "num_batches_tracked"  # a counter that no computation reads


def rename(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names; unknown names stay. CheckpointError for another network or state_dict."""
    if not isinstance(family_of(network), YOLOv3):
        raise CheckpointError(
            f"--network {network}: these weights are for yolov3_spp and the like, and darknet:FILE.cfg"
        )
    cfg = from_mapping(network_options_class(), dict(options)).darknet_cfg
    layers = layer_names(find_row(network, cfg).sections)
    named = {_own_name(name, layers): array for name, array in arrays.items() if not name.endswith(UNUSED)}
    if not any(name.endswith("_conv_weight") for name in named):
        raise CheckpointError("the file has no module_list.N.Conv2d.weight: it is not one of the YOLOv3-SPP trainer")
    return split_auxiliary(named)


def _own_name(name: str, layers: list[str]) -> str:
    match = NAME.fullmatch(name)
    kind = match and KINDS.get((match[2], match[3]))
    return f"{layers[int(match[1])]}{kind}" if match and kind and int(match[1]) < len(layers) else name
