"""Darknet's .weights files: a header, then float32 values of the convolutional sections in the order of the .cfg.

    int32 major, minor, revision; images seen (int64 from version 0.2 on, before int32); all little-endian
    each [convolutional]: biases, with batch_normalize then scales, means, variances; then weights (out, in, y, x)

(Darknet, src/parser.c, load_weights_upto and load_convolutional_weights.) The file has no names and no shapes: the
sections of the network give them, and the number of values gives the number of classes.

Darknet's input is RGB / 255: the first convolution of a network that was trained on other pixels is changed for that
input before it is written.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import CheckpointError
from common.files import refuse_page, write_atomically
from config.options import from_mapping
from model.weights.fit import VARIANCE
from symbol.darknet_sections import (
    BOX_VALUES,
    IMAGE_CHANNELS,
    Convolutional,
    Sections,
    layer_names,
    references,
    trace,
    with_classes,
)
from symbol.detector.yolo import PREFIX, YOLOv3, customise, find_row
from symbol.registry import family_of, network_options_class

Arrays = dict[str, np.ndarray]
VERSION = np.array([0, 2, 5], "<i4")  # written
LONG_SEEN = 2  # from 10 * major + minor on, the images seen take 8 bytes
MAX_BYTES = 8 << 30
# Ours, in the order of the file.
NORMALISED = ("_bn_beta", "_bn_gamma", "_bn_moving_mean", "_bn_moving_var")
AUXILIARY = ("_bn_moving_mean", "_bn_moving_var")
WHITE = 255.0  # of our pixels; Darknet's are 1
EPSILON = 1e-6  # that Darknet's files are for, as OpenCV's dnn reads them
SURE = 30.0  # whose sigmoid is 1 in float32


class Parameter(NamedTuple):
    """A parameter under our name and its shape."""

    name: str
    shape: tuple[int, ...]


def read(path: str | Path) -> Arrays:
    """{path: (n,) float32} of a .weights file: its values under its own name.

    CheckpointError names one that is missing, cut off, no such file, or has values that are not finite.
    """
    refuse_page(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    begin = _header_bytes(content)
    if begin > len(content) or len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: not a .weights file of Darknet ({len(content)} bytes)")
    if (len(content) - begin) % 4:
        raise CheckpointError(f"{path}: cut off, its last value is incomplete; copy or download it again")
    values = np.frombuffer(content, "<f4", offset=begin).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{path}: has values that are not finite; copy, download or train it again")
    return {str(path): values}


def rename(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) of a YOLOv3 from the values of read(); options give width and .cfg.

    A file that ends behind a convolution, such as darknet53.conv.74, fills the sections that far. CheckpointError for
    another number of values names the file: it is cut off, too long, or that of another network.
    """
    ((path, values),) = arrays.items()
    try:
        parameters = _parameters_for(values.size, _sections(network, options), network)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return split_auxiliary(_split(values, parameters))


def write(path: Path, sections: Sections, parameters: Mapping[str, np.ndarray], seen: int) -> None:
    """Writes parameters under our names as a .weights file, atomically.

    sections: those of the network, with its classes and width; seen: images that it was trained on. Parameters that
    check() refuses raise its CheckpointError.
    """
    write_atomically(path, weights_content(path, sections, parameters, seen))


def weights_content(path: Path, sections: Sections, parameters: Mapping[str, np.ndarray], seen: int) -> bytes:
    """The .weights file that write() writes to `path`, which errors name."""
    check(path, sections, parameters)
    parts = [VERSION.tobytes(), np.array([seen], "<i8").tobytes()]
    parts += [np.ascontiguousarray(parameters[name], "<f4").tobytes() for name, _ in file_order(sections)]
    return b"".join(parts)


def check(origin: str | Path, sections: Sections, parameters: Mapping[str, np.ndarray]) -> None:
    """CheckpointError, naming origin, for a parameter of the sections that is missing or has another shape."""
    for name, shape in file_order(sections):
        if name not in parameters or parameters[name].shape != shape:
            got = parameters[name].shape if name in parameters else "nothing"
            raise CheckpointError(f"{origin}: {name} of shape {shape} is needed, the checkpoint has {got}")


