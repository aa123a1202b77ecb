"""Any Gluon classifier as a body: its graph is traced, cut before the classifier and given names without counters.

gluoncv is imported when such a network is asked for, not before.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from common.errors import OptionError, did_you_mean
from machine.runtime import SYMBOL_ATTRIBUTES, load_mxnet, mx
from symbol.layers import Layers, Symbol, Tap
from symbol.network_options import SSDOptions

PREFIX = "gluoncv:"
STRIDES = (8, 16, 32)
TRACE_SIDE = 512  # a side at which strides up to 32 are told apart even where convolutions have no padding

# Operators of a classifier's end, seen from its output; the body ends before those of the first group.
_POOLED = frozenset({"FullyConnected", "Flatten", "Reshape", "reshape", "mean"})
_PASSED = frozenset({"Activation", "LeakyReLU", "Dropout", "Pooling", "softmax", "clip"})
# A map that ends with one of these has no activation yet.
_UNFINISHED = frozenset({"Convolution", "BatchNorm", "GroupNorm", "Dropout"})
# Names of gluoncv's other models: detectors, segmentation, poses, video.
_NO_CLASSIFIER = re.compile(
    r".*_(voc|coco|ade|citys|mhpv1|custom|kinetics\d+|ucf101|hmdb51|sthsthv2|otb15|int8|kitti.*)(_int8)?$"
    r"|(simple|mobile|alpha)_pose|custom_|monodepth"
)
_IRRELEVANT = {"__lr_mult__": "1.0", "__wd_mult__": "1.0", "__dtype__": "0", "__storage_type__": "0"}

GluonNode = dict[str, Any]


class TracedBody(NamedTuple):
    """A classifier's body: its graph as JSON text with one output per tap, and (name, channels, stride) of the taps."""

    graph: str
    taps: tuple[tuple[str, int, int], ...]


