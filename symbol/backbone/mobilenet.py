"""MobileNet v1 (Howard et al. 2017, table 1) and v2 (Sandler et al. 2018, table 2), with a width multiplier."""

from symbol.layers import Layers, Symbol, Tap, add, relu6
from symbol.network_options import SSDOptions

# (output channels at width 1, stride) of the separable blocks conv_2 .. conv_14.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2), (1024, 1))
# (expansion, output channels at width 1, repeats, stride of the first) of the bottlenecks.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280


def mobilenet(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps after every block, conv_1_relu (stride 2) to conv_14_relu (stride 32); channels times width.

    Channels are rounded to a multiple of 8, at least 8.
    """
    channels = scaled(32, options.width)
    net = layers.conv_bn_relu(data, "conv_1", channels, 3, stride=2)
    taps, stride = [Tap(net, "conv_1_relu", channels, 2)], 2
    for number, (filters, step) in enumerate(BLOCKS, start=2):
        net = layers.conv_bn_relu(net, f"conv_{number}_dw", channels, 3, stride=step, groups=channels)
        channels, stride = scaled(filters, options.width), stride * step
        net = layers.conv_bn_relu(net, f"conv_{number}", channels, 1)
        taps.append(Tap(net, f"conv_{number}_relu", channels, stride))
    return taps


def scaled(channels: int, width: float) -> int:
    """Channels times the width, rounded to a multiple of 8, at least 8."""
    return max(8, round(channels * width / 8) * 8)


def mobilenet_v2(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps block_K_expand_relu (the wide maps inside bottlenecks 2 to 17) and conv_last_relu, in their order.

    SSDLite (section 6.2) reads block_14_expand_relu (stride 16) and conv_last_relu (stride 32). A stage's
    first expansion lies before its stride: block_14_expand_relu ends stride 16. Channels are multiples of 8.
    """
    channels, stride, number = scaled(32, options.width), 2, 0
    net, taps = _conv(data, layers, "conv_1", channels, 3, stride=2), []
    for expansion, filters, repeats, first_stride in STAGES:
        for step in [first_stride] + [1] * (repeats - 1):
            number += 1
            name, wide, out = f"block_{number}", channels * expansion, scaled(filters, options.width)
            expanded = _conv(net, layers, f"{name}_expand", wide, 1) if expansion > 1 else net
            if expansion > 1:
                taps.append(Tap(expanded, f"{name}_expand_relu", wide, stride))
            narrow = _project(expanded, layers, name, wide, out, step)
            net = add(net, narrow, f"{name}_plus") if step == 1 and channels == out else narrow
            channels, stride = out, stride * step
    last = scaled(LAST_CHANNELS, max(1.0, options.width))
    return [*taps, Tap(_conv(net, layers, "conv_last", last, 1), "conv_last_relu", last, stride)]


def _project(data: Symbol, layers: Layers, name: str, wide: int, channels: int, stride: int) -> Symbol:
    """3x3 depthwise convolution with ReLU6, then a linear 1x1 convolution."""
    net = _conv(data, layers, f"{name}_dw", wide, 3, stride=stride, groups=wide)
    net = layers.conv(net, f"{name}_project_conv2d", channels, 1, bias=False)
    return layers.batch_norm(net, f"{name}_project_batchnorm")


def _conv(
    data: Symbol, layers: Layers, name: str, filters: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Symbol:
    net = layers.conv(data, f"{name}_conv2d", filters, kernel, stride=stride, groups=groups, bias=False)
    return relu6(layers.batch_norm(net, f"{name}_batchnorm"), f"{name}_relu")
