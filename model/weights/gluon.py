"""Gluon's .params, from a file or from gluoncv's model zoo: classifiers, and SSD with VGG16.

Names of either form are understood: those of save_parameters (features.0.weight) and those with the block's prefix
(mobilenet0_conv0_weight, with or without `arg:`). Layers are taken in the order of the network, because the numbers in
Gluon's names count blocks.

Gluon's classifiers read RGB / 255, less the mean, over the standard deviation of ImageNet; ours read RGB less the mean.
So the first convolution is divided by 255 * std: with mean pixels 123.675, 116.28, 103.53 the results are the same.

gluoncv's SSD (ssd_300_vgg16_atrous_*, ssd_512_vgg16_atrous_*) and its pretrained body, vgg16_atrous, have the anchors,
their order, background as class 0 and the layout of the heads of vgg16_reduced. The block multiplies its input by
255 * std first, so its first convolution reads pixels, as ours does. Its anchors are constants of the file.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from machine.runtime import mx
from model.params_file import read_arrays
from model.weights import vgg
from model.weights.fit import subtract_epsilon
from model.weights.vgg import Arrays
from symbol.backbone.gluon_body import model_zoo
from symbol.backbone.mobilenet import BLOCKS
from symbol.detector.ssd_rows import ROWS

SSD_PARAMETER = re.compile(
    r"(?:features\.)?(stages|extras|norm4|class_predictors|box_predictors)\.([\w.]+)\.(weight|bias)"
)
SSD_SCALES = ("features.norm4.scale", "norm4.scale")
# Names of export: layers are numbered in the order of the network, class and box predictors in turns.
EXPORTED = r"(?:arg:|aux:)?(?:\w+_)?"
EXPORTED_LAYER = re.compile(EXPORTED + r"vggatrousextractor\d+_(?:(dilated_)|extra(\d+)_)?conv(\d+)_(weight|bias)")
EXPORTED_SCALE = re.compile(EXPORTED + r"vggatrousextractor\d+_normalize\d+_normalize_scale")
EXPORTED_HEAD = re.compile(EXPORTED + r"convpredictor(\d+)_conv\d+_(weight|bias)")
EXPORTED_ANCHORS = re.compile(EXPORTED + r"ssdanchorgenerator\d+_anchor_(\d+)")
# gluoncv/model_zoo/ssd/ssd.py; data/transforms/presets/ssd.py.
SSD_OPTIONS = {"post_process": "pooled", "nms": 0.45, "nms_topk": 400, "keep_topk": 100, "score_threshold": 0.01}
SSD_PIXELS = {"mean_r": 123.675, "mean_g": 116.28, "mean_b": 103.53}
SSD_ANCHORS = re.compile(r"anchor_generators\.(\d+)\.anchors")
SSD_HEADS = {"class_predictors": "cls_pred_conv", "box_predictors": "loc_pred_conv"}
DILATED_STAGE = 5
ZOO = "gluoncv:"
MOBILENET = "mobilenet"
MOBILENET_FILTERS = 32  # of the first convolution at width 1
STD = np.array((0.229, 0.224, 0.225), np.float32)  # ImageNet, gluoncv's presets
EPSILON = np.float32(1e-5)  # default of mx.gluon.nn.BatchNorm
CONVOLUTION, DENSE = 4, 2  # dimensions of their weights
PARAMETER = re.compile(r"(?:arg:|aux:)?(.+)[._](weight|bias|gamma|beta|running_mean|running_var)")
ARG_KINDS = {"gamma": "gamma", "beta": "beta"}
AUX_KINDS = {"running_mean": "moving_mean", "running_var": "moving_var"}


def is_ssd(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether parameters have the names of gluoncv's VGGAtrousExtractor, alone or in an SSD."""
    return any(_ssd_name(name) == vgg.SCALE for name in arrays)


