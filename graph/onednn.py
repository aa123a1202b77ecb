"""Networks rewritten for oneDNN, with which MXNet computes on CPUs, when they are bound: files never hold the result.

MXNet 1.9.1 multiplies, slices and averages outside of oneDNN, on maps in a plain layout. Between convolutions, whose
maps lie in blocks of channels, each such operator has its maps copied from one layout to the other and back, which took
most of the time of an EfficientDet. Here operators of oneDNN take their places; outputs change by rounding alone.

A number of channels that is no multiple of 16, as that of most predictions is, leaves oneDNN a general matrix product,
which takes several times as long. Channels of zeros make up the number; they are cut off where MXNet copies the map
anyway.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from graph.fold import fold_batch_norm, fold_constants
from graph.symbol_graph import VARIABLE, Edge, Params, SymbolGraph, SymbolNode, graph_of, node_shapes, symbol_of
from machine.runtime import mx

Rule = Callable[[SymbolNode], SymbolNode | None]
_GLOBAL = {"global_pool": "True", "kernel": "(1, 1)"}
_SCALE = {"fix_gamma": "False", "use_global_stats": "True", "eps": "1e-20"}
_ROUNDING = 1e-3  # a larger error of swish is that of another function
_OUTPUT = "output"  # the reader of what the network gives
_CUT = ("(None,None,1,1)", "(None,None,None,None)")  # begin and end of a slice: no first row, no first column
BLOCK = 16  # channels that AVX-512 computes together
MOST_COLOURS = 3  # channels of a picture, which oneDNN reads in a plain layout
_TURN, _RESHAPE = "transpose", "Reshape"


def suit_onednn(
    symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params, shape: tuple[int, ...]
) -> tuple[mx.sym.Symbol, Params, Params]:
    """The network and its weights for inputs of this shape, batch included; nothing that was given is changed.

    Batch norms and constants are folded. What takes the place of an operator has its name. Networks with nothing to
    gain stay as they are.
    """
    if not any(_is_slow(node) for node in graph_of(symbol).nodes()):
        return symbol, arg_params, aux_params
    symbol, arg_params, aux_params = fold_batch_norm(symbol, arg_params, aux_params)
    symbol, arg_params = fold_constants(symbol, arg_params, (1, *shape[1:]))
    work = _Rewriting(symbol, arg_params, aux_params, shape)
    rules: dict[str, Rule] = {
        "mean": work.mean,
        "slice": work.cut,
        "max": work.largest,
        "_mul_scalar": work.scale,
        "clip": work.relu6,
    }
    if supports_swish():
        rules["elemwise_mul"] = work.swish
    if shape[0] == 1:
        rules["broadcast_mul"] = work.gate
    work.apply(rules)
    return work.result()


def has_squeeze_excitation(symbol: mx.sym.Symbol) -> bool:
    """Whether a network has squeeze-excitation, the gates of each image being its own.

    Rewritten for a single image such a network runs several faster one after the other than rewritten for a batch.
    """
    return any(is_mean(node) for node in graph_of(symbol).nodes())


class _Rewriting:
    """A graph, its weights, the shapes of what its nodes give, and the operators that read them.

    Rules give what takes a node's place, or None.
    """

    def __init__(self, symbol: mx.sym.Symbol, args: Params, aux: Params, shape: tuple[int, ...]) -> None:
        self._args, self._aux = dict(args), dict(aux)
        self._graph, self._shapes = graph_of(symbol), node_shapes(symbol, data=shape)
        self._readers = {node: [reader.op for reader in readers] for node, readers in self._graph.readers().items()}
        for edge in self._graph.outputs:
            self._readers[edge.node].append(_OUTPUT)

    def apply(self, rules: dict[str, Rule]) -> None:
        """Replaces nodes by the rules of their operators."""
        for op, rule in rules.items():
            found = ((node, rule(node)) for node in self._graph.nodes() if node.op == op)
            self._graph.replace({Edge(node): Edge(better) for node, better in found if better})

    def result(self) -> tuple[mx.sym.Symbol, Params, Params]:
        """The symbol and the weights that it reads."""
        symbol = symbol_of(self._graph)
        args, aux = set(symbol.list_arguments()), set(symbol.list_auxiliary_states())
        return symbol, _selected(self._args, args), _selected(self._aux, aux)

    def swish(self, node: SymbolNode) -> SymbolNode | None:
        """x * sigmoid(x) is one operator: sigmoid is the derivative of softplus, which oneDNN multiplies by x."""
        data, other = node.inputs
        gate = other.node
        if gate.op != "Activation" or gate.attrs["act_type"] != "sigmoid" or gate.inputs[0] != data:
            return None
        return _swish(node.name, data) if self._is_map(node) else None

    def mean(self, node: SymbolNode) -> SymbolNode | None:
        """The mean of each channel is global pooling."""
        if not is_mean(node) or not self._is_map(node):
            return None
        return SymbolNode("Pooling", node.name, {**_GLOBAL, "pool_type": "avg"}, node.inputs)

    def cut(self, node: SymbolNode) -> SymbolNode | None:
        """A convolution of stride 2 without its first row and column: it starts where it must if its kernel has a row
        and a column of zeros more. Where this would give another shape, the slice stays."""
        convolution = node.inputs[0].node
        pad = same_padding(node, convolution)
        weight = self._args.get(convolution.inputs[1].node.name) if pad is not None else None
        if pad is None or weight is None or self._readers[convolution] != ["slice"]:
            return None
        wide = np.pad(weight.asnumpy(), ((0, 0), (0, 0), (1, 0), (1, 0)))
        side = wide.shape[-1]
        before = self._shapes[convolution.inputs[0].node.name][2:]
        after = tuple((length + 2 * (pad - 1) - side) // 2 + 1 for length in before)
        if wide.shape[2] != side or after != self._shapes[node.name][2:]:
            return None
        attrs = {**convolution.attrs, "kernel": f"({side}, {side})", "pad": f"({pad - 1}, {pad - 1})"}
        edge = self._parameter(f"{convolution.name}_weight_wide", wide, self._args)
        return SymbolNode(
            "Convolution", convolution.name, attrs, [convolution.inputs[0], edge, *convolution.inputs[2:]]
        )

    def largest(self, node: SymbolNode) -> SymbolNode | None:
        """The maximum over the last of three axes is pooling along it, three times as fast."""
        source, found = self._shapes[node.inputs[0].node.name], self._shapes[node.name]
        if len(source) != 3 or node.attrs.get("axis") != "2" or found != source[:2]:
            return None
        rows = SymbolNode("Reshape", f"{node.name}_rows", {"shape": "(-3, -1, 1)"}, node.inputs)  # (B * A, C, 1)
        whole = {"kernel": f"({source[2]},)", "pool_type": "max", "layout": "NWC"}
        pooled = SymbolNode("Pooling", f"{node.name}_pooled", whole, [Edge(rows)])
        return SymbolNode("Reshape", node.name, {"shape": f"(-1, {found[1]})"}, [Edge(pooled)])

    def scale(self, node: SymbolNode) -> SymbolNode | None:
        """A map times a number, where maps are added: the gamma of a batch norm that does nothing else."""
        if not self._is_map(node) or set(self._readers[node]) != {"add_n"}:
            return None
        gamma = np.full(self._shapes[node.name][1], float(node.attrs["scalar"]))
        return self._scaled(node, node.inputs[0], self._parameter(f"{node.name}_gamma", gamma, self._args))

    def relu6(self, node: SymbolNode) -> SymbolNode | None:
        """ReLU6 of what is no convolution, which would take it in: oneDNN's ReLU and a minimum, six times as fast."""
        if not _is_free_relu6(node):
            return None
        positive = SymbolNode("Activation", f"{node.name}_positive", {"act_type": "relu"}, node.inputs)
        return SymbolNode("_minimum_scalar", node.name, {"scalar": "6"}, [Edge(positive)])

    def gate(self, node: SymbolNode) -> SymbolNode | None:
        """A map times a number for each channel that depends on the image: gamma, too, as there is one image.

        Not right after a convolution, which would take gamma for a constant and fold it into its weights.
        """
        data, factor = node.inputs
        shape = self._shapes[node.name]
        if not self._is_map(node) or self._shapes[factor.node.name] != (1, shape[1], 1, 1):
            return None
        if data.node.op == "Convolution" or self._shapes[data.node.name] != shape:
            return None
        flat = SymbolNode("Reshape", f"{node.name}_flat", {"shape": "(-1,)"}, [factor])
        return self._scaled(node, data, Edge(flat))

    def _scaled(self, node: SymbolNode, data: Edge, gamma: Edge) -> SymbolNode:
        zeros = np.zeros(self._shapes[node.name][1])
        beta = self._parameter(f"{node.name}_beta", zeros, self._args)
        mean = self._parameter(f"{node.name}_moving_mean", zeros, self._aux)
        variance = self._parameter(f"{node.name}_moving_var", zeros + 1, self._aux)
        return SymbolNode("BatchNorm", node.name, dict(_SCALE), [data, gamma, beta, mean, variance])

    def _is_map(self, node: SymbolNode) -> bool:
        return len(self._shapes[node.name]) == 4

    def _parameter(self, name: str, value: np.ndarray, params: Params) -> Edge:
        params[name] = mx.nd.array(value, dtype="float32")
        return Edge(SymbolNode(VARIABLE, name))


