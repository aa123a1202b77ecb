"""The door to all networks: training symbols, detection symbols and the assigners that make their targets."""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from boxes.anchor_sets import AnchorSet
from boxes.assigners import Assigner
from common.errors import OptionError
from common.sizes import DataShape, Size, input_size
from config.options import from_mapping
from machine.runtime import mx
from symbol.family import Family, FeatureMap
from symbol.layers import Symbol
from symbol.network_options import CommonOptions
from symbol.registry import family_of, list_networks, network_options_class

__all__ = [
    "anchor_reach",
    "check_any_size",
    "embedded_options",
    "feature_maps",
    "freeze_pattern",
    "get_anchors",
    "get_assigner",
    "get_symbol",
    "get_symbol_train",
    "ineffective_options",
    "input_size",
    "label_names",
    "list_networks",
    "mean_losses",
    "rebuilding_options",
    "size_multiple",
    "tap_names",
]

TARGETS = "targets"  # the option of the families that match by several rules
Wanted = tuple[str, Any, Size, int, CommonOptions]


def get_symbol_train(
    network: str,
    data_shape: DataShape,
    num_classes: int,
    *,
    nms_thresh: float | None = None,
    force_suppress: bool | None = None,
    **options: Any,
) -> Symbol:
    """Training symbol of a network; its outputs are losses and, last, det (see `training` of symbol/detector/).

    data_shape is an int, (H, W) or (3, H, W); num_classes counts the objects' classes without background. Options
    are those of symbol/network_options.py; an unknown one, or one that the network does not use, raises OptionError.
    The symbol is the same whatever was built before it.

    nms_thresh, force_suppress: the options nms and force by their classic names. A call with one of them that names no
    targets is a classic one: an SSD gets targets=mxnet, with the outputs [cls_prob, loc_loss, cls_label, det].
    """
    named = _by_own_names(options, nms_thresh, force_suppress)
    if len(named) > len(options) and TARGETS in {
        field.name for field in dataclasses.fields(family_of(network).options)
    }:
        named = {TARGETS: "mxnet"} | named
    with mx.name.NameManager():
        family, wanted = _wanted(network, data_shape, num_classes, named)
        return family.training(*wanted)


def get_symbol(
    network: str,
    data_shape: DataShape,
    num_classes: int,
    *,
    nms_thresh: float | None = None,
    force_suppress: bool | None = None,
    **options: Any,
) -> Symbol:
    """Detection symbol: det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], id -1 = no detection.

    nms_thresh, force_suppress: the options nms and force by their classic names.
    """
    with mx.name.NameManager():
        named = _by_own_names(options, nms_thresh, force_suppress)
        family, wanted = _wanted(network, data_shape, num_classes, named)
        return family.detection(*wanted)


def get_assigner(
    network: str, data_shape: DataShape, num_classes: int, *, sizes: Sequence[Size] = (), **options: Any
) -> Assigner | None:
    """The assigner whose arrays the training symbol reads, or None where the graph matches by itself
    (targets=mxnet).

    sizes: inputs (H, W) that the symbol is to be trained on beside that of data_shape. OptionError where it cannot be.
    """
    with mx.name.NameManager():
        family, wanted = _wanted(network, data_shape, num_classes, options)
        return family.assigner(*wanted, sizes)


def get_anchors(network: str, data_shape: DataShape, **options: Any) -> AnchorSet | None:
    """The anchors of a network for an input, to be fitted to objects; None where no option changes them."""
    with mx.name.NameManager():
        family, (name, row, size, _, checked) = _wanted(network, data_shape, 1, options)
        return family.anchor_set(name, row, size, checked)


def anchor_reach(network: str, data_shape: DataShape, boxes: np.ndarray, **options: Any) -> tuple[np.ndarray, float]:
    """(IoU (n,) of corner boxes (n, 4), normalised to the input, with their best anchor; the IoU from which an anchor
    learns an object). OptionError where the network has no anchors or they do not fit the input."""
    with mx.name.NameManager():
        family, (name, row, size, _, checked) = _wanted(network, data_shape, 1, options)
        return family.reach(name, row, size, checked, boxes)


def label_names(network: str, **options: Any) -> tuple[str, ...]:
    """Names of the labels that the training symbol of these options reads."""
    family = family_of(network)
    return family.label_names(_checked(family, network, options))


