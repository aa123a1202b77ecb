"""Convolutions with whole blocks of channels: oneDNN 2.4 runs others through matrix products, which is slow."""

import numpy as np

from config.runtime import mx
from deploy.graph import VARIABLE, Edge, Node, graph_of, symbol_of
from train.params_file import Params

BLOCK = 16  # floats of an AVX-512 register


def fill_blocks(symbol: mx.sym.Symbol, arg_params: Params) -> tuple[mx.sym.Symbol, Params]:
    """A detection symbol whose ungrouped convolutions have multiples of 16 filters, and its weights.

    Those that lack are copies of the first ones; their channels are sliced off.
    """
    graph, known = graph_of(symbol), dict(arg_params)
    changes: dict[Edge, Edge] = {}
    wide: dict[str, Node] = {}  # parameters that convolutions share are shared after it
    for node in graph.nodes():
        count = int(node.attrs.get("num_filter", 0))
        if node.op == "Convolution" and count % BLOCK and node.attrs.get("num_group", "1") == "1":
            changes[Edge(node)] = Edge(_filled(node, count, known, wide))
    graph.replace(changes)
    symbol = symbol_of(graph)
    return symbol, {name: known[name] for name in symbol.list_arguments() if name in known}


def _filled(node: Node, count: int, known: Params, wide: dict[str, Node]) -> Node:
    """The slice of a new, wider convolution that stands for `node`."""
    rows = np.arange(-(-count // BLOCK) * BLOCK) % count
    inputs = [node.inputs[0]]
    for edge in node.inputs[1:]:
        name = f"{edge.node.name}_filled"
        if name not in wide:
            known[name] = mx.nd.array(known[edge.node.name].asnumpy()[rows])
            wide[name] = Node(VARIABLE, name)
        inputs.append(Edge(wide[name]))
    filled = Node("Convolution", f"{node.name}_filled", {**node.attrs, "num_filter": str(len(rows))}, inputs)
    return Node("slice_axis", node.name, {"axis": "1", "begin": "0", "end": str(count)}, [Edge(filled)])
