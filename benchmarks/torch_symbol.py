"""A symbol of MXNet run by PyTorch, operator by operator (eager), with the same weights; it needs no mxnet.

It knows the operators before the decoding of boxes. x * sigmoid(x) is one call of silu, a clip to [0, 6] one of relu6
and a slice that follows TensorFlow's SAME padding an uneven padding, as anyone writes them in PyTorch.
"""

import ast
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Attributes = dict[str, Any]
Operator = Callable[..., Any]  # of the attributes and the inputs


class TorchSymbol:
    """The outputs of a symbol for `data`."""

    def __init__(self, symbol: str, params: Mapping[str, np.ndarray], memory_format: Any) -> None:
        """symbol: the JSON text; params: arguments and auxiliary states; memory_format: of images and weights."""
        content = json.loads(symbol)
        self._format = memory_format
        self._values: list[Any] = [None] * len(content["nodes"])
        self._heads = [head[0] for head in content["heads"]]
        nodes = content["nodes"]
        for number, node in enumerate(nodes):
            if node["op"] == "null" and node["name"] != "data":
                self._values[number] = self._constant(params[node["name"]])
        self._data = next(number for number, node in enumerate(nodes) if node["name"] == "data")
        self._steps = [_step(number, nodes) for number, node in enumerate(nodes) if node["op"] != "null"]
        self._last_use = _last_uses(self._steps, self._heads)

    def __call__(self, data: np.ndarray) -> list[np.ndarray]:
        """The outputs for images (B, 3, H, W)."""
        values = list(self._values)
        with torch.inference_mode():
            values[self._data] = torch.from_numpy(data).contiguous(memory_format=self._format)
            for step, (number, operator, inputs) in enumerate(self._steps):
                values[number] = operator(*(values[k] for k in inputs))
                for k in self._last_use.get(step, ()):
                    values[k] = None
            return [values[k].numpy() for k in self._heads]

    def _constant(self, array: np.ndarray) -> Any:
        tensor = torch.from_numpy(array)
        return tensor.contiguous(memory_format=self._format) if tensor.ndim == 4 else tensor