def feature_maps(network: str, data_shape: DataShape, **options: Any) -> list[FeatureMap]:
    """The maps that the heads read, with the number of anchors at each place."""
    with mx.name.NameManager():
        family, (name, row, size, _, checked) = _wanted(network, data_shape, 1, options)
        return family.feature_maps(name, row, size, checked)


def tap_names(network: str, data_shape: DataShape, **options: Any) -> tuple[str, ...]:
    """Names of what the heads read from the body, for a table of networks."""
    with mx.name.NameManager():
        family, (name, row, size, _, checked) = _wanted(network, data_shape, 1, options)
        return family.tap_names(name, row, size, checked)


def embedded_options(network: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, beside those given, that let a checkpoint rebuild its network without the user's files (a .cfg)."""
    return family_of(network).embedded_options(network, options)


def rebuilding_options(network: str, options: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The options by which a network is built again from a checkpoint, named `origin`, that holds them.

    CheckpointError where they do not suffice. Options of its family that the network does not read, as earlier versions
    wrote the width, are left out.
    """
    family = family_of(network)
    family.check_rebuilding(network, options, origin)
    unused_options = family.unused_options(network)
    return {name: value for name, value in options.items() if name not in unused_options}


def mean_losses(network: str, **options: Any) -> bool:
    """Whether the training symbol's losses are means over what each device gets, not shares of the global batch's."""
    family = family_of(network)
    return family.mean_losses(_checked(family, network, options))


def ineffective_options(network: str, options: Mapping[str, Any], given: Container[str]) -> list[str]:
    """A sentence for each option of the names `given` that another one among `options` keeps from having an effect."""
    family = family_of(network)
    groups = family.ineffective_options(_checked(family, network, options))
    return [
        f"--{name.replace('_', '-')} has no effect {reason}"
        for names, reason in groups
        for name in names
        if name in given
    ]


def check_any_size(network: str, data_shape: DataShape, option: str) -> None:
    """OptionError naming `option` unless the network's symbol takes inputs of other sizes than data_shape, too."""
    reason = family_of(network).only_size(network, data_shape)
    if reason:
        raise OptionError(f"{option}: {reason}; leave it out")


def size_multiple(network: str) -> int:
    """What the sides of multi-scale training's inputs are multiples of."""
    return family_of(network).size_multiple(network)


def freeze_pattern(network: str, freeze: str) -> str:
    """The regular expression that the option freeze means: that of the words `body` and `all-but-heads`, or itself."""
    return family_of(network).freeze.get(freeze, freeze)


def _by_own_names(options: dict[str, Any], nms_thresh: float | None, force_suppress: bool | None) -> dict[str, Any]:
    """The options with those of classic names; OptionError for one that is given by both names."""
    classic = {"nms": ("nms_thresh", nms_thresh), "force": ("force_suppress", force_suppress)}
    given = {name: value for name, (_, value) in classic.items() if value is not None}
    twice = next((name for name in given if name in options), None)
    if twice:
        raise OptionError(f"{classic[twice][0]} and {twice} are the same option; give one of them")
    return options | given


def _wanted(network: str, data_shape: DataShape, num_classes: int, options: dict[str, Any]) -> tuple[Family, Wanted]:
    """The family, and what its methods take: network, row, size, classes, checked options."""
    if num_classes < 1:
        raise OptionError(f"{num_classes} classes: a detector needs at least one")
    family, size = family_of(network), input_size(data_shape)
    checked = _checked(family, network, options)
    return family, (network, family.row(network, size, checked), size, num_classes, checked)


def _checked(family: Family, network: str, options: Mapping[str, Any]) -> CommonOptions:
    """The family's options; OptionError for another one, or one that the network does not read, beside its default."""
    given = from_mapping(network_options_class(), dict(options))
    own = {field.name for field in dataclasses.fields(family.options)} - family.unused_options(network)
    for field in dataclasses.fields(given):
        if field.name not in own and getattr(given, field.name) != field.default:
            flag, value = field.name.replace("_", "-"), getattr(given, field.name)
            raise OptionError(
                f"--{flag} {value!s:.40}: {network} does not use it; leave it out, or give {field.default!s:.40} where "
                "a preset sets it"
            )
    checked = family.options(**{name: getattr(given, name) for name in own})
    return dataclasses.replace(checked, freeze=freeze_pattern(network, checked.freeze))
