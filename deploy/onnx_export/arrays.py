"""Operators that move numbers without changing them."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from deploy.onnx_export.graph import LAST, OnnxGraph, OperatorNode, Tensor, TranslationError

FIRST = np.iinfo(np.int64).min
# dtypes of topk's numbers and of Cast.
DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
PAD_MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect"}


def cast(graph: OnnxGraph, node: OperatorNode) -> str:
    """The same numbers in another type."""
    node.require("dtype", *DTYPES)
    return graph.cast(node.inputs[0], DTYPES[node.get("dtype", "float32")])


def reshape(graph: OnnxGraph, node: OperatorNode) -> str:
    """Reshape, Flatten and expand_dims: the numbers keep their order, and the new shape is known."""
    node.require("reverse", False)
    return graph.reshape(node.inputs[0], node.shapes[0])


def transpose(graph: OnnxGraph, node: OperatorNode) -> str:
    """Axes in another order; without `axes` the reverse one."""
    return graph.add("Transpose", node.inputs[0], perm=node.get("axes", ()) or range(len(node.shapes[0]))[::-1])


def swap_axes(graph: OnnxGraph, node: OperatorNode) -> str:
    """Two axes exchanged."""
    rank = len(node.shapes[0])
    first, second = (node.get(key, 0) % rank for key in ("dim1", "dim2"))
    order = list(range(rank))
    order[first], order[second] = second, first
    return graph.add("Transpose", node.inputs[0], perm=order)


def slices(graph: OnnxGraph, node: OperatorNode) -> str:
    """Parts of the first axes; None is the end that the step comes from or goes to."""
    begin, end = (node.get(key, ()) for key in ("begin", "end"))
    steps = node.get("step", ()) or (1,) * len(begin)
    steps = [step or 1 for step in steps]
    begins = [(0 if step > 0 else LAST) if at is None else at for at, step in zip(begin, steps, strict=True)]
    ends = [(LAST if step > 0 else FIRST) if at is None else at for at, step in zip(end, steps, strict=True)]
    parts = (begins, ends, range(len(begins)), steps)
    return graph.add("Slice", node.inputs[0], *(np.array(part, np.int64) for part in parts))


def slice_axis(graph: OnnxGraph, node: OperatorNode) -> str:
    """Part of one axis."""
    return graph.slice(node.inputs[0], node.get("axis", 0), node.get("begin", 0), node.get("end", LAST))


def slice_like(graph: OnnxGraph, node: OperatorNode) -> str:
    """The first places along the axes, as many as the second input has."""
    data: Tensor | str = node.inputs[0]
    for axis in node.get("axes", ()) or range(len(node.shapes[0])):
        data = graph.slice(data, axis, 0, node.shapes[0][axis])
    return graph.add("Identity", data)


def concat(graph: OnnxGraph, node: OperatorNode) -> str:
    """Arrays one after the other along an axis."""
    return graph.add("Concat", *node.inputs, axis=node.get("dim", 1))


def stack(graph: OnnxGraph, node: OperatorNode) -> str:
    """Arrays one after the other along a new axis."""
    axis = node.get("axis", 0)
    parts = [graph.add("Unsqueeze", part, np.array([axis])) for part in node.inputs]
    return graph.add("Concat", *parts, axis=axis)


def broadcast_like(graph: OnnxGraph, node: OperatorNode) -> str:
    """The first array repeated to the shape of the second."""
    node.require("lhs_axes", None)
    node.require("rhs_axes", None)
    return graph.add("Expand", node.inputs[0], graph.add("Shape", node.inputs[1]))


def pad(graph: OnnxGraph, node: OperatorNode) -> str:
    """Borders; MXNet lists before and after of each axis, ONNX all before and then all after."""
    node.require("mode", "constant", *PAD_MODES)
    widths = np.array(node.get("pad_width", ()), np.int64).reshape(-1, 2).T.ravel()
    value = np.array(node.get("constant_value", 0), np.float32)
    return graph.add("Pad", node.inputs[0], widths, value, mode=PAD_MODES[node.get("mode", "constant")])


def topk(graph: OnnxGraph, node: OperatorNode) -> list[str]:
    """The k largest (is_ascend: smallest) along an axis; numbers of the entries are float32 unless dtype says more.

    Of equal entries ONNX takes the first; MXNet does not say which it takes.
    """
    node.require("ret_typ", "indices", "value", "both")
    if node.attrs.get("axis") == "None":
        raise TranslationError("axis None")
    axis = node.get("axis", -1)
    count = node.get("k", 1) or node.inputs[0].shape[axis]
    values, found = graph.add_many(
        "TopK", 2, node.inputs[0], np.array([count]), axis=axis, largest=int(not node.get("is_ascend", False))
    )
    node.require("dtype", "float32", *DTYPES)
    indices = graph.cast(found, DTYPES[node.get("dtype", "float32")])
    return {"indices": [indices], "value": [values], "both": [values, indices]}[node.get("ret_typ", "indices")]


def gather_nd(graph: OnnxGraph, node: OperatorNode) -> str:
    """data[indices[0], indices[1], ...], indices (M, ...)."""
    data, indices = node.inputs
    rows = rows_of_images(node)
    if rows is not None:
        return take_rows(graph, data, graph.cast(rows, TensorProto.INT64))
    order = [*range(1, len(indices.shape)), 0]
    places = graph.add("Transpose", graph.cast(indices, TensorProto.INT64), perm=order)  # (..., M)
    return graph.add("GatherND", data, places)


def take_rows(graph: OnnxGraph, data: Tensor | str, rows: str) -> str:
    """Rows (B, ...) int64 of each image's own data (B, N, W): (B, ..., W)."""
    return graph.add("GatherND", data, graph.add("Unsqueeze", rows, np.array([-1])), batch_dims=1)


