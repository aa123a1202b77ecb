"""State_dicts of the EfficientDet trainers in PyTorch (bubbliiiing, zylo117), and of EfficientNet (lukemelas).

backbone_net.model._... is the body, named as in EfficientNet, where it stands alone; some releases wrap convolutions
(_conv_stem.conv.weight), some do not (_conv_stem.weight). bifpn.N is a cell, regressor and classifier are the heads;
bn_list.L.K is the batch norm of layer K on level L. Arrays keep their values: same order of anchors and of their
numbers (dy, dx, dh, dw), no background, RGB.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.errors import CheckpointError
from model.weights.darknet import Arrays, split_auxiliary
from model.weights.pytorch import read
from symbol.detector.efficientdet import EfficientDet
from symbol.neck.bifpn import LOWEST
from symbol.registry import family_of

__all__ = ["own_name", "read", "rename"]

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
HEADS = {"regressor": "box", "classifier": "cls"}
BLOCK_NORM = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}
BODY = r"(?:backbone_net\.)?(?:model\.)?"
BLOCK, CELL, HEAD = BODY + r"_blocks\.(\d+)\.", r"bifpn\.(\d+)\.", f"({'|'.join(HEADS)})" + r"\."
CONV, STATE = r"(?:\.conv)?\.(weight|bias)", rf"\.({'|'.join(NORM)})"
SEPARABLE = r"\.(depthwise|pointwise)_conv" + CONV
# Patterns of their names, and ours of the groups.
RULES = tuple(
    (re.compile(r"(?:module\.)?" + pattern), own)
    for pattern, own in (
        (BODY + "_conv_stem" + CONV, lambda kind: f"body_stem_conv_{kind}"),
        (BODY + "_bn0" + STATE, lambda state: f"body_stem_bn_{NORM[state]}"),
        (BLOCK + "_se_(reduce|expand)" + CONV, lambda n, part, kind: f"body_{n}_se_{part}_{kind}"),
        (BLOCK + "_(expand|depthwise|project)_conv" + CONV, lambda n, part, kind: f"body_{n}_{part}_conv_{kind}"),
        (BLOCK + "(_bn[0-2])" + STATE, lambda n, norm, state: f"body_{n}_{BLOCK_NORM[norm]}_bn_{NORM[state]}"),
        (CELL + r"(p\d_w\d)", lambda n, weight: f"bifpn_{n}_{weight}"),
        (CELL + r"(conv\d_\w+)" + SEPARABLE, lambda n, conv, part, kind: f"bifpn_{n}_{conv}_{part}_{kind}"),
        (CELL + r"(conv\d_\w+)\.bn" + STATE, lambda n, conv, state: f"bifpn_{n}_{conv}_bn_{NORM[state]}"),
        (CELL + r"(p\d_\w+)\.0" + CONV, lambda n, conv, kind: f"bifpn_{n}_{conv}_conv_{kind}"),
        (CELL + r"(p\d_\w+)\.1" + STATE, lambda n, conv, state: f"bifpn_{n}_{conv}_bn_{NORM[state]}"),
        (HEAD + r"conv_list\.(\d+)" + SEPARABLE, lambda head, k, part, kind: f"{HEADS[head]}_{k}_{part}_{kind}"),
        (HEAD + "header" + SEPARABLE, lambda head, part, kind: f"{HEADS[head]}_pred_{part}_{kind}"),
        (
            HEAD + r"bn_list\.(\d+)\.(\d+)" + STATE,
            lambda head, level, k, state: f"{HEADS[head]}_{k}_bn{int(level) + LOWEST}_{NORM[state]}",
        ),
    )
)
UNUSED = "num_batches_tracked"  # a counter that no computation reads


def rename(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names; unknown names (EfficientNet's classifier) stay, options change nothing.

    CheckpointError for another network or state_dict.
    """
    del options
    if not isinstance(family_of(network), EfficientDet):
        raise CheckpointError(f"--network {network}: these weights are for efficientdet_d0 and the like")
    named = {own_name(name): array for name, array in arrays.items() if not name.endswith(UNUSED)}
    if "body_stem_conv_weight" not in named:
        raise CheckpointError("the file has no _conv_stem.weight: it is neither an EfficientDet nor an EfficientNet")
    return split_auxiliary(named)


def own_name(name: str) -> str:
    """Our name of a parameter or state; names that are not known stay."""
    for pattern, own in RULES:
        match = pattern.fullmatch(name)
        if match:
            return own(*match.groups())
    return name
