"""An ONNX model whose convolutions are int8: their maps and weights pass through QuantizeLinear and DequantizeLinear.

Runtimes with int8 kernels (OpenVINO) join these with the convolutions and with what lies between them; others compute
the same in float32.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIGNED, UNSIGNED = 127, 255  # steps of int8, the same in both directions, and of uint8
# What computes in int8 between convolutions, if all that it reads does.
CARRIED = frozenset({"Add", "Concat", "MaxPool", "Resize"})
_LEAST = 1e-12  # of a scale's range: that of zeros alone

Ranges = Mapping[str, tuple[float, ...]]


def quantized(model: onnx.ModelProto, ranges: Ranges, excluded: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 model with int8 convolutions; `ranges` and `excluded` go by the model's own names.

    Args:
        ranges: lowest and highest value of the maps by the operator that makes them, or `data`.
        excluded: convolutions that stay float32, as do those whose weights are no constants or whose map has no range.

    So are CARRIED operators whose maps have ranges. The numbers are those of MXNet's int8: maps have one scale and are
    int8, without negative values uint8; weights are int8 with a scale for each output channel (Jacob et al. 2018,
    sections 2.1 and 3, https://arxiv.org/abs/1712.05877). Zero stands for 0 everywhere: maps with a zero point of their
    own are nearer to float32, but slower in OpenVINO.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriting = _Quantising(copy.graph, ranges)
    for node in copy.graph.node:
        if node.op_type == "Conv" and node.name not in excluded:
            rewriting.convolution(node)
        elif node.op_type in CARRIED:
            rewriting.carried(node)
    rewriting.finish()
    return copy


class _Quantising:
    """A graph whose convolutions are made int8 one by one."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges) -> None:
        self._graph, self._ranges = graph, ranges
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._made = {name for node in graph.node for name in node.output}
        self._after: dict[str, list[onnx.NodeProto]] = {}  # what follows the operator that makes an array
        self._first: list[onnx.NodeProto] = []
        self._done: dict[str, str] = {}

    def convolution(self, node: onnx.NodeProto) -> None:
        """Lets a convolution read int8 data and weights."""
        data, weight = node.input[0], node.input[1]
        if data in self._ranges and weight in self._weights:
            node.input[0] = self._done.get(data) or self._map(data)
            node.input[1] = self._done.get(weight) or self._weight(weight)

    def carried(self, node: onnx.NodeProto) -> None:
        """Lets an operator read int8 maps."""
        maps = [position for position, name in enumerate(node.input) if name and name not in self._weights]
        if all(node.input[position] in self._ranges for position in maps):
            for position in maps:
                name = node.input[position]
                node.input[position] = self._done.get(name) or self._map(name)

    def finish(self) -> None:
        """Puts the new operators into their places and drops float32 weights that nothing reads any more."""
        nodes = list(chain(self._first, *([node, *self._followers(node)] for node in self._graph.node)))
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._weights.values() if tensor.name in read]
        for old, new in ((self._graph.node, nodes), (self._graph.initializer, kept)):
            del old[:]
            old.extend(new)

    def _followers(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        return chain.from_iterable(self._after.get(name, ()) for name in node.output)

    def _map(self, name: str) -> str:
        scale, zero = map_scale(self._ranges[name])
        parts = [self._constant(f"{name}/scale", scale), self._constant(f"{name}/zero", zero)]
        nodes = [
            helper.make_node(op, [source, *parts], [f"{name}/{suffix}"], name=f"{name}/{suffix}")
            for op, source, suffix in (
                ("QuantizeLinear", name, "quantized"),
                ("DequantizeLinear", f"{name}/quantized", "restored"),
            )
        ]
        if name in self._made:
            self._after[name] = nodes
        else:
            self._first += nodes
        self._done[name] = f"{name}/restored"
        return self._done[name]

    def _weight(self, name: str) -> str:
        values, scale = weight_steps(numpy_helper.to_array(self._weights[name]))
        arrays = (("int8", values), ("scale", scale), ("zero", np.zeros(len(scale), np.int8)))
        parts = [self._constant(f"{name}/{suffix}", array) for suffix, array in arrays]
        restored = f"{name}/restored"
        self._first.append(helper.make_node("DequantizeLinear", parts, [restored], name=restored, axis=0))
        self._done[name] = restored
        return restored

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._weights[name] = numpy_helper.from_array(value, name)
        return name


def map_scale(limits: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(float32 step, the 0 of the type: int8, or uint8 without negative values) of maps between two limits."""
    low, high = limits
    if low < 0:
        return np.array(max(-low, high, _LEAST) / SIGNED, np.float32), np.array(0, np.int8)
    return np.array(max(high, _LEAST) / UNSIGNED, np.float32), np.array(0, np.uint8)


def weight_steps(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 values, float32 step of each output channel) of float32 weights (O, ...)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = (np.maximum(largest, _LEAST) / SIGNED).astype(np.float32)
    steps = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(steps), -SIGNED, SIGNED).astype(np.int8), step
