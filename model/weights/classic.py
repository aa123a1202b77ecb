"""Checkpoints of zhreshold/mxnet-ssd and apache's example/ssd, MXNet 0.8-1.x: PREFIX-symbol.json, PREFIX-0012.params.

The symbol is never run: its JSON is read as plain data, which MXNet itself never sees. `describe` reads network,
classes, input side and options from it, and the network is built anew from them. Names of vgg16_reduced, mobilenet and
the other networks have stayed; those of legacy_vgg16_ssd_300 and _512 (conv6, conv8_1, relu8_2_loc_pred_conv) are
translated.

Where an operator's parameters stand: `param` in MXNet 0.8, `attr` in 0.9 to 0.11, `attrs` since 0.12. MultiBoxPrior and
its sisters got their prefix `_contrib_` in 0.9.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import CheckpointError
from model.params_file import read_arrays
from model.weights import vgg
from model.weights.fit import VARIANCE, subtract_epsilon
from model.weights.vgg import Arrays
from symbol.detector.ssd import VARIANCES
from symbol.detector.ssd_rows import ROWS as SSD_NETWORKS
from symbol.registry import family_of, list_networks

MAX_BYTES = 16 << 20
ATTRIBUTE_KEYS = ("attr", "param", "attrs")
CONTRIB = "_contrib_"
KINDS = ("arg", "aux")
EPOCH_SUFFIX = re.compile(r"-\d+\.params$")
DEFAULT_EPSILON = 1e-3  # of the operator BatchNorm, as is fix_gamma=True
MOBILENET_LAST, MOBILENET_FILTERS = "conv_14_conv2d", 1024  # filters at width 1; the first layer has at least 8
CLS_HEAD, LOC_HEAD = "_cls_pred_conv", "_loc_pred_conv"
# Network -> layers that it alone has; the first that fits is it.
FINGERPRINTS = {
    "legacy_vgg16_ssd_512": ("conv1_1", "conv6", "conv12_2"),
    "legacy_vgg16_ssd_300": ("conv1_1", "conv6", "conv11_2"),
    "vgg16_reduced": ("conv1_1", "fc6"),
    "mobilenet": ("conv_1_conv2d", MOBILENET_LAST),
    "resnet101": ("stage3_unit23_conv1",),
    "resnet50": ("stage3_unit6_conv1",),
    "densenet121": ("DBstage4_unit16_conv1",),
    "densenet-tiny": ("DBstage3_unit18_conv1",),
    "inceptionv3": ("conv_conv2d", "mixed_conv_conv2d"),
}
SIDES = {6: 300, 7: 512}  # input side of SSD with VGG16 by its number of feature maps
FIRST_STRIDE = 8  # pixels between the anchors of relu4_3


class ClassicNode(NamedTuple):
    """An operator of a graph: its name without `_contrib_`, its own name and its parameters as texts."""

    operator: str
    name: str
    attributes: dict[str, str]

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A tuple such as '(0.1,0.141)', '[0.1, 0.141]' or '0.5'; ValueError for anything else."""
        if key not in self.attributes:
            return default
        text = self.attributes[key].strip("()[] ")
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
        if not numbers or not all(math.isfinite(x) for x in numbers):
            raise ValueError(f"{self.name} has {key} {text!r:.50}")
        return numbers

    def number(self, key: str, default: float) -> float:
        """A single number."""
        return self.numbers(key, (default,))[0]

    def flag(self, key: str, default: bool) -> bool:
        """True, true or 1."""
        return self.attributes.get(key, str(default)).lower() in ("true", "1")