@cache
def supports_swish() -> bool:
    """Whether MXNet takes softplus's derivative from oneDNN: its own operator reads another input."""
    data = mx.nd.array(np.linspace(-4, 4, 32).reshape(1, 8, 2, 2))
    symbol = symbol_of(SymbolGraph([Edge(_swish("swish", Edge(SymbolNode(VARIABLE, "data"))))]))
    found = symbol.bind(mx.cpu(), {"data": data}, grad_req="null").forward(is_train=False)[0]
    return bool((found - data * mx.nd.sigmoid(data)).abs().max().asscalar() < _ROUNDING)


def _swish(name: str, data: Edge) -> SymbolNode:
    return SymbolNode("_backward_Activation", name, {"act_type": "softrelu"}, [data] * 3)


def _is_slow(node: SymbolNode) -> bool:
    """Whether suit_onednn has something better in a node's place, if its shapes allow it."""
    if node.op == "slice":
        return same_padding(node, node.inputs[0].node) is not None
    return is_mean(node) or _is_free_relu6(node)


def _is_free_relu6(node: SymbolNode) -> bool:
    """Whether a node is a ReLU6 that no convolution takes in."""
    if node.op != "clip" or node.inputs[0].node.op in ("Convolution", "BatchNorm"):
        return False
    return (float(node.attrs["a_min"]), float(node.attrs["a_max"])) == (0.0, 6.0)


