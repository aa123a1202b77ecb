"""Layers of networks: convolution, normalisation, pooling."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from deploy.onnx_export.graph import OnnxGraph, OperatorNode, Tensor, TranslationError

L2_AXES = {"channel": (1,), "spatial": (2, 3), "instance": (1, 2, 3)}


def convolution(graph: OnnxGraph, node: OperatorNode) -> str:
    """Convolution over two axes."""
    kernel = node.get("kernel", ())
    if len(kernel) != 2:
        raise TranslationError(f"kernel {kernel}")
    node.require("layout", "NCHW")
    return graph.add(
        "Conv",
        *node.inputs,
        kernel_shape=kernel,
        strides=node.get("stride", ()) or (1, 1),
        pads=(node.get("pad", ()) or (0, 0)) * 2,
        dilations=node.get("dilate", ()) or (1, 1),
        group=node.get("num_group", 1),
    )


def batch_norm(graph: OnnxGraph, node: OperatorNode) -> str:
    """Batch normalisation with the moving averages; fix_gamma (the default) stands for gamma 1."""
    node.require("axis", 1)
    data, gamma, beta, mean, variance = node.inputs
    scale: Tensor | np.ndarray = np.ones(gamma.shape, np.float32) if node.get("fix_gamma", True) else gamma
    return graph.add("BatchNormalization", data, scale, beta, mean, variance, epsilon=node.get("eps", 1e-3))


def fully_connected(graph: OnnxGraph, node: OperatorNode) -> str:
    """data times weight (outputs, inputs), plus bias; `flatten` joins all axes but the first."""
    data, weight, *bias = node.inputs
    if node.get("flatten", True):
        rows = graph.reshape(data, (data.shape[0], weight.shape[1]))
        return graph.add("Gemm", rows, weight, *bias, transB=1)
    net = graph.add("MatMul", data, graph.add("Transpose", weight, perm=(1, 0)))
    return graph.add("Add", net, *bias) if bias else net


def l2_normalization(graph: OnnxGraph, node: OperatorNode) -> str:
    """data over the root of (the sum of its squares plus eps)."""
    node.require("mode", "instance", *L2_AXES)
    data = node.inputs[0]
    if len(data.shape) != 4:
        raise TranslationError(f"{len(data.shape)} axes")
    axes = np.array(L2_AXES[node.get("mode", "instance")])
    total = graph.add("ReduceSum", graph.add("Mul", data, data), axes)
    norm = graph.add("Sqrt", graph.add("Add", total, np.array(node.get("eps", 1e-10), np.float32)))
    return graph.add("Div", data, norm)


class PoolWindow(NamedTuple):
    """What a pooling looks at along one axis: its place, and how far the last window reaches over the padded end."""

    side: int
    outputs: int
    kernel: int
    stride: int
    pad: int

    @property
    def reach(self) -> int:
        """Places after side + pad."""
        return max(0, (self.outputs - 1) * self.stride + self.kernel - self.pad - self.side)

    @property
    def begins(self) -> np.ndarray:
        """First place of each window, (outputs,)."""
        return np.arange(self.outputs) * self.stride - self.pad


def pooling(graph: OnnxGraph, node: OperatorNode) -> str:
    """Maximum or mean of windows.

    The convention `full` keeps a last partial window: it reaches over the end, where a maximum sees nothing, and a mean
    neither adds nor counts; a mean counts the padding itself if count_include_pad says so.
    """
    node.require("pool_type", "max", "avg")
    node.require("layout", "NCHW")
    node.require("pooling_convention", "valid", "full")
    data, average = node.inputs[0], node.get("pool_type", "max") == "avg"
    if node.get("global_pool", False):
        return graph.add("GlobalAveragePool" if average else "GlobalMaxPool", data)
    windows = _windows(node)
    return _means(graph, node, windows) if average else _maxima(graph, node, windows)


def _windows(node: OperatorNode) -> tuple[PoolWindow, ...]:
    kernel, sides = node.get("kernel", ()), node.inputs[0].shape[2:]
    if len(kernel) != 2 or len(sides) != 2 or min(sides) < 1:
        raise TranslationError(f"kernel {kernel} over {sides}")
    stride, pad = (node.get(key, ()) or (value, value) for key, value in (("stride", 1), ("pad", 0)))
    return tuple(map(PoolWindow, sides, node.shapes[0][2:], kernel, stride, pad))


def _pool(
    graph: OnnxGraph, op: str, data: Tensor, windows: Sequence[PoolWindow], pads: Sequence[int], **attributes: int
) -> str:
    kernel, strides = ([getattr(w, key) for w in windows] for key in ("kernel", "stride"))
    return graph.add(op, data, kernel_shape=kernel, strides=strides, pads=pads, **attributes)


def _means(graph: OnnxGraph, node: OperatorNode, windows: Sequence[PoolWindow]) -> str:
    pads = [*(w.pad for w in windows), *(w.reach for w in windows)]
    means = _pool(graph, "AveragePool", node.inputs[0], windows, pads, count_include_pad=1)
    with_pad = node.get("count_include_pad", True)
    rows, columns = (counted(window, window.pad if with_pad else 0) for window in windows)
    share = windows[0].kernel * windows[1].kernel / (rows[:, None] * columns)
    return means if (share == 1).all() else graph.add("Mul", means, share.astype(np.float32))


def counted(window: PoolWindow, border: int) -> np.ndarray:
    """How many places of each window (outputs,) lie in the array or in `border` places before and after it."""
    ends = np.minimum(window.begins + window.kernel, window.side + border)
    return ends - np.maximum(window.begins, -border)


def _maxima(graph: OnnxGraph, node: OperatorNode, windows: Sequence[PoolWindow]) -> str:
    """Maxima; a border of equal numbers, made by Pad, takes part in the windows that touch it.

    It is not left to ONNX's Pad, which ONNX Runtime 1.31 joins with MaxPool into one that takes no notice of zeros.
    """
    data, pads = node.inputs[0], [*(w.pad for w in windows), *(w.reach for w in windows)]
    border = constant_border(data.producer)
    if border is None:
        return _pool(graph, "MaxPool", data, windows, pads)
    widths, value, inner = border
    pads = [pad + width for pad, width in zip(pads, widths, strict=True)]
    maxima = _pool(graph, "MaxPool", inner, windows, pads)
    rows, columns = (
        touching(window, before, after) for window, before, after in zip(windows, widths[:2], widths[2:], strict=True)
    )
    least = np.where(rows[:, None] | columns, np.float32(value), np.finfo(np.float32).min)
    return graph.add("Max", maxima, least)


def constant_border(pad: OperatorNode | None) -> tuple[list[int], float, Tensor] | None:
    """Widths (top, left, bottom, right), number, and array of a Pad that draws a border of a number around maps."""
    if pad is None or pad.op != "Pad" or pad.get("mode", "constant") != "constant":
        return None
    widths = pad.get("pad_width", ())
    if len(widths) != 8 or any(widths[:4]):  # noqa: PLR2004 - before and after of N, C, H, W
        return None
    return [*widths[4::2], *widths[5::2]], pad.get("constant_value", 0.0), pad.inputs[0]


def touching(window: PoolWindow, before: int, after: int) -> np.ndarray:
    """Which windows (outputs,) reach into the first `before` or the last `after` places; none if there are none."""
    ends = window.begins + window.kernel
    return (before > 0) & (window.begins < before) | (after > 0) & (ends > window.side - after)


def adaptive_average(graph: OnnxGraph, node: OperatorNode) -> str:
    """Means of output_size x output_size cells, which may overlap: a matrix from the left and one from the right."""
    data, (height, width) = node.inputs[0], node.shapes[0][2:]
    if height == width == 1:
        return graph.add("GlobalAveragePool", data)
    rows, columns = cells(data.shape[2], height), cells(data.shape[3], width)
    return graph.add("MatMul", graph.add("MatMul", rows, data), np.ascontiguousarray(columns.T))


def cells(side: int, count: int) -> np.ndarray:
    """(count, side) float32: weights of the means over floor(k * side / count) ... ceil((k + 1) * side / count)."""
    number, place = np.arange(count)[:, None], np.arange(side)
    inside = (place >= number * side // count) & (place < -(-(number + 1) * side // count))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def upsampling(graph: OnnxGraph, node: OperatorNode) -> str:
    """Every pixel `scale` times in both directions."""
    node.require("sample_type", "nearest")
    if len(node.inputs) != 1:
        raise TranslationError(f"{len(node.inputs)} inputs")
    scale = float(node.get("scale", 1))
    return graph.add(
        "Resize",
        node.inputs[0],
        "",
        np.array([1, 1, scale, scale], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def dropout(graph: OnnxGraph, node: OperatorNode) -> str:
    """Nothing: it acts in training."""
    node.require("mode", "training")
    return graph.add("Identity", node.inputs[0])


TRANSLATIONS: dict[str, Callable[[OnnxGraph, OperatorNode], str]] = {
    "BatchNorm": batch_norm,
    "Convolution": convolution,
    "Dropout": dropout,
    "FullyConnected": fully_connected,
    "L2Normalization": l2_normalization,
    "Pooling": pooling,
    "UpSampling": upsampling,
    "_contrib_AdaptiveAvgPooling2D": adaptive_average,
}
