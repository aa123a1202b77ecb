"""How large the arrays of a symbol may be, and how much it may compute: a hostile one would never end."""

import math
import re
from typing import Any

# Elements of an array, of all of them together, and products of numbers, relative to the input; small inputs may have
# the other number. The networks here have up to 2^18 products for each number of the input.
_ARRAY_LIMIT, _SMALL_ARRAY = 256, 1 << 26
_TOTAL_LIMIT, _SMALL_TOTAL = 4096, 1 << 28
_WORK_LIMIT, _SMALL_WORK = 1 << 20, 1 << 36
_POOLING = 16  # a value takes as long as so many products of a convolution
_ALL = 1 << 40  # rows that a suppression works on if it is not told how many
_INTEGER = re.compile(r"-?\d+")

Node = dict[str, Any]
Shape = tuple[int, ...]


def check_sizes(nodes: list[Node], shapes: list[Shape], input_size: int) -> None:
    """ValueError names a node; shapes are those of all outputs of the nodes, in their order."""
    if len(shapes) != sum(map(num_outputs, nodes)):
        raise ValueError("a node has other outputs than detection uses")
    outputs: list[list[Shape]] = []
    found, work = iter(shapes), 0
    for node in nodes:
        outputs.append([next(found) for _ in range(num_outputs(node))])
        inputs = [outputs[entry[0]][entry[1]] for entry in node["inputs"]]
        _check_arrays(node, inputs, outputs[-1], input_size)
        work += _work(node, inputs, outputs[-1][0])
    if sum(math.prod(shape) for parts in outputs for shape in parts) > max(_SMALL_TOTAL, _TOTAL_LIMIT * input_size):
        raise ValueError("all its arrays together are too large for its input")
    if work > max(_SMALL_WORK, _WORK_LIMIT * input_size):
        raise ValueError("it would compute for too long for its input")


def num_outputs(node: Node) -> int:
    """Outputs of a checked node: topk alone may have two."""
    return 2 if node["op"] == "topk" and node["attrs"].get("ret_typ") == "both" else 1


def _check_arrays(node: Node, inputs: list[Shape], outputs: list[Shape], input_size: int) -> None:
    largest = max(map(math.prod, outputs))
    if any(side < 1 for shape in outputs for side in shape):
        raise ValueError(f"the array {node['name']!r:.80} is empty or of unknown shape: {outputs}")
    if largest > max(_SMALL_ARRAY, _ARRAY_LIMIT * input_size):
        raise ValueError(f"the array {node['name']!r:.80} of {largest} numbers is too large for its input")
    if node["op"] == "Reshape" and math.prod(outputs[0]) != math.prod(inputs[0]):
        raise ValueError(f"{node['name']!r:.80} changes the number of elements")


def _work(node: Node, inputs: list[Shape], output: Shape) -> int:
    """About how many products a node takes."""
    op, size = node["op"], math.prod(output)
    if op in ("Convolution", "FullyConnected"):
        return size * math.prod(inputs[1][1:])
    if op == "Pooling":
        return _POOLING * max(size * math.prod(_integers(node, "kernel")), math.prod(inputs[0]))
    if op in ("_contrib_box_nms", "_contrib_MultiBoxDetection"):
        rows = math.prod(output[:-1])
        kept = next(iter(_integers(node, "topk" if op == "_contrib_box_nms" else "nms_topk")), -1)
        return rows * min(rows, kept if kept > 0 else _ALL)
    return size


def _integers(node: Node, key: str) -> list[int]:
    return [int(text) for text in _INTEGER.findall(node["attrs"].get(key, ""))]
