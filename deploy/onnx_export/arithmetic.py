"""Operators that work number by number, and reductions."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from deploy.onnx_export.graph import VARIES, OnnxGraph, OperatorNode, TranslationError

ELEMENTWISE = {
    "add_n": "Sum",
    "broadcast_add": "Add",
    "broadcast_div": "Div",
    "broadcast_mul": "Mul",
    "broadcast_sub": "Sub",
    "elemwise_add": "Add",
    "elemwise_mul": "Mul",
    "elemwise_sub": "Sub",
    "exp": "Exp",
    "floor": "Floor",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
}
WITH_SCALAR = {"_div_scalar": "Div", "_mul_scalar": "Mul", "_plus_scalar": "Add"}
COMPARISONS = {"_equal_scalar": "Equal", "_greater_scalar": "Greater", "_lesser_scalar": "Less"}
REDUCTIONS = {"max": "ReduceMax", "mean": "ReduceMean", "min": "ReduceMin", "sum": "ReduceSum"}
ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign"}


def elementwise(graph: OnnxGraph, node: OperatorNode) -> str:
    """Operators that ONNX has as well; its Add and Mul also stand for MXNet's broadcast_... ones."""
    return graph.add(ELEMENTWISE[node.op], *node.inputs)


def with_scalar(graph: OnnxGraph, node: OperatorNode) -> str:
    """Array and number."""
    return graph.add(WITH_SCALAR[node.op], node.inputs[0], np.array(node.get("scalar", 0), np.float32))


def comparison(graph: OnnxGraph, node: OperatorNode) -> str:
    """1 where true, else 0, as numbers of the input's type."""
    found = graph.add(COMPARISONS[node.op], node.inputs[0], np.array(node.get("scalar", 0), np.float32))
    return graph.cast(found, TensorProto.FLOAT)


def clip(graph: OnnxGraph, node: OperatorNode) -> str:
    """Numbers limited to [a_min, a_max]."""
    limits = (np.array(node.get(key, 0), np.float32) for key in ("a_min", "a_max"))
    return graph.add("Clip", node.inputs[0], *limits)


def activation(graph: OnnxGraph, node: OperatorNode) -> str:
    """Activation of act_type."""
    node.require("act_type", *ACTIVATIONS)
    return graph.add(ACTIVATIONS[node.get("act_type", "relu")], node.inputs[0])


def leaky_relu(graph: OnnxGraph, node: OperatorNode) -> str:
    """LeakyReLU of the act_types leaky, elu and prelu (whose second input has a slope for each channel)."""
    node.require("act_type", "leaky", "elu", "prelu")
    kind = node.get("act_type", "leaky")
    if kind == "prelu":
        data, slope = node.inputs
        return graph.add("PRelu", data, graph.reshape(slope, (-1, *[1] * (len(data.shape) - 2))))
    return graph.add("LeakyRelu" if kind == "leaky" else "Elu", node.inputs[0], alpha=float(node.get("slope", 0.25)))


def softmax(graph: OnnxGraph, node: OperatorNode) -> str:
    """Softmax over an axis; a temperature divides the numbers first."""
    node.require("use_length", False)
    data, temperature = node.inputs[0], node.get("temperature", 1.0)
    scaled = data if temperature == 1 else graph.add("Div", data, np.array(temperature, np.float32))
    return graph.add("Softmax", scaled, axis=node.get("axis", -1))


def reduction(graph: OnnxGraph, node: OperatorNode) -> str:
    """max, mean, min, sum over axes; over all of them the result has the shape (1,), unless keepdims."""
    data, keep = node.inputs[0], int(node.get("keepdims", False))
    axes = reduced_axes(node)
    op = REDUCTIONS[node.op]
    if op == "ReduceSum":
        found = graph.add(op, data, np.array(axes, np.int64), keepdims=keep)
    else:
        found = graph.add(op, data, axes=axes, keepdims=keep)
    return found if keep or len(axes) < len(data.shape) else graph.reshape(found, (1,))


def reduced_axes(node: OperatorNode) -> list[int]:
    """The axes that a reduction removes, from 0."""
    rank, given = len(node.inputs[0].shape), node.get("axis", ())
    axes = {axis % rank for axis in (given if isinstance(given, tuple) else (given,))}
    if node.get("exclude", False):
        axes = set(range(rank)) - axes
    return sorted(axes or range(rank))


def argmax(graph: OnnxGraph, node: OperatorNode) -> str:
    """Number of the first largest entry along an axis, as float32."""
    if node.get("axis", None) is None:
        raise TranslationError("axis None")
    found = graph.add("ArgMax", node.inputs[0], axis=node.get("axis", 0), keepdims=int(node.get("keepdims", False)))
    return graph.cast(found, TensorProto.FLOAT)


def ones_like(graph: OnnxGraph, node: OperatorNode) -> str:
    """1 everywhere; constant unless the shape grows with the batch."""
    return graph.add("Expand", np.ones(1, np.float32), graph.add("Shape", node.inputs[0]))


def arange_like(graph: OnnxGraph, node: OperatorNode) -> str:
    """start, start + step, ... along the batch axis; those along other axes are constant."""
    if node.get("axis", None) != 0 or node.inputs[0].shape[0] != VARIES or node.get("repeat", 1) != 1:
        raise TranslationError("numbers along something else than one axis of a known length or the batch")
    sides = graph.add("Shape", node.inputs[0])
    count = graph.add("Squeeze", graph.slice(sides, 0, 0, 1))
    numbers = graph.cast(graph.add("Range", np.array(0), count, np.array(1)), TensorProto.FLOAT)
    step, start = (np.array(node.get(key, value), np.float32) for key, value in (("step", 1.0), ("start", 0.0)))
    return graph.add("Add", graph.add("Mul", numbers, step), start)


TRANSLATIONS: dict[str, Callable[[OnnxGraph, OperatorNode], str]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(WITH_SCALAR, with_scalar),
    **dict.fromkeys(COMPARISONS, comparison),
    **dict.fromkeys(REDUCTIONS, reduction),
    "Activation": activation,
    "LeakyReLU": leaky_relu,
    "_contrib_arange_like": arange_like,
    "argmax": argmax,
    "clip": clip,
    "ones_like": ones_like,
    "softmax": softmax,
}
