"""Training in mixed precision, by one rewriting of the training graph: bfloat16 on CPUs, float16 on GPUs.

Convolutions, products and what stands between them compute in the narrow format: so does their backward pass. Weights,
the statistics of batch norms, losses and targets are float32; a cast before each narrow operator rounds a weight, and
its backward pass gives the weight's gradient as float32. What is cast is what Micikevicius et al., "Mixed Precision
Training" (2018), section 3, keep in float16, and torch's autocast in bfloat16.

float16 has few exponents: `scaled` makes a loss a multiple of an input, so that small gradients are not lost (their
section 3.2). bfloat16 has those of float32, and needs none.
"""

from collections.abc import Callable, Mapping

from graph.onednn import BLOCK
from graph.symbol_graph import VARIABLE, Edge, Shape, SymbolNode, graph_of, node_shapes, symbol_of
from machine.runtime import mx

FLOAT32, BFLOAT16, FLOAT16 = DTYPES = "float32", "bfloat16", "float16"
LOSS_SCALE = "loss_scale"  # the input that `scaled` adds, of shape (1,)
SCALED_LOSSES = "scaled_losses"  # and its output
_FLOAT32_NUMBER = "0"  # of float32 in a variable's __dtype__
LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected"})
_NORMS = frozenset({"BatchNorm", "_contrib_BatchNormWithReLU"})  # only their data is narrow
_SUMS = frozenset({"Concat", "elemwise_add", "add_n"})  # go on narrow where one operand is
# These go on in the narrow format where all that they read is narrow. What else reads a narrow map gets float32: on
# CPUs many of MXNet's operators refuse bfloat16, and transpose computes nonsense of it.
_FOLLOW = frozenset({"Pooling", "slice_axis", "slice", "Reshape", "Flatten", "clip"})
_FOLLOW_FLOAT16 = frozenset({"UpSampling", "Pad", "Dropout", "broadcast_mul", "elemwise_mul", "_mul_scalar"})
_ACTIVATIONS = {"Activation": frozenset({"relu", "sigmoid", "tanh"}), "LeakyReLU": frozenset({"leaky", "elu"})}
_IGNORE_HEAD = frozenset({"make_loss", "MakeLoss"})  # their gradient is a constant, whatever reads them


def to_mixed(symbol: mx.sym.Symbol, shapes: Mapping[str, Shape], dtype: str) -> mx.sym.Symbol:
    """The training outputs, float32 as all inputs are, computed with narrow maps; dtype: bfloat16 or float16.

    shapes: of data and labels by name, batch included. In bfloat16 convolutions that are not of whole blocks of
    channels stay float32: oneDNN has none but general matrix products for them, whose plain layout slows what follows.
    """
    graph = graph_of(symbol)
    names = set(symbol.list_inputs())
    found = node_shapes(symbol, **{name: shape for name, shape in shapes.items() if name in names})
    work = _Narrowing(dtype, lambda node: dtype == BFLOAT16 and not _is_of_blocks(node, found))
    for node in graph.nodes():
        work.visit(node)
    graph.outputs = [work.cast(edge, FLOAT32) for edge in graph.outputs]
    return symbol_of(graph)


class Casts:
    """Which nodes of a graph are narrow, and the casts between them and the others; one serves all readers of an
    edge."""

    def __init__(self, dtype: str) -> None:
        """dtype: of the narrow nodes; all others give float32."""
        self.dtype = dtype
        self.narrow: set[SymbolNode] = set()
        self._made: dict[tuple[Edge, str], Edge] = {}

    def cast(self, edge: Edge, dtype: str) -> Edge:
        """The edge, through a cast if it has the other number format."""
        if (edge.node in self.narrow) == (dtype != FLOAT32):
            return edge
        if (edge, dtype) not in self._made:
            name = f"{edge.node.name}_{edge.output}_{dtype}"
            self._made[edge, dtype] = Edge(SymbolNode("amp_cast", name, {"dtype": dtype}, [edge]))
        return self._made[edge, dtype]


