"""Training in mixed precision, by one rewriting of the training graph: bfloat16 on CPUs, float16 on GPUs.

Convolutions, products and what stands between them compute in the narrow format: so does their backward pass. Weights,
the statistics of batch norms, losses and targets are float32; a cast before each narrow operator rounds a weight, and
its backward pass gives the weight's gradient as float32. What is cast is what Micikevicius et al., "Mixed Precision
Training" (2018), section 3, keep in float16, and torch's autocast in bfloat16.

float16 has few exponents: `scaled` makes a loss a multiple of an input, so that small gradients are not lost (their
section 3.2). bfloat16 has those of float32, and needs none.
"""

from collections.abc import Mapping, Sequence, Set

import numpy as np

from graph.onednn import BLOCK, MOST_COLOURS
from graph.symbol_graph import VARIABLE, Edge, Shape, SymbolNode, graph_of, node_shapes, pair, symbol_of
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
_WINDOW = (("kernel", 1), ("stride", 1), ("dilate", 1), ("pad", 0))  # attributes and defaults
_ACTIVATIONS = {"Activation": frozenset({"relu", "sigmoid", "tanh"}), "LeakyReLU": frozenset({"leaky", "elu"})}


def to_mixed(symbol: mx.sym.Symbol, shapes: Mapping[str, Shape], dtype: str) -> mx.sym.Symbol:
    """The training outputs, float32 as all inputs are, computed with narrow maps; dtype: bfloat16 or float16.

    shapes: of data and labels by name, batch included. In bfloat16 convolutions that are not of whole blocks of
    channels stay float32: oneDNN has none but general matrix products for them, whose plain layout slows what follows.
    A convolution of a picture's colours is narrow all the same, but before a batch norm. One of which some weights
    meet nothing but padding stays float32, too: oneDNN 2.4 leaves their gradients as the memory was (tried: one column
    of pixels is given, and the stride is more than 1).
    """
    graph = graph_of(symbol)
    names = set(symbol.list_inputs())
    found = node_shapes(symbol, **{name: shape for name, shape in shapes.items() if name in names})
    readers = graph.readers() if dtype == BFLOAT16 else {}
    work = _Narrowing(dtype, {node for node, others in readers.items() if _stays_float32(node, others, found)})
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

    def __init__(self, dtype: str, stays: Set[SymbolNode]) -> None:
        """stays: layers that are float32."""
        super().__init__(dtype)
        self._stays = stays

    def visit(self, node: SymbolNode) -> None:
        """Gives a node the casts that it needs."""
        if node.op == VARIABLE:
            node.attrs["__dtype__"] = _FLOAT32_NUMBER
        elif node.op in LAYERS and node not in self._stays or self._adds_narrow(node):
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


def _stays_float32(node: SymbolNode, readers: Sequence[SymbolNode], shapes: Mapping[str, Shape]) -> bool:
    if node.op != "Convolution":
        return False
    before, after = shapes[node.inputs[0].node.name], shapes[node.name]
    if _has_idle_weights(node, before[2:], after[2:]):
        return True
    channels, filters = before[1], after[1]
    if not channels % BLOCK and not filters % BLOCK:
        return False
    return channels > MOST_COLOURS or any(reader.op in _NORMS for reader in readers)


def _has_idle_weights(node: SymbolNode, before: Shape, after: Shape) -> bool:
    """Whether a row or column of a convolution's weights meets padding alone, wherever the kernel stands."""
    kernel, stride, dilate, pad = (pair(node, *wanted) for wanted in _WINDOW)
    for axis, (length, count) in enumerate(zip(before, after, strict=True)):
        places = np.arange(count) * stride[axis] - pad[axis]  # of the first weight
        met = places + np.arange(kernel[axis])[:, None] * dilate[axis]  # (weights, places)
        if not ((met >= 0) & (met < length)).any(1).all():
            return True
    return False


