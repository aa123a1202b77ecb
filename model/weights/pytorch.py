"""State_dicts of PyTorch: ssd.pytorch, torchvision's VGG16 and its SSD, YOLOv3-SPP and EfficientDet trainers.

ssd.pytorch: a state_dict of SSD300 has vgg.N (places of convolutions among ReLUs and pools), L2Norm, extras.N (a 1x1
and a 3x3 convolution for each extra layer), loc.N and conf.N (heads, a feature map each). The order of anchors, classes
(background first) and image channels (RGB) is ours, so that arrays keep their values.

The YOLOv3-SPP trainer: module_list.N.Conv2d and BatchNorm2d, N being the number of the section in the .cfg.

EfficientDet (bubbliiiing, zylo117) and EfficientNet (lukemelas): backbone_net.model._... is the body, named as in
EfficientNet, where it stands alone; some releases wrap convolutions (_conv_stem.conv.weight), some do not
(_conv_stem.weight). bifpn.N is a cell, regressor and classifier are the heads; bn_list.L.K is the batch norm of layer K
on level L. Arrays keep their values: same order of anchors and of their numbers (dy, dx, dh, dw), no background, RGB.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from config.options import from_mapping
from model.weights import vgg
from model.weights.darknet import split_auxiliary
from model.weights.torch_file import read_state_dict
from model.weights.vgg import Arrays
from symbol.darknet_sections import layer_names
from symbol.detector.bifpn import LOWEST
from symbol.detector.efficientdet import EfficientDet
from symbol.detector.yolo import YOLOv3, find_row
from symbol.registry import family_of, network_options_class

# Indices of the convolutions in torchvision's vgg16().features; ssd.pytorch's vgg begins alike.
VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
COORDINATES = 4
REDUCED = {31: "fc6", 33: "fc7"}
CLASSIFIER = {0: "fc6", 3: "fc7"}
HEADS = {"loc": "loc_pred_conv", "conf": "cls_pred_conv"}
PARAMETER = re.compile(r"(?:module\.)?(?:(vgg|features|classifier|extras|loc|conf)\.)?(\d+)\.(weight|bias)")
L2_NORM = re.compile(r"(?:module\.)?L2Norm\.weight|(?:module\.)?backbone\.scale_weight")
# torchvision's ssd300_vgg16 (models/detection/ssd.py).
TORCHVISION_SSD = re.compile(
    r"(?:module\.)?(?:backbone\.(features|extra)|head\.(classification|regression)_head\.module_list)\.(\d{1,3}(?:\.\d{1,3})*)\."
    r"(weight|bias)"
)
TORCHVISION_HEADS = {"classification": "conf", "regression": "loc"}
# Places in the first block of `extra`.
DEEP = {"1": "conv5_1", "3": "conv5_2", "5": "conv5_3", "7.1": "fc6", "7.3": "fc7"}
TORCHVISION_OPTIONS = {
    "post_process": "clipped", "nms": 0.45, "nms_topk": 400, "keep_topk": 200, "score_threshold": 0.01,
}  # fmt: skip
TORCHVISION_MEAN = {"mean_r": 255 * 0.48235, "mean_g": 255 * 0.45882, "mean_b": 255 * 0.40784}
VOC_CLASSES = 21  # with background: ssd.pytorch takes the priors of VOC for these, else those of COCO (ssd.py)
# torchvision's preprocessing: RGB / 255, less the mean, over the standard deviation; ours: RGB less MEAN_PIXELS.
MEAN = np.array((0.485, 0.456, 0.406))
STD = np.array((0.229, 0.224, 0.225))
MEAN_PIXELS = np.array((123.0, 117.0, 104.0))
YOLO_NAME = re.compile(r"(?:module\.)?module_list\.(\d{1,4})\.(Conv2d|BatchNorm2d)\.(\w+)")
YOLO_KINDS = {
    ("Conv2d", "weight"): "_conv_weight",
    ("Conv2d", "bias"): "_conv_bias",
    ("BatchNorm2d", "weight"): "_bn_gamma",
    ("BatchNorm2d", "bias"): "_bn_beta",
    ("BatchNorm2d", "running_mean"): "_bn_moving_mean",
    ("BatchNorm2d", "running_var"): "_bn_moving_var",
}
LITE = "efficientnet_lite"  # SSD on the body of an EfficientDet-Lite
RWIGHTMAN = re.compile(r"(?:module\.|model\.)*(?:backbone\.conv_stem|fpn\.(?:cell|resample)|(?:class|box)_net\.)")
UNUSED = "num_batches_tracked"  # a counter that no computation reads
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
EFFDET_HEADS = {"regressor": "box", "classifier": "cls"}
BLOCK_NORM = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}
BODY = r"(?:backbone_net\.)?(?:model\.)?"
BLOCK, CELL, HEAD = BODY + r"_blocks\.(\d+)\.", r"bifpn\.(\d+)\.", f"({'|'.join(EFFDET_HEADS)})" + r"\."
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
        (HEAD + r"conv_list\.(\d+)" + SEPARABLE, lambda head, k, part, kind: f"{EFFDET_HEADS[head]}_{k}_{part}_{kind}"),
        (HEAD + "header" + SEPARABLE, lambda head, part, kind: f"{EFFDET_HEADS[head]}_pred_{part}_{kind}"),
        (
            HEAD + r"bn_list\.(\d+)\.(\d+)" + STATE,
            lambda head, level, k, state: f"{EFFDET_HEADS[head]}_{k}_bn{int(level) + LOWEST}_{NORM[state]}",
        ),
    )
)


def read(path: str | Path) -> Arrays:
    """{name: array} of a state_dict saved by torch.save (torch_file.py); CheckpointError where it is none."""
    return read_state_dict(path)


def rename_ssd(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names of a state_dict of ssd.pytorch, vgg16_reducedfc.pth or torchvision's vgg16.

    network and options change nothing: every network here with the body of VGG16 has the same names. CheckpointError
    for other state_dicts.
    """
    named, is_scaled = vgg_body(arrays)
    return vgg.shape_scale(_for_pixels(named) if is_scaled else named), {}


