"""EfficientNet without its classifier (Tan, Le 2019, https://arxiv.org/abs/1905.11946, table 1 and section 4).

EfficientNet-Lite (tensorflow/tpu, models/official/efficientnet/lite) has ReLU6 for swish and no squeeze-excitation;
its stem and the number of blocks in the first and last stage do not grow.

Parameters are called body_stem_... and body_N_... (N counts the blocks from 0).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from machine.runtime import mx
from symbol.layers import Activation, Layers, Symbol, Tap, activate, add, relu6, same_conv, swish
from symbol.network_options import SSDOptions

BATCH_NORM_EPS = 1e-3
DIVISOR = 8  # of the numbers of channels
STEM = 32
SQUEEZE = 0.25  # channels inside of squeeze-excitation, of a block's input channels
MOST_LOST = 0.1  # share of the channels that rounding may take away


@dataclass(frozen=True)
class BodyStage:
    """Blocks of one size: kernel, stride of the first, channels inside (times those of the input), channels."""

    kernel: int
    stride: int
    expand: int
    channels: int
    repeats: int


# Table 1, stages 2 to 8 of B0.
STAGES = (
    BodyStage(3, 1, 1, 16, 1),
    BodyStage(3, 2, 6, 24, 2),
    BodyStage(5, 2, 6, 40, 2),
    BodyStage(3, 2, 6, 80, 3),
    BodyStage(5, 1, 6, 112, 3),
    BodyStage(5, 2, 6, 192, 4),
    BodyStage(3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class EfficientNet:
    """One EfficientNet: B0's channels times width and blocks times depth; lite: an EfficientNet-Lite."""

    width: float = 1.0
    depth: float = 1.0
    lite: bool = False

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return STEM if self.lite else round_channels(STEM * self.width)

    @property
    def stages(self) -> tuple[BodyStage, ...]:
        """The stages with this network's channels and blocks."""
        fixed = (STAGES[0], STAGES[-1]) if self.lite else ()
        return tuple(
            replace(
                s,
                channels=round_channels(s.channels * self.width),
                repeats=s.repeats if s in fixed else math.ceil(s.repeats * self.depth),
            )
            for s in STAGES
        )

    @property
    def activation(self) -> Activation:
        """What follows the batch norms of its layers, and those of a detector on it."""
        return relu6 if self.lite else swish


LITE0, LITE1, LITE2 = (EfficientNet(*scale, lite=True) for scale in ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2)))


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, that takes away no more than a tenth."""
    rounded = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return rounded + DIVISOR if rounded < (1 - MOST_LOST) * channels else rounded


def efficientnet(data: Symbol, layers: Layers, body: EfficientNet, drop_connect: float = 0.0) -> list[Tap]:
    """The last map of every stride from 4 to 32, called c2 to c5, of data (N, 3, H, W).

    H and W are multiples of 32. drop_connect: share of the samples that skip the residual of a block, in training; it
    grows from 0 at the first block to this (Huang et al. 2016, section 3).
    """
    net = same_conv(layers, data, "body_stem_conv", body.stem, 3, stride=2)
    net = activate(layers.batch_norm(net, "body_stem_bn"), "body_stem", body.activation)
    channels, stride, number, taps = body.stem, 2, 0, {}
    total = sum(stage.repeats for stage in body.stages)
    for stage in body.stages:
        for repeat in range(stage.repeats):
            block = replace(stage, stride=1 if repeat else stage.stride)
            net = _block(net, layers, f"body_{number}", block, channels, body, drop_connect * number / total)
            channels, stride, number = block.channels, stride * block.stride, number + 1
        taps[stride] = Tap(net, f"c{stride.bit_length() - 1}", channels, stride)
    return [tap for tap in taps.values() if tap.stride > 2]


def efficientnet_lite0(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps c2 (stride 4) to c5 (stride 32), and c2_expand to c4_expand, of EfficientNet-Lite0."""
    return _lite(data, layers, LITE0)


def efficientnet_lite1(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps c2 (stride 4) to c5 (stride 32), and c2_expand to c4_expand, of EfficientNet-Lite1."""
    return _lite(data, layers, LITE1)


def efficientnet_lite2(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps c2 (stride 4) to c5 (stride 32), and c2_expand to c4_expand, of EfficientNet-Lite2."""
    return _lite(data, layers, LITE2)


def _lite(data: Symbol, layers: Layers, body: EfficientNet) -> list[Tap]:
    taps = efficientnet(data, replace(layers, batch_norm_eps=BATCH_NORM_EPS), body)
    internals = taps[-1].symbol.get_internals()
    return [*taps, *map(partial(_expanded, internals, body), taps[:-1])]


def _expanded(internals: Symbol, body: EfficientNet, tap: Tap) -> Tap:
    """The tap as the next block widens it: six times the channels, with their activation, as SSDLite reads MobileNet
    (Sandler et al. 2018, section 6.2)."""
    stride, number = 2, 0
    for stage in body.stages:
        stride *= stage.stride
        if stride > tap.stride:
            net = internals[f"body_{number}_expand_{body.activation.__name__}_output"]
            return Tap(net, f"{tap.name}_expand", tap.channels * stage.expand, tap.stride)
        number += stage.repeats
    raise ValueError(f"no block halves {tap.name}")


def _block(
    data: Symbol,
    layers: Layers,
    name: str,
    block: BodyStage,
    channels: int,
    body: EfficientNet,
    drop_connect: float,
) -> Symbol:
    """MBConv: widening 1x1, depthwise, squeeze-excitation but in a Lite, narrowing 1x1, residual where shapes allow."""
    net, inner = data, channels * block.expand
    if block.expand > 1:
        net = layers.conv(net, f"{name}_expand_conv", inner, 1, bias=False)
        net = activate(layers.batch_norm(net, f"{name}_expand_bn"), f"{name}_expand", body.activation)
    net = same_conv(layers, net, f"{name}_depthwise_conv", inner, block.kernel, stride=block.stride, groups=inner)
    net = activate(layers.batch_norm(net, f"{name}_depthwise_bn"), f"{name}_depthwise", body.activation)
    if not body.lite:
        net = _squeeze_excitation(net, layers, f"{name}_se", inner, max(1, int(channels * SQUEEZE)))
    net = layers.conv(net, f"{name}_project_conv", block.channels, 1, bias=False)
    net = layers.batch_norm(net, f"{name}_project_bn")
    if block.stride > 1 or block.channels != channels:
        return net
    if drop_connect:
        net = mx.sym.Dropout(net, p=drop_connect, axes=(1, 2, 3), name=f"{name}_drop")
    return add(net, data, name=f"{name}_plus")


def _squeeze_excitation(data: Symbol, layers: Layers, name: str, channels: int, squeezed: int) -> Symbol:
    """Each channel times a weight that the means of all channels decide (Hu et al. 2018, section 3)."""
    net = mx.sym.mean(data, axis=(2, 3), keepdims=True, name=f"{name}_mean")  # (N, C, 1, 1)
    net = swish(layers.conv(net, f"{name}_reduce", squeezed, 1), f"{name}_swish")
    net = layers.conv(net, f"{name}_expand", channels, 1)
    net = mx.sym.Activation(net, act_type="sigmoid", name=f"{name}_sigmoid")
    # Means and equal numbers in full size, as the gradients of global pooling and of broadcast_mul are slow.
    return mx.sym.elemwise_mul(data, mx.sym.broadcast_like(net, data, name=f"{name}_spread"), name=name)