def read_nodes(path: Path) -> list[ClassicNode]:
    """All nodes of a symbol JSON in its order; CheckpointError names a file that is damaged or larger than 16 MB."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        graph = json.loads(path.read_bytes().decode("utf-8"))
        nodes = graph.get("nodes") if isinstance(graph, dict) else None
        if not isinstance(nodes, list):
            raise ValueError("it has no list of nodes")
        return [_node(node) for node in nodes]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a sound symbol JSON ({error})") from error


def _node(node: Any) -> ClassicNode:
    if not isinstance(node, dict) or not isinstance(node.get("op"), str) or not isinstance(node.get("name"), str):
        raise ValueError("a node has no op or no name")
    attributes: dict[str, str] = {}
    for key in ATTRIBUTE_KEYS:
        part = node.get(key) or {}
        if not isinstance(part, dict) or not all(isinstance(value, str) for value in part.values()):
            raise ValueError(f"node {node['name']!r:.80} has attributes that are not texts")
        attributes |= part
    return ClassicNode(node["op"].removeprefix(CONTRIB), node["name"], attributes)


@dataclass(frozen=True)
class Description:
    """What a classic symbol says of itself.

    Attributes:
        network: name in the registry's terms; None = not recognised.
        num_classes: classes without background; None = the symbol has no heads.
        data_shape: side of the square input; None = the symbol does not tell it.
        options: options of the network that differ from the network's own.
        notes: what this project's network does otherwise.
    """

    network: str | None
    num_classes: int | None
    data_shape: int | None
    options: dict[str, Any]
    notes: tuple[str, ...]


def read(path: str | Path) -> Arrays:
    """{arg:NAME or aux:NAME: array}, float32, of a .params file of any MXNet since 0.8.

    Where the file has batch normalisation, PREFIX-symbol.json beside it tells its epsilon and whether gamma is fixed to
    1: gamma becomes 1 there, and moving variances get the epsilon added (model/weights/fit.py). CheckpointError
    for damaged files, names without arg: or aux:, and a missing symbol.
    """
    arrays = {name: array.astype(np.float32) for name, array in read_arrays(path).items()}
    foreign = next((name for name in arrays if name.partition(":")[0] not in KINDS), None)
    if foreign is not None:
        raise CheckpointError(
            f"{path}: array {foreign!r:.80} is neither arg:... nor aux:..., this is no MXNet checkpoint"
        )
    if any(name.endswith(VARIANCE) for name in arrays):
        _apply_batch_norms(arrays, _nodes(path))
    return arrays


def rename(arrays: Arrays, network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) for `network` from the arrays of read.

    Translates between legacy and modern names of VGG16 and subsamples fully connected fc6 and fc7; every other name
    stays. Weights that are recognised as another network's raise CheckpointError.
    """
    parts: dict[str, Arrays] = {kind: {} for kind in KINDS}
    for name, array in arrays.items():
        kind, _, plain = name.partition(":")
        parts[kind][plain] = array
    arg = parts["arg"]
    found = network_of(name.removesuffix("_weight") for name in arg)
    is_vgg = vgg.FIRST_WEIGHT in arg
    if found and found != network and not (is_vgg and vgg.has_body(network)):
        raise CheckpointError(f"these weights are those of {found}, not of {network}; use --network {found}")
    if is_vgg:
        arg = vgg.to_network(vgg.reduce_classifier(vgg.shape_scale(arg)), network)
    return arg, subtract_epsilon(parts["aux"], network, options)


def describe(path: str | Path, wanted: str | None = None) -> Description:
    """Network, classes, input side and options of the checkpoint PREFIX-NNNN.params, from the symbol beside it.

    wanted: network that the options are for; None = the one that is described. CheckpointError for a symbol that is
    missing, damaged or contradicts itself.
    """
    nodes = _nodes(path)
    try:
        filters = {node.name: int(node.number("num_filter", 0)) for node in nodes if node.operator == "Convolution"}
        priors = [node for node in nodes if node.operator == "MultiBoxPrior"]
        network = _known(network_of(filters))
        side = _side(network, priors)
        options = _loss_options(nodes) | _anchor_options(wanted or network, side, priors) | _width(network, filters)
        return Description(network, _num_classes(filters), side, options, _notes(nodes))
    except ValueError as error:
        raise CheckpointError(f"{symbol_path(path)}: not a symbol of SSD ({error})") from error


def symbol_path(path: str | Path) -> Path:
    """PREFIX-symbol.json of PREFIX-0012.params."""
    return Path(EPOCH_SUFFIX.sub("", str(path)) + "-symbol.json")


def network_of(layers: Iterable[str]) -> str | None:
    """The classic network that has these layers, or None."""
    found = set(layers)
    return next((name for name, needed in FINGERPRINTS.items() if found.issuperset(needed)), None)


def _nodes(path: str | Path) -> list[ClassicNode]:
    """The nodes of the symbol that belongs to a .params file."""
    if not symbol_path(path).is_file():
        raise CheckpointError(
            f"{symbol_path(path)}: no such file, and {path} cannot be understood without it; copy it there"
        )
    return read_nodes(symbol_path(path))


def _apply_batch_norms(arrays: Arrays, nodes: list[ClassicNode]) -> None:
    """Changes gamma and moving variance to what the symbol's batch normalisations compute with."""
    norms = {node.name: node for node in nodes if node.operator in ("BatchNorm", "CuDNNBatchNorm")}
    for name in [name for name in arrays if name.endswith(VARIANCE)]:
        layer = name.removeprefix("aux:").removesuffix(VARIANCE)
        if layer not in norms:
            raise CheckpointError(f"the symbol has no batch normalisation {layer!r:.80}, but the weights have")
        try:
            epsilon = np.float32(norms[layer].number("eps", DEFAULT_EPSILON))
        except ValueError as error:
            raise CheckpointError(f"batch normalisation {layer!r:.80} of the symbol is damaged ({error})") from error
        arrays[name] = arrays[name] + epsilon
        gamma = f"arg:{layer}_gamma"
        if norms[layer].flag("fix_gamma", True) and gamma in arrays:
            arrays[gamma] = np.ones_like(arrays[gamma])


