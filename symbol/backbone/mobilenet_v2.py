"""MobileNet v2 (Sandler et al. 2018, table 2): inverted residuals with linear bottlenecks and a width multiplier."""

from symbol.backbone.mobilenet import scaled
from symbol.layers import Layers, Symbol, Tap, add, relu6
from symbol.network_options import SSDOptions

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
