"""BiFPN: maps of all strides exchange what they know, downwards and upwards (Tan et al. 2020, EfficientDet, section 3,
https://arxiv.org/abs/1911.09070).

Parameters are called bifpn_C_..., C the number of the cell; wK are the fusion weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from machine.runtime import mx
from symbol.layers import Activation, Layers, SharedSeparable, Symbol, Tap, activate, max_pool, swish

FUSION_EPS = 1e-4
LOWEST = 3  # level of the first map: stride 2^3


@dataclass(frozen=True)
class FusionStyle:
    """How cells join maps.

    Attributes:
        attention: each fusion weighs its inputs (fast normalised fusion); otherwise it adds them.
        activation: of the sums.
        rounds_up: the last map may have half a pixel more than the one before has pairs of.
    """

    attention: bool = True
    activation: Activation = swish
    rounds_up: bool = False


def bifpn(
    taps: Sequence[Tap], layers: Layers, channels: int, cells: int, levels: int, style: FusionStyle
) -> list[Symbol]:
    """Maps (N, channels, H / 2^k, W / 2^k), k = 3 ... 2 + levels, of a body's maps of stride 8, 16 and 32.

    H and W are multiples of the last stride, or of half of it where style.rounds_up.
    """
    lateral, again = first_inputs(taps, layers, "bifpn_0", channels, levels, style.rounds_up)
    maps = cell(lateral, again, layers, "bifpn_0", channels, style)
    for number in range(1, cells):
        maps = cell(maps, maps, layers, f"bifpn_{number}", channels, style)
    return maps


def first_inputs(
    taps: Sequence[Tap], layers: Layers, name: str, channels: int, levels: int, rounds_up: bool = False
) -> tuple[list[Symbol], list[Symbol]]:
    """What the first cell reads on its way down, and on its way up; the middle maps have a convolution for each."""
    down = [_lateral(tap, layers, f"{name}_p{k}_down_channel", channels) for k, tap in enumerate(taps, LOWEST)]
    again = [
        _lateral(tap, layers, f"{name}_p{k}_down_channel_2", channels) for k, tap in enumerate(taps[1:], LOWEST + 1)
    ]
    net, coarse = _lateral(taps[-1], layers, f"{name}_p5_to_p6", channels), []
    for level in range(LOWEST + len(taps), LOWEST + levels):
        net = zero_max_pool(net, f"{name}_p{level}_pool", rounds_up and level == LOWEST + levels - 1)
        coarse.append(net)
    return [*down, *coarse], [down[0], *again, *coarse]


def _lateral(tap: Tap, layers: Layers, name: str, channels: int) -> Symbol:
    return layers.batch_norm(layers.conv(tap.symbol, f"{name}_conv", channels, 1), f"{name}_bn")


def cell(
    maps: Sequence[Symbol], again: Sequence[Symbol], layers: Layers, name: str, channels: int, style: FusionStyle
) -> list[Symbol]:
    """One cell over maps from the finest to the coarsest: `maps` on the way down, `again` on the way up (figure 3)."""
    fusion = _Fusion(layers, name, channels, style)
    top = len(maps) - 1
    between = [maps[top]]  # from the coarsest
    for k in reversed(range(top)):
        larger = upsample(between[-1], f"{name}_p{LOWEST + k}_upsample")
        if style.rounds_up and k == top - 1:
            larger = mx.sym.slice_like(larger, maps[k], axes=(2, 3), name=f"{name}_p{LOWEST + k}_cut")
        between.append(fusion([maps[k], larger], LOWEST + k, "up", "w1"))
    between.reverse()
    outputs = [between[0]]
    for k in range(1, top + 1):
        smaller = zero_max_pool(outputs[-1], f"{name}_p{LOWEST + k}_downsample", style.rounds_up and k == top)
        inputs = [again[k], between[k], smaller] if k < top else [again[k], smaller]
        outputs.append(fusion(inputs, LOWEST + k, "down", "w2"))
    return outputs


class _Fusion:
    """Joins maps of one shape, then activation, separable convolution and batch norm."""

    def __init__(self, layers: Layers, name: str, channels: int, style: FusionStyle) -> None:
        self._layers, self._name, self._channels, self._style = layers, name, channels, style

    def __call__(self, inputs: list[Symbol], level: int, way: str, weight: str) -> Symbol:
        name = f"{self._name}_conv{level}_{way}"
        if self._style.attention:
            net = weighted_sum(inputs, f"{self._name}_p{level}_{weight}")
        else:
            net = mx.sym.add_n(*inputs, name=f"{name}_sum")
        conv = SharedSeparable(name, self._channels, self._channels)
        return self._layers.batch_norm(conv(activate(net, name, self._style.activation), name), f"{name}_bn")


def weighted_sum(inputs: list[Symbol], name: str) -> Symbol:
    """Sum of maps times ReLU(w) / (sum of ReLU(w) + 1e-4); w is the parameter NAME (number of maps,), at first 1.

    Source: fast normalised fusion, section 3.3.
    """
    weight = mx.sym.var(name, shape=(len(inputs),), init=mx.init.One())
    weight = mx.sym.relu(weight)
    weight = mx.sym.broadcast_div(weight, mx.sym.sum(weight, keepdims=True) + FUSION_EPS)
    parts = (
        mx.sym.reshape(mx.sym.slice_axis(weight, axis=0, begin=k, end=k + 1), shape=(1, 1, 1, 1))
        for k in range(len(inputs))
    )
    # An array of equal numbers, whose gradient is a plain sum: that of broadcast_mul is several times slower.
    return mx.sym.add_n(
        *(
            mx.sym.elemwise_mul(data, mx.sym.broadcast_like(part, data))
            for data, part in zip(inputs, parts, strict=True)
        )
    )


def upsample(data: Symbol, name: str) -> Symbol:
    """Every pixel twice in both directions."""
    return mx.sym.UpSampling(data, scale=2, sample_type="nearest", num_args=1, name=name)


def zero_max_pool(data: Symbol, name: str, rounds_up: bool = False) -> Symbol:
    """Maximum over 3x3 at every second pixel of a map with even sides; a row and a column of zeros follow it.

    The zeros count, as in TensorFlow's SAME padding of the original: borders are never negative. rounds_up: of odd
    sides, too, whose last pixel has a place of its own (TensorFlow's would stand one pixel before).
    """
    after = 2 if rounds_up else 1
    padded = mx.sym.pad(
        data, mode="constant", constant_value=0.0, pad_width=(0, 0, 0, 0, 0, after, 0, after), name=f"{name}_pad"
    )
    return max_pool(padded, name, 3, 2)
