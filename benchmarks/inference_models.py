"""The detectors of benchmarks.inference: networks of the registry with random weights that behave like trained ones.

Random weights are as fast as trained ones where three things hold, which this module sees to: the statistics of every
batch norm are those of its real input, so that activations neither vanish nor overflow; predictions have the spread
SPREAD; and biases of the classes leave as many boxes above the score threshold as a trained detector has.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.version import versions
from config.augment_options import FORCE, LETTERBOX
from config.options import to_mapping
from dataset.letterbox import Resize
from engines.preprocess import read_image, write_input
from machine.runtime import mx
from model.folder import Model
from model.manifest import Manifest, PostProcessing, SourceCheckpoint
from symbol.network_options import CommonOptions
from symbol.symbol_factory import get_symbol

CANDIDATES = 200  # boxes of an image above the score threshold, in the mean
BIAS_SPREAD = 0.01  # standard deviation of betas and biases
SPREAD = 1.0  # standard deviation of raw predictions
Params = dict[str, Any]
Logits = Callable[[Sequence[np.ndarray], int], np.ndarray]


@dataclass(frozen=True)
class Family:
    """What differs between the families: pixels, the predicting convolutions, and how a bias moves the scores.

    Attributes:
        resize_mode, mean, std: how pixels are read.
        heads: outputs (internals) that are the raw predictions; a regular expression.
        predictors: names of the predicting convolutions; a regular expression.
        operator: what the manifest calls the post-processing.
        bias_for: of outputs, number of classes and score threshold: the shift of the biases at which each box would
            reach the threshold, flat; a box does if the shift is above (sign 1) or below (sign -1) it.
        sign: see bias_for.
        shifted: of the name of a bias, its length and the number of classes: mask of the entries that the shift moves.
    """

    resize_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    heads: str
    predictors: str
    operator: str
    bias_for: Callable[[Sequence[np.ndarray], int, float], np.ndarray]
    sign: int
    shifted: Callable[[str, int, int], np.ndarray]


def _logit(probability: Any) -> Any:
    return np.log(probability) - np.log1p(-np.asarray(probability))


def _ssd_bias(outputs: Sequence[np.ndarray], classes: int, threshold: float) -> np.ndarray:
    """Shifts of the background logit at which the best class falls to the threshold."""
    exponentials = np.exp(outputs[0].reshape(-1, classes + 1))  # outputs[0]: (B, A, C + 1)
    objects = exponentials[:, 1:]
    return np.log((objects.max(1) / threshold - objects.sum(1)) / exponentials[:, 0])


def _yolo_bias(outputs: Sequence[np.ndarray], classes: int, threshold: float) -> np.ndarray:
    """Shifts of the objectness logit at which objectness times the best class's probability reaches the threshold."""
    shifts = []
    for output in outputs:  # (B, 3 * (5 + C), h, w)
        rows = np.moveaxis(output.reshape(len(output), 3, 5 + classes, -1), 2, 3).reshape(-1, 5 + classes)
        best = 1 / (1 + np.exp(-rows[:, 5:].max(1)))
        shifts.append(np.where(best > threshold, _logit(np.minimum(threshold / best, 1 - 1e-6)) - rows[:, 4], np.inf))
    return np.concatenate(shifts)


def _effdet_bias(outputs: Sequence[np.ndarray], classes: int, threshold: float) -> np.ndarray:
    """Shifts of the class logits at which the best one reaches the threshold."""
    return _logit(threshold) - outputs[0].reshape(-1, classes).max(1)


