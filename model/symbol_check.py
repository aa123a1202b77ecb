"""Loads the symbol JSON of a model folder without trusting it.

MXNet's load_json runs what it is told: a node `_Native` with a made-up address ends the process. Only inference
operators are let through, and what MXNet sees is written anew from the parts that were checked. Attributes, inputs and
sizes of arrays are checked as well: with some these operators divide by zero, read and write where they should not,
ask for all memory or never end.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from common.errors import CheckpointError
from common.sizes import DATA
from machine.runtime import SYMBOL_ATTRIBUTES, mx
from model.manifest import MAX_SYMBOL_BYTES

# Elements of an array, of all of them together, and products of numbers, relative to the input; small inputs may have
# the other number. The networks here have up to 2^18 products for each number of the input.
_ARRAY_LIMIT, _SMALL_ARRAY = 256, 1 << 26
_TOTAL_LIMIT, _SMALL_TOTAL = 4096, 1 << 28
_WORK_LIMIT, _SMALL_WORK = 1 << 20, 1 << 36
_POOLING = 16  # a value takes as long as so many products of a convolution
_ALL = 1 << 40  # rows that a suppression works on if it is not told how many
_INTEGER = re.compile(r"-?\d+")
NodeJSON = dict[str, Any]
Shape = tuple[int, ...]
VARIABLE = "null"
OPERATORS = frozenset(
    {
        "Activation",
        "BatchNorm",
        "Cast",
        "Concat",
        "Convolution",
        "Dropout",
        "Flatten",
        "FullyConnected",
        "L2Normalization",
        "LeakyReLU",
        "Pad",
        "Pooling",
        "Reshape",
        "SwapAxis",
        "UpSampling",
        "_contrib_AdaptiveAvgPooling2D",
        "_contrib_MultiBoxDetection",
        "_contrib_MultiBoxPrior",
        "_contrib_arange_like",
        "_contrib_box_decode",
        "_contrib_box_nms",
        "_div_scalar",
        "_equal_scalar",
        "_greater_scalar",
        "_lesser_scalar",
        "_mul_scalar",
        "_plus_scalar",
        "add_n",
        "argmax",
        "broadcast_add",
        "broadcast_div",
        "broadcast_like",
        "broadcast_mul",
        "broadcast_sub",
        "clip",
        "elemwise_add",
        "elemwise_mul",
        "elemwise_sub",
        "exp",
        "expand_dims",
        "floor",
        "gather_nd",
        "max",
        "mean",
        "min",
        "ones_like",
        "relu",
        "sigmoid",
        "slice",
        "slice_axis",
        "slice_like",
        "softmax",
        "stack",
        "sum",
        "topk",
        "transpose",
        VARIABLE,
    }
)
_INPUTS = {"_contrib_MultiBoxDetection": 3, "BatchNorm": 5, VARIABLE: 0} | dict.fromkeys(
    {
        "_contrib_box_decode",
        "broadcast_add",
        "broadcast_div",
        "broadcast_like",
        "broadcast_mul",
        "broadcast_sub",
        "elemwise_add",
        "elemwise_mul",
        "elemwise_sub",
        "gather_nd",
        "slice_like",
    },
    2,
)  # of the others 1, but for those of _num_inputs
_COUNTED = frozenset({"Concat", "UpSampling", "add_n", "stack"})  # num_args says how many inputs they have
_WITH_WEIGHTS = frozenset({"Convolution", "FullyConnected"})
MAX_NUMBER = 1 << 20  # of an attribute; MXNet's arithmetic on shapes overflows with larger ones
MAX_NUMBERS = 256  # in an attribute
_MAX_PRODUCT = 1 << 31
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_WORD = re.compile(r"(?!nan$|inf$|infinity$)[a-z_]\w{0,31}", re.IGNORECASE)  # True, max, NCHW...
_DIVISORS = ("num_group", "repeat")  # MXNet divides by them
FALSE = frozenset({"False", "false", "0"})
_WITH_NONE = frozenset({"axis", "begin", "dtype", "end", "step", "temperature"})  # others take None for a huge number
_COUNTS = frozenset({"dilate", "kernel", "pad", "pad_width", "stride"})
_PRIVATE = frozenset({"__init__", "__lr_mult__", "__wd_mult__", "__shape__", "__dtype__", "__layout__"})
_NODE_KEYS = frozenset({"op", "name", "attrs", "inputs"})  # without "subgraphs"


def check_sizes(nodes: list[NodeJSON], shapes: list[Shape], input_size: int) -> None:
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


def num_outputs(node: NodeJSON) -> int:
    """Outputs of a checked node: topk alone may have two."""
    return 2 if node["op"] == "topk" and node["attrs"].get("ret_typ") == "both" else 1


def _check_arrays(node: NodeJSON, inputs: list[Shape], outputs: list[Shape], input_size: int) -> None:
    largest = max(map(math.prod, outputs))
    if any(side < 1 for shape in outputs for side in shape):
        raise ValueError(f"the array {node['name']!r:.80} is empty or of unknown shape: {outputs}")
    if largest > max(_SMALL_ARRAY, _ARRAY_LIMIT * input_size):
        raise ValueError(f"the array {node['name']!r:.80} of {largest} numbers is too large for its input")
    if node["op"] == "Reshape" and math.prod(outputs[0]) != math.prod(inputs[0]):
        raise ValueError(f"{node['name']!r:.80} changes the number of elements")


def _work(node: NodeJSON, inputs: list[Shape], output: Shape) -> int:
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


def _integers(node: NodeJSON, key: str) -> list[int]:
    return [int(text) for text in _INTEGER.findall(node["attrs"].get(key, ""))]


def load_symbol(content: bytes, origin: str) -> mx.sym.Symbol:
    """The symbol in `content`, the JSON of an inference symbol with one output; CheckpointError naming `origin`."""
    try:
        return mx.sym.load_json(checked_json(content))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin}: not a symbol that can be run ({error}); export the model again") from error
    except mx.base.MXNetError as error:
        raise CheckpointError(f"{origin}: MXNet refuses this symbol ({last_line(error)})") from error


def checked_json(content: bytes) -> str:
    """The same graph as a JSON text that holds nothing but checked nodes; ValueError says what is wrong with it."""
    if len(content) > MAX_SYMBOL_BYTES:
        raise ValueError(f"larger than {MAX_SYMBOL_BYTES} bytes")
    graph = json.loads(content.decode("utf-8"))
    nodes, heads = (graph.get("nodes"), graph.get("heads")) if isinstance(graph, dict) else (None, None)
    if not isinstance(nodes, list) or not isinstance(heads, list) or len(heads) != 1:
        raise ValueError("a symbol has a list of nodes and one output")
    clean: list[dict[str, Any]] = []
    for node in nodes:
        clean.append(_checked_node(node, clean))
    if len({node["name"] for node in clean}) < len(clean):
        raise ValueError("two nodes have the same name")
    variables = [position for position, node in enumerate(clean) if node["op"] == VARIABLE]
    outputs = [_checked_entry(entry, clean) for entry in heads]
    return json.dumps({"nodes": clean, "arg_nodes": variables, "heads": outputs, "attrs": SYMBOL_ATTRIBUTES})


def check_shapes(symbol: mx.sym.Symbol, origin: str, **inputs: tuple[int, ...]) -> None:
    """CheckpointError naming `origin` unless every array of the graph has a plausible size for these input shapes."""
    try:
        nodes, internals = json.loads(symbol.tojson())["nodes"], symbol.get_internals()
        for node in nodes:
            node.setdefault("attrs", {})  # left out where there are none
        check_sizes(nodes, internals.infer_shape_partial(**inputs)[1], sum(map(math.prod, inputs.values())))
    except ValueError as error:
        raise CheckpointError(f"{origin}: not a symbol that can be run ({error}); export the model again") from error
    except (mx.base.MXNetError, RuntimeError) as error:
        raise CheckpointError(f"{origin}: the symbol does not fit its input ({last_line(error)})") from error


def last_line(error: Exception) -> str:
    """What an MXNet error says after its stack trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _checked_node(node: Any, before: list[dict[str, Any]]) -> dict[str, Any]:
    position = len(before)
    if not isinstance(node, dict) or not node.keys() <= _NODE_KEYS:
        raise ValueError(f"node {position} has unknown parts")
    if not isinstance(node.get("op"), str) or node["op"] not in OPERATORS:
        raise ValueError(f"node {position} is the operator {node.get('op')!r:.50}, which detection does not use")
    name, attrs, inputs = node.get("name"), node.get("attrs", {}), node.get("inputs")
    if not isinstance(name, str) or not isinstance(inputs, list) or not isinstance(attrs, dict):
        raise ValueError(f"node {position} has no name, inputs or attributes")
    if not all(isinstance(value, str) for value in attrs.values()):
        raise ValueError(f"node {position} has an attribute that is not a text")
    if node["op"] == "Cast" and attrs != {"dtype": "float32"}:
        raise ValueError(f"node {position} casts to another type than float32")
    wrong = next(
        (key for key, value in attrs.items() if not _is_plausible(key, value) or _adds_outputs(key, value)), None
    )
    if wrong is not None:
        raise ValueError(f"node {position} has {wrong!r:.50} {attrs[wrong]!r:.50}")
    clean = {"op": node["op"], "name": name, "attrs": attrs, "inputs": [_checked_entry(e, before) for e in inputs]}
    _check_inputs(position, clean, before)
    return clean


