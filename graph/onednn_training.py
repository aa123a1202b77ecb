"""Losses rewritten for oneDNN when they are bound for training on CPUs; a step gives the same but for rounding.

suit_training changes operators, not parameters: weights, gradients and moving averages keep names and shapes. What
costs time in MXNet 1.9.1 on CPUs, and what takes its place:

- A batch norm and the ReLU behind it are one operator.
- ReLU6 (clip) is none of oneDNN's operators: maps are copied to a plain layout and back. Where it follows a batch norm
  b(x), u = relu(6 - b(x)) is that batch norm with other gamma and beta, and relu(6 - u) one with constants; oneDNN
  computes each together with its ReLU.
- The backward pass of a batch norm is slow, or refused with a ReLU, where its data and gradient lie in blocks of 8 and
  of 16 channels. Convolutions of other numbers of channels than multiples of 16 make them so: they get channels of
  zeros.
- The slice of TensorFlow's SAME padding copies maps: a kernel with a row and column of zeros more begins where it must.
- Means of maps, and the gradients of what is spread over maps, are sums that MXNet's kernels take a value at a time.
  BLAS's products of matrices are several times as fast: with a vector of ones, and with the numbers that are spread.
- The weight gradient of a depthwise convolution with more than 3x3 weights is a general matrix product for each channel
  and image. The same weights on the diagonals of 16x16 blocks are an ordinary convolution of groups.
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from graph.onednn import BLOCK, MOST_COLOURS, is_mean, same_padding
from graph.symbol_graph import VARIABLE, Edge, Shape, SymbolNode, graph_of, node_shapes, pair, symbol_of
from machine.runtime import mx

CONSTANT = "onednn_"  # begins the names of auxiliary states that are constants of a rewritten graph
MOST_OF_JIT = 3  # side of the largest depthwise kernel whose weight gradient oneDNN 2.4 has a kernel for
FEWEST_PIXELS = 1025  # of all maps of a batch, for a depthwise convolution in blocks: with fewer its weights cost more
FEWEST_CHANNELS = 17  # of a convolution's input that get channels of zeros: maps of fewer are large, and so cost more
MOST_FILTERS = BLOCK // 2  # of a convolution that stays: as many are a block of their own
_SIX = {"fix_gamma": "False", "use_global_stats": "True", "eps": "1e-20"}
_ROUNDING = 1e-5
_BATCH_NORM_RELU = "_contrib_BatchNormWithReLU"


def suit_training(symbol: mx.sym.Symbol, shapes: Mapping[str, Shape]) -> mx.sym.Symbol:
    """The training outputs without what is slow; shapes: of data and labels by name, batch included.

    It trains inputs of other sizes, too; the shapes decide what pays. Auxiliary states of which is_constant is true
    must hold what their variables' initialisers say.
    """
    work = _Rewriting(symbol, shapes)
    work.apply("slice", work.cut)
    work.apply("Convolution", work.in_blocks)
    work.apply("Convolution", work.whole_blocks)
    work.apply("mean", work.mean)
    work.apply("elemwise_mul", work.gate)
    if supports_batch_norm_relu():
        work.apply("clip", work.relu6)
        work.apply("Activation", work.batch_norm_relu)
    return symbol_of(work.graph)


def is_constant(name: str) -> bool:
    """Whether an auxiliary state is a constant of a rewritten graph, which no checkpoint holds."""
    return name.startswith(CONSTANT)


class _Rewriting:
    """A graph and the shapes of what its nodes give. Rules give what is read in a node's place, or None."""

    def __init__(self, symbol: mx.sym.Symbol, known: Mapping[str, Shape]) -> None:
        self.graph = graph_of(symbol)
        inputs = symbol.list_inputs()
        self._shapes = node_shapes(symbol, **{name: shape for name, shape in known.items() if name in inputs})
        self._constants: dict[tuple[str, int], Edge] = {}
        self._broken: set[str] = set()  # convolutions that are not of whole blocks
        for node in self.graph.nodes():  # a shape is not inferred backwards through what is put around a weight
            if node.op == VARIABLE and node.name not in known:
                node.attrs["__shape__"] = str(self._shapes[node.name])

    def apply(self, op: str, rule: Callable[[SymbolNode], Edge | None]) -> None:
        """Replaces all nodes of an operator for which the rule has something better."""
        self._readers = self.graph.readers()
        found = ((node, rule(node)) for node in self.graph.nodes() if node.op == op)
        self.graph.replace({Edge(node): better for node, better in found if better})

    def cut(self, node: SymbolNode) -> Edge | None:
        """A convolution of stride 2 without its first row and column."""
        convolution = node.inputs[0].node
        pad = same_padding(node, convolution)
        if pad is None or len(self._readers[convolution]) > 1:
            return None
        name, weight = convolution.name, convolution.inputs[1]
        filters, channels, *kernel = self._shapes[weight.node.name]
        side = kernel[0] + 1
        before, after = (self._shapes[n.name][2:] for n in (convolution.inputs[0].node, node))
        if kernel != [side - 1] * 2 or after != tuple((length + 2 * (pad - 1) - side) // 2 + 1 for length in before):
            return None
        for axis, shape in ((2, (1, side - 1)), (3, (side, 1))):
            zeros = _zeros(f"{name}_cut{axis}_zeros", (filters, channels, *shape))
            weight = _joined(f"{name}_cut{axis}", [zeros, weight], axis)
        self._shapes[weight.node.name] = (filters, channels, side, side)
        attrs = {"kernel": f"({side}, {side})", "pad": f"({pad - 1}, {pad - 1})"}
        self._shapes[name] = self._shapes[node.name]
        return _convolution(convolution, attrs, [convolution.inputs[0], weight, *convolution.inputs[2:]])

    def in_blocks(self, node: SymbolNode) -> Edge | None:
        """A depthwise convolution whose weight gradient is slow, in groups of BLOCK channels."""
        shape, kernel = self._shapes[node.name], pair(node, "kernel", 1)
        channels, pixels = shape[1], shape[0] * shape[2] * shape[3]
        is_depthwise = _groups(node) == channels == self._shapes[node.inputs[0].node.name][1]
        if not is_depthwise or channels % BLOCK or max(kernel) <= MOST_OF_JIT or pixels < FEWEST_PIXELS:
            return None
        name, blocks, taps = node.name, channels // BLOCK, kernel[0] * kernel[1]
        # A weight and BLOCK zeros, again and again, cut off after BLOCK * BLOCK: the weights lie on the diagonal.
        net = _reshaped(f"{name}_rows", node.inputs[1], (blocks, BLOCK, 1, taps))
        net = _padded(f"{name}_spaced", net, (0, 0, 0, 0, 0, BLOCK, 0, 0))
        net = _reshaped(f"{name}_flat", net, (blocks, BLOCK * (BLOCK + 1), taps))
        net = _sliced(f"{name}_diagonal", net, 1, BLOCK * BLOCK)
        net = _reshaped(f"{name}_blocks", net, (channels, BLOCK, *kernel))
        return _convolution(node, {"num_group": str(blocks)}, [node.inputs[0], net, *node.inputs[2:]])

    def whole_blocks(self, node: SymbolNode) -> Edge | None:
        """A convolution of whole blocks of channels, read and given."""
        data, weight, *bias = node.inputs
        if _groups(node) > 1:
            if self._shapes[node.name][1] % BLOCK:
                self._broken.add(node.name)
            return None
        filters, channels, *kernel = self._shapes[weight.node.name]
        more, missing = (
            -filters % BLOCK if filters > MOST_FILTERS else 0,
            -channels % BLOCK if channels >= FEWEST_CHANNELS else 0,
        )
        if (filters + more) % BLOCK or (channels + missing) % BLOCK and channels > MOST_COLOURS:
            self._broken.add(node.name)
        if not more and not missing:
            return None
        name = node.name
        if missing:
            net = _reshaped(f"{name}_depth", data, (0, -4, 1, -1, -2))  # (N, 1, C, H, W): Pad leaves the second axis
            net = _padded(f"{name}_padded", net, (0, 0, 0, 0, 0, missing, 0, 0, 0, 0))
            data = _reshaped(f"{name}_data", net, (0, -3, -2))
            zeros = _zeros(f"{name}_channels_zeros", (filters, missing, *kernel))
            weight = _joined(f"{name}_channels", [weight, zeros], 1)
        if not more:
            return _convolution(node, {}, [data, weight, *bias])
        zeros = _zeros(f"{name}_filters_zeros", (more, channels + missing, *kernel))
        weight = _joined(f"{name}_filters", [weight, zeros], 0)
        bias = [_joined(f"{name}_biases", [edge, _zeros(f"{name}_biases_zeros", (more,))], 0) for edge in bias]
        wide = _convolution(node, {"num_filter": str(filters + more)}, [data, weight, *bias])
        return _sliced(f"{name}_cut", wide, 1, filters)

    def mean(self, node: SymbolNode) -> Edge | None:
        """The means of maps as products with ones."""
        name, (data,) = node.name, node.inputs
        shape = self._shapes[data.node.name]
        if not is_mean(node) or len(shape) != 4:
            return None
        flat = _reshaped(f"{name}_flat", data, (-3, -3))  # (N * C, H * W)
        ones = SymbolNode("ones_like", f"{name}_ones", {}, [_sliced(f"{name}_row", flat, 0, 1)])
        row = Edge(SymbolNode("BlockGrad", f"{name}_row_of_ones", {}, [Edge(ones)]))
        total = _product("dot", f"{name}_total", flat, row)
        count = _product("dot", f"{name}_count", row, row)
        means = Edge(SymbolNode("broadcast_div", f"{name}_means", {}, [total, count]))  # (N * C, 1)
        return _reshaped(name, means, (-1, shape[1], 1, 1))

    def gate(self, node: SymbolNode) -> Edge | None:
        """A map times what is spread over it, one number for each channel or for all, as a product of matrices."""
        data, spread = node.inputs
        if spread.node.op != "broadcast_like" or spread.node.inputs[1] != data or spread.node.attrs:
            return None
        name, (numbers, _) = node.name, spread.node.inputs
        shape, own = self._shapes[data.node.name], self._shapes[numbers.node.name]
        if len(shape) != 4 or own not in ((*shape[:2], 1, 1), (1, 1, 1, 1)):
            return None
        if own == (1, 1, 1, 1):
            rows, factor = _reshaped(f"{name}_flat", data, (1, -1)), _reshaped(f"{name}_number", numbers, (1, 1))
            product = _product("dot", f"{name}_product", factor, rows, transposed=False)
        else:
            flat = _reshaped(f"{name}_flat", data, (-3, -3))
            rows = Edge(SymbolNode("expand_dims", f"{name}_rows", {"axis": "1"}, [flat]))  # (N * C, 1, H * W)
            factor = _reshaped(f"{name}_numbers", numbers, (-3, 0, 0))
            product = _product("batch_dot", f"{name}_product", factor, rows, transposed=False)
        return Edge(SymbolNode("reshape_like", name, {}, [product, data]))

    def relu6(self, node: SymbolNode) -> Edge | None:
        """Two batch norms with ReLU in place of one and a clip."""
        norm = node.inputs[0].node
        limits = tuple(float(node.attrs[key]) for key in ("a_min", "a_max"))
        if limits != (0.0, 6.0) or not self._can_take_relu(norm) or norm.attrs.get("fix_gamma", "True") != "False":
            return None
        channels = self._shapes[norm.name][1]
        data, gamma, beta, *moving = norm.inputs
        turned = Edge(SymbolNode("negative", f"{norm.name}_turned", {}, [gamma]))
        moved = Edge(SymbolNode("_rminus_scalar", f"{norm.name}_moved", {"scalar": "6"}, [beta]))
        above = Edge(SymbolNode(_BATCH_NORM_RELU, norm.name, dict(norm.attrs), [data, turned, moved, *moving]))
        constants = [self._constant(kind, channels) for kind in ("minus", "six", "zero", "one")]
        return Edge(SymbolNode(_BATCH_NORM_RELU, node.name, dict(_SIX), [above, *constants]))

    def batch_norm_relu(self, node: SymbolNode) -> Edge | None:
        """A batch norm with the ReLU behind it."""
        norm = node.inputs[0].node
        if node.attrs["act_type"] != "relu" or not self._can_take_relu(norm):
            return None
        return Edge(SymbolNode(_BATCH_NORM_RELU, node.name, dict(norm.attrs), norm.inputs))

    def _can_take_relu(self, norm: SymbolNode) -> bool:
        """Whether a node is a batch norm of maps in whole blocks whose only reader may become a part of it."""
        is_output = any(edge.node is norm for edge in self.graph.outputs)
        if norm.op != "BatchNorm" or len(self._readers[norm]) > 1 or is_output or norm.attrs.get("axis", "1") != "1":
            return False
        shape = self._shapes[norm.name]
        return len(shape) == 4 and shape[1] % BLOCK == 0 and self._has_one_layout(norm)

    def _has_one_layout(self, norm: SymbolNode) -> bool:
        """Whether data and gradient of a batch norm cannot lie in different blocks, which oneDNN refuses with a ReLU.

        Convolutions of whole blocks read and give whole blocks; slices and reshapes are plain, which MXNet copies.
        """
        activation = self._readers[norm][0]
        around = [norm.inputs[0].node, *self._readers[activation]]
        if all(node.op in ("Convolution", "slice_axis", "Reshape") for node in around):
            return not self._broken & {node.name for node in around}
        return not self._broken

    def _constant(self, kind: str, channels: int) -> Edge:
        """A vector of equal numbers; those that a batch norm may change are variables."""
        name = f"{CONSTANT}{kind}_{channels}"
        shape = f"({channels},)"
        if (kind, channels) not in self._constants:
            if kind in ("minus", "six"):
                value = "-1" if kind == "minus" else "6"
                made = SymbolNode("_full", name, {"shape": shape, "value": value, "dtype": "float32"})
            else:
                made = SymbolNode(VARIABLE, name, {"__shape__": shape, "__init__": f'["{kind}", {{}}]'})
            self._constants[kind, channels] = Edge(made)
        return self._constants[kind, channels]


@cache
def supports_batch_norm_relu() -> bool:
    """Whether MXNet has a batch norm with ReLU for CPUs, forward and backward: builds without oneDNN have none."""
    data = mx.nd.array(np.linspace(-2, 2, 2 * BLOCK).reshape(2, BLOCK, 1, 1))
    try:
        one, zero = mx.nd.ones(BLOCK), mx.nd.zeros(BLOCK)
        data.attach_grad()
        with mx.autograd.record():
            found = mx.nd.contrib.BatchNormWithReLU(data, one, zero, zero, one, **_SIX)
        found.backward()
        expected = mx.nd.maximum(data, 0)
        return bool((found - expected).abs().max() < _ROUNDING and (data.grad - (data > 0)).abs().max() < _ROUNDING)
    except (AttributeError, mx.MXNetError):
        return False


def _groups(node: SymbolNode) -> int:
    return int(node.attrs.get("num_group", "1"))


def _convolution(node: SymbolNode, attrs: dict[str, str], inputs: list[Edge]) -> Edge:
    return Edge(SymbolNode("Convolution", node.name, {**node.attrs, **attrs}, inputs))


def _product(op: str, name: str, left: Edge, right: Edge, transposed: bool = True) -> Edge:
    return Edge(SymbolNode(op, name, {"transpose_b": str(transposed)}, [left, right]))


def _zeros(name: str, shape: Shape) -> Edge:
    return Edge(SymbolNode("_zeros", name, {"shape": str(shape), "dtype": "float32"}))


def _joined(name: str, edges: list[Edge], axis: int) -> Edge:
    return Edge(SymbolNode("Concat", name, {"dim": str(axis), "num_args": str(len(edges))}, edges))


def _sliced(name: str, edge: Edge, axis: int, end: int) -> Edge:
    return Edge(SymbolNode("slice_axis", name, {"axis": str(axis), "begin": "0", "end": str(end)}, [edge]))


def _reshaped(name: str, edge: Edge, shape: Shape) -> Edge:
    return Edge(SymbolNode("Reshape", name, {"shape": str(shape)}, [edge]))


def _padded(name: str, edge: Edge, width: Shape) -> Edge:
    attrs = {"mode": "constant", "constant_value": "0", "pad_width": str(width)}
    return Edge(SymbolNode("Pad", name, attrs, [edge]))