def _check_effdet(arrays: Mapping[str, np.ndarray]) -> None:
    """CheckpointError for an EfficientDet of rwightman's effdet."""
    name = next((name for name in arrays if RWIGHTMAN.match(name)), None)
    if name:
        raise CheckpointError(
            f"{name:.80} is of an EfficientDet of effdet (rwightman), which is not read yet; convert zylo117's "
            "efficientdet-d0.pth (to d7x), --from efficientdet.pytorch --network efficientdet_d0"
        )


def vgg_body(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, bool]:
    """Arrays of a VGG16 under our names, and whether they are for torchvision's scaled images, not for pixels.

    A classifier becomes fc6 and fc7; one of NaN is dropped, with the pixels that its body is for. CheckpointError for
    other state_dicts.
    """
    _check_effdet(arrays)
    named = {ssd_name(name): array for name, array in arrays.items()}
    vgg.check_body(named, "PyTorch")
    if not any(name.startswith("features.") for name in arrays):
        return named, False
    if _has_classifier(named):
        return vgg.reduce_classifier(named), True
    return {name: array for name, array in named.items() if not name.startswith(("fc6", "fc7"))}, False


def describe_ssd(arrays: Mapping[str, np.ndarray]) -> vgg.SSDSettings | None:
    """What a whole SSD of torchvision needs to detect here as there, or of ssd.pytorch with other than VOC's classes.

    None for other weights: they are for vgg16_ssd_voc.
    """
    names = {ssd_name(name): array for name, array in arrays.items()}
    conf, loc = (names.get(f"relu4_3_{head}_bias") for head in (HEADS["conf"], HEADS["loc"]))
    if conf is None or loc is None or loc.size < COORDINATES:
        return None
    if any(TORCHVISION_SSD.fullmatch(name) for name in arrays):
        return vgg.SSDSettings("vgg16_ssd_torchvision", TORCHVISION_OPTIONS, TORCHVISION_MEAN)
    classes = conf.size // (loc.size // COORDINATES)
    note = f"of {classes} classes with background, ssd.pytorch takes the priors of COCO: vgg16_ssd_coco"
    side = 512 if f"{_map_name(vgg.LAST_EXTRA)}_{HEADS['conf']}_bias" in names else 300
    return vgg.SSDSettings("vgg16_ssd_coco", side=side, note=note) if classes != VOC_CLASSES else None


def _torchvision_layer(part: str | None, head: str | None, place: str) -> str | None:
    """Our name of a layer of torchvision's SSD; None: unknown."""
    if head:
        return _layer(TORCHVISION_HEADS[head], int(place)) if place.isdecimal() else None
    if part == "features":
        return _layer(part, int(place)) if place.isdecimal() else None
    block, _, rest = place.partition(".")
    if block == "0":
        return DEEP.get(rest)
    size = {"0": "1x1", "2": "3x3"}.get(rest)
    return size and f"multi_feat_{int(block) + 1}_conv_{size}_conv"


