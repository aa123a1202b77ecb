"""What the sources of VGG16 weights share: names, the classifier's subsampling, channel order, input scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.errors import CheckpointError
from symbol.backbone.vgg import STAGES, vgg16_reduced
from symbol.detector.ssd_rows import ROWS, SSDRow

Arrays = dict[str, np.ndarray]

NETWORK = "vgg16_reduced"
LEGACY = "legacy_vgg16_ssd"
CONVOLUTIONS = tuple(f"conv{stage}_{k}" for stage, (repeats, _) in enumerate(STAGES, 1) for k in range(1, repeats + 1))
FIRST_WEIGHT = "conv1_1_weight"
SCALE = "relu4_3_scale"
FC6_SHAPE, FC7_SHAPE = (4096, 512, 7, 7), (4096, 4096, 1, 1)
FILTERS = slice(None, None, 4)  # 4096 -> 1024
TAPS = slice(None, None, 3)  # 7 x 7 -> 3 x 3, which dilation 6 spreads as far as 7 x 7 with dilation 2
FIRST_EXTRA, LAST_EXTRA = 2, 6
RATIO_ERROR = 1e-4  # relative; of numbers that were printed with a few digits
# Networks with the layers and steps of the SSDs for 300 and 512 of Caffe and gluoncv, and their side, by feature maps.
SSD_NETWORKS = {6: (NETWORK, 300), 7: (f"{LEGACY}_512", 512)}
# What the heads read: the layers before their names.
MAPS = ("relu4_3", "relu7", *(f"multi_feat_{k}_conv_3x3_relu" for k in range(FIRST_EXTRA, LAST_EXTRA + 1)))
LEGACY_OFFSET = 6  # the extra layers of feature map k are conv{k + 6}_1 and conv{k + 6}_2 in mxnet-ssd of 2016


@dataclass(frozen=True)
class SSDSettings:
    """With what a network of ours detects as the whole SSD in a file does.

    Attributes:
        network: that has its layers and anchors.
        options: of that network.
        pixels: options of train.py: how images become its input; others as train.py has them.
        side: of its input.
        note: what of this the user may want to change; "" = nothing.
    """

    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    side: int = 300
    note: str = ""


def _legacy_names() -> dict[str, str]:
    """{layer of mxnet-ssd's legacy networks: layer of vgg16_reduced}."""
    names = {"conv6": "fc6", "conv7": "fc7"}
    for k in range(FIRST_EXTRA, LAST_EXTRA + 1):
        old, new = k + LEGACY_OFFSET, f"multi_feat_{k}_conv"
        names |= {f"conv{old}_1": f"{new}_1x1_conv", f"conv{old}_2": f"{new}_3x3_conv"}
        for head in ("loc_pred_conv", "cls_pred_conv"):
            names[f"relu{old}_2_{head}"] = f"{new}_3x3_relu_{head}"
    return names


LEGACY_NAMES = _legacy_names()


def anchor_options(row: SSDRow, sizes: Sequence[Sequence[float]], ratios: Sequence[Sequence[float]]) -> dict[str, str]:
    """--anchor-sizes, fractions of the image by map, and --anchor-ratios where they are not those of the row."""
    own = [len(a) == len(b) and np.allclose(a, b, rtol=RATIO_ERROR) for a, b in zip(ratios, row.ratios, strict=True)]
    lists = {"anchor_sizes": sizes} | ({} if all(own) else {"anchor_ratios": ratios})
    return {key: ";".join(",".join(f"{x:.8g}" for x in one) for one in value) for key, value in lists.items()}


def check_steps(row: SSDRow, network: str, steps: Sequence[float], source: str) -> None:
    """CheckpointError unless anchors stand as far apart, in pixels, as those of the row."""
    if not np.allclose(steps, row.steps, rtol=RATIO_ERROR):
        found, own = (", ".join(f"{step:g}" for step in numbers) for numbers in (steps, row.steps))
        raise CheckpointError(f"the anchors of the {source} SSD have steps {found}, those of {network} {own}: not read")


def check_network(network: str, source: str) -> None:
    """CheckpointError unless `network` has the body of VGG16."""
    if not has_body(network):
        raise CheckpointError(f"{source} weights are those of VGG16; use --network {NETWORK}, not {network}")


def has_body(network: str) -> bool:
    """Whether a network has the body of vgg16_reduced, or that under the names of legacy_vgg16_ssd_*."""
    return network.startswith(LEGACY) or any(row.backbone is vgg16_reduced for _, row in ROWS.get(network, ()))


def check_body(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """CheckpointError unless renamed arrays hold the first convolution of VGG16 with its three channels."""
    if FIRST_WEIGHT not in arrays:
        some = ", ".join(list(arrays)[:3]) or "none"
        raise CheckpointError(f"the {source} weights hold no layer conv1_1 of VGG16 (their layers: {some}, ...)")
    if arrays[FIRST_WEIGHT].shape != (64, 3, 3, 3):
        raise CheckpointError(
            f"conv1_1 of the {source} weights has shape {arrays[FIRST_WEIGHT].shape}, not that of VGG16"
        )


def to_network(arrays: Arrays, network: str) -> Arrays:
    """VGG16 parameters under modern or legacy names, under those that `network` uses."""
    table = {new: old for old, new in LEGACY_NAMES.items()} if network.startswith(LEGACY) else LEGACY_NAMES
    return {_rename(name, table): array for name, array in arrays.items()}


def _rename(name: str, table: Mapping[str, str]) -> str:
    layer, _, kind = name.rpartition("_")
    return f"{table[layer]}_{kind}" if layer in table and kind in ("weight", "bias") else name


def reduce_classifier(arrays: Arrays) -> Arrays:
    """Fully connected fc6 and fc7 (4096 units) as the convolutions of vgg16_reduced; everything else as it is.

    Every fourth filter and, of fc6's 7 x 7 window, every third row and column: fc6 (1024, 512, 3, 3), fc7 (1024, 1024,
    1, 1), biases (1024,). Source: Chen et al. 2014 (DeepLab), section 3.1; SSD section 3.
    """
    out = dict(arrays)
    for layer, shape in (("fc6", FC6_SHAPE), ("fc7", FC7_SHAPE)):
        weight, bias = out.get(f"{layer}_weight"), out.get(f"{layer}_bias")
        if weight is None or weight.size != np.prod(shape):
            continue
        full = weight.reshape(shape)
        out[f"{layer}_weight"] = full[FILTERS, :, TAPS, TAPS] if layer == "fc6" else full[FILTERS, FILTERS]
        if bias is not None and bias.size == shape[0]:
            out[f"{layer}_bias"] = bias.reshape(-1)[FILTERS]
    return out


def shape_scale(arrays: Arrays) -> Arrays:
    """The L2 normalisation's scale as (1, 512, 1, 1), whatever number of dimensions the source gave it."""
    return {name: array.reshape(1, -1, 1, 1) if name == SCALE else array for name, array in arrays.items()}