class TrainedSymbol(torch.nn.Module):
    """The outputs of a symbol for `data`, with batch norms of the batch and parameters that are trained."""

    def __init__(self, symbol: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """symbol: the JSON text; shapes: of arguments and auxiliary states, without data. Weights are random."""
        super().__init__()
        content = json.loads(symbol)
        nodes = content["nodes"]
        self._heads = [head[0] for head in content["heads"]]
        self._size = len(nodes)
        self._data = next(number for number, node in enumerate(nodes) if node["name"] == "data")
        self._names = {k: f"v{k}" for k, node in enumerate(nodes) if node["op"] == "null" and k != self._data}
        self._originals = {name: nodes[number]["name"] for number, name in self._names.items()}
        for name, original in self._originals.items():
            _register(self, name, original, tuple(shapes[original]))
        self._steps = [_step(number, nodes, TRAINED) for number, node in enumerate(nodes) if node["op"] != "null"]

    def forward(self, data: Any) -> list[Any]:
        """The outputs for images (B, 3, H, W)."""
        values: list[Any] = [None] * self._size
        for number, name in self._names.items():
            values[number] = getattr(self, name)
        values[self._data] = data
        for number, operator, inputs in self._steps:
            values[number] = operator(*(values[k] for k in inputs))
        return [values[k] for k in self._heads]

    def by_name(self) -> dict[str, Any]:
        """{name in the symbol: parameter or moving average}."""
        return {original: getattr(self, name) for name, original in self._originals.items()}


def _register(module: torch.nn.Module, name: str, original: str, shape: tuple[int, ...]) -> None:
    """A parameter, or a buffer for a moving average, that starts as its name in the symbol says."""
    if original.endswith(("_moving_mean", "_moving_var", "_running_mean", "_running_var")):
        module.register_buffer(name, torch.full(shape, float(original.endswith("var"))))
        return
    spread = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.0
    start = torch.full(shape, float(original.endswith("_gamma")))
    module.register_parameter(name, torch.nn.Parameter(start + spread * torch.randn(shape)))


Step = tuple[int, Operator, list[int]]


def _step(number: int, nodes: list[dict[str, Any]], more: Mapping[str, Operator] = MappingProxyType({})) -> Step:
    """(the node, its function, the nodes that it reads); more: operators that come before OPERATORS."""
    node = nodes[number]
    inputs = [entry[0] for entry in node["inputs"]]
    if node["op"] == "Convolution" and more and _is_cut(number, nodes):
        return number, lambda *tensors: _same_convolution(_attributes(node), *tensors), inputs
    if node["op"] == "slice" and more and nodes[inputs[0]]["op"] == "Convolution":
        return number, lambda data: data, inputs
    if node["op"] == "elemwise_mul":
        for gate, data in (inputs, inputs[::-1]):
            if _is_sigmoid(nodes[gate]) and nodes[gate]["inputs"][0][0] == data:
                return number, F.silu, [data]
    operator = more.get(node["op"]) or OPERATORS.get(node["op"])
    if operator is None:
        raise NotImplementedError(f"benchmarks.torch_symbol does not know {node['op']} ({node['name']})")
    attributes = _attributes(node)
    return number, lambda *tensors: operator(attributes, *tensors), inputs


def _attributes(node: dict[str, Any]) -> Attributes:
    return {key: _parsed(value) for key, value in node.get("attrs", {}).items()}


def _is_cut(number: int, nodes: list[dict[str, Any]]) -> bool:
    """Whether slices, which drop the first row and column, alone read a node."""
    readers = [node for node in nodes if any(entry[0] == number for entry in node["inputs"])]
    return bool(readers) and all(node["op"] == "slice" for node in readers)


def _same_convolution(attributes: Attributes, data: Any, weight: Any) -> Any:
    """A convolution whose first row and column are cut off, which an uneven padding does."""
    before, after = attributes["pad"][0] - 2, attributes["kernel"][0] - attributes["pad"][0]
    padded = F.pad(data, (before, after) * 2)
    return F.conv2d(padded, weight, None, attributes["stride"], 0, 1, attributes.get("num_group", 1))


def _is_sigmoid(node: dict[str, Any]) -> bool:
    return node["op"] == "Activation" and node["attrs"]["act_type"] == "sigmoid"


def _last_uses(steps: list[Step], heads: list[int]) -> dict[int, list[int]]:
    """The nodes whose values nothing reads after each step."""
    last = {k: step for step, (_, _, inputs) in enumerate(steps) for k in inputs}
    produced = {number for number, _, _ in steps} - set(heads)
    found: dict[int, list[int]] = {}
    for k, step in last.items():
        if k in produced:
            found.setdefault(step, []).append(k)
    return found


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convolution(attributes: Attributes, data: Any, weight: Any, bias: Any = None) -> Any:
    return F.conv2d(
        data,
        weight,
        bias,
        attributes.get("stride", 1),
        attributes.get("pad", 0),
        attributes.get("dilate", 1),
        attributes.get("num_group", 1),
    )


def _batch_norm(attributes: Attributes, data: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    return F.batch_norm(data, mean, variance, gamma, beta, eps=attributes.get("eps", 1e-3))


def _trained_batch_norm(attributes: Attributes, data: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    momentum = 1 - attributes.get("momentum", 0.9)
    return F.batch_norm(data, mean, variance, gamma, beta, True, momentum, attributes.get("eps", 1e-3))


def _activation(attributes: Attributes, data: Any) -> Any:
    return {"relu": F.relu, "sigmoid": torch.sigmoid}[attributes["act_type"]](data)


def _pooling(attributes: Attributes, data: Any) -> Any:
    if attributes["pool_type"] != "max":
        raise NotImplementedError("benchmarks.torch_symbol knows max pooling alone")
    kernel, stride, pad = attributes["kernel"], attributes.get("stride", 1), attributes.get("pad", 0)
    return F.max_pool2d(data, kernel, stride, pad, ceil_mode=attributes.get("pooling_convention") == "full")


def _reshape(attributes: Attributes, data: Any) -> Any:
    shape: list[int] = []
    for side in attributes["shape"]:
        shape.append(data.shape[len(shape)] if side == 0 else side)
    return data.reshape(shape)


def _slice(attributes: Attributes, data: Any) -> Any:
    begins, ends = attributes["begin"], attributes["end"]
    return data[tuple(slice(*bounds) for bounds in zip(begins, ends, strict=True))]


def _slice_axis(attributes: Attributes, data: Any) -> Any:
    return data.narrow(attributes["axis"], attributes["begin"], _end(attributes, data) - attributes["begin"])


def _slice_like(attributes: Attributes, data: Any, like: Any) -> Any:
    for axis in attributes["axes"]:
        data = data.narrow(axis, 0, like.shape[axis])
    return data


def _end(attributes: Attributes, data: Any) -> int:
    end = attributes["end"]
    return data.shape[attributes["axis"]] if end is None else end


def _pad(attributes: Attributes, data: Any) -> Any:
    widths = attributes["pad_width"]  # before and after, of each axis
    order = [width for axis in range(len(widths) // 2 - 1, 1, -1) for width in widths[2 * axis : 2 * axis + 2]]
    return F.pad(data, order, value=attributes.get("constant_value", 0.0))


def _upsampling(attributes: Attributes, data: Any) -> Any:
    return F.interpolate(data, scale_factor=float(attributes["scale"]), mode="nearest")


OPERATORS: dict[str, Operator] = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "Concat": lambda attributes, *data: torch.cat(data, attributes.get("dim", 1)),
    "Convolution": _convolution,
    "L2Normalization": lambda attributes, data: F.normalize(data, dim=1),
    "LeakyReLU": lambda attributes, data: F.leaky_relu(data, attributes["slope"]),
    "Pad": _pad,
    "Pooling": _pooling,
    "Reshape": _reshape,
    "UpSampling": _upsampling,
    "_div_scalar": lambda attributes, data: data / attributes["scalar"],
    "_mul_scalar": lambda attributes, data: data * attributes["scalar"],
    "_plus_scalar": lambda attributes, data: data + attributes["scalar"],
    "add_n": lambda attributes, *data: sum(data[1:], data[0]),
    "broadcast_div": lambda attributes, left, right: left / right,
    "broadcast_like": lambda attributes, data, like: data,  # its readers broadcast
    "broadcast_mul": lambda attributes, left, right: left * right,
    "elemwise_add": lambda attributes, left, right: left + right,
    "elemwise_mul": lambda attributes, left, right: left * right,
    "mean": lambda attributes, data: data.mean(attributes["axis"], keepdim=bool(attributes.get("keepdims"))),
    "clip": lambda attributes, data: F.hardtanh(data, attributes["a_min"], attributes["a_max"]),
    "relu": lambda attributes, data: F.relu(data),
    "slice": _slice,
    "slice_axis": _slice_axis,
    "slice_like": _slice_like,
    "sum": lambda attributes, data: data.sum(),
    "transpose": lambda attributes, data: data.permute(attributes["axes"]),
}

TRAINED: dict[str, Operator] = {
    "Activation": lambda attributes, data: {"relu": F.relu_, "sigmoid": torch.sigmoid}[attributes["act_type"]](data),
    "BatchNorm": _trained_batch_norm,
    "clip": lambda attributes, data: F.hardtanh_(data, attributes["a_min"], attributes["a_max"]),
}