def describe(arrays: Mapping[str, np.ndarray]) -> vgg.SSDSettings | None:
    """What a whole SSD of gluoncv needs to detect here as there; None for other weights.

    CheckpointError for detectors of gluoncv that are not read, and for anchors that no network here has.
    """
    _check_detector(arrays)
    if not is_ssd(arrays):
        return None
    anchors = {int(match[1]): array for name, array in arrays.items() if (match := SSD_ANCHORS.fullmatch(_path(name)))}
    maps = sum(_path(name).startswith("class_predictors.") and name.endswith("weight") for name in arrays)
    if not maps:
        return None
    if maps not in vgg.SSD_NETWORKS or sorted(anchors) != list(range(maps)):
        raise CheckpointError(
            f"the gluoncv SSD has {maps} class predictors and {len(anchors)} arrays of anchors; read are those of "
            "ssd_300_vgg16_atrous_* and ssd_512_vgg16_atrous_*, written by save_parameters or export"
        )
    network, side = vgg.SSD_NETWORKS[maps]
    options = {**SSD_OPTIONS, **_anchor_options(network, side, [anchors[k] for k in range(maps)])}
    return vgg.SSDSettings(network, options, SSD_PIXELS, side)


def _check_detector(arrays: Mapping[str, np.ndarray]) -> None:
    """CheckpointError for detectors of gluoncv whose layers no network here has."""
    for name in arrays:
        if "expand_conv" in name or "expand_trans" in name:
            raise CheckpointError(
                f"{name:.80} is of a gluoncv SSD on another body than VGG16, which is not read: its extra layers have "
                "batch normalisation; read are ssd_300_vgg16_atrous_* and ssd_512_vgg16_atrous_*"
            )
        if "yolo_outputs." in name or "yolooutputv3" in name:
            raise CheckpointError(
                f"{name:.80} is of gluoncv's YOLOv3, which is not read; convert Darknet's yolov3.weights instead"
            )


def _anchor_options(network: str, side: int, constants: list[np.ndarray]) -> dict[str, str]:
    """--anchor-sizes, and --anchor-ratios where they are not the network's own, from (1, 1, h, w, 4 * per cell) boxes
    (cx, cy, w, h) in pixels; CheckpointError for other steps than the network's."""
    row = next(row for _, row in ROWS[network] if row.steps_for == side)
    cells = [array.reshape(*array.shape[-3:-1], -1, 4)[0, 0].astype(float) for array in constants]
    vgg.check_steps(row, network, [2 * float(cell[0, 0]) for cell in cells], "gluoncv")
    ratios = [[1.0, *(cell[2:, 2] / cell[2:, 3])] for cell in cells]
    return vgg.anchor_options(row, [cell[:2, 2] / side for cell in cells], ratios)


def rename_ssd(arrays: Arrays, network: str) -> Arrays:
    """Parameters of vgg16_reduced (or legacy_vgg16_ssd_*); constants and unknown names stay as they are.

    CheckpointError for the variant with batch normalisation and for other networks.
    """
    vgg.check_network(network, "gluoncv's SSD")
    norm = next((name for name in arrays if name.endswith("running_mean")), None)
    if norm is not None:
        raise CheckpointError(f"the gluoncv weights have batch normalisation ({norm:.80}), {network} has none")
    out = {_ssd_name(name): array for name, array in arrays.items()}
    vgg.check_body(out, "gluoncv")
    return vgg.to_network(vgg.shape_scale(out), network)


def _path(name: str) -> str:
    """The path in the block that export's name of a parameter stands for; other names stay."""
    if EXPORTED_SCALE.fullmatch(name):
        return SSD_SCALES[0]
    if match := EXPORTED_ANCHORS.fullmatch(name):
        return f"anchor_generators.{match[1]}.anchors"
    if match := EXPORTED_HEAD.fullmatch(name):
        part = list(SSD_HEADS)[int(match[1]) % 2]
        return f"{part}.{int(match[1]) // 2}.predictor.{match[2]}"
    match = EXPORTED_LAYER.fullmatch(name)
    if not match:
        return name
    number = int(match[3])
    if match[1] or match[2]:
        part = f"stages.{DILATED_STAGE}" if match[1] else f"extras.{match[2]}"
        return f"features.{part}.{2 * number}.{match[4]}"
    if number >= len(vgg.CONVOLUTIONS):
        return name
    stage, k = vgg.CONVOLUTIONS[number].removeprefix("conv").split("_")
    return f"features.stages.{int(stage) - 1}.{2 * int(k) - 2}.{match[4]}"


def _ssd_name(name: str) -> str:
    path = _path(name)
    if path in SSD_SCALES:
        return vgg.SCALE
    match = SSD_PARAMETER.fullmatch(path)
    layer = _ssd_layer(match[1], match[2].split(".")) if match else None
    return f"{layer}_{match[3]}" if match and layer else name


