"""The networks of the PyTorch EfficientDet trainers as ours: weights made by formula under our names."""

import re
from functools import cache

import numpy as np

from symbol.registry import EFFDET_NETWORKS
from tests.golden.loader import Case, cases, formula_parameters

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
BODY = r"(?:backbone_net\.)?model\."
SEPARABLE = r"(depthwise|pointwise)_conv\.conv\.(weight|bias)"

# Patterns of the original's names, and ours; {norm} is replaced by NORM of the last group.
RULES = (
    (BODY + r"_conv_stem\.conv\.weight", "body_stem_conv_weight"),
    (BODY + r"_bn0\.(\w+)", "body_stem_bn_{norm}"),
    (BODY + r"_blocks\.(\d+)\._se_(reduce|expand)\.conv\.(\w+)", r"body_\1_se_\2_\3"),
    (BODY + r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.conv\.weight", r"body_\1_\2_conv_weight"),
    (BODY + r"_blocks\.(\d+)\._bn0\.(\w+)", r"body_\1_expand_bn_{norm}"),
    (BODY + r"_blocks\.(\d+)\._bn1\.(\w+)", r"body_\1_depthwise_bn_{norm}"),
    (BODY + r"_blocks\.(\d+)\._bn2\.(\w+)", r"body_\1_project_bn_{norm}"),
    (r"(?:bifpn\.(\d+)|bifpn_\w+)\.(p\d_w\d)", r"bifpn_\1_\2"),
    (r"(?:bifpn\.(\d+)|bifpn_\w+)\.(conv\d_\w+)\." + SEPARABLE, r"bifpn_\1_\2_\3_\4"),
    (r"(?:bifpn\.(\d+)|bifpn_\w+)\.(conv\d_\w+)\.bn\.(\w+)", r"bifpn_\1_\2_bn_{norm}"),
    (r"(?:bifpn\.(\d+)|bifpn_\w+)\.(p\d_\w+)\.0\.conv\.(\w+)", r"bifpn_\1_\2_conv_\3"),
    (r"(?:bifpn\.(\d+)|bifpn_\w+)\.(p\d_\w+)\.1\.(\w+)", r"bifpn_\1_\2_bn_{norm}"),
    (r"(\w+)\.conv_list\.(\d)\." + SEPARABLE, r"\1_\2_\3_\4"),
    (r"(\w+)\.header\." + SEPARABLE, r"\1_pred_\2_\3"),
)
HEADS = {"regressor": "box", "classifier": "cls"}


def own_name(name: str) -> str:
    """Our name of a parameter; the cell of a BiFPN alone is number 0."""
    head = re.fullmatch(r"(\w+)\.bn_list\.(\d)\.(\d)\.(\w+)", name)
    if head:
        return f"{HEADS[head[1]]}_{head[3]}_bn{int(head[2]) + 3}_{NORM[head[4]]}"
    for pattern, own in RULES:
        match = re.fullmatch(pattern, name)
        if match:
            expanded = match.expand(own).replace("bifpn__", "bifpn_0_")
            expanded = expanded.format(norm=NORM.get(match[match.lastindex or 0], ""))
            kind, _, rest = expanded.partition("_")
            return f"{HEADS.get(kind, kind)}_{rest}"
    raise KeyError(name)


@cache
def _of_file(file: str, path: tuple[str, ...], gain: float) -> dict[str, np.ndarray]:
    found = (
        c
        for c in cases("formula_params")
        if (c.file, tuple(c.keys["params"])) == (file, path) and c.args["gain"] == gain
    )
    return {own_name(name): array for name, array in formula_parameters(next(found))}


def parameters(case: Case) -> dict[str, np.ndarray]:
    """All parameters and states of a case's network under our names."""
    return _of_file(case.args["params_file"], tuple(case.args["params_path"]), case.args["gain"])


def network_of(case: Case) -> str:
    """Our name of the network with the case's compound coefficient."""
    name = f"efficientdet_d{case.args['phi']}"
    assert name in EFFDET_NETWORKS
    return name