class _Narrowing(Casts):
    """The rules of training, for nodes in the order in which they are computed."""

    def __init__(self, dtype: str, stays: Callable[[SymbolNode], bool]) -> None:
        """stays: whether a layer is float32."""
        super().__init__(dtype)
        self._stays = stays

    def visit(self, node: SymbolNode) -> None:
        """Gives a node the casts that it needs."""
        if node.op == VARIABLE:
            node.attrs["__dtype__"] = _FLOAT32_NUMBER
        elif node.op in LAYERS and not self._stays(node) or self._adds_narrow(node):
            node.inputs = [self.cast(edge, self.dtype) for edge in node.inputs]
            self.narrow.add(node)
        elif self._follows(node):
            self.narrow.add(node)
        else:
            node.inputs = [self.cast(edge, FLOAT32) for edge in node.inputs]

    def _adds_narrow(self, node: SymbolNode) -> bool:
        return node.op in _SUMS and any(edge.node in self.narrow for edge in node.inputs)

    def _follows(self, node: SymbolNode) -> bool:
        if node.op in _NORMS:
            return node.inputs[0].node in self.narrow
        is_known = node.op in _FOLLOW or node.attrs.get("act_type") in _ACTIVATIONS.get(node.op, ())
        is_known = is_known or self.dtype == FLOAT16 and node.op in _FOLLOW_FLOAT16
        return is_known and all(edge.node in self.narrow for edge in node.inputs)


def _is_of_blocks(node: SymbolNode, shapes: Mapping[str, Shape]) -> bool:
    """Whether a layer reads and gives whole blocks of channels; others than convolutions count as such."""
    if node.op != "Convolution":
        return True
    return not shapes[node.name][1] % BLOCK and not shapes[node.inputs[0].node.name][1] % BLOCK


def scaled(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The training outputs, whose gradients are multiplied by the input LOSS_SCALE, and one output more.

    The outputs keep values and order; SCALED_LOSSES, the last and new one, is what the gradients come from. A
    SoftmaxOutput computes its gradient itself, and is told to multiply it by that of its output.
    """
    graph = graph_of(symbol)
    scale = Edge(SymbolNode(VARIABLE, LOSS_SCALE, {"__shape__": "(1,)", "__dtype__": _FLOAT32_NUMBER}))
    sums, outputs = [], []
    for edge in graph.outputs:
        node = edge.node
        value = node.inputs[0] if node.op in _IGNORE_HEAD else edge
        if node.op == "SoftmaxOutput":
            node.attrs["out_grad"] = "True"
        if float(node.attrs.get("grad_scale", "1")):
            sums.append(_summed(node, value))
        outputs.append(Edge(SymbolNode("BlockGrad", f"{node.name}_value", {}, [value])))
    total = Edge(SymbolNode("add_n", "losses", {"num_args": str(len(sums))}, sums))
    product = Edge(SymbolNode("broadcast_mul", "losses_by_scale", {}, [total, scale]))
    graph.outputs = [*outputs, Edge(SymbolNode("make_loss", SCALED_LOSSES, {}, [product]))]
    return symbol_of(graph)


def _summed(node: SymbolNode, value: Edge) -> Edge:
    """(1,): a loss whose gradient by value is that of the node."""
    total = Edge(SymbolNode("sum", f"{node.name}_total", {"axis": "()", "keepdims": "False"}, [value]))
    total = Edge(SymbolNode("Reshape", f"{node.name}_scalar", {"shape": "(1,)"}, [total]))
    if node.op != "MakeLoss":
        return total
    factor = {"scalar": node.attrs.get("grad_scale", "1")}
    total = Edge(SymbolNode("_mul_scalar", f"{node.name}_weighted", factor, [total]))
    rule = node.attrs.get("normalization", "null")
    if rule == "null":
        return total
    if rule != "valid":
        raise ValueError(f"{node.name}: MakeLoss with normalization={rule} cannot be scaled")
    limit = {"scalar": node.attrs.get("valid_thresh", "0")}
    valid = Edge(SymbolNode("_greater_scalar", f"{node.name}_valid", limit, [value]))
    count = Edge(SymbolNode("sum", f"{node.name}_count", {"axis": "()", "keepdims": "False"}, [valid]))
    count = Edge(SymbolNode("_maximum_scalar", f"{node.name}_number", {"scalar": "1"}, [count]))
    count = Edge(SymbolNode("Reshape", f"{node.name}_divisor", {"shape": "(1,)"}, [count]))
    return Edge(SymbolNode("elemwise_div", f"{node.name}_mean", {}, [total, count]))