def _ssd_layer(part: str, path: list[str]) -> str | None:
    """Our name of the layer at `path` in a part of the block; every second place of a sequence is a ReLU."""
    numbers = [int(step) for step in path if step.isdecimal()]
    if part in SSD_HEADS and path[1:] == ["predictor"] and numbers and numbers[0] < len(vgg.MAPS):
        return f"{vgg.MAPS[numbers[0]]}_{SSD_HEADS[part]}"
    if len(numbers) != 2 or numbers[1] % 2:
        return None
    place, k = numbers[0], numbers[1] // 2
    if part == "extras":
        return f"multi_feat_{place + vgg.FIRST_EXTRA}_conv_{'3x3' if k else '1x1'}_conv"
    return ("fc6", "fc7")[k > 0] if place == DILATED_STAGE else f"conv{place + 1}_{k + 1}"


@dataclass
class GluonLayers:
    """The layers of a Gluon classifier in network order: {kind of parameter: array}."""

    convolutions: list[Arrays] = field(default_factory=list)
    batch_norms: list[Arrays] = field(default_factory=list)
    dense: list[Arrays] = field(default_factory=list)


def read(path: str | Path) -> Arrays:
    """{name of the parameter: array} of a .params file or, for `gluoncv:NAME`, of a pretrained model of the zoo.

    The zoo downloads where there is a network and keeps the file in ~/.mxnet/models. CheckpointError for a damaged
    file, an unknown name and a failed download.
    """
    if str(path).startswith(ZOO):
        return _read_zoo(str(path).removeprefix(ZOO))
    return read_arrays(path)