def _known(network: str | None) -> str | None:
    """vgg16_reduced for a legacy network that is not in the registry; the names differ, the network does not."""
    legacy = network is not None and network.startswith(vgg.LEGACY)
    return vgg.NETWORK if legacy and network not in list_networks() else network


def _num_classes(filters: Mapping[str, int]) -> int | None:
    """Classes without background, from the heads' filters; ValueError where the heads contradict one another."""
    found = set()
    for name, values in filters.items():
        offsets = filters.get(name.removesuffix(CLS_HEAD) + LOC_HEAD, 0)
        if name.endswith(CLS_HEAD):
            anchors, rest = divmod(offsets, 4)
            if anchors < 1 or rest or values % anchors:
                raise ValueError(f"head {name!r:.80} has {values} filters for {offsets} offsets")
            found.add(values // anchors - 1)
    if len(found) > 1 or min(found, default=1) < 1:
        raise ValueError(f"its heads are for {sorted(found)} classes")
    return next(iter(found), None)


def _side(network: str | None, priors: list[ClassicNode]) -> int | None:
    """Side of the input, from the first anchors' step, else from the number of feature maps; VGG16 only."""
    if network is None or not vgg.has_body(network) or not priors:
        return None
    step = priors[0].number("steps", -1.0)
    return round(FIRST_STRIDE / step) if FIRST_STRIDE / 4096 <= step <= FIRST_STRIDE / 32 else SIDES.get(len(priors))


def _anchor_options(network: str | None, side: int | None, priors: list[ClassicNode]) -> dict[str, Any]:
    """--anchor-sizes and --anchor-ratios of the symbol where they are not the network's own."""
    row = family_of(network).row(network, (side or 512,) * 2, None) if network in SSD_NETWORKS else None
    options = {}
    for option, key in (("anchor_sizes", "sizes"), ("anchor_ratios", "ratios")):
        lists = [node.numbers(key, (1.0,)) for node in priors]
        own = getattr(row, key) if row else ()
        if lists and not _same(lists, own):
            options[option] = ";".join(",".join(f"{x:.6g}" for x in numbers) for numbers in lists)
    return options


def _same(lists: list[tuple[float, ...]], own: tuple[tuple[float, ...], ...]) -> bool:
    """Whether the lists agree to 1e-3 (mxnet-ssd printed 0.3333)."""
    lengths = [len(numbers) for numbers in lists]
    return lengths == [len(x) for x in own] and np.allclose(sum(lists, ()), sum(own, ()), atol=1e-3)


def _loss_options(nodes: list[ClassicNode]) -> dict[str, Any]:
    """Options of MultiBoxTarget and MultiBoxDetection that the symbol states."""
    options: dict[str, Any] = {}
    for node in nodes:
        if node.operator == "MultiBoxTarget":
            options["targets"] = "mxnet"
            options["overlap_threshold"] = node.number("overlap_threshold", 0.5)
            options["negative_mining_ratio"] = max(0.0, node.number("negative_mining_ratio", -1))
            options["min_neg_samples"] = max(0, int(node.number("minimum_negative_samples", 0)))
        elif node.operator == "MultiBoxDetection":
            options["nms"] = node.number("nms_threshold", 0.5) or 1.0  # MXNet's 0 suppresses nothing
            options["score_threshold"] = node.number("threshold", 0.01)
            options["force"] = node.flag("force_suppress", False)
            variances = node.numbers("variances", VARIANCES)
            if not np.allclose(variances, VARIANCES):
                options["variances"] = variances
            if node.number("nms_topk", -1) >= 1:
                options["nms_topk"] = int(node.number("nms_topk", -1))
    return options


def _width(network: str | None, filters: Mapping[str, int]) -> dict[str, Any]:
    """--width of a mobilenet that is not of width 1."""
    width = filters.get(MOBILENET_LAST, 0) / MOBILENET_FILTERS
    return {"width": width} if network == "mobilenet" and width != 1 else {}


def _notes(nodes: list[ClassicNode]) -> tuple[str, ...]:
    """Where detections will differ, because this project's network has no such option."""
    notes = []
    if any(node.operator == "MultiBoxPrior" and node.flag("clip", False) for node in nodes):
        notes.append("anchors were limited to the image; those of this network are not")
    return tuple(notes)