FAMILIES = {
    "ssd": Family(
        FORCE,
        (123.0, 117.0, 104.0),
        (1.0, 1.0, 1.0),
        r"multibox_(cls|loc)_pred_output",
        r".*_(cls|loc)_pred_conv$",
        "MultiBoxDetection",
        _ssd_bias,
        -1,
        lambda name, length, classes: (np.arange(length) % (classes + 1) == 0) & ("_cls_" in name),
    ),
    "yolo": Family(
        LETTERBOX,
        (0.0, 0.0, 0.0),
        (255.0, 255.0, 255.0),
        r"pred_\d+_conv_output",
        r"pred_\d+_conv$",
        "box_nms",
        _yolo_bias,
        1,
        lambda name, length, classes: np.arange(length) % (classes + 5) == 4,
    ),
    "efficientdet": Family(
        LETTERBOX,
        (123.675, 116.28, 103.53),
        (58.395, 57.12, 57.375),
        r"(cls|box)_pred_output",
        r"(cls|box)_pred_p\d_pointwise$",
        "box_nms",
        _effdet_bias,
        1,
        lambda name, length, classes: np.full(length, name.startswith("cls_")),
    ),
}


@dataclass(frozen=True)
class Network:
    """A network that is measured."""

    family: str
    name: str
    side: int
    classes: int


NETWORKS = {
    "ssd_vgg16": Network("ssd", "vgg16_reduced", 300, 20),
    "ssd_mobilenet": Network("ssd", "mobilenet", 300, 20),
    "yolov3_spp": Network("yolo", "yolov3_spp", 416, 80),
    "efficientdet_d0": Network("efficientdet", "efficientdet_d0", 512, 90),
    "ssd_lite0": Network("ssd", "efficientnet_lite0", 256, 20),
    "efficientdet_lite0": Network("efficientdet", "efficientdet_lite0", 320, 90),
}


def make_model(network: Network, images: Sequence[bytes], seed: int = 0) -> Model:
    """The detector with random weights, suited to these images (encoded)."""
    manifest = _manifest(network)
    symbol = get_symbol(network.name, network.side, network.classes)
    data = read_inputs(images, manifest)
    arg_params, aux_params = _random_weights(symbol, data.shape, seed)
    _measure_batch_norm(symbol, data, arg_params, aux_params)
    _scale_predictions(network, symbol, data, arg_params, aux_params)
    _shift_biases(network, symbol, data, arg_params, aux_params)
    return Model(symbol, arg_params, aux_params, manifest)


def read_inputs(images: Sequence[bytes], manifest: Manifest) -> np.ndarray:
    """Encoded images as the network reads them, (n, 3, H, W)."""
    data = np.zeros((len(images), 3, *manifest.size), np.float32)
    mean, std = np.array(manifest.mean, np.float32), np.array(manifest.std, np.float32)
    for number, (image, out) in enumerate(zip(images, data, strict=True)):
        write_input(read_image(image, f"image {number}"), mean, std, out, Resize(manifest.resize_mode, manifest.fill))
    return data


def raw_outputs(network: Network, symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The raw predictions of a detection symbol, before decoding."""
    pattern = re.compile(FAMILIES[network.family].heads)
    internals = symbol.get_internals()
    return mx.sym.Group([internals[name] for name in internals.list_outputs() if pattern.fullmatch(name)])


def _manifest(network: Network) -> Manifest:
    family, options = FAMILIES[network.family], CommonOptions()
    return Manifest(
        class_names=tuple(f"class{number}" for number in range(network.classes)),
        mean=family.mean,
        std=family.std,
        input_shape=(network.side, network.side),
        resize_mode=family.resize_mode,
        network=network.name,
        options=to_mapping(options),
        postprocessing=PostProcessing(
            family.operator, options.nms, options.nms_topk, options.score_threshold, options.force
        ),
        versions=versions(),
        source=SourceCheckpoint("random weights", 0, {}),
    )


def _random_weights(symbol: mx.sym.Symbol, shape: tuple[int, ...], seed: int) -> tuple[Params, Params]:
    """He's normal weights (He et al. 2015), small betas and biases; gamma 1, learnt scales as the symbol says."""
    rng = np.random.default_rng(seed)
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=shape)
    attributes = symbol.attr_dict()
    arg_params = {}
    for name, shape in zip(symbol.list_arguments(), arg_shapes, strict=True):
        if name == "data":
            continue
        value: np.ndarray = np.zeros(shape)
        if name.endswith("_weight"):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(("_bias", "_beta")):
            value = rng.normal(0, BIAS_SPREAD, shape)
        else:
            start = json.loads(attributes.get(name, {}).get("__init__", '["constant", {"value": 1}]'))
            value += start[1].get("value", 1.0)
        arg_params[name] = mx.nd.array(value)
    names = symbol.list_auxiliary_states()
    return arg_params, {name: mx.nd.ones(shape) for name, shape in zip(names, aux_shapes, strict=True)}


