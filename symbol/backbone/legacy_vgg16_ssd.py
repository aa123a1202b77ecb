"""The first SSD symbols of MXNet with their parameter names, so that their checkpoints fit.

conv6 and conv7 stand for fc6 and fc7, and the extra layers conv8_1 ... conv12_2 belong to the body.
"""

from symbol.backbone.vgg16_reduced import vgg16_body
from symbol.layers import Layers, Symbol, Tap, relu
from symbol.network_options import SSDOptions

# Extra layers 8, 9, ...: filters of the 1x1 convolution; filters, kernel, stride and padding of the second.
EXTRAS_300 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
EXTRAS_512 = ((256, 512, 3, 2, 1),) + ((128, 256, 3, 2, 1),) * 3 + ((128, 256, 4, 1, 1),)


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
