"""Predicting convolutions with as many channels as oneDNN's fast kernels write, on CPUs.

A number of channels that is no multiple of 16, as that of most predictions is, leaves oneDNN a general matrix product,
which takes several times as long. Channels of zeros make up the number; they are cut off where MXNet copies the map
anyway.
"""

import numpy as np

from graph.nodes import VARIABLE, Edge, Node, Params, graph_of, symbol_of
from machine.runtime import mx

BLOCK = 16  # channels that AVX-512 computes together
_TURN, _RESHAPE = "transpose", "Reshape"


def pad_predictions(symbol: mx.sym.Symbol, arg_params: Params) -> tuple[mx.sym.Symbol, Params]:
    """The float32 detection symbol and its weights with such convolutions; nothing that was given is changed.

    It concerns convolutions, of more than BLOCK channels, whose only reader is a transpose or a Reshape, and whose
    weights are parameters.
    """
    graph = graph_of(symbol)
    readers = graph.readers()
    padded: dict[str, tuple[Node, mx.nd.NDArray]] = {}
    changes: dict[Edge, Edge] = {}
    for node in graph.nodes():
        known = all(edge.node.name in arg_params for edge in node.inputs[1:])
        if known and len(readers[node]) == 1 and _is_widened(node, readers[node][0]):
            old, new = _widened(node, readers[node][0], arg_params, padded)
            changes[old] = new
    graph.replace(changes)
    result = symbol_of(graph)
    arrays = arg_params | {node.name: array for node, array in padded.values()}
    return result, {name: arrays[name] for name in result.list_arguments() if name in arrays}


def _is_widened(node: Node, reader: Node) -> bool:
    if node.op != "Convolution" or node.attrs.get("num_group", "1") != "1" or reader.op not in (_TURN, _RESHAPE):
        return False
    turned = reader.op == _RESHAPE or reader.attrs.get("axes", "").replace(" ", "") == "(0,2,3,1)"
    filters = int(node.attrs["num_filter"])
    return turned and filters > BLOCK and filters % BLOCK > 0


def _widened(
    node: Node, reader: Node, arg_params: Params, padded: dict[str, tuple[Node, mx.nd.NDArray]]
) -> tuple[Edge, Edge]:
    """The edge that is to be replaced, and the one that takes its place."""
    filters = int(node.attrs["num_filter"])
    missing = -filters % BLOCK
    inputs = [node.inputs[0], *(_with_zeros(edge, missing, arg_params, padded) for edge in node.inputs[1:])]
    wide = Edge(Node("Convolution", node.name, {**node.attrs, "num_filter": str(filters + missing)}, inputs))
    cut = {"begin": "0", "end": str(filters)}
    if reader.op == _TURN:
        turned = Edge(Node(reader.op, reader.name, reader.attrs, [wide]))
        return Edge(reader), Edge(Node("slice_axis", f"{reader.name}_cut", {**cut, "axis": "3"}, [turned]))
    return Edge(node), Edge(Node("slice_axis", f"{node.name}_cut", {**cut, "axis": "1"}, [wide]))


def _with_zeros(edge: Edge, missing: int, arg_params: Params, padded: dict[str, tuple[Node, mx.nd.NDArray]]) -> Edge:
    """A weight or bias with `missing` channels of zeros more; convolutions that share it share the longer one."""
    name = edge.node.name
    if name not in padded:
        array = arg_params[name].asnumpy()
        wide = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        padded[name] = Node(VARIABLE, f"{name}_padded"), mx.nd.array(wide, dtype=wide.dtype)
    return Edge(padded[name][0])
