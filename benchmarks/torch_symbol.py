"""A symbol of MXNet run by PyTorch, operator by operator (eager), with the same weights; it needs no mxnet.

It knows the operators before the decoding of boxes. x * sigmoid(x) is one call of silu, as anyone writes it in PyTorch.
"""

import ast
import json
from collections.abc import Callable, Mapping
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


Step = tuple[int, Operator, list[int]]


def _step(number: int, nodes: list[dict[str, Any]]) -> Step:
    """(the node, its function, the nodes that it reads)."""
    node = nodes[number]
    inputs = [entry[0] for entry in node["inputs"]]
    if node["op"] == "elemwise_mul":
        for gate, data in (inputs, inputs[::-1]):
            if _is_sigmoid(nodes[gate]) and nodes[gate]["inputs"][0][0] == data:
                return number, F.silu, [data]
    if node["op"] not in OPERATORS:
        raise NotImplementedError(f"benchmarks.torch_symbol does not know {node['op']} ({node['name']})")
    attributes = {key: _parsed(value) for key, value in node.get("attrs", {}).items()}
    operator = OPERATORS[node["op"]]
    return number, lambda *tensors: operator(attributes, *tensors), inputs


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
    "relu": lambda attributes, data: F.relu(data),
    "slice": _slice,
    "slice_axis": _slice_axis,
    "sum": lambda attributes, data: data.sum(),
    "transpose": lambda attributes, data: data.permute(attributes["axes"]),
}
