"""bfloat16 for the operators that oneDNN runs in it; boxes, anchors, scores and suppression stay float32."""

from functools import cache

from graph.nodes import Edge, Node, Params, graph_of, symbol_of
from machine.runtime import mx
from machine.terminal import quiet

BFLOAT16, FLOAT32 = "bfloat16", "float32"
_DTYPE_NUMBER = "12"  # of bfloat16 in a variable's __dtype__
_COMPUTED = frozenset({"Convolution", "FullyConnected"})
# These go on in bfloat16 where all that they read is bfloat16.
_CARRIED = frozenset({"Activation", "LeakyReLU", "Pooling", "_backward_Activation", "elemwise_add"})


def to_bfloat16(symbol: mx.sym.Symbol, arg_params: Params) -> tuple[mx.sym.Symbol, Params]:
    """A detection symbol, inputs and outputs float32, that convolves in bfloat16, and its weights."""
    graph = graph_of(symbol)
    casts: dict[tuple[Edge, str], Edge] = {}
    short: set[Node] = set()
    weights: set[str] = set()
    for node in graph.nodes():
        if node.op in _COMPUTED:
            short.add(node)
            weights.update(_make_short(edge.node) for edge in node.inputs[1:])
            node.inputs[0] = _cast(node.inputs[0], BFLOAT16, short, casts)
        elif node.op in _CARRIED and all(edge.node in short for edge in node.inputs):
            short.add(node)
        else:
            node.inputs = [_cast(edge, FLOAT32, short, casts) for edge in node.inputs]
    graph.outputs = [_cast(edge, FLOAT32, short, casts) for edge in graph.outputs]
    return symbol_of(graph), {n: _short(a) if n in weights else a for n, a in arg_params.items()}


@cache
def bfloat16_is_there() -> bool:
    """Whether oneDNN convolves in bfloat16 on this CPU: it needs AVX-512."""
    data, weight = (_short(mx.nd.ones((1, 16, 4, 4))) for _ in range(2))
    try:
        with quiet():
            mx.nd.Convolution(data, weight, num_filter=1, kernel=(4, 4), no_bias=True).wait_to_read()
    except mx.base.MXNetError:
        return False
    return True


def _make_short(variable: Node) -> str:
    variable.attrs = {**variable.attrs, "__dtype__": _DTYPE_NUMBER}
    return variable.name


def _cast(edge: Edge, dtype: str, short: set[Node], casts: dict[tuple[Edge, str], Edge]) -> Edge:
    """The edge, through a cast if it has the other number format; one cast serves all its readers."""
    if (edge.node in short) == (dtype == BFLOAT16):
        return edge
    if (edge, dtype) not in casts:
        name = f"{edge.node.name}_{edge.output}_{dtype}"
        casts[edge, dtype] = Edge(Node("amp_cast", name, {"dtype": dtype}, [edge]))
    return casts[edge, dtype]


def _short(array: mx.nd.NDArray) -> mx.nd.NDArray:
    return mx.nd.amp_cast(array, dtype=BFLOAT16)
