"""What an exported network computes before it sees an image becomes weights, and its input may become pixels.

Batch norm goes into the convolution before it, which leaves fewer operators, and weights that show what is to be
quantised: w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta (Jacob et al. 2018,
section 3.2, https://arxiv.org/abs/1712.05877). Anchors, grids and weights of fusions become constants. Both change det
by rounding alone.
"""

import math

import numpy as np

from common.sizes import DATA
from graph.symbol_graph import VARIABLE, Edge, Params, SymbolGraph, SymbolNode, graph_of, outputs, symbol_of
from machine.runtime import mx

# Operators between convolution and batch norm that leave channels alone.
_TRANSPARENT = frozenset({"Dropout", "slice"})
_BY_SHAPE = frozenset({"_contrib_MultiBoxPrior", "_contrib_arange_like"})  # read the shapes of their input alone
_BATCH_AXIS = "0"
_SHAPE = (1, 3, 1, 1)


def fold_batch_norm(
    symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params
) -> tuple[mx.sym.Symbol, Params, Params]:
    """The detection symbol and its weights without those batch norms that follow a convolution directly.

    A convolution that several share gets weights of its own for each batch norm, called after the layer. Batch norms
    after anything else (densenet), and those where a weight is computed, stay. Nothing that was given is changed.
    """
    graph = graph_of(symbol)
    arrays = {name: array.asnumpy() for name, array in (arg_params | aux_params).items()}
    readers = graph.readers()
    owners = _reader_counts(graph)
    changes: dict[Edge, Edge] = {}
    for norm in graph.nodes():
        convolution = _convolution(norm, graph, readers)
        if convolution and _are_parameters((convolution, norm), arrays):
            scale, shift = _affine(norm, arrays)
            _fold_into(convolution, scale, shift, arrays, owners)
            changes[Edge(norm)] = norm.inputs[0]
    graph.replace(changes)
    folded = symbol_of(graph)
    return folded, _params(folded.list_arguments(), arrays), _params(folded.list_auxiliary_states(), arrays)


def _reader_counts(graph: SymbolGraph) -> dict[str, int]:
    """How many operators read each variable."""
    return {node.name: len(readers) for node, readers in graph.readers().items() if node.op == VARIABLE}


def _convolution(
    norm: SymbolNode, graph: SymbolGraph, readers: dict[SymbolNode, list[SymbolNode]]
) -> SymbolNode | None:
    """The convolution that a batch norm over channels follows, if nothing else reads what is between them."""
    if norm.op != "BatchNorm" or norm.attrs.get("axis", "1") != "1":
        return None
    outputs, node = {edge.node for edge in graph.outputs}, norm.inputs[0].node
    while len(readers[node]) == 1 and node not in outputs:
        if node.op == "Convolution":
            return node
        if node.op not in _TRANSPARENT or not _keeps_channels(node):
            return None
        node = node.inputs[0].node
    return None


def _are_parameters(nodes: tuple[SymbolNode, ...], arrays: dict[str, np.ndarray]) -> bool:
    """Whether all that operators read beside their data are parameters."""
    return all(edge.node.name in arrays for node in nodes for edge in node.inputs[1:])


def _keeps_channels(node: SymbolNode) -> bool:
    """Whether a slice takes all channels: (N, C, H, W) from None or 0 to None along the axis 1."""
    if node.op != "slice":
        return True
    begin, end, step = (_parts(node.attrs.get(key, "")) for key in ("begin", "end", "step"))
    return begin[1:2] in (["None"], ["0"]) and end[1:2] == ["None"] and not any(part.startswith("-") for part in step)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.strip("()[]").split(",")]


