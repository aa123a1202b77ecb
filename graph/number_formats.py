"""Networks in bfloat16 and int8, by operators of oneDNN; boxes, anchors, scores and suppression stay float32.

int8 is MXNet's quantization, from float32 weights and the thresholds of a calibration. A model folder holds these; they
are quantised whenever the model is loaded, which gives the same numbers each time. Nothing but float32 operators is
ever read from a file that way. Lines that MXNet's C++ code writes meanwhile are kept from the terminal.
"""

import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from common.errors import CheckpointError
from graph.mixed_precision import BFLOAT16, FLOAT32, Casts
from graph.symbol_graph import Params, SymbolNode, graph_of, symbol_of
from machine.runtime import mx

_DTYPE_NUMBER = "12"  # of bfloat16 in a variable's __dtype__
_LAYERS = frozenset({"Convolution", "FullyConnected"})
# These go on in bfloat16 where all that they read is bfloat16.
_STAY_BFLOAT16 = frozenset({"Activation", "clip", "LeakyReLU", "Pooling", "_backward_Activation", "elemwise_add"})
_BACKEND = "MKLDNN_QUANTIZE"
_QUANTISED = frozenset({"_sg_mkldnn_conv", "_sg_mkldnn_fully_connected"})
_STAY_INT8 = frozenset({"Concat", "Pooling", "elemwise_add"})  # run in int8 between layers that do
Thresholds = dict[str, tuple[float, ...]]


def to_bfloat16(symbol: mx.sym.Symbol, arg_params: Params) -> tuple[mx.sym.Symbol, Params]:
    """A detection symbol, inputs and outputs float32, that convolves in bfloat16, and its weights."""
    graph = graph_of(symbol)
    casts = Casts(BFLOAT16)
    short = casts.narrow
    weights: set[str] = set()
    for node in graph.nodes():
        if node.op in _LAYERS:
            weights.update(_mark_bfloat16(edge.node) for edge in node.inputs[1:])
            node.inputs[0] = casts.cast(node.inputs[0], BFLOAT16)
            short.add(node)
        elif node.op in _STAY_BFLOAT16 and all(edge.node in short for edge in node.inputs):
            short.add(node)
        else:
            node.inputs = [casts.cast(edge, FLOAT32) for edge in node.inputs]
    graph.outputs = [casts.cast(edge, FLOAT32) for edge in graph.outputs]
    return symbol_of(graph), {n: _short(a) if n in weights else a for n, a in arg_params.items()}


@cache
def supports_bfloat16() -> bool:
    """Whether oneDNN convolves in bfloat16 on this CPU: it needs AVX-512."""
    data, weight = (_short(mx.nd.ones((1, 16, 4, 4))) for _ in range(2))
    try:
        with quiet():
            mx.nd.Convolution(data, weight, num_filter=1, kernel=(4, 4), no_bias=True).wait_to_read()
    except mx.base.MXNetError:
        return False
    return True


def _mark_bfloat16(variable: SymbolNode) -> str:
    variable.attrs = {**variable.attrs, "__dtype__": _DTYPE_NUMBER}
    return variable.name


def _short(array: mx.nd.NDArray) -> mx.nd.NDArray:
    return mx.nd.amp_cast(array, dtype=BFLOAT16)


