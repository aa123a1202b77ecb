"""VGG16 with fully convolutional fc6 and fc7 (SSD section 3.1; the "reduced" VGG of DeepLab-LargeFOV)."""

from collections.abc import Callable

from symbol.layers import Layers, Symbol, Tap, max_pool, relu
from symbol.network_options import SSDOptions

# Convolutions per stage and their width: Simonyan and Zisserman, table 1, column D.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

# A convolution with what follows it, up to the activation: (data, place like "4_3" or "6", filters, kernel, dilation).
Conv = Callable[[Symbol, str, int, int, int], Symbol]


def vgg16_reduced(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps relu4_3 (512 channels, stride 8) and relu7 (1024 channels, stride 16) of an image (N, 3, H, W)."""

    def conv(net: Symbol, place: str, filters: int, kernel: int, dilate: int) -> Symbol:
        return relu(layers.conv(net, conv_name(place), filters, kernel, dilate=dilate), f"relu{place}")

    return vgg16_body(data, conv)


def vgg16_body(data: Symbol, conv: Conv) -> list[Tap]:
    """Taps relu4_3 and relu7 of the body whose convolutions are made by `conv`.

    pool3 rounds up (75 -> 38 for a 300 input), pool5 is 3x3 with stride 1 and the sixth layer has dilation 6.
    """
    taps, net = [], data
    for stage, (repeats, filters) in enumerate(STAGES, start=1):
        for k in range(1, repeats + 1):
            net = conv(net, f"{stage}_{k}", filters, 3, 1)
        if stage == 4:
            taps.append(Tap(net, "relu4_3", filters, 8))
        if stage < 5:
            net = max_pool(net, f"pool{stage}", 2, 2, ceil_mode=stage == 3)
    net = conv(max_pool(net, "pool5", 3, 1, pad=1), "6", 1024, 3, 6)
    return [*taps, Tap(conv(net, "7", 1024, 1, 1), "relu7", 1024, 16)]


def conv_name(place: str) -> str:
    """conv4_3 for the place 4_3; fc6 and fc7."""
    return f"conv{place}" if "_" in place else f"fc{place}"