def gluoncv_body(model: str) -> Callable[[Symbol, Layers, SSDOptions], list[Tap]]:
    """The backbone of a classifier of gluoncv.model_zoo (which holds Gluon's own ones, too).

    Its taps are stride8, stride16 and stride32, as far as the classifier has such maps: the last map of a stride that
    all of the network passes through. Parameters are named by parameter_name(). A BatchNorm whose gamma matches
    layers.freeze uses its global statistics. A name that is no classifier raises OptionError.
    """

    def body(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
        traced = _traced(model)
        graph = json.loads(traced.graph)
        for node in graph["nodes"]:
            if node["op"] == "BatchNorm" and layers.is_frozen(graph["nodes"][node["inputs"][1][0]]["name"]):
                node["attrs"]["use_global_stats"] = "True"
        outputs = mx.sym.load_json(json.dumps(graph))(data=data)
        return [Tap(outputs[k], *tap) for k, tap in enumerate(traced.taps)]

    body.__name__ = f"{PREFIX}{model}"
    return body


def tap_names(model: str) -> tuple[str, ...]:
    """Names of the taps of gluoncv_body(model), in the order of their strides."""
    return tuple(name for name, *_ in _traced(model).taps)


def parameter_name(path: str) -> str:
    """Our name of a parameter that a Gluon block, or a .params file written by it, calls e.g. layer1.0.conv1.weight."""
    return f"body_{path.replace('.', '_')}"


@lru_cache(maxsize=8)
def _traced(model: str) -> TracedBody:
    with mx.name.NameManager():
        block = _find_model(model)
        try:
            return trace(block)
        except (ValueError, TypeError, AssertionError, mx.base.MXNetError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise OptionError(
                f"--network {PREFIX}{model}: not usable as the body of a detector ({reason}); choose another classifier"
            ) from error


def model_zoo() -> Any:
    """gluoncv.model_zoo, also beside a torch from 2.0 on, which gluoncv refuses; ImportError without gluoncv."""
    load_mxnet()  # set up before gluoncv imports it
    torch = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]  # not to be found
    try:
        from gluoncv import model_zoo as zoo
    finally:
        sys.modules.pop("torch")
        if torch is not None:
            sys.modules["torch"] = torch
    return zoo


def _find_model(model: str) -> Any:
    try:
        zoo = model_zoo()
    except ImportError as error:
        raise OptionError(
            f"--network {PREFIX}{model} needs gluoncv ({error}): pip install gluoncv==0.10.5.post0"
        ) from error
    classifiers = [name for name in zoo.get_model_list() if not _NO_CLASSIFIER.match(name)]
    if model not in classifiers:
        hint = did_you_mean(model, classifiers, most=3) or "; take a name of gluoncv's classification model zoo"
        raise OptionError(f"--network {PREFIX}{model}: gluoncv has no classifier of that name{hint}")
    # googlenet alone would otherwise fetch weights of its base.
    return zoo.get_model(model, pretrained=False, **({"pretrained_base": False} if model == "googlenet" else {}))


def trace(block: Any) -> TracedBody:
    """The body of a HybridBlock that maps an image (N, 3, H, W) to class scores.

    Of several outputs (auxiliary scores) the first is followed. ValueError: it has no map of stride 16 or 32.
    """
    outputs = block(mx.sym.var("data"))
    output = outputs[0] if isinstance(outputs, list | tuple) else outputs
    graph = json.loads(output.tojson())
    nodes = graph["nodes"]
    taps = _choose_taps(nodes, _bottlenecks(nodes, _end_of_body(nodes, graph["heads"][0][0])))
    if taps.keys().isdisjoint({16, 32}):
        raise ValueError("it has no map of stride 16 or 32 that everything passes through")
    _rename(nodes, {param.name: path for path, param in reversed(block._collect_params_with_prefix().items())})
    return TracedBody(
        graph=_with_outputs(nodes, (node for node, _ in taps.values())).tojson(),
        taps=tuple((f"stride{stride}", channels, stride) for stride, (_, channels) in taps.items()),
    )


def _end_of_body(nodes: list[GluonNode], output: int) -> int:
    """The node whose map the classifier pools or flattens first, going back from its output."""
    end = position = output
    while True:
        node = nodes[position]
        if node["op"] not in _POOLED | _PASSED and (node["op"] != "Concat" or len(node["inputs"]) > 1):
            return end
        position = node["inputs"][0][0]
        if node["op"] in _POOLED or node["attrs"].get("global_pool") == "True":
            end = position


def _bottlenecks(nodes: list[GluonNode], end: int) -> list[int]:
    """Nodes that every path from the data to `end` passes, in order: no edge leads from before one to behind it."""
    inputs = [[entry[0] for entry in node["inputs"]] for node in nodes]
    fed: set[int] = set()
    needed = {end}
    for position in range(end + 1):
        if nodes[position]["name"] == "data" or fed.intersection(inputs[position]):
            fed.add(position)
    for position in range(end, -1, -1):
        if position in needed:
            needed.update(inputs[position])
    path = sorted(fed & needed)
    last_use = {source: position for position in path for source in inputs[position]}
    found, furthest = [], 0
    for position in path:
        if furthest <= position:
            found.append(position)
        furthest = max(furthest, last_use.get(position, position))
    return found


def _choose_taps(nodes: list[GluonNode], candidates: list[int]) -> dict[int, tuple[int, int]]:
    """{stride: (node, channels)} of the last finished map of each stride."""
    finished = [k for k in candidates if nodes[k]["op"] not in _UNFINISHED and nodes[k]["inputs"]]
    if not finished:
        return {}
    shapes = _with_outputs(nodes, finished).infer_shape_partial(data=(1, 3, TRACE_SIDE, TRACE_SIDE))[1]
    taps = {}
    for position, shape in zip(finished, shapes, strict=True):
        if len(shape) == 4 and min(shape) > 0:
            stride = 2 ** round(math.log2(TRACE_SIDE / shape[2]))
            taps[stride] = (position, shape[1])
    return {stride: taps[stride] for stride in STRIDES if stride in taps}


def _rename(nodes: list[GluonNode], paths: dict[str, str]) -> None:
    """Gives parameters the names of their paths in the block, and layers that of their first parameter or a number."""
    for position, node in enumerate(nodes):
        if node["op"] != "null":
            sources = [nodes[source[0]] for source in node["inputs"]]
            names = [source["name"] for source in sources if source["op"] == "null" and source["name"] != "data"]
            stem = names[0].rpartition("_")[0] if names else "body"
            node["name"] = f"{stem}_{node['op'].strip('_').lower()}{'' if names else position}"
        elif node["name"] != "data":
            if node["name"] not in paths:
                raise ValueError(f"{node['name']} is no parameter of it")
            node["name"] = parameter_name(paths[node["name"]])
            attrs = node.get("attrs", {}).items()
            node["attrs"] = {key: value for key, value in attrs if _IRRELEVANT.get(key) != value}


def _with_outputs(nodes: list[GluonNode], outputs: Iterable[int]) -> Symbol:
    variables = [position for position, node in enumerate(nodes) if node["op"] == "null"]
    heads = [[position, 0, 0] for position in outputs]
    return mx.sym.load_json(
        json.dumps({"nodes": nodes, "arg_nodes": variables, "heads": heads, "attrs": SYMBOL_ATTRIBUTES})
    )
