"""Loads the symbol JSON of a model folder without trusting it.

MXNet's load_json runs what it is told: a node `_Native` with a made-up address ends the process. Only inference
operators are let through, and what MXNet sees is written anew from the parts that were checked. Attributes and
inputs are checked as well: with some these operators divide by zero, read and write where they should not, ask for all
memory or never end.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from common.errors import CheckpointError
from common.sizes import DATA
from machine.runtime import SYMBOL_ATTRIBUTES, mx
from model.folder_files import MAX_SYMBOL_BYTES
from model.symbol_limits import check_sizes, num_outputs

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
    if node.get("op") not in OPERATORS:
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
