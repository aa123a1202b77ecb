"""gluoncv's SSD with VGG16 (ssd_300_vgg16_atrous_*, ssd_512_vgg16_atrous_*) and its pretrained body, vgg16_atrous.

Anchors, their order, background as class 0 and the layout of the heads are those of vgg16_reduced. The block multiplies
its input, RGB / 255 less the mean over std, by 255 * std first, so its first convolution reads pixels, as ours does.
"""

import re
from collections.abc import Mapping

import numpy as np

from common.errors import CheckpointError
from model.weights import vgg
from model.weights.vgg import Arrays

PARAMETER = re.compile(r"(?:features\.)?(stages|extras|norm4|class_predictors|box_predictors)\.([\w.]+)\.(weight|bias)")
SCALES = ("features.norm4.scale", "norm4.scale")
HEADS = {"class_predictors": "cls_pred_conv", "box_predictors": "loc_pred_conv"}
DILATED_STAGE = 5


def is_ssd(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether parameters have the names of gluoncv's VGGAtrousExtractor, alone or in an SSD."""
    return any(name in arrays for name in SCALES)


def rename(arrays: Arrays, network: str) -> Arrays:
    """Parameters of vgg16_reduced (or legacy_vgg16_ssd_*); constants and unknown names stay as they are.

    CheckpointError for the variant with batch normalisation and for other networks.
    """
    vgg.check_network(network, "gluoncv's SSD")
    norm = next((name for name in arrays if name.endswith("running_mean")), None)
    if norm is not None:
        raise CheckpointError(f"the gluoncv weights have batch normalisation ({norm:.80}), {network} has none")
    out = {_own_name(name): array for name, array in arrays.items()}
    vgg.check_body(out, "gluoncv")
    return vgg.to_network(vgg.shape_scale(out), network)


def _own_name(name: str) -> str:
    if name in SCALES:
        return vgg.SCALE
    match = PARAMETER.fullmatch(name)
    layer = _layer(match[1], match[2].split(".")) if match else None
    return f"{layer}_{match[3]}" if match and layer else name


def _layer(part: str, path: list[str]) -> str | None:
    """Our name of the layer at `path` in a part of the block; every second place of a sequence is a ReLU."""
    numbers = [int(step) for step in path if step.isdecimal()]
    if part in HEADS and path[1:] == ["predictor"] and numbers and numbers[0] < len(vgg.MAPS):
        return f"{vgg.MAPS[numbers[0]]}_{HEADS[part]}"
    if len(numbers) != 2 or numbers[1] % 2:
        return None
    place, k = numbers[0], numbers[1] // 2
    if part == "extras":
        return f"multi_feat_{place + vgg.FIRST_EXTRA}_conv_{'3x3' if k else '1x1'}_conv"
    return ("fc6", "fc7")[k > 0] if place == DILATED_STAGE else f"conv{place + 1}_{k + 1}"
