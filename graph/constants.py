"""What an exported network computes from its weights and input size alone becomes a weight: anchors, grids, fusions."""

import math

import numpy as np

from graph.executor import outputs
from graph.nodes import VARIABLE, Edge, Graph, Node, Params, graph_of, symbol_of
from machine.runtime import mx

_BY_SHAPE = frozenset({"_contrib_MultiBoxPrior", "_contrib_arange_like"})  # read the shapes of their input alone
_BATCH_AXIS = "0"


def fold_constants(symbol: mx.sym.Symbol, arg_params: Params, shape: tuple[int, ...]) -> tuple[mx.sym.Symbol, Params]:
    """The detection symbol for inputs of `shape` (1, ...) float32, with other numbers of images, too, and its weights.

    Products of a map with one number for each channel (squeeze-excitation) or for all (fusion weights) need no array of
    the map's size any more.
    """
    graph = graph_of(symbol)
    constant = _constants(graph, arg_params)
    frontier = _frontier(graph, constant)
    values = _values(frontier, arg_params, shape)
    graph.replace({edge: Edge(_variable(edge, array)) for edge, array in zip(frontier, values, strict=True)})
    arrays = {_name(edge): array for edge, array in zip(frontier, values, strict=True)}
    _multiply_directly(graph, arrays)
    folded = symbol_of(graph)
    known = arg_params | {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays.items()}
    return folded, {name: known[name] for name in folded.list_arguments() if name in known}


def _constants(graph: Graph, arg_params: Params) -> set[Node]:
    """Nodes whose values are the same for every image."""
    found: set[Node] = set()
    for node in graph.nodes():
        if node.op == VARIABLE:
            constant = node.name in arg_params
        elif node.op in _BY_SHAPE:
            constant = node.attrs.get("axis") != _BATCH_AXIS
        else:
            constant = bool(node.inputs) and all(edge.node in found for edge in node.inputs)
        if constant:
            found.add(node)
    return found


def _frontier(graph: Graph, constant: set[Node]) -> list[Edge]:
    """Constants that are no variables and that something reads which is not constant."""
    edges = [edge for node in graph.nodes() if node not in constant for edge in node.inputs]
    return list(dict.fromkeys(edge for edge in edges if edge.node in constant and edge.node.op != VARIABLE))


def _values(edges: list[Edge], arg_params: Params, shape: tuple[int, ...]) -> list[np.ndarray]:
    if not edges:
        return []
    return outputs(symbol_of(Graph(edges)), arg_params, {}, np.zeros(shape, np.float32))


def _name(edge: Edge) -> str:
    return f"{edge.node.name}_{edge.output}_constant"


def _variable(edge: Edge, array: np.ndarray) -> Node:
    return Node(VARIABLE, _name(edge), {"__shape__": str(array.shape)})


def _multiply_directly(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """x * broadcast_like(y, x) without the array in between."""
    for node in graph.nodes():
        if node.op != "elemwise_mul":
            continue
        data, spread = node.inputs[0], node.inputs[1].node
        if spread.op != "broadcast_like" or spread.inputs[1] != data or len(spread.attrs) > 0:
            continue
        factor = arrays.get(spread.inputs[0].node.name)
        if factor is not None and math.prod(factor.shape) == 1:
            node.op, node.attrs, node.inputs = "_mul_scalar", {"scalar": repr(float(factor.reshape(-1)[0]))}, [data]
        else:
            node.op, node.attrs, node.inputs = "broadcast_mul", {}, [data, spread.inputs[0]]