def file_order(sections: Sections) -> list[Parameter]:
    """The parameters of a network in the order of its .weights file."""
    extents, names = trace(sections), layer_names(sections)
    found = []
    for number, section in enumerate(sections):
        if isinstance(section, Convolutional):
            before = references(number, section)[0]
            channels = IMAGE_CHANNELS if before < 0 else extents[before].channels
            vectors = NORMALISED if section.batch_normalize else ("_conv_bias",)
            found += [Parameter(names[number] + kind, (section.filters,)) for kind in vectors]
            kernel = (section.filters, channels // section.groups, section.size, section.size)
            found.append(Parameter(f"{names[number]}_conv_weight", kernel))
    return found


def split_auxiliary(parameters: Arrays) -> tuple[Arrays, Arrays]:
    """(arg, aux): moving means and variances are auxiliary states."""
    aux = {name: array for name, array in parameters.items() if name.endswith(AUXILIARY)}
    return {name: array for name, array in parameters.items() if name not in aux}, aux


def _header_bytes(content: bytes) -> int:
    """Bytes before the values; more than the content has if it is too short."""
    short = VERSION.nbytes + 4
    if len(content) < short:
        return short
    major, minor = np.frombuffer(content, "<i4", 2).astype(int)
    return short + 4 if 10 * major + minor >= LONG_SEEN else short


def _sections(network: str, options: Mapping[str, Any]) -> Sections:
    if not isinstance(family_of(network), YOLOv3):
        raise CheckpointError(
            f"--network {network}: Darknet's weights are for yolov3_spp and the like, and darknet:FILE.cfg"
        )
    checked = from_mapping(network_options_class(), dict(options))
    return customise(find_row(network, checked.darknet_cfg), checked)


def _parameters_for(count: int, sections: Sections, network: str) -> list[Parameter]:
    """The parameters that `count` values are: all, for the number of classes that fits, or the first ones.

    ValueError for another number.
    """
    fixed, slope = _values_by_classes(sections)
    wanted = file_order(sections) if network.startswith(PREFIX) else []
    classes, rest = divmod(count - fixed, slope)
    if not wanted and classes >= 1 and rest == 0:
        return file_order(with_classes(sections, classes))
    ends = np.cumsum([math.prod(parameter.shape) for parameter in wanted or file_order(sections)])
    weights = [
        k for k, parameter in enumerate(wanted or file_order(sections)) if parameter.name.endswith("_conv_weight")
    ]
    fitting = [k for k in weights if ends[k] == count]
    if not fitting:
        needs = f"{ends[-1]}" if wanted else f"{fixed} and {slope} for each class"
        raise ValueError(
            f"has {count} values, but {network} takes {needs}: it is cut off, too long or of another --network"
        )
    return (wanted or file_order(sections))[: fitting[0] + 1]


def _values_by_classes(sections: Sections) -> tuple[int, int]:
    """(values without classes, values for each class) of a whole file."""
    one, two = (
        sum(math.prod(parameter.shape) for parameter in file_order(with_classes(sections, classes)))
        for classes in (1, 2)
    )
    return 2 * one - two, two - one


def _split(values: np.ndarray, parameters: Sequence[Parameter]) -> Arrays:
    ends = np.cumsum([math.prod(parameter.shape) for parameter in parameters])
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(parameters, parts, strict=True)}


def rescaled_for_unit_pixels(
    origin: str, parameters: Mapping[str, np.ndarray], sections: Sections, mean: Sequence[float], std: Sequence[float]
) -> tuple[Arrays, float]:
    """(parameters for RGB / 255, largest error) of a network that was trained on (RGB - mean) / std.

    parameters: those of `sections`, by our names. The weights of the first convolution take the scale; what the mean
    adds to its output goes to its moving mean, or its bias. That is exact but for rounding, except where the kernel
    reaches beyond the input: the zeros there are the mean in training, black in Darknet. The error is that of the
    convolution's output, in standard deviations of it with batch normalisation. CheckpointError for a network that
    does not begin with a convolution, unless its pixels are Darknet's; it names origin.
    """
    if all(value == 0 for value in mean) and all(value == WHITE for value in std):
        return dict(parameters), 0.0
    first = sections[0]
    if not isinstance(first, Convolutional):
        raise CheckpointError(
            f"{origin}: the network does not begin with a convolution that could take the mean and std of its pixels; "
            f"train it with --mean-r/g/b 0 and --std-r/g/b {WHITE:g}"
        )
    name = layer_names(sections)[0]
    kernel = parameters[f"{name}_conv_weight"].astype(np.float64)  # (filters, 3, size, size)
    scaled = kernel * (WHITE / np.array(std))[:, None, None]
    taps = (kernel * (np.array(mean) / np.array(std))[:, None, None]).sum(axis=1)  # (filters, size, size)
    shift, error = taps.sum(axis=(1, 2)), _border_error(taps)
    changed = {f"{name}_conv_weight": scaled}
    if first.batch_normalize:
        changed[f"{name}_bn_moving_mean"] = parameters[f"{name}_bn_moving_mean"] + shift
        error = error / np.sqrt(np.maximum(parameters[f"{name}_bn_moving_var"], np.finfo(np.float32).tiny))
    else:
        changed[f"{name}_conv_bias"] = parameters[f"{name}_conv_bias"] - shift
    return {**parameters, **{key: array.astype(np.float32) for key, array in changed.items()}}, float(error.max())


def for_epsilon(parameters: Mapping[str, np.ndarray], epsilon: float) -> Arrays:
    """The parameters of a network that adds `epsilon` to variances, for one that adds EPSILON."""
    shift = np.float32(epsilon - EPSILON)
    return {name: array + shift if name.endswith(VARIANCE) else array for name, array in parameters.items()}


def with_sure_class(sections: Sections, parameters: Mapping[str, np.ndarray]) -> Arrays:
    """The parameters of a network of one class, whose scores are its objectness, for Darknet's scores, the product of
    objectness and probability of the class: that becomes 1."""
    changed = dict(parameters)
    for name in (name for name in layer_names(sections) if name.startswith("pred_")):
        weight, bias = (parameters[f"{name}_conv_{kind}"].copy() for kind in ("weight", "bias"))
        weight[BOX_VALUES :: BOX_VALUES + 1] = 0
        bias[BOX_VALUES :: BOX_VALUES + 1] = SURE
        changed |= {f"{name}_conv_weight": weight, f"{name}_conv_bias": bias}
    return changed


def _border_error(taps: np.ndarray) -> np.ndarray:
    """The largest sum (filters,) of those taps (filters, size, size) that lie outside at some place of the border."""
    size = taps.shape[-1]
    pad, ends = size // 2, np.arange(size)
    sides = (ends < 0, ends < pad, ends >= size - pad)  # nothing outside, the low side, the high side
    outside = (rows[:, None] | columns for rows, columns in product(sides, sides))
    return np.max([np.abs((taps * mask).sum(axis=(1, 2))) for mask in outside], axis=0)
