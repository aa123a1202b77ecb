"""An ONNX model whose convolutions are int8: their maps and weights pass through QuantizeLinear and DequantizeLinear.

Runtimes with int8 kernels (OpenVINO) join these with the convolutions and with what lies between them; others compute
the same in float32.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain

import numpy as np
import onnx
from onnx import helper, numpy_helper

MAP_STEPS, WEIGHT_STEPS = 255, 127  # uint8 with a zero point of its own; int8, the same in both directions
_LEAST = 1e-12  # of a scale's range: that of zeros alone

Ranges = Mapping[str, tuple[float, ...]]


def quantized(model: onnx.ModelProto, ranges: Ranges, excluded: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 model with int8 convolutions; `ranges` and `excluded` go by the model's own names.

    Args:
        ranges: lowest and highest value of the maps by the operator that makes them, or `data`.
        excluded: convolutions that stay float32, as do those whose weights are no constants or whose map has no range.

    A pooling that makes maps smaller reads int8, too: OpenVINO would write its larger input in float32 otherwise. Maps
    have one scale, weights one for each output channel (Jacob et al. 2018, sections 2.1 and 3,
    https://arxiv.org/abs/1712.05877).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriting = _Rewriting(copy.graph, ranges)
    for node in copy.graph.node:
        if node.op_type == "Conv" and node.name not in excluded:
            rewriting.convolution(node)
        elif node.op_type == "MaxPool" and max(_strides(node)) > 1:
            rewriting.read_int8(node)
    rewriting.finish()
    return copy


class _Rewriting:
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
        weight = node.input[1]
        if weight in self._weights and self.read_int8(node):
            node.input[1] = self._done.get(weight) or self._weight(weight)

    def read_int8(self, node: onnx.NodeProto) -> bool:
        """Lets an operator read int8 data, if its range is known."""
        data = node.input[0]
        known = data in self._ranges
        if known:
            node.input[0] = self._done.get(data) or self._map(data)
        return known

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


def _strides(node: onnx.NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "strides"), [1])


def map_scale(limits: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(float32 step, uint8 of the value 0) for maps between two limits; the range always holds 0, which stays exact."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = max(high - low, _LEAST) / MAP_STEPS
    return np.array(step, np.float32), np.array(round(-low / step), np.uint8)


def weight_steps(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 values, float32 step of each output channel) of float32 weights (O, ...)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = (np.maximum(largest, _LEAST) / WEIGHT_STEPS).astype(np.float32)
    steps = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(steps), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8), step
