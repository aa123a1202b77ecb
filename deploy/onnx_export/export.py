"""From a detection symbol to an ONNX model: node by node, what does not depend on the image computed beforehand."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from common.errors import OptionError
from common.sizes import DATA, DET
from deploy.onnx_export import arithmetic, arrays, detection, layers
from deploy.onnx_export.graph import VARIES, OnnxGraph, OperatorNode, PartialShape, Tensor, TranslationError
from machine.runtime import SYMBOL_ATTRIBUTES, mx
from model.symbol_check import VARIABLE, num_outputs

OPSET, IR_VERSION = 13, 8
TRANSLATIONS: dict[str, Callable[[OnnxGraph, OperatorNode], str | list[str]]] = {
    **arithmetic.TRANSLATIONS,
    **arrays.TRANSLATIONS,
    **layers.TRANSLATIONS,
    **detection.TRANSLATIONS,
}
# Operators that read nothing of their first input but its shape.
OF_SHAPES = frozenset({"_contrib_MultiBoxPrior", "_contrib_arange_like", "ones_like"})
BROADCASTING = frozenset({"elemwise_add", "elemwise_mul", "elemwise_sub"})  # in ONNX, not in MXNet
DYNAMIC = 0  # batch of any size
QUANTIZER_NAMES = ("_scale", "_zero_point")


def to_onnx(
    symbol: mx.sym.Symbol,
    params: Mapping[str, mx.nd.NDArray],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    batch: int = DYNAMIC,
    input_type: type = np.float32,
) -> onnx.ModelProto:
    """The ONNX model of a detection symbol, with the input `data` (B, *input_shape) and the output `det` (B, N, 6).

    Args:
        symbol: reads data and gives det; ids of detections are below num_classes.
        params: arguments and auxiliary states.
        input_shape: of one image, (3, H, W) or (H, W, 3).
        num_classes: number of ids.
        batch: images at a time; DYNAMIC = any number.
        input_type: of the numbers of data.

    OptionError names an operator that has no translation.
    """
    walk = _Walk(symbol, params, input_shape, num_classes, batch)
    walk.run()
    element = helper.np_dtype_to_tensor_dtype(np.dtype(input_type))
    return walk.model(element)


class _Walk:
    """One passage over the nodes of a symbol."""

    def __init__(
        self,
        symbol: mx.sym.Symbol,
        params: Mapping[str, mx.nd.NDArray],
        input_shape: tuple[int, ...],
        num_classes: int,
        batch: int,
    ) -> None:
        content = json.loads(symbol.tojson())
        self._nodes: list[dict[str, Any]] = content["nodes"]
        self._head: list[int] = content["heads"][0]
        self._params, self._batch = params, batch
        self._shapes = _shapes(symbol, self._nodes, input_shape, batch)
        self._spread = _needless_broadcasts(self._nodes) - {self._head[0]}
        self._graph = OnnxGraph(num_classes)
        self._tensors: list[list[Tensor]] = []

    def run(self) -> None:
        for number, node in enumerate(self._nodes):
            if node["op"] == VARIABLE:
                self._tensors.append([self._variable(node["name"], self._shapes[number][0])])
            else:
                inputs = tuple(self._tensors[source][output] for source, output, *_ in node["inputs"])
                translated = OperatorNode(node["name"], node["op"], node.get("attrs", {}), inputs, self._shapes[number])
                self._tensors.append(self._outputs(translated, number in self._spread))

    def model(self, element: int) -> onnx.ModelProto:
        """The model whose data has this element type."""
        graph, det = self._graph, self._tensors[self._head[0]][self._head[1]]
        graph.nodes.append(helper.make_node("Identity", [det.name], [DET], name=DET))
        graph.prune([DET])
        shapes = (self._shapes[self._position(DATA)][0], det.shape)
        sides = [["batch" if side == VARIES else side for side in shape] for shape in shapes]
        proto = helper.make_graph(
            graph.nodes,
            "detector",
            [helper.make_tensor_value_info(DATA, element, sides[0])],
            [helper.make_tensor_value_info(DET, TensorProto.FLOAT, sides[1])],
            list(graph.initializers.values()),
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(proto, ir_version=IR_VERSION, opset_imports=[opset], producer_name="detector")

    def _position(self, name: str) -> int:
        return next(number for number, node in enumerate(self._nodes) if node["name"] == name)

    def _variable(self, name: str, shape: PartialShape) -> Tensor:
        if name == DATA:
            return Tensor(name, shape, None)
        # relu4_3_scale of SSD is what onnxruntime.quantization would call the scale of relu4_3.
        free = f"{name}/value" if name.endswith(QUANTIZER_NAMES) else name
        return Tensor(free, shape, self._params[name].asnumpy())

    def _outputs(self, node: OperatorNode, needless: bool) -> list[Tensor]:
        constants = self._constants(node)
        if constants is not None:
            return [Tensor(f"{node.name}/{k}", value.shape, value, node) for k, value in enumerate(constants)]
        if needless:
            return [Tensor(node.inputs[0].name, node.shapes[0], node.inputs[0].value, node)]
        self._graph.scope = node.name
        try:
            translate = TRANSLATIONS.get(node.op)
            if translate is None:
                raise TranslationError("as a whole")
            names = translate(self._graph, node)
        except TranslationError as reason:
            raise OptionError(
                f"--onnx: the operator {node.op} ({node.name}) has no translation to ONNX ({reason}); leave --onnx out"
            ) from reason
        names = [names] if isinstance(names, str) else names
        if self._graph.rename(names[0], node.name):
            names = [node.name, *names[1:]]
        return [Tensor(name, shape, None, node) for name, shape in zip(names, node.shapes, strict=True)]

    def _constants(self, node: OperatorNode) -> list[np.ndarray] | None:
        """The outputs of a node that no image changes, as MXNet computes them; None for other nodes."""
        values = [tensor.value for tensor in node.inputs]
        if node.op in OF_SHAPES and VARIES not in node.shapes[0]:
            values[0] = np.zeros([max(1, side) for side in node.inputs[0].shape], np.float32)
        known = [value for value in values if value is not None]
        return run_operator(node.op, node.attrs, known) if len(known) == len(values) else None


def run_operator(op: str, attrs: dict[str, str], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of one MXNet operator."""
    count = len(inputs)
    nodes: list[dict[str, Any]] = [{"op": VARIABLE, "name": f"input{k}", "inputs": []} for k in range(count)]
    nodes.append({"op": op, "name": "node", "attrs": attrs, "inputs": [[k, 0, 0] for k in range(count)]})
    graph = {"nodes": nodes, "arg_nodes": list(range(count)), "heads": [[count, 0, 0]]}
    symbol = mx.sym.load_json(json.dumps({**graph, "attrs": SYMBOL_ATTRIBUTES}))
    arrays_ = [mx.nd.array(value, dtype=value.dtype) for value in inputs]
    return [output.asnumpy() for output in symbol.bind(mx.cpu(), arrays_).forward()]