def scaled(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The training outputs, whose gradients are multiplied by the input LOSS_SCALE, and one output more.

    The outputs keep values and order; SCALED_LOSSES, the last and new one, is what the gradients come from.
    """
    graph = graph_of(symbol)
    scale = Edge(SymbolNode(VARIABLE, LOSS_SCALE, {"__shape__": "(1,)", "__dtype__": _FLOAT32_NUMBER}))
    losses, outputs = [], []
    for edge in graph.outputs:
        node = edge.node
        if node.op not in _LOSSES:
            raise ValueError(f"{node.name}: {node.op} is no loss that can be scaled")
        value = node.inputs[0]
        if node.op == "SoftmaxOutput":  # which adds its gradient even where nothing asks for one
            value = _op("softmax", node.name, [value], axis=1)
        if float(node.attrs.get("grad_scale", "1")):
            losses.append(_LOSSES[node.op](node))
        outputs.append(Edge(SymbolNode("BlockGrad", f"{node.name}_value", {}, [value])))
    total = _op("add_n", "losses", losses, num_args=len(losses))
    product = _op("broadcast_mul", "losses_by_scale", [total, scale])
    graph.outputs = [*outputs, _op("make_loss", SCALED_LOSSES, [product])]
    return symbol_of(graph)


def _op(op: str, name: str, inputs: list[Edge], **attrs: object) -> Edge:
    return Edge(SymbolNode(op, name, {key: str(value) for key, value in attrs.items()}, inputs))


def _sum(name: str, value: Edge) -> Edge:
    """(1,)."""
    return _op("Reshape", name, [_op("sum", f"{name}_all", [value], axis="()", keepdims=False)], shape="(1,)")


def _plain_loss(node: SymbolNode) -> Edge:
    """make_loss: its gradient is 1."""
    return _sum(f"{node.name}_total", node.inputs[0])


def _normalised_loss(node: SymbolNode) -> Edge:
    """MakeLoss: its gradient is grad_scale, divided by the number of values above valid_thresh if it is asked to."""
    name, (value,), rule = node.name, node.inputs, node.attrs.get("normalization", "null")
    total = _op("_mul_scalar", f"{name}_weighted", [_plain_loss(node)], scalar=node.attrs.get("grad_scale", "1"))
    if rule == "null":
        return total
    if rule != "valid":
        raise ValueError(f"{name}: MakeLoss with normalization={rule} cannot be scaled")
    valid = _op("_greater_scalar", f"{name}_valid", [value], scalar=node.attrs.get("valid_thresh", "0"))
    return _op("elemwise_div", f"{name}_mean", [total, _count(name, valid)])


def _cross_entropy(node: SymbolNode) -> Edge:
    """SoftmaxOutput over axis 1: its gradient, of its own, is that of the mean cross entropy of labels not ignored."""
    name, (logits, label) = node.name, node.inputs
    wanted = {"multi_output": "True", "use_ignore": "True", "normalization": "valid"}
    if any(node.attrs.get(key) != value for key, value in wanted.items()):
        raise ValueError(f"{name}: this SoftmaxOutput cannot be scaled")
    log_prob = _op("log_softmax", f"{name}_log", [logits], axis=1)
    ignored = node.attrs.get("ignore_label", "-1")
    valid = _op("_not_equal_scalar", f"{name}_valid", [label], scalar=ignored)  # (B, A)
    picked = _op("pick", f"{name}_own", [log_prob, label], axis=1)  # (B, A); clips ignored labels, valid removes them
    total = _sum(f"{name}_total", _op("elemwise_mul", f"{name}_counted", [picked, valid]))
    return _op("elemwise_div", f"{name}_mean", [_op("negative", f"{name}_loss", [total]), _count(name, valid)])


def _count(name: str, valid: Edge) -> Edge:
    """(1,): how many are 1, at least 1."""
    return _op("_maximum_scalar", f"{name}_number", [_sum(f"{name}_count", valid)], scalar=1)


_LOSSES = {"make_loss": _plain_loss, "MakeLoss": _normalised_loss, "SoftmaxOutput": _cross_entropy}
