"""Weight gradients of bfloat16 convolutions, computed beside the training graph by the fastest of three ways.

oneDNN 2.4's own kernel of a weight gradient in bfloat16 is slow on CPUs with AMX, where it can take more time than all
the rest of a layer. The same numbers are products of matrices, or come from the float32 kernel. MXNet has no way to
tell a convolution so, but what the gradient is made of can be had from a training graph: its data as an output, and the
gradient of its result as that of an input of zeros which is added to it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from graph.mixed_precision import BFLOAT16, FLOAT32
from graph.symbol_graph import VARIABLE, Edge, Shape, SymbolNode, graph_of, node_shapes, pair, symbol_of
from machine.runtime import mx

KERNEL, FLOAT32_KERNEL, PRODUCTS = WAYS = "kernel", "float32", "products"
PROBE = "probe_"  # begins the names of the inputs of zeros, before the layer's
_DATA = "probed_"  # and of the outputs that are its data
_BFLOAT16_NUMBER = "12"
_BACKEND = "MXNET_SUBGRAPH_BACKEND"
_RUNS = 2  # of each way, after a first one, that are measured


@dataclass(frozen=True)
class Layer:
    """A convolution whose weight gradient can be computed beside the graph: of one group, with a stride of 1.

    weight, bias: names of its parameters, bias "" without one. data, result: shapes, batch included.
    """

    weight: str
    bias: str
    kernel: tuple[int, int]
    pad: tuple[int, int]
    dilate: tuple[int, int]
    data: Shape
    result: Shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which way is the fastest."""
        return (bool(self.bias), self.kernel, self.pad, self.dilate, self.data, self.result)

    @property
    def attrs(self) -> dict[str, object]:
        """Of the convolution."""
        window = {"kernel": self.kernel, "pad": self.pad, "dilate": self.dilate, "stride": (1, 1)}
        return {**window, "num_filter": self.result[1], "no_bias": not self.bias}


def layers_of(symbol: mx.sym.Symbol, shapes: Mapping[str, Shape], fixed: frozenset[str]) -> dict[str, Layer]:
    """The layers of a graph of to_mixed by name; shapes: of data and labels; fixed: parameters that are not trained."""
    inputs = set(symbol.list_inputs())
    found = node_shapes(symbol, **{name: shape for name, shape in shapes.items() if name in inputs})
    layers = {}
    for node in graph_of(symbol).nodes():
        parameters = [_cast_variable(edge.node) for edge in node.inputs[1:]] if node.op == "Convolution" else []
        if not parameters or "" in parameters or fixed & set(parameters) or not _is_simple(node):
            continue
        layers[node.name] = Layer(
            parameters[0], parameters[1] if len(parameters) > 1 else "", pair(node, "kernel", 1),
            pair(node, "pad", 0), pair(node, "dilate", 1), found[node.inputs[0].node.name], found[node.name],
        )  # fmt: skip
    return layers


def _cast_variable(node: SymbolNode) -> str:
    """The variable whose cast to bfloat16 a node is, "" for another node."""
    is_cast = node.op == "amp_cast" and node.attrs["dtype"] == BFLOAT16 and node.inputs[0].node.op == VARIABLE
    return node.inputs[0].node.name if is_cast else ""


def _is_simple(node: SymbolNode) -> bool:
    return int(node.attrs.get("num_group", "1")) == 1 and pair(node, "stride", 1) == (1, 1)


def expose(symbol: mx.sym.Symbol, names: Mapping[str, str]) -> mx.sym.Symbol:
    """The graph of to_mixed whose layers of these names get no gradient of their parameters, but an input PROBE + name,
    of zeros; what they read are outputs, behind all others and in the order of the names."""
    graph = graph_of(symbol)
    layers = {node.name: node for node in graph.nodes() if node.name in names}
    changes = {}
    for name, node in layers.items():
        node.inputs[1:] = [
            Edge(SymbolNode("BlockGrad", f"{name}_still_{k}", {}, [edge])) for k, edge in enumerate(node.inputs[1:])
        ]
        probe = Edge(SymbolNode(VARIABLE, PROBE + name, {"__dtype__": _BFLOAT16_NUMBER}))
        changes[Edge(node)] = Edge(SymbolNode("elemwise_add", f"{name}_probed", {}, [Edge(node), probe]))
    graph.replace(changes)
    graph.outputs += [Edge(SymbolNode("BlockGrad", _DATA + name, {}, [layers[name].inputs[0]])) for name in names]
    return symbol_of(graph)