def is_mean(node: SymbolNode) -> bool:
    """Whether a node is the mean of each channel, (N, C, 1, 1)."""
    kept, others = (node.attrs.get(key) in ("True", "1") for key in ("keepdims", "exclude"))
    return node.op == "mean" and _plain(node, "axis") == "(2,3)" and kept and not others


def same_padding(cut: SymbolNode, convolution: SymbolNode) -> int | None:
    """The padding of a convolution of stride 2, the same everywhere, if a slice drops its first row and column."""
    if convolution.op != "Convolution" or tuple(_plain(cut, key) for key in ("begin", "end", "step")) != (*_CUT, ""):
        return None
    pad = _plain(convolution, "pad").strip("()").split(",")
    usual = _plain(convolution, "stride") == "(2,2)" and _plain(convolution, "dilate") in ("", "(1,1)")
    return int(pad[0]) if usual and pad[0] == pad[-1] and int(pad[0]) > 0 else None


def _plain(node: SymbolNode, key: str) -> str:
    return node.attrs.get(key, "").replace(" ", "")


def _selected(params: Params, names: set[str]) -> Params:
    return {name: array for name, array in params.items() if name in names}


def pad_predictions(symbol: mx.sym.Symbol, arg_params: Params) -> tuple[mx.sym.Symbol, Params]:
    """The float32 detection symbol and its weights with such convolutions; nothing that was given is changed.

    It concerns convolutions, of more than BLOCK channels, whose only reader is a transpose or a Reshape, and whose
    weights are parameters.
    """
    graph = graph_of(symbol)
    readers = graph.readers()
    padded: dict[str, tuple[SymbolNode, mx.nd.NDArray]] = {}
    changes: dict[Edge, Edge] = {}
    for node in graph.nodes():
        known = all(edge.node.name in arg_params for edge in node.inputs[1:])
        if known and len(readers[node]) == 1 and _needs_padding(node, readers[node][0]):
            old, new = _padded(node, readers[node][0], arg_params, padded)
            changes[old] = new
    graph.replace(changes)
    result = symbol_of(graph)
    arrays = arg_params | {node.name: array for node, array in padded.values()}
    return result, {name: arrays[name] for name in result.list_arguments() if name in arrays}


def _needs_padding(node: SymbolNode, reader: SymbolNode) -> bool:
    if node.op != "Convolution" or node.attrs.get("num_group", "1") != "1" or reader.op not in (_TURN, _RESHAPE):
        return False
    turned = reader.op == _RESHAPE or reader.attrs.get("axes", "").replace(" ", "") == "(0,2,3,1)"
    filters = int(node.attrs["num_filter"])
    return turned and filters > BLOCK and filters % BLOCK > 0


def _padded(
    node: SymbolNode, reader: SymbolNode, arg_params: Params, padded: dict[str, tuple[SymbolNode, mx.nd.NDArray]]
) -> tuple[Edge, Edge]:
    """The edge that is to be replaced, and the one that takes its place."""
    filters = int(node.attrs["num_filter"])
    missing = -filters % BLOCK
    inputs = [node.inputs[0], *(_zero_padded(edge, missing, arg_params, padded) for edge in node.inputs[1:])]
    wide = Edge(SymbolNode("Convolution", node.name, {**node.attrs, "num_filter": str(filters + missing)}, inputs))
    cut = {"begin": "0", "end": str(filters)}
    if reader.op == _TURN:
        turned = Edge(SymbolNode(reader.op, reader.name, reader.attrs, [wide]))
        return Edge(reader), Edge(SymbolNode("slice_axis", f"{reader.name}_cut", {**cut, "axis": "3"}, [turned]))
    return Edge(node), Edge(SymbolNode("slice_axis", f"{node.name}_cut", {**cut, "axis": "1"}, [wide]))


def _zero_padded(
    edge: Edge, missing: int, arg_params: Params, padded: dict[str, tuple[SymbolNode, mx.nd.NDArray]]
) -> Edge:
    """A weight or bias with `missing` channels of zeros more; convolutions that share it share the longer one."""
    name = edge.node.name
    if name not in padded:
        array = arg_params[name].asnumpy()
        wide = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        padded[name] = SymbolNode(VARIABLE, f"{name}_padded"), mx.nd.array(wide, dtype=wide.dtype)
    return Edge(padded[name][0])