def _affine(norm: SymbolNode, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift (C,) that a batch norm with its moving averages is, float64."""
    gamma, beta, mean, var = (arrays[edge.node.name].astype(np.float64) for edge in norm.inputs[1:5])
    if norm.attrs.get("fix_gamma", "True") in ("True", "1", "true"):
        gamma = np.ones_like(gamma)
    scale = gamma / np.sqrt(var + float(norm.attrs.get("eps", "0.001")))
    return scale, beta - mean * scale


def _fold_into(
    convolution: SymbolNode, scale: np.ndarray, shift: np.ndarray, arrays: dict[str, np.ndarray], owners: dict[str, int]
) -> None:
    """Gives a convolution the weights and biases of itself followed by scale and shift."""
    weight = arrays[convolution.inputs[1].node.name].astype(np.float64)
    with_bias = len(convolution.inputs) > 2
    bias = arrays[convolution.inputs[2].node.name].astype(np.float64) if with_bias else np.zeros_like(shift)
    values = {
        "weight": weight * scale.reshape(-1, *[1] * (weight.ndim - 1)),
        "bias": bias * scale + shift,
    }
    edges = []
    for position, (kind, value) in enumerate(values.items(), start=1):
        old = convolution.inputs[position].node if position < len(convolution.inputs) else None
        name = old.name if old and owners[old.name] == 1 else _unused_name(f"{convolution.name}_{kind}", arrays)
        arrays[name] = value.astype(np.float32)
        edges.append(Edge(SymbolNode(VARIABLE, name)))
    convolution.inputs = [convolution.inputs[0], *edges]
    convolution.attrs = {**convolution.attrs, "no_bias": "False"}


def _unused_name(name: str, taken: dict[str, np.ndarray]) -> str:
    while name in taken:
        name = f"{name}_folded"
    return name


def _params(names: list[str], arrays: dict[str, np.ndarray]) -> Params:
    return {name: mx.nd.array(arrays[name], dtype=arrays[name].dtype) for name in names if name in arrays}


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


def _constants(graph: SymbolGraph, arg_params: Params) -> set[SymbolNode]:
    """Nodes whose values are the same for every image."""
    found: set[SymbolNode] = set()
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


def _frontier(graph: SymbolGraph, constant: set[SymbolNode]) -> list[Edge]:
    """Constants that are no variables and that something reads which is not constant."""
    edges = [edge for node in graph.nodes() if node not in constant for edge in node.inputs]
    return list(dict.fromkeys(edge for edge in edges if edge.node in constant and edge.node.op != VARIABLE))


def _values(edges: list[Edge], arg_params: Params, shape: tuple[int, ...]) -> list[np.ndarray]:
    if not edges:
        return []
    return outputs(symbol_of(SymbolGraph(edges)), arg_params, {}, np.zeros(shape, np.float32))


def _name(edge: Edge) -> str:
    return f"{edge.node.name}_{edge.output}_constant"


def _variable(edge: Edge, array: np.ndarray) -> SymbolNode:
    return SymbolNode(VARIABLE, _name(edge), {"__shape__": str(array.shape)})


def _multiply_directly(graph: SymbolGraph, arrays: dict[str, np.ndarray]) -> None:
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


def with_pixel_input(
    symbol: mx.sym.Symbol, arg_params: Params, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[mx.sym.Symbol, Params]:
    """The symbol of float32 data (B, 3, H, W) as one of uint8 data (B, H, W, 3) RGB, and its weights.

    Values become (pixel - mean) / std as in training, by float32 operations of the same order.
    """
    graph = graph_of(symbol)
    old = next(node for node in graph.nodes() if node.op == VARIABLE and node.name == DATA)
    net = SymbolNode(
        "transpose", "pixels_nchw", {"axes": "(0, 3, 1, 2)"}, [Edge(SymbolNode(VARIABLE, DATA))]
    )  # (B, 3, H, W)
    net = SymbolNode("Cast", "pixels_float32", {"dtype": "float32"}, [Edge(net)])
    constants = {}
    for operator, name, values, neutral in (("sub", "pixels_mean", mean, 0), ("div", "pixels_std", std, 1)):
        if any(value != neutral for value in values):
            constant = SymbolNode(VARIABLE, name, {"__shape__": str(_SHAPE)})
            net = SymbolNode(f"broadcast_{operator}", f"{name}_{operator}", {}, [Edge(net), Edge(constant)])
            constants[name] = mx.nd.array(np.array(values, np.float32).reshape(_SHAPE))
    graph.replace({Edge(old): Edge(net)})
    return symbol_of(graph), arg_params | constants
