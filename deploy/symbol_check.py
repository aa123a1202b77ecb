"""Loads the symbol JSON of a model folder without trusting it.

MXNet's load_json runs what it is told: a node `_Native` with a made-up address ends the process. Only inference
operators are let through, and what MXNet sees is written anew from the parts that were checked.
"""

import json
from typing import Any

from config.errors import CheckpointError
from config.runtime import mx

MAX_SYMBOL_BYTES = 16 << 20
VARIABLE = "null"
OPERATORS = frozenset(
    {
        "Activation",
        "BatchNorm",
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
        "clip",
        "elemwise_add",
        "elemwise_mul",
        "elemwise_sub",
        "exp",
        "expand_dims",
        "floor",
        "gather_nd",
        "max",
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
_NODE_KEYS = frozenset({"op", "name", "attrs", "inputs"})  # without "subgraphs"
_MXNET_VERSION = {"mxnet_version": ["int", 10901]}


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
    variables = [position for position, node in enumerate(clean) if node["op"] == VARIABLE]
    outputs = [_checked_entry(entry, clean) for entry in heads]
    return json.dumps({"nodes": clean, "arg_nodes": variables, "heads": outputs, "attrs": _MXNET_VERSION})


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
    groups = attrs.get("num_group", "1")
    if not groups.isdecimal() or int(groups) < 1:  # MXNet divides by it
        raise ValueError(f"node {position} has num_group {groups!r:.50}")
    return {"op": node["op"], "name": name, "attrs": attrs, "inputs": [_checked_entry(e, before) for e in inputs]}


def _checked_entry(entry: Any, before: list[dict[str, Any]]) -> list[int]:
    """[node, output, version] with a node among those `before`, so that there are no cycles, and an output it has."""
    whole = isinstance(entry, list) and len(entry) == 3 and all(type(value) is int for value in entry)
    known = whole and 0 <= entry[0] < len(before)
    if not known or not 0 <= entry[1] < _num_outputs(before[entry[0]]) or entry[2] not in (0, 1):
        raise ValueError(f"{entry!r:.50} is no output of an earlier node")
    return entry


def _num_outputs(node: dict[str, Any]) -> int:
    """Outputs of a checked node: topk alone may have two."""
    return 2 if node["op"] == "topk" and node["attrs"].get("ret_typ") == "both" else 1