class WeightGradients:
    """Computes the gradients that `expose` took out of one executor's graph, and writes them where they belong."""

    def __init__(self, executor: mx.executor.Executor, layers: Mapping[str, Layer], ways: Mapping[str, str]) -> None:
        """ways: of the exposed layers by name, in the order of the outputs."""
        outputs = executor.outputs[-len(ways) :]
        buffers = Buffers()
        self._work = []
        for (name, way), data in zip(ways.items(), outputs, strict=True):
            layer, given = layers[name], {"data": data, "gradient": executor.grad_dict[PROBE + name]}
            wanted = {part: executor.grad_dict[param] for part, param in _parameters(layer)}
            self._work.append(_MAKE[way](layer, given, wanted, buffers))

    def compute(self) -> None:
        """Begins to compute all of them; waits for nothing."""
        for work in self._work:
            work()


def _parameters(layer: Layer) -> Iterator[tuple[str, str]]:
    yield "weight", layer.weight
    if layer.bias:
        yield "bias", layer.bias


Arrays = dict[str, "mx.nd.NDArray"]
Make = Callable[[Layer, Arrays, Arrays, "Buffers"], Callable[[], None]]


class _Products:
    """For each element of the kernel one product of the gradient (O, BHW) and the data under it (I, BHW)."""

    def __init__(self, layer: Layer, given: Arrays, wanted: Arrays, buffers: "Buffers") -> None:
        del buffers
        self._wanted = list(wanted.values())
        with _unfused():
            self._executor = products(layer).bind(given["data"].context, given, grad_req="null")

    def __call__(self) -> None:
        for found, place in zip(self._executor.forward(is_train=False), self._wanted, strict=True):
            found.copyto(place)


@contextmanager
def _unfused() -> Iterator[None]:
    """Executors bound here have MXNet's plain operators: the fused product keeps, in the layout of its own first run,
    what it takes for the weights of inference."""
    before = os.environ.get(_BACKEND)
    os.environ[_BACKEND] = "NONE"
    try:
        yield
    finally:
        del os.environ[_BACKEND]
        if before is not None:
            os.environ[_BACKEND] = before


def products(layer: Layer) -> mx.sym.Symbol:
    """Gradients of weight (O, I, kh, kw) and bias (O,) as float32, of the bfloat16 inputs `data` (B, I, H, W) and
    `gradient` (B, O, H', W'). Transposing and padding are done in float32: MXNet has neither in bfloat16."""
    cast = mx.sym.amp_cast
    data, gradient = (
        cast(mx.sym.var(name, attr={"__dtype__": _BFLOAT16_NUMBER}), dtype=FLOAT32) for name in ("data", "gradient")
    )
    (rows, columns), channels = layer.pad, layer.data[1]
    width = (0, 0, 0, 0, rows, rows, columns, columns)
    data = mx.sym.Pad(data, mode="constant", constant_value=0, pad_width=width)
    data = cast(mx.sym.transpose(data, axes=(1, 0, 2, 3)), dtype=BFLOAT16)  # (I, B, H + 2 pad, W + 2 pad)
    turned = cast(mx.sym.transpose(gradient, axes=(1, 0, 2, 3)), dtype=BFLOAT16)  # (O, B, H', W')
    turned = mx.sym.Reshape(turned, shape=(0, -1))  # (O, BH'W')
    height, width_out = layer.result[2:]
    parts = []
    for k in range(layer.kernel[0] * layer.kernel[1]):
        top, left = (index * step for index, step in zip(divmod(k, layer.kernel[1]), layer.dilate, strict=True))
        seen = mx.sym.slice(data, begin=(None, None, top, left), end=(None, None, top + height, left + width_out))
        seen = mx.sym.Reshape(seen, shape=(0, -1))  # (I, BH'W')
        part = cast(mx.sym.FullyConnected(turned, seen, num_hidden=channels, no_bias=True), dtype=FLOAT32)  # (O, I)
        parts.append(mx.sym.Reshape(part, shape=(0, 0, 1)))
    weight = mx.sym.Reshape(mx.sym.Concat(*parts, dim=2), shape=(0, 0, *layer.kernel))
    return mx.sym.Group([weight, mx.sym.sum(gradient, axis=(0, 2, 3))]) if layer.bias else weight


