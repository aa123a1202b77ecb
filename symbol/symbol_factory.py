"""The door to all networks: training symbols, detection symbols and the assigners that make their targets."""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from boxes.assigners import SSDAssigner
from boxes.effdet_anchors import STRIDES
from boxes.effdet_assigner import EffDetAssigner
from boxes.yolo_assigner import YOLOAssigner
from common.errors import CheckpointError, OptionError
from config.network_options import NetworkOptions
from config.options import from_mapping
from machine.runtime import mx
from symbol.backbone.gluon_body import PREFIX as GLUONCV_PREFIX
from symbol.darknet_cfg import load_cfg
from symbol.detector import efficientdet, ssd, yolo
from symbol.layers import Symbol
from symbol.registry import (
    DARKNET_PREFIX,
    EFFDET_NETWORKS,
    NETWORKS,
    EffDetRow,
    FeatureMap,
    SSDRow,
    YOLORow,
    find_row,
    find_yolo_row,
    is_effdet,
    is_yolo,
    list_networks,
)

__all__ = [
    "carried_options",
    "check_any_size",
    "feature_maps",
    "freeze_pattern",
    "get_assigner",
    "get_symbol",
    "get_symbol_train",
    "input_size",
    "label_names",
    "list_networks",
    "rebuilding_options",
    "size_multiple",
]

Shape = int | tuple[int, ...]
Assigner = SSDAssigner | YOLOAssigner | EffDetAssigner
Row = SSDRow | YOLORow | EffDetRow
Wanted = tuple[str, Row, tuple[int, int], int, NetworkOptions]

MINIMUM_SIDE = 32


def get_symbol_train(network: str, data_shape: Shape, num_classes: int, **options: Any) -> Symbol:
    """Training symbol of a network; its outputs are losses and, last, det (see `training` of symbol/detector/).

    data_shape is an int, (H, W) or (3, H, W); num_classes counts the objects' classes without background. Options
    are the fields of NetworkOptions; an unknown one, or one that the network does not use, raises OptionError. The
    symbol is the same whatever was built before it.
    """
    with mx.name.NameManager():
        family, wanted = _wanted(network, data_shape, num_classes, options)
        return family.training(*wanted)


def get_symbol(network: str, data_shape: Shape, num_classes: int, **options: Any) -> Symbol:
    """Detection symbol: det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], id -1 = no detection."""
    with mx.name.NameManager():
        family, wanted = _wanted(network, data_shape, num_classes, options)
        return family.detection(*wanted)


def get_assigner(
    network: str, data_shape: Shape, num_classes: int, *, sizes: Sequence[tuple[int, int]] = (), **options: Any
) -> Assigner | None:
    """The assigner whose arrays the training symbol reads, or None where the graph matches by itself
    (targets=mxnet).

    sizes: inputs (H, W) that the symbol is to be trained on beside that of data_shape. OptionError where it cannot be.
    """
    with mx.name.NameManager():
        family, wanted = _wanted(network, data_shape, num_classes, options)
        if sizes:
            return family.assigner_of_sizes(*wanted, sizes)
        return family.assigner(*wanted)


def label_names(network: str, **options: Any) -> tuple[str, ...]:
    """Names of the labels that the training symbol of these options reads."""
    return _family(network).label_names(_checked(network, options))


def feature_maps(network: str, data_shape: Shape, **options: Any) -> list[FeatureMap]:
    """The maps that the heads read, with the number of anchors at each place."""
    with mx.name.NameManager():
        family, (name, row, size, _, checked) = _wanted(network, data_shape, 1, options)
        return family.feature_maps(name, row, size, checked)


def carried_options(network: str, darknet_cfg: str) -> dict[str, Any]:
    """The options that let a checkpoint rebuild its network without the user's file: the text of a .cfg.

    darknet_cfg: the option as given; a text there stays. Other networks than darknet:FILE need none.
    """
    if not network.startswith(DARKNET_PREFIX) or darknet_cfg:
        return {}
    return {"darknet_cfg": load_cfg(network.removeprefix(DARKNET_PREFIX))}