def _check_inputs(position: int, node: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """ValueError unless a node has the inputs that its operator reads; MXNet reads beyond them otherwise."""
    if len(node["inputs"]) != _num_inputs(node):
        raise ValueError(f"node {position} of {node['op']} has {len(node['inputs'])} inputs")
    if node["op"] != "BatchNorm":
        return
    numbers = [entry[0] for entry in node["inputs"][1:]]  # what is no variable may have any size
    plain = all(before[k]["op"] == VARIABLE and before[k]["name"] != DATA for k in numbers)
    if not plain or len(set(numbers)) < len(numbers):
        raise ValueError(f"node {position}, a batch norm, does not read four parameters of its own")


def _num_inputs(node: dict[str, Any]) -> int:
    op, attrs = node["op"], node["attrs"]
    if op in _COUNTED:
        count = attrs.get("num_args", "")
        return int(count) if count.isdecimal() and int(count) > 0 else -1
    if op in _WITH_WEIGHTS:
        return 3 if attrs.get("no_bias", "False") in FALSE else 2
    if (op == "LeakyReLU" and attrs.get("act_type") == "prelu") or attrs.get("use_length", "False") not in FALSE:
        return 2
    return _INPUTS.get(op, 1)


def _is_plausible(key: str, value: str) -> bool:
    """Whether an attribute has a known private name, or numbers and words that no operator runs away with."""
    if key.startswith("__") and key != "__shape__":
        return key in _PRIVATE
    parts = [part.strip() for part in value.strip().lstrip("([").rstrip(")]").split(",")]
    numbers = list(_numbers(parts))
    if any(not (_NUMBER.fullmatch(part) or _WORD.fullmatch(part) or part == "") for part in parts):
        return False
    if len(parts) > MAX_NUMBERS or any(abs(number) > MAX_NUMBER for number in numbers):
        return False
    if math.prod(abs(number) for number in numbers if abs(number) > 1) > _MAX_PRODUCT:
        return False
    if key in _COUNTS and any(number < 0 for number in numbers):
        return False
    if key in _DIVISORS and (len(parts) != 1 or not value.isdecimal() or int(value) < 1):
        return False
    return key in _WITH_NONE or "none" not in (part.lower() for part in parts)


def _adds_outputs(key: str, value: str) -> bool:
    """Whether an attribute gives its operator more outputs than num_outputs knows: mean and variance, or a mask."""
    return (key == "output_mean_var" and value not in FALSE) or (key == "act_type" and value == "rrelu")


def _numbers(parts: list[str]) -> Iterator[float]:
    return (float(part) for part in parts if _NUMBER.fullmatch(part))


def _checked_entry(entry: Any, before: list[dict[str, Any]]) -> list[int]:
    """[node, output, version] with a node among those `before`, so that there are no cycles, and an output it has."""
    whole = isinstance(entry, list) and len(entry) == 3 and all(type(value) is int for value in entry)
    known = whole and 0 <= entry[0] < len(before)
    if not known or not 0 <= entry[1] < num_outputs(before[entry[0]]) or entry[2] not in (0, 1):
        raise ValueError(f"{entry!r:.50} is no output of an earlier node")
    return entry