def rows_of_images(node: OperatorNode) -> Tensor | None:
    """The rows that a gather_nd takes from each image's own data; None if its indices are something else.

    Such indices stack the number of the image, counted along the first axis and repeated to the shape of the rows, on
    the number of the row.
    """
    joined = node.inputs[1].producer
    if joined is None or joined.op != "stack" or joined.get("axis", 0) != 0 or len(joined.inputs) != 2:
        return None
    images = joined.inputs[0]
    spread = images.producer
    if spread is None or spread.op != "broadcast_like" or _plain(spread) is False:
        return None
    column = spread.inputs[0].producer
    if column is None or column.op != "Reshape" or any(side != 1 for side in column.shapes[0][1:]):
        return None
    counted = column.inputs[0].producer
    if counted is None or counted.op != "_contrib_arange_like" or not counts_images(counted):
        return None
    return joined.inputs[1]


def _plain(node: OperatorNode) -> bool:
    return node.get("lhs_axes", None) is None and node.get("rhs_axes", None) is None


def counts_images(node: OperatorNode) -> bool:
    """Whether an arange_like is 0, 1, 2, ... along the first axis."""
    start, step, repeat = (node.get(key, value) for key, value in (("start", 0), ("step", 1), ("repeat", 1)))
    return node.get("axis", None) == 0 and (start, step, repeat) == (0, 1, 1)


TRANSLATIONS: dict[str, Callable[[OnnxGraph, OperatorNode], str | list[str]]] = {
    "Cast": cast,
    "Concat": concat,
    "Flatten": reshape,
    "Pad": pad,
    "Reshape": reshape,
    "SwapAxis": swap_axes,
    "broadcast_like": broadcast_like,
    "expand_dims": reshape,
    "gather_nd": gather_nd,
    "slice": slices,
    "slice_axis": slice_axis,
    "slice_like": slice_like,
    "stack": stack,
    "topk": topk,
    "transpose": transpose,
}