class _Kernel:
    """The backward pass of an ordinary convolution, whose forward pass is never run."""

    def __init__(self, layer: Layer, given: Arrays, wanted: Arrays, buffers: "Buffers", dtype: str) -> None:
        self._given, self._dtype = given, dtype
        self._data = buffers.of("data", given["data"], dtype) if dtype == FLOAT32 else given["data"]
        parameters = {name: buffers.of("parameter", array, dtype) for name, array in wanted.items()}  # shapes alone
        convolution = mx.sym.Convolution(*(mx.sym.var(name) for name in ("data", *wanted)), **layer.attrs)
        self._executor = convolution.bind(
            given["data"].context,
            {"data": self._data, **parameters},
            args_grad=wanted,
            grad_req={"data": "null", **dict.fromkeys(wanted, "write")},
        )

    def __call__(self) -> None:
        gradient = self._given["gradient"]
        if self._dtype == FLOAT32:
            mx.nd.amp_cast(self._given["data"], dtype=FLOAT32, out=self._data)
            gradient = mx.nd.amp_cast(gradient, dtype=FLOAT32)
        self._executor.backward([gradient])


class Buffers:
    """Arrays for passing use, one for each purpose and shape: the engine lets one user in after the other."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, Shape], mx.nd.NDArray] = {}

    def of(self, purpose: str, array: mx.nd.NDArray, dtype: str) -> mx.nd.NDArray:
        """An array like another one, in a number format."""
        key = (purpose, dtype, array.shape)
        if key not in self._made:
            made = mx.nd.zeros(array.shape, array.context)
            self._made[key] = _as_bfloat16(made) if dtype == BFLOAT16 else made
        return self._made[key]


def _as_bfloat16(array: mx.nd.NDArray) -> mx.nd.NDArray:
    return mx.nd.amp_cast(array, dtype=BFLOAT16)


_MAKE: dict[str, Make] = {
    PRODUCTS: _Products,
    FLOAT32_KERNEL: partial(_Kernel, dtype=FLOAT32),
    KERNEL: partial(_Kernel, dtype=BFLOAT16),
}


def fastest_ways(layers: Mapping[str, Layer]) -> dict[str, str]:
    """The way of each layer that is not best served by its own kernel, measured on the CPU with random numbers."""
    chosen: dict[tuple[object, ...], str] = {}
    for layer in layers.values():
        if layer.kind not in chosen:
            seconds = seconds_of_ways(layer)
            chosen[layer.kind] = min(seconds, key=seconds.__getitem__)
    return {name: chosen[layer.kind] for name, layer in layers.items() if chosen[layer.kind] != KERNEL}


def seconds_of_ways(layer: Layer) -> dict[str, float]:
    """Seconds of one weight gradient by each way."""
    given = {
        "data": _as_bfloat16(mx.nd.random.normal(shape=layer.data)),
        "gradient": _as_bfloat16(mx.nd.random.normal(shape=layer.result)),
    }
    shapes = {"weight": (layer.result[1], layer.data[1], *layer.kernel), "bias": (layer.result[1],)}
    parts = [part for part, _ in _parameters(layer)]
    found = {}
    for way in WAYS:
        wanted = {part: mx.nd.zeros(shapes[part]) for part in parts}
        wanted = {part: _as_bfloat16(array) for part, array in wanted.items()} if way == KERNEL else wanted
        found[way] = _seconds(_MAKE[way](layer, given, wanted, Buffers()))
    return found


def _seconds(work: Callable[[], None]) -> float:
    work()
    mx.nd.waitall()
    begun = time.perf_counter()
    for _ in range(_RUNS):
        work()
    mx.nd.waitall()
    return (time.perf_counter() - begun) / _RUNS