@dataclass(frozen=True)
class Fused:
    """A detection symbol whose convolutions have been joined with what follows them, ready to be quantised."""

    symbol: mx.sym.Symbol
    arg_params: Params
    aux_params: Params

    @cached_property
    def _nodes(self) -> list[dict[str, Any]]:
        return json.loads(self.symbol.tojson())["nodes"]

    @cached_property
    def layers(self) -> dict[str, str]:
        """Convolutions and fully connected layers by their own names: the names of the nodes that hold them."""
        return {_inner_name(node): node["name"] for node in self._nodes if node["op"] in _QUANTISED}

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Nodes that stay float32: the post-processing, and what has no int8 form or one that does not pay."""
        carried = self._nodes_before_layers()
        return frozenset(
            node["name"]
            for number, node in enumerate(self._nodes)
            if node["op"] not in _QUANTISED and not (node["op"] in _STAY_INT8 and number in carried)
        )

    @cached_property
    def arrays(self) -> dict[str, str]:
        """All that may be quantised, whatever stays float32: what layers, and operators beside them, read and write.

        The names of their outputs by names that last: of layers or nodes, as MXNet numbers the nodes that hold layers.
        """
        wanted = [node for node in self._nodes if node["name"] not in self.fixed]
        read = (self._nodes[entry[0]] for node in wanted for entry in node["inputs"])
        outputs = set(self.symbol.get_internals().list_outputs())
        found = {}
        for node in (*read, *wanted):
            name, output = node["name"], f"{node['name']}_output"
            if name not in self.arg_params and name not in self.aux_params:
                lasting = _inner_name(node) if node["op"] in _QUANTISED else name
                found[lasting] = output if output in outputs else name
        return found

    def by_node(self, thresholds: Thresholds) -> Thresholds:
        """Thresholds by the names that operators have in the symbol before it was fused.

        A layer's threshold is that of the last operator which was joined with it.
        """
        last = {_inner_name(node): _last(node)["name"] for node in self._nodes if node["op"] in _QUANTISED}
        return {last.get(name, name): values for name, values in thresholds.items()}

    def limited(self, name: str, threshold: tuple[float, ...]) -> tuple[float, ...]:
        """A threshold (least, largest) of a name of `arrays`, within what the ReLU6 joined with that layer gives.

        In files of earlier versions it may be that of the layer alone, with which the ReLU6 was not joined.
        """
        least, largest = self._relu6.get(name, (-math.inf, math.inf))
        return tuple(min(max(value, least), largest) for value in threshold)

    @cached_property
    def _relu6(self) -> dict[str, tuple[float, float]]:
        """{layer: least and largest value} of those that end with a ReLU6."""
        found = {}
        for node in self._nodes:
            if node["op"] in _QUANTISED and _last(node)["op"] == "clip":
                limits = _last(node)["attrs"]
                found[_inner_name(node)] = float(limits["a_min"]), float(limits["a_max"])
        return found

    @cached_property
    def predictions(self) -> list[str]:
        """The layers that no other layer follows, by their own names."""
        before = self._nodes_before_layers()
        return [
            _inner_name(node)
            for number, node in enumerate(self._nodes)
            if node["op"] in _QUANTISED and number not in before
        ]

    def _nodes_before_layers(self) -> set[int]:
        """The numbers of nodes that lead to a layer."""
        found: set[int] = set()
        for number in reversed(range(len(self._nodes))):
            if number in found or self._nodes[number]["op"] in _QUANTISED:
                found.update(entry[0] for entry in self._nodes[number]["inputs"])
        return found


def fuse(symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params) -> Fused:
    """A float32 detection symbol whose batch norms are folded, with its weights."""
    return Fused(symbol.get_backend_symbol(_BACKEND), arg_params, aux_params)


def to_int8(fused: Fused, thresholds: Thresholds, excluded: tuple[str, ...]) -> tuple[mx.sym.Symbol, Params]:
    """The int8 symbol, with float32 input and output, and its weights; CheckpointError if it was calibrated for other
    layers."""
    quantised, collector = _quantise(fused, excluded)
    known = {
        fused.arrays[name]: fused.limited(name, values) for name, values in thresholds.items() if name in fused.arrays
    }
    missing = next((output for output in collector.include_layer if output not in known), None)
    if missing:
        raise CheckpointError(f"the calibration has no threshold for {missing:.80}; export the model again")
    collector.min_max_dict = {output: known[output] for output in collector.include_layer}
    calibrated, params, _ = mx.contrib.quantization.calib_graph(
        quantised,
        fused.arg_params,
        fused.aux_params,
        collector,
        calib_mode="naive",  # takes the thresholds as they are
        quantized_dtype="auto",
        logger=None,
    )
    return calibrated.get_backend_symbol(_BACKEND), params


def _quantise(fused: Fused, excluded: tuple[str, ...]) -> tuple[mx.sym.Symbol, Any]:
    """The quantised symbol without thresholds, and MXNet's collector that knows which ones it needs."""
    unknown = next((name for name in excluded if name not in fused.layers), None)
    if unknown:
        raise CheckpointError(f"the calibration names a layer {unknown:.80} that is not there; export the model again")
    with quiet():  # MXNet writes a line about every operator that has no int8 form
        symbol, _, _, collector = mx.contrib.quantization.quantize_graph(
            fused.symbol,
            fused.arg_params,
            fused.aux_params,
            mx.cpu(),
            excluded_sym_names=[*fused.fixed, *(fused.layers[name] for name in excluded)],
            calib_mode="naive",
            quantized_dtype="auto",  # without a sign where nothing is negative
            quantize_mode="smart",
            quantize_granularity="channel-wise",  # of weights
            logger=None,
        )
    return symbol, collector


def _last(node: dict[str, Any]) -> dict[str, Any]:
    graph = node["subgraphs"][0]
    return graph["nodes"][graph["heads"][0][0]]


def _inner_name(node: dict[str, Any]) -> str:
    return next(inner["name"] for inner in node["subgraphs"][0]["nodes"] if inner["op"] in _LAYERS)


_STDERR = 2


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is written to standard error by this process appears; exceptions are raised as ever.

    For calls of a fraction of a second: lines of other threads are lost, too. Calls may overlap: standard error is back
    when the last of them ends. Without one nothing happens.
    """
    _redirection.begin()
    try:
        yield
    finally:
        _redirection.end()


class _Redirection:
    """Standard error, which is discarded while any call of quiet() lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._saved: int | None = None

    def begin(self) -> None:
        """The first of overlapping calls redirects."""
        with self._lock:
            if not self._calls:
                self._saved = _redirect()
            self._calls += 1

    def end(self) -> None:
        """The last of overlapping calls restores."""
        with self._lock:
            self._calls -= 1
            if not self._calls and self._saved is not None:
                os.dup2(self._saved, _STDERR)
                os.close(self._saved)
                self._saved = None


_redirection = _Redirection()


def _redirect() -> int | None:
    """A copy of standard error as it was; None where the process has none."""
    try:
        saved = os.dup(_STDERR)
    except OSError:
        return None
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
    except BaseException:
        os.close(saved)
        raise
    return saved