def rebuilding_options(network: str, options: dict[str, Any], origin: str) -> dict[str, Any]:
    """The options by which a network is built again from a checkpoint, named `origin`, that holds them.

    CheckpointError for a darknet:FILE without the text of its .cfg: a checkpoint names no file to read. A width that
    the network does not use, as earlier versions wrote it, is left out.
    """
    if network.startswith(DARKNET_PREFIX) and not options.get("darknet_cfg"):
        raise CheckpointError(
            f"{origin}: its options hold no darknet_cfg, the text of {network:.80}; train or convert it again"
        )
    fixed = network in NETWORKS and not any(row.takes_width for _, row in NETWORKS[network])
    drop = {"width"} if fixed or network.startswith(GLUONCV_PREFIX) else set()
    return {name: value for name, value in options.items() if name not in drop}


def check_any_size(network: str, data_shape: Shape, option: str) -> None:
    """OptionError naming `option` unless the network's symbol takes inputs of other sizes than data_shape, too."""
    if is_effdet(network):
        side = size_multiple(network)
        raise OptionError(f"{option}: {network} needs inputs whose sides are multiples of {side}; leave it out")
    if not is_yolo(network):
        raise OptionError(
            f"{option}: the anchors of {network} are fractions of an input of one size, {data_shape}; leave it out"
        )


def size_multiple(network: str) -> int:
    """What the sides of multi-scale training's inputs are multiples of: an EfficientDet's largest stride, or 32."""
    return STRIDES[EFFDET_NETWORKS[network].levels - 1] if is_effdet(network) else MINIMUM_SIDE


def freeze_pattern(network: str, freeze: str) -> str:
    """The regular expression that the option freeze means: that of the words `body` and `all-but-heads`, or itself."""
    return _family(network).FREEZE.get(freeze, freeze)


def input_size(data_shape: Shape) -> tuple[int, int]:
    """(height, width) of an int, (H, W) or (3, H, W); anything else, or a side below 32, raises OptionError."""
    shape = (data_shape, data_shape) if isinstance(data_shape, int) else tuple(data_shape)
    if len(shape) == 3 and shape[0] == 3:
        shape = shape[1:]
    if len(shape) == 1:
        shape = shape * 2
    if len(shape) != 2 or min(shape) < MINIMUM_SIDE:
        raise OptionError(
            f"data shape {data_shape}: expected a side, (H, W) or (3, H, W) with sides of at least {MINIMUM_SIDE}"
        )
    return int(shape[0]), int(shape[1])


def _family(network: str) -> ModuleType:
    """The module of symbol/detector/ that builds a network."""
    if is_effdet(network):
        return efficientdet
    return yolo if is_yolo(network) else ssd


def _row(network: str, size: tuple[int, int], darknet_cfg: str) -> Row:
    if is_effdet(network):
        return EFFDET_NETWORKS[network]
    return find_yolo_row(network, darknet_cfg) if is_yolo(network) else find_row(network, size)


def _wanted(network: str, data_shape: Shape, num_classes: int, options: dict[str, Any]) -> tuple[ModuleType, Wanted]:
    """The family, and what its functions take: network, row, size, classes, checked options."""
    if num_classes < 1:
        raise OptionError(f"{num_classes} classes: a detector needs at least one")
    size = input_size(data_shape)
    checked = _checked(network, options)
    row = _row(network, size, checked.darknet_cfg)
    if checked.darknet_cfg and not network.startswith(DARKNET_PREFIX):
        raise OptionError(f"--darknet-cfg: {network} does not use it; leave it out, or give --network darknet:FILE")
    if isinstance(row, SSDRow) and not row.takes_width and checked.width != NetworkOptions.width:
        raise OptionError(
            f"--width {checked.width:g}: {network} does not use it; leave it out, or give 1 where a preset sets it"
        )
    return _family(network), (network, row, size, num_classes, checked)


def _checked(network: str, options: dict[str, Any]) -> NetworkOptions:
    """The options, each of which the network's family uses where it is not at its default."""
    checked, unused = from_mapping(NetworkOptions, options), _family(network).UNUSED
    for field in dataclasses.fields(NetworkOptions):
        if field.name in unused and getattr(checked, field.name) != field.default:
            raise OptionError(f"--{field.name.replace('_', '-')}: {network} does not use it; leave it out")
    return dataclasses.replace(checked, freeze=freeze_pattern(network, checked.freeze))
