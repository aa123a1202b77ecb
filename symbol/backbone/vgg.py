"""VGG16 with fully convolutional fc6 and fc7 (SSD section 3.1; the "reduced" VGG of DeepLab-LargeFOV), in its variants.

vgg16_reduced_bn has batch normalisation after every convolution, for training from scratch. legacy_vgg16_ssd_* are the
first SSD symbols of MXNet with their parameter names, so that their checkpoints fit: conv6 and conv7 stand for fc6 and
fc7, and the extra layers conv8_1 ... conv12_2 belong to the body.
"""

from collections.abc import Callable

from symbol.layers import Layers, Symbol, Tap, max_pool, relu
from symbol.network_options import SSDOptions

# Convolutions per stage and their width: Simonyan and Zisserman, table 1, column D.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# A convolution with what follows it, up to the activation: (data, place like "4_3" or "6", filters, kernel, dilation).
Conv = Callable[[Symbol, str, int, int, int], Symbol]
# Extra layers 8, 9, ...: filters of the 1x1 convolution; filters, kernel, stride and padding of the second.
EXTRAS_300 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
EXTRAS_512 = ((256, 512, 3, 2, 1),) + ((128, 256, 3, 2, 1),) * 3 + ((128, 256, 4, 1, 1),)


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


def vgg16_reduced_bn(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps and geometry of vgg16_reduced; convolutions without bias, then bn1_1 ... bn5_3, bn6 and bn7."""

    def conv(net: Symbol, place: str, filters: int, kernel: int, dilate: int) -> Symbol:
        net = layers.conv(net, conv_name(place), filters, kernel, dilate=dilate, bias=False)
        return relu(layers.batch_norm(net, f"bn{place}"), f"relu{place}")

    return vgg16_body(data, conv)


def legacy_vgg16_ssd_300(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps relu4_3, relu7, relu8_2, relu9_2, relu10_2 and relu11_2, of 38, 19, 10, 5, 3 and 1 pixels at 300."""
    return _legacy(data, layers, EXTRAS_300)


def legacy_vgg16_ssd_512(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps relu4_3, relu7, relu8_2 ... relu12_2, of 64, 32, 16, 8, 4, 2 and 1 pixels at 512."""
    return _legacy(data, layers, EXTRAS_512)


def _legacy(data: Symbol, layers: Layers, extras: tuple[tuple[int, int, int, int, int], ...]) -> list[Tap]:
    def conv(net: Symbol, place: str, filters: int, kernel: int, dilate: int) -> Symbol:
        return relu(layers.conv(net, f"conv{place}", filters, kernel, dilate=dilate), f"relu{place}")

    taps = vgg16_body(data, conv)
    for number, (squeeze, filters, kernel, stride, pad) in enumerate(extras, start=8):
        net = conv(taps[-1].symbol, f"{number}_1", squeeze, 1, 1)
        net = layers.conv(net, f"conv{number}_2", filters, kernel, stride=stride, pad=pad)
        taps.append(Tap(relu(net, f"relu{number}_2"), f"relu{number}_2", filters, taps[-1].stride * stride))
    return taps
