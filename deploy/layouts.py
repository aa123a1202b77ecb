"""The same network with fewer conversions between oneDNN's memory layouts and MXNet's, for CPUs.

Convolutions write layouts of oneDNN's own; operators that are MXNet's own have each of their inputs converted first.
"""

from config.runtime import mx
from deploy.graph import Edge, Node, graph_of, symbol_of


def for_onednn(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """A float32 detection symbol with global average pooling for means of maps, and swish that converts them once."""
    graph = graph_of(symbol)
    for node in graph.nodes():
        if node.op == "mean" and node.attrs == {"axis": "(2, 3)", "keepdims": "True"}:
            node.op, node.attrs = "Pooling", {"global_pool": "True", "kernel": "(1, 1)", "pool_type": "avg"}
        elif node.op == "elemwise_mul":
            _convert_once(node)
    return symbol_of(graph)


def _convert_once(product: Node) -> None:
    """x * sigmoid(x): a Reshape to the same shape gives both of them x in MXNet's layout."""
    data, gate = product.inputs[0], product.inputs[1].node
    if gate.op != "Activation" or gate.inputs[0] != data or data.node.op not in ("Convolution", "slice"):
        return
    plain = Edge(Node("Reshape", f"{product.name}_plain", {"shape": "(0, 0, 0, 0)"}, [data]))
    product.inputs = [plain, Edge(gate)]
    gate.inputs = [plain]
