"""MobileNet v1 (Howard et al. 2017, table 1): depthwise separable convolutions with a width multiplier."""

from symbol.layers import Layers, Symbol, Tap
from symbol.network_options import SSDOptions

# (output channels at width 1, stride) of the separable blocks conv_2 .. conv_14.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2), (1024, 1))


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