def ssd_name(name: str) -> str:
    """Our name of a parameter; names that are not known stay."""
    if L2_NORM.fullmatch(name):
        return vgg.SCALE
    match = TORCHVISION_SSD.fullmatch(name)
    layer = match and _torchvision_layer(match[1], match[2], match[3])
    if match and layer:
        return f"{layer}_{match[4]}"
    match = PARAMETER.fullmatch(name)
    layer = match and _layer(match[1] or "vgg", int(match[2]))
    return f"{layer}_{match[3]}" if match and layer else name


def _layer(part: str, index: int) -> str | None:
    """Our name of a layer: `part` is the module list in the state_dict, `index` the place in it; None: unknown."""
    if part in HEADS:
        return f"{_map_name(index)}_{HEADS[part]}"
    if part == "extras":
        size = "3x3" if index % 2 else "1x1"
        return f"multi_feat_{vgg.FIRST_EXTRA + index // 2}_conv_{size}_conv"
    if part == "classifier":
        return CLASSIFIER.get(index)
    if index in VGG_INDICES:
        return vgg.CONVOLUTIONS[VGG_INDICES.index(index)]
    return REDUCED.get(index) if part == "vgg" else None


def _map_name(index: int) -> str:
    """The layer that head `index` reads."""
    return ("relu4_3", "relu7")[index] if index < vgg.FIRST_EXTRA else f"multi_feat_{index}_conv_3x3_relu"


def _has_classifier(named: Mapping[str, np.ndarray]) -> bool:
    """Whether torchvision trained the file: VGG16_Weights.IMAGENET1K_FEATURES is Caffe's body with a NaN classifier."""
    return "fc6_weight" not in named or bool(np.isfinite(named["fc6_weight"]).all())


def _for_pixels(named: Arrays) -> Arrays:
    """Arrays for pixels of 0..255 less MEAN_PIXELS, of those for torchvision's scaled images.

    The first convolution takes the scale; the difference of the means goes to its bias, which leaves a small error at
    the border of the image.
    """
    weight = named[vgg.FIRST_WEIGHT]
    shift = (weight * ((MEAN_PIXELS / 255 - MEAN) / STD)[:, None, None]).sum(axis=(1, 2, 3))
    scaled = {vgg.FIRST_WEIGHT: (weight / (255 * STD)[:, None, None]).astype(np.float32)}
    bias = vgg.FIRST_WEIGHT.replace("weight", "bias")
    if bias in named:
        scaled[bias] = (named[bias] + shift).astype(np.float32)
    return named | scaled


def rename_yolo(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names; unknown names stay. CheckpointError for another network or state_dict."""
    if not isinstance(family_of(network), YOLOv3):
        raise CheckpointError(
            f"--network {network}: these weights are for yolov3_spp and the like, and darknet:FILE.cfg"
        )
    cfg = from_mapping(network_options_class(), dict(options)).darknet_cfg
    layers = layer_names(find_row(network, cfg).sections)
    named = {_yolo_name(name, layers): array for name, array in arrays.items() if not name.endswith(UNUSED)}
    if not any(name.endswith("_conv_weight") for name in named):
        raise CheckpointError("the file has no module_list.N.Conv2d.weight: it is not one of the YOLOv3-SPP trainer")
    return split_auxiliary(named)


def _yolo_name(name: str, layers: list[str]) -> str:
    match = YOLO_NAME.fullmatch(name)
    kind = match and YOLO_KINDS.get((match[2], match[3]))
    return f"{layers[int(match[1])]}{kind}" if match and kind and int(match[1]) < len(layers) else name


def rename_effdet(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names; unknown names (EfficientNet's classifier) stay, options change nothing.

    CheckpointError for another network or state_dict.
    """
    del options
    _check_effdet(arrays)
    if not isinstance(family_of(network), EfficientDet) and not network.startswith(LITE):
        raise CheckpointError(f"--network {network}: these weights are for efficientdet_d0 and the like")
    named = {effdet_name(name): array for name, array in arrays.items() if not name.endswith(UNUSED)}
    if "body_stem_conv_weight" not in named:
        raise CheckpointError("the file has no _conv_stem.weight: it is neither an EfficientDet nor an EfficientNet")
    return split_auxiliary(named)


def effdet_name(name: str) -> str:
    """Our name of a parameter or state; names that are not known stay."""
    for pattern, own in RULES:
        match = pattern.fullmatch(name)
        if match:
            return own(*match.groups())
    return name