def _shapes(
    symbol: mx.sym.Symbol, nodes: list[dict[str, Any]], input_shape: tuple[int, ...], batch: int
) -> list[tuple[PartialShape, ...]]:
    """Shapes of the outputs of each node; sides that differ for batches of 2 and 3 are VARIES."""
    internals = symbol.get_internals()
    if batch != DYNAMIC:
        found = internals.infer_shape(data=(batch, *input_shape))[1]
    else:
        two, three = (internals.infer_shape(data=(size, *input_shape))[1] for size in (2, 3))
        found = [
            tuple(x if x == y else VARIES for x, y in zip(small, large, strict=True))
            for small, large in zip(two, three, strict=True)
        ]
    rest = iter(found)
    return [tuple(next(rest) for _ in range(num_outputs(node))) for node in nodes]


def _needless_broadcasts(nodes: list[dict[str, Any]]) -> set[int]:
    """Those broadcast_like whose result meets only arrays of its own shape, in operators that broadcast in ONNX."""
    needless = {number for number, node in enumerate(nodes) if node["op"] == "broadcast_like"}
    for node in nodes:
        sources = [source for source, *_ in node["inputs"]]
        for position, source in enumerate(sources):
            if source not in needless:
                continue
            like = nodes[source]["inputs"][1][:2]
            other = node["inputs"][1 - position][:2] if node["op"] in BROADCASTING else None
            if other != like:
                needless.discard(source)
    return needless