def rename(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """Parameters of mobilenet (any width), vgg16_reduced or `gluoncv:NAME` from those of the Gluon model of that name.

    Weights of another network, or a mobilenet of another width than options["width"], raise CheckpointError. The
    classifier's last layer is kept under its own name `output_*`: the report calls it unused.
    """
    if is_ssd(arrays):
        return rename_ssd(arrays, network), {}
    if network.startswith(ZOO):
        return _body(arrays)
    layers = _layers(arrays)
    if network == MOBILENET:
        return _mobilenet(layers, network, options)
    vgg.check_network(network, "Gluon's vgg16")
    return _vgg16(layers, network), {}


def _read_zoo(name: str) -> Arrays:
    zoo = model_zoo()  # seconds to import
    if name.lower() not in zoo.get_model_list():
        raise CheckpointError(f"{ZOO}{name}: gluoncv has no such model; try {ZOO}mobilenet1.0 or {ZOO}vgg16")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "zoo.params"
            zoo.get_model(name, pretrained=True).save_parameters(str(path))
            return read_arrays(path)
    except (OSError, RuntimeError, ValueError, mx.base.MXNetError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{ZOO}{name}: no pretrained weights ({reason:.120}); without a network, copy the model's .params "
            "file here and give its path"
        ) from error


def _body(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Parameters of any classifier as the body `gluoncv:NAME`: body_ and the path in the block, dots as underscores.

    The first layer takes pixels of 0..255: a convolution with three input channels or, before it, a batch normalisation
    of three channels (resnet*_v2).
    """
    parts: tuple[Arrays, Arrays] = {}, {}
    for name, array in arrays.items():
        if "." not in name:
            raise CheckpointError(
                f"parameter {name!r:.80} has no path; write the file with save_parameters, not with export"
            )
        parts[name.endswith(tuple(AUX_KINDS))][f"body_{name.replace('.', '_')}"] = array
    arg, aux = parts
    norm = next((name for name, array in aux.items() if name.endswith("running_mean") and array.shape == (3,)), None)
    first = next((name for name, array in arg.items() if array.ndim == CONVOLUTION and array.shape[1] == 3), None)
    if norm is not None:
        variance = norm.replace("mean", "var")
        aux[norm] = aux[norm] * 255 * STD
        aux[variance] = (aux[variance] + EPSILON) * (255 * STD) ** 2 - EPSILON
    elif first is not None:
        arg[first] = _for_pixels(arg[first])
    else:
        raise CheckpointError("the Gluon weights have no convolution of three channels, which an image needs")
    return arg, aux


def _layers(arrays: Arrays) -> GluonLayers:
    """The arrays by layer, in network order."""
    found: dict[str, Arrays] = {}
    for name, array in arrays.items():
        match = PARAMETER.fullmatch(name)
        if not match:
            raise CheckpointError(f"parameter {name!r:.80} is not one of a Gluon classifier (weight, bias, gamma, ...)")
        layer = found.setdefault(match[1], {})
        if match[2] in layer:
            raise CheckpointError(f"parameter {name!r:.80} appears twice")
        layer[match[2]] = array
    layers = GluonLayers()
    for name in sorted(found, key=_natural_order):
        _place(layers, name, found[name])
    return layers


def _place(layers: GluonLayers, name: str, layer: Arrays) -> None:
    dimensions = layer["weight"].ndim if "weight" in layer else 0
    if layer.keys() == {"gamma", "beta", "running_mean", "running_var"}:
        layers.batch_norms.append(layer)
    elif dimensions == CONVOLUTION and layer.keys() <= {"weight", "bias"}:
        layers.convolutions.append(layer)
    elif dimensions == DENSE and layer.keys() <= {"weight", "bias"}:
        layers.dense.append(layer)
    else:
        raise CheckpointError(f"Gluon layer {name!r:.80} is no convolution, batch normalisation or dense layer")


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key by which conv10 comes after conv9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _mobilenet(layers: GluonLayers, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    names = ["conv_1"]
    for number in range(2, len(BLOCKS) + 2):
        names += [f"conv_{number}_dw", f"conv_{number}"]
    _check_count(layers, "mobilenet", convolutions=len(names), batch_norms=len(names))
    _check_width(layers.convolutions[0]["weight"], float(options.get("width", 1.0)))
    arg: Arrays = _dense(layers.dense, ())
    aux: Arrays = {}
    for name, convolution, norm in zip(names, layers.convolutions, layers.batch_norms, strict=True):
        arg[f"{name}_conv2d_weight"] = convolution["weight"]
        arg |= {f"{name}_batchnorm_{ours}": norm[theirs] for theirs, ours in ARG_KINDS.items()}
        aux |= {f"{name}_batchnorm_{ours}": norm[theirs] for theirs, ours in AUX_KINDS.items()}
        aux[f"{name}_batchnorm_moving_var"] = aux[f"{name}_batchnorm_moving_var"] + EPSILON
    arg["conv_1_conv2d_weight"] = _for_pixels(arg["conv_1_conv2d_weight"])
    return arg, subtract_epsilon(aux, network, options)


def _vgg16(layers: GluonLayers, network: str) -> Arrays:
    _check_count(layers, "vgg16", convolutions=len(vgg.CONVOLUTIONS), batch_norms=0)
    out: Arrays = {}
    for name, convolution in zip(vgg.CONVOLUTIONS, layers.convolutions, strict=True):
        out |= {f"{name}_{kind}": array for kind, array in convolution.items()}
    vgg.check_body(out, "Gluon")
    out[vgg.FIRST_WEIGHT] = _for_pixels(out[vgg.FIRST_WEIGHT])
    return vgg.to_network(vgg.reduce_classifier(out | _dense(layers.dense, ("fc6", "fc7"))), network)


def _dense(layers: list[Arrays], names: tuple[str, ...]) -> Arrays:
    """The dense layers under the given names, the last under `output`."""
    if len(layers) > len(names) + 1:
        raise CheckpointError(f"the Gluon weights have {len(layers)} dense layers, expected at most {len(names) + 1}")
    named = zip((*names, "output"), layers, strict=False)
    return {f"{name}_{kind}": array for name, layer in named for kind, array in layer.items()}


def _for_pixels(weight: np.ndarray) -> np.ndarray:
    """The first convolution (filters, 3, kh, kw) for pixels of 0..255 instead of 0..1 over std."""
    return weight / (255 * STD)[:, None, None]


def _check_count(layers: GluonLayers, model: str, convolutions: int, batch_norms: int) -> None:
    found = len(layers.convolutions), len(layers.batch_norms)
    if found != (convolutions, batch_norms):
        raise CheckpointError(
            f"the Gluon weights have {found[0]} convolutions and {found[1]} batch normalisations, {model} has "
            f"{convolutions} and {batch_norms}; convert them for the network that they are of"
        )


def _check_width(weight: np.ndarray, width: float) -> None:
    found = weight.shape[0] / MOBILENET_FILTERS
    if weight.shape[1:] != (3, 3, 3):
        raise CheckpointError(
            f"the first convolution of the Gluon weights has shape {weight.shape}, not that of mobilenet"
        )
    if found != width:
        raise CheckpointError(
            f"the Gluon weights are those of mobilenet{found:g}, not of width {width:g}; give --width {found:g}"
        )
