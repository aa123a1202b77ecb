"""Inception v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture", table 1, figures 5 to 7 and 10).

Parameters have the names of the classic MXNet symbol (Inception-7), so that its weights fit. Convolutions and poolings
that shrink the map have no padding: the smallest side is SMALLEST_SIDE.
"""

from collections.abc import Sequence
from dataclasses import replace

from symbol.layers import Layers, Symbol, Tap, average_pool, concat, max_pool
from symbol.network_options import SSDOptions

SMALLEST_SIDE = 75
BATCH_NORM_EPS = 1e-3

Kernel = int | tuple[int, int]
# Convolutions one after the other: (suffix of the name, filters, kernel, stride).
Tower = Sequence[tuple[str, int, Kernel, int]]


def inceptionv3(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps ch_concat_mixed_K_chconcat: after the blocks mixed_2 (stride 8), mixed_7 (16) and mixed_10 (32)."""
    layers = replace(layers, batch_norm_eps=BATCH_NORM_EPS)
    net = _stem(data, layers)
    for name, projection in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
        net = _block_35(net, layers, name, projection)
    taps = [Tap(net, _tap_name("mixed_2"), 288, 8)]
    net = _reduce_35(net, layers, "mixed_3")
    for name, filters in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
        net = _block_17(net, layers, name, filters)
    taps.append(Tap(net, _tap_name("mixed_7"), 768, 16))
    net = _reduce_17(net, layers, "mixed_8")
    for name, pool in (("mixed_9", average_pool), ("mixed_10", max_pool)):
        net = _block_8(net, layers, name, pool(net, f"{name}_pool", 3, 1, pad=1))
    return [*taps, Tap(net, _tap_name("mixed_10"), 2048, 32)]


def _tap_name(block: str) -> str:
    return f"ch_concat_{block}_chconcat"


def _stem(data: Symbol, layers: Layers) -> Symbol:
    net = layers.conv_bn_relu(data, "conv", 32, 3, stride=2, pad=0)
    net = layers.conv_bn_relu(net, "conv_1", 32, 3, pad=0)
    net = max_pool(layers.conv_bn_relu(net, "conv_2", 64, 3), "pool", 3, 2)
    net = layers.conv_bn_relu(net, "conv_3", 80, 1)
    return max_pool(layers.conv_bn_relu(net, "conv_4", 192, 3, pad=0), "pool1", 3, 2)


def _tower(data: Symbol, layers: Layers, name: str, tower: Tower) -> Symbol:
    """Convolutions with batch norm and ReLU; those of stride 2 have no padding, the others keep H and W."""
    for suffix, filters, kernel, stride in tower:
        data = layers.conv_bn_relu(
            data, f"{name}{suffix}", filters, kernel, stride=stride, pad=0 if stride > 1 else None
        )
    return data


def _join(data: Symbol, layers: Layers, name: str, towers: Sequence[Tower], *others: Symbol) -> Symbol:
    parts = [_tower(data, layers, name, tower) for tower in towers]
    return concat(*parts, *others, name=_tap_name(name))


def _pooled(data: Symbol, layers: Layers, name: str, filters: int) -> Symbol:
    pooled = average_pool(data, f"{name}_pool", 3, 1, pad=1)
    return layers.conv_bn_relu(pooled, f"{name}_tower_2_conv", filters, 1)


def _block_35(data: Symbol, layers: Layers, name: str, projection: int) -> Symbol:
    """Figure 5: 1x1, 5x5 (kept as such), two 3x3, and a pooled projection."""
    towers: list[Tower] = [
        [("_conv", 64, 1, 1)],
        [("_tower_conv", 48, 1, 1), ("_tower_conv_1", 64, 5, 1)],
        [("_tower_1_conv", 64, 1, 1), ("_tower_1_conv_1", 96, 3, 1), ("_tower_1_conv_2", 96, 3, 1)],
    ]
    return _join(data, layers, name, towers, _pooled(data, layers, name, projection))


def _reduce_35(data: Symbol, layers: Layers, name: str) -> Symbol:
    """Figure 10: stride-2 convolutions beside a stride-2 pooling."""
    towers: list[Tower] = [
        [("_conv", 384, 3, 2)],
        [("_tower_conv", 64, 1, 1), ("_tower_conv_1", 96, 3, 1), ("_tower_conv_2", 96, 3, 2)],
    ]
    return _join(data, layers, name, towers, max_pool(data, f"{name}_pool", 3, 2))


def _block_17(data: Symbol, layers: Layers, name: str, filters: int) -> Symbol:
    """Figure 6 with n = 7: 1x7 and 7x1 in place of 7x7."""
    row, column = (1, 7), (7, 1)
    towers: list[Tower] = [
        [("_conv", 192, 1, 1)],
        [("_tower_conv", filters, 1, 1), ("_tower_conv_1", filters, row, 1), ("_tower_conv_2", 192, column, 1)],
        [
            ("_tower_1_conv", filters, 1, 1),
            ("_tower_1_conv_1", filters, column, 1),
            ("_tower_1_conv_2", filters, row, 1),
            ("_tower_1_conv_3", filters, column, 1),
            ("_tower_1_conv_4", 192, row, 1),
        ],
    ]
    return _join(data, layers, name, towers, _pooled(data, layers, name, 192))


def _reduce_17(data: Symbol, layers: Layers, name: str) -> Symbol:
    towers: list[Tower] = [
        [("_tower_conv", 192, 1, 1), ("_tower_conv_1", 320, 3, 2)],
        [
            ("_tower_1_conv", 192, 1, 1),
            ("_tower_1_conv_1", 192, (1, 7), 1),
            ("_tower_1_conv_2", 192, (7, 1), 1),
            ("_tower_1_conv_3", 192, 3, 2),
        ],
    ]
    return _join(data, layers, name, towers, max_pool(data, f"{name}_pool", 3, 2))


def _block_8(data: Symbol, layers: Layers, name: str, pooled: Symbol) -> Symbol:
    """Figure 7: 1x3 and 3x1 side by side after the 1x1 and after the 3x3."""
    left = layers.conv_bn_relu(data, f"{name}_tower_conv", 384, 1)
    right = _tower(data, layers, name, [("_tower_1_conv", 448, 1, 1), ("_tower_1_conv_1", 384, 3, 1)])
    return concat(
        layers.conv_bn_relu(data, f"{name}_conv", 320, 1),
        *_split(left, layers, f"{name}_tower"),
        *_split(right, layers, f"{name}_tower_1"),
        layers.conv_bn_relu(pooled, f"{name}_tower_2_conv", 192, 1),
        name=_tap_name(name),
    )


def _split(data: Symbol, layers: Layers, name: str) -> tuple[Symbol, Symbol]:
    return (
        layers.conv_bn_relu(data, f"{name}_mixed_conv", 384, (1, 3)),
        layers.conv_bn_relu(data, f"{name}_mixed_conv_1", 384, (3, 1)),
    )