def _run(symbol: mx.sym.Symbol, data: np.ndarray, arg_params: Params, aux_params: Params, train: bool) -> Any:
    """The outputs of a symbol; with `train` batch norm uses the statistics of these data."""
    with mx.test_utils.environment("MXNET_SUBGRAPH_BACKEND", "NONE"):  # fused layers hide their inputs
        executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=data.shape)
    executor.copy_params_from(arg_params, aux_params, allow_extra_params=True)
    return [output.asnumpy() for output in executor.forward(is_train=train, data=mx.nd.array(data))]


def _nodes(symbol: mx.sym.Symbol) -> tuple[list[dict[str, Any]], Callable[[dict[str, Any], int], str]]:
    """The nodes of a graph, and the name of a node's input."""
    nodes = json.loads(symbol.tojson())["nodes"]
    return nodes, lambda node, place: nodes[node["inputs"][place][0]]["name"]


def _measure_batch_norm(symbol: mx.sym.Symbol, data: np.ndarray, arg_params: Params, aux_params: Params) -> None:
    """Sets the moving averages to the statistics of these data."""
    nodes, name_of = _nodes(symbol)
    internals = symbol.get_internals()
    layers = [node for node in nodes if node["op"] == "BatchNorm"]
    if not layers:
        return
    inputs = mx.sym.Group([internals[f"{name_of(layer, 0)}_output"] for layer in layers])
    for layer, values in zip(layers, _run(inputs, data, arg_params, aux_params, train=True), strict=True):
        aux_params[name_of(layer, 3)] = mx.nd.array(values.mean((0, 2, 3)))
        aux_params[name_of(layer, 4)] = mx.nd.array(values.var((0, 2, 3)))


def _scale_predictions(
    network: Network, symbol: mx.sym.Symbol, data: np.ndarray, arg_params: Params, aux_params: Params
) -> None:
    """Scales the weights of the predicting convolutions so that what they predict has the standard deviation SPREAD."""
    pattern = re.compile(FAMILIES[network.family].predictors)
    nodes, name_of = _nodes(symbol)
    layers = [node for node in nodes if node["op"] == "Convolution" and pattern.match(node["name"])]
    internals = symbol.get_internals()
    outputs = mx.sym.Group([internals[f"{layer['name']}_output"] for layer in layers])
    values: dict[str, list[np.ndarray]] = {}
    for layer, output in zip(layers, _run(outputs, data, arg_params, aux_params, train=False), strict=True):
        values.setdefault(name_of(layer, 1), []).append(output.ravel())
    for weight, found in values.items():
        arg_params[weight] *= SPREAD / np.concatenate(found).std()


def _shift_biases(
    network: Network, symbol: mx.sym.Symbol, data: np.ndarray, arg_params: Params, aux_params: Params
) -> None:
    """Moves the biases so that CANDIDATES boxes an image have a score above the threshold, in the mean."""
    family = FAMILIES[network.family]
    outputs = _run(raw_outputs(network, symbol), data, arg_params, aux_params, train=False)
    shifts = family.sign * np.sort(family.sign * family.bias_for(outputs, network.classes, score_threshold()))
    shift = float(shifts[CANDIDATES * len(data)])
    pattern = re.compile(FAMILIES[network.family].predictors)
    nodes, name_of = _nodes(symbol)
    names = {name_of(n, 2) for n in nodes if n["op"] == "Convolution" and pattern.match(n["name"])}
    for name in names:
        arg_params[name] += mx.nd.array(shift * family.shifted(name, arg_params[name].size, network.classes))


def score_threshold() -> float:
    """Of the post-processing."""
    return CommonOptions().score_threshold
