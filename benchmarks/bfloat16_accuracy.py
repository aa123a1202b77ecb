"""Trains with `--dtype bfloat16` on a CPU without it: float32 arithmetic, every narrow map and gradient rounded.

    python -m benchmarks.bfloat16_accuracy --config bccd --train-path data/bccd_trainval.rec --prefix output/rounded

It takes the options of train.py. What graph/mixed_precision.py makes narrow is rounded to bfloat16 (to the nearest, to
even) on its way forward and back, as are weights where a layer reads them and their gradients. Sums within a layer are
float32 either way. What differs from oneDNN's bfloat16: the order of these sums; and the gradients of a map with
several readers are added before they are rounded. It says what bfloat16 does to the accuracy, nothing of its speed.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

import train.main
import train.measuring
import train.module
import train.preflight
from graph.mixed_precision import BFLOAT16, to_mixed
from graph.symbol_graph import VARIABLE, Edge, Shape, SymbolGraph, SymbolNode, graph_of, node_shapes, symbol_of
from machine.command import run_command
from machine.runtime import mx

_ROUND = "round_to_bfloat16"
_CHUNK = 1 << 14  # values rounded at a time, so that they stay in the cache
# Give values of what they read, forward and back, and no others.
_EXACT = frozenset({"Concat", "slice", "slice_axis", "Reshape", "Flatten", "clip"})


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 values, each the nearest of bfloat16; of two as near the even one. NaN may become infinite."""
    result = np.empty_like(values, np.float32)
    _round(np.ascontiguousarray(values, np.float32).reshape(-1), result.reshape(-1))
    return result


def _round(values: np.ndarray, result: np.ndarray) -> None:
    """Of one axis each, float32."""
    read, written = values.view(np.uint32), result.view(np.uint32)
    shift, half, kept = np.uint32(16), np.uint32(0x7FFF), np.uint32(0xFFFF0000)
    for begin in range(0, read.size, _CHUNK):
        bits, out = read[begin : begin + _CHUNK], written[begin : begin + _CHUNK]
        np.right_shift(bits, shift, out=out)
        out &= np.uint32(1)
        out += half
        out += bits
        out &= kept


def _memory(array: mx.nd.NDArray) -> np.ndarray:
    """The values of an array in the memory of the CPU, not copied, in one axis."""
    array.wait_to_read()
    pointer = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (array.size,))


class _Rounding(mx.operator.CustomOp):
    """Rounds what goes forward and what comes back."""

    def forward(self, is_train: bool, req: list, in_data: list, out_data: list, aux: list) -> None:
        self._write(in_data[0], req[0], out_data[0])

    def backward(self, req: list, out_grad: list, in_data: list, out_data: list, in_grad: list, aux: list) -> None:
        self._write(out_grad[0], req[0], in_grad[0])

    def _write(self, values: mx.nd.NDArray, req: str, place: mx.nd.NDArray) -> None:
        if req == "write":
            _round(_memory(values), _memory(place))
        else:
            self.assign(place, req, mx.nd.array(rounded(values.asnumpy())))


@mx.operator.register(_ROUND)
class _RoundingOf(mx.operator.CustomOpProp):
    """Its shapes: those of its input."""

    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> _Rounding:
        return _Rounding()

    def declare_backward_dependency(self, out_grad: list, in_data: list, out_data: list) -> list:
        return out_grad


def to_rounded(symbol: mx.sym.Symbol, shapes: Mapping[str, Shape], dtype: str) -> mx.sym.Symbol:
    """As to_mixed, in float32 with rounding in place of narrow numbers; ValueError for another dtype than bfloat16."""
    if dtype != BFLOAT16:
        raise ValueError(f"{dtype}: bfloat16 alone is rounded")
    mixed = to_mixed(symbol, shapes, dtype)
    inputs = {name: shape for name, shape in shapes.items() if name in mixed.list_inputs()}
    graph, found = graph_of(mixed), node_shapes(mixed, **inputs)
    narrow = _narrow_nodes(graph)
    made: dict[Edge, Edge] = {}
    for node in graph.nodes():
        if node.op == VARIABLE and node.name not in shapes:
            node.attrs["__shape__"] = str(found[node.name])  # a Custom operator does not pass on what its reader needs
        node.inputs = [made.get(edge, edge) for edge in node.inputs]
        value = node.inputs[0] if node.op == "amp_cast" else Edge(node)
        if node in narrow and not _is_exact(node):
            value = Edge(SymbolNode("Custom", f"{node.name}_rounded", {"op_type": _ROUND}, [value]))
        made[Edge(node)] = value
    graph.outputs = [made.get(edge, edge) for edge in graph.outputs]
    return symbol_of(graph)


def _narrow_nodes(graph: SymbolGraph) -> set[SymbolNode]:
    """The nodes of to_mixed that give bfloat16: casts to it, and what reads them first; others read casts to
    float32."""
    narrow: set[SymbolNode] = set()
    for node in graph.nodes():
        first = node.inputs[0].node if node.inputs else None
        if node.attrs.get("dtype") == BFLOAT16 if node.op == "amp_cast" else first in narrow:
            narrow.add(node)
    return narrow


def _is_exact(node: SymbolNode) -> bool:
    """Whether what a node gives, forward and back, are numbers that it reads."""
    is_maximum = node.op == "Pooling" and node.attrs.get("pool_type", "max") == "max"
    return node.op in _EXACT or is_maximum or node.attrs.get("act_type") == "relu"


def main(argv: list[str]) -> int:
    """As train.main.main; --dtype bfloat16 rounds."""
    vars(train.module)["to_mixed"] = to_rounded
    vars(train.preflight)["supports_bfloat16"] = lambda: True
    vars(train.measuring)["has_amx"] = lambda: False  # weight gradients are the layers' own
    return train.main.main([*argv, "--dtype", BFLOAT16])


if __name__ == "__main__":
    run_command(main)
