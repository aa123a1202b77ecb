"""uint8 pixels as the network's input: normalisation as its first layers.

Folded into the first convolution's weights it would be wrong at the borders, whose padding is zeros after it.
"""

import numpy as np

from common.sizes import DATA
from graph.nodes import VARIABLE, Edge, Node, Params, graph_of, symbol_of
from machine.runtime import mx

_SHAPE = (1, 3, 1, 1)


def with_pixel_input(
    symbol: mx.sym.Symbol, arg_params: Params, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[mx.sym.Symbol, Params]:
    """The symbol of float32 data (B, 3, H, W) as one of uint8 data (B, H, W, 3) RGB, and its weights.

    Values become (pixel - mean) / std as in training, by float32 operations of the same order.
    """
    graph = graph_of(symbol)
    old = next(node for node in graph.nodes() if node.op == VARIABLE and node.name == DATA)
    net = Node("transpose", "pixels_nchw", {"axes": "(0, 3, 1, 2)"}, [Edge(Node(VARIABLE, DATA))])  # (B, 3, H, W)
    net = Node("Cast", "pixels_float32", {"dtype": "float32"}, [Edge(net)])
    constants = {}
    for operator, name, values, neutral in (("sub", "pixels_mean", mean, 0), ("div", "pixels_std", std, 1)):
        if any(value != neutral for value in values):
            constant = Node(VARIABLE, name, {"__shape__": str(_SHAPE)})
            net = Node(f"broadcast_{operator}", f"{name}_{operator}", {}, [Edge(net), Edge(constant)])
            constants[name] = mx.nd.array(np.array(values, np.float32).reshape(_SHAPE))
    graph.replace({Edge(old): Edge(net)})
    return symbol_of(graph), arg_params | constants
