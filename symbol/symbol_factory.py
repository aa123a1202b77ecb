"""The door to all networks: training symbols, detection symbols and the assigners that make their targets."""

from typing import Any

from boxes.assigners import SSDAssigner
from config.errors import OptionError
from config.network_options import NetworkOptions
from config.options import from_mapping
from config.runtime import mx
from symbol.detector import ssd
from symbol.layers import Layers, Symbol, Tap
from symbol.registry import SSDRow, find_row, list_networks

__all__ = [
    "check_any_size",
    "get_assigner",
    "get_symbol",
    "get_symbol_train",
    "input_size",
    "label_names",
    "list_networks",
]

Shape = int | tuple[int, ...]

MINIMUM_SIDE = 32


def get_symbol_train(network: str, data_shape: Shape, num_classes: int, **options: Any) -> Symbol:
    """Training symbol of a network; its outputs end with det (see symbol/detector/ssd.py:training_symbol).

    data_shape is an int, (H, W) or (3, H, W); num_classes counts the objects' classes without background. Options
    are the fields of NetworkOptions; an unknown one raises OptionError. The symbol is the same whatever was built
    before it.
    """
    with mx.name.NameManager():
        heads, checked = _heads(network, data_shape, num_classes, options)
        return ssd.training_symbol(heads, checked, input_size(data_shape))


def get_symbol(network: str, data_shape: Shape, num_classes: int, **options: Any) -> Symbol:
    """Detection symbol: det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], id -1 = no detection."""
    with mx.name.NameManager():
        heads, checked = _heads(network, data_shape, num_classes, options)
        return ssd.detection_symbol(heads, checked, input_size(data_shape))


def get_assigner(network: str, data_shape: Shape, num_classes: int, **options: Any) -> SSDAssigner | None:
    """The assigner whose arrays the training symbol reads, or None where the graph matches by itself
    (targets=mxnet)."""
    checked = from_mapping(NetworkOptions, options)
    if checked.targets == "mxnet":
        return None
    size = input_size(data_shape)
    with mx.name.NameManager():
        row, maps = _maps(network, size, checked)
        shapes = mx.sym.Group([tap.symbol for tap in maps]).infer_shape(data=(1, 3, *size))[1]
    return SSDAssigner(
        layers=ssd.anchor_layers(row, size),
        feature_shapes={size: tuple((shape[2], shape[3]) for shape in shapes)},
        threshold=checked.overlap_threshold,
        variances=ssd.variances(checked),
    )


def label_names(**options: Any) -> tuple[str, ...]:
    """Names of the labels that the training symbol of these options reads."""
    return ssd.LABELS[from_mapping(NetworkOptions, options).targets]


def check_any_size(network: str, data_shape: Shape, option: str) -> None:
    """OptionError naming `option` unless the network's symbol takes inputs of other sizes than data_shape, too."""
    if isinstance(find_row(network, input_size(data_shape)), SSDRow):
        raise OptionError(
            f"{option}: the anchors of {network} are fractions of an input of one size, {data_shape}; leave it out"
        )


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


def _maps(network: str, size: tuple[int, int], options: NetworkOptions) -> tuple[SSDRow, list[Tap]]:
    row = ssd.customise(find_row(network, size), options)
    layers = Layers(freeze=options.freeze)
    taps = row.backbone(mx.sym.var("data"), layers, options)
    maps = ssd.feature_maps(row, taps, layers)
    ssd.check_room(network, row, maps[len(row.taps) - 1], size)
    return row, maps


def _heads(
    network: str, data_shape: Shape, num_classes: int, options: dict[str, Any]
) -> tuple[ssd.Heads, NetworkOptions]:
    if num_classes < 1:
        raise OptionError(f"{num_classes} classes: a detector needs at least one")
    checked, size = from_mapping(NetworkOptions, options), input_size(data_shape)
    row, maps = _maps(network, size, checked)
    layers = Layers(freeze=checked.freeze)
    return ssd.multibox_layer(maps, ssd.anchor_layers(row, size), num_classes, row.l2_scales, layers), checked
