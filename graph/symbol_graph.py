"""Symbols as graphs that can be rewritten, read from and written to their JSON; and symbols with weights, run."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from common.errors import out_of_memory_hint
from common.sizes import DATA
from machine.runtime import SYMBOL_ATTRIBUTES, mx

VARIABLE = "null"
Shape = tuple[int, ...]
Params = dict[str, "mx.nd.NDArray"]  # weights by name
_REMEDY = "lower --batch-size, or export the model with a smaller --data-shape"


class Edge(NamedTuple):
    """An output of a node."""

    node: "SymbolNode"
    output: int = 0


@dataclass(eq=False)
class SymbolNode:
    """An operator, or a variable if op is VARIABLE; attributes are texts, as in the JSON."""

    op: str
    name: str
    attrs: dict[str, str] = field(default_factory=dict, repr=False)
    inputs: list[Edge] = field(default_factory=list, repr=False)


@dataclass
class SymbolGraph:
    """What leads to the outputs; nodes that nothing reads are no part of it."""

    outputs: list[Edge]

    def nodes(self) -> list[SymbolNode]:
        """Every node once, after all that it reads."""
        return list(_sorted([edge.node for edge in self.outputs]))

    def readers(self) -> dict[SymbolNode, list[SymbolNode]]:
        """The nodes that read each node, once for each input; outputs of the graph are not among them."""
        found: dict[SymbolNode, list[SymbolNode]] = {node: [] for node in self.nodes()}
        for node in self.nodes():
            for edge in node.inputs:
                found[edge.node].append(node)
        return found

    def replace(self, changes: dict[Edge, Edge]) -> None:
        """Lets all that reads a key read its value, and what that is replaced by in turn.

        New nodes that lead to a value read the values of other keys as well; their own key they may read.
        """
        old = self.nodes()
        own: dict[SymbolNode, set[Edge]] = {node: set() for node in old}
        for key, value in changes.items():
            for node in _sorted([value.node], old):
                own.setdefault(node, set()).add(key)
        for node, keys in own.items():
            node.inputs = [edge if edge in keys else _last(edge, changes) for edge in node.inputs]
        self.outputs = [_last(edge, changes) for edge in self.outputs]


def node_shapes(symbol: mx.sym.Symbol, **inputs: Shape) -> dict[str, Shape]:
    """The shape of each node's first output, by the node's name; () where an input that is not given decides it."""
    internals = symbol.get_internals()
    names = (name.removesuffix("_output").removesuffix("_output0") for name in internals.list_outputs())
    return dict(zip(names, internals.infer_shape_partial(**inputs)[1], strict=True))


def graph_of(symbol: mx.sym.Symbol) -> SymbolGraph:
    """The graph of a symbol.

    tojson() by itself drops casts of AMP, in a copy of the symbol that it never frees (mxnet 1.9.1): 135 kB for a
    MobileNet in each validation.
    """
    content = json.loads(symbol.tojson(remove_amp_cast=False))
    nodes: list[SymbolNode] = []
    for item in content["nodes"]:
        edges = [Edge(nodes[entry[0]], entry[1]) for entry in item["inputs"]]
        nodes.append(SymbolNode(item["op"], item["name"], dict(item.get("attrs", {})), edges))
    return SymbolGraph([Edge(nodes[entry[0]], entry[1]) for entry in content["heads"]])


def symbol_of(graph: SymbolGraph) -> mx.sym.Symbol:
    """The symbol of a graph."""
    nodes = graph.nodes()
    place = {node: number for number, node in enumerate(nodes)}
    items: list[dict[str, Any]] = [
        {"op": node.op, "name": node.name, "attrs": node.attrs, "inputs": [_entry(edge, place) for edge in node.inputs]}
        for node in nodes
    ]
    content = {
        "nodes": items,
        "arg_nodes": [number for number, node in enumerate(nodes) if node.op == VARIABLE],
        "heads": [_entry(edge, place) for edge in graph.outputs],
        "attrs": SYMBOL_ATTRIBUTES,
    }
    return mx.sym.load_json(json.dumps(content))


def _entry(edge: Edge, place: dict[SymbolNode, int]) -> list[int]:
    return [place[edge.node], edge.output, 0]


def _last(edge: Edge, changes: dict[Edge, Edge]) -> Edge:
    while edge in changes:
        edge = changes[edge]
    return edge


def _sorted(roots: list[SymbolNode], known: Iterable[SymbolNode] = ()) -> Iterator[SymbolNode]:
    """Depth first, inputs before their readers, without those known; without recursion, as networks are deep."""
    done = set(known)
    waiting = [(node, False) for node in reversed(roots)]
    while waiting:
        node, inputs_done = waiting.pop()
        if node in done:
            continue
        if inputs_done:
            done.add(node)
            yield node
        else:
            waiting.append((node, True))
            waiting.extend((edge.node, False) for edge in reversed(node.inputs))


def bound(
    symbol: mx.sym.Symbol,
    arg_params: Params,
    aux_params: Params,
    shape: tuple[int, ...],
    dtype: str | np.dtype = "float32",
    ctx: mx.Context | None = None,
) -> mx.executor.Executor:
    """An executor in ctx (None: the CPU) for data of this shape and type; weights that the symbol does not read are
    left out."""
    types = None if np.dtype(dtype) == np.float32 else {DATA: np.dtype(dtype).name}  # with types none is a default
    with out_of_memory_hint(_REMEDY):
        executor = symbol.simple_bind(ctx or mx.cpu(), grad_req="null", type_dict=types, **{DATA: shape})
        executor.copy_params_from(arg_params, aux_params, allow_extra_params=True)
        return executor


def run(executor: mx.executor.Executor, data: np.ndarray | mx.nd.NDArray) -> list[np.ndarray]:
    """The outputs for data of the executor's shape."""
    with out_of_memory_hint(_REMEDY):
        executor.arg_dict[DATA][:] = data
        return [output.asnumpy() for output in executor.forward(is_train=False)]


def outputs(
    symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params, data: np.ndarray | mx.nd.NDArray
) -> list[np.ndarray]:
    """The outputs of a symbol on the CPU for one batch, in float32 as it is written."""
    return run(bound(symbol, arg_params, aux_params, data.shape, data.dtype), data)


def pair(node: SymbolNode, key: str, default: int) -> tuple[int, int]:
    """An attribute of two numbers, as kernel and stride are; default: each of them, where there is none."""
    numbers = [int(part) for part in node.attrs.get(key, "").strip("()").split(",") if part.strip()]
    first, second = numbers or (default, default)
    return first, second
