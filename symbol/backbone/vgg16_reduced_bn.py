"""vgg16_reduced with batch normalisation after every convolution, for training from scratch."""

from symbol.backbone.vgg16_reduced import conv_name, vgg16_body
from symbol.layers import Layers, Symbol, Tap, relu
from symbol.network_options import SSDOptions


def vgg16_reduced_bn(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps and geometry of vgg16_reduced; convolutions without bias, then bn1_1 ... bn5_3, bn6 and bn7."""

    def conv(net: Symbol, place: str, filters: int, kernel: int, dilate: int) -> Symbol:
        net = layers.conv(net, conv_name(place), filters, kernel, dilate=dilate, bias=False)
        return relu(layers.batch_norm(net, f"bn{place}"), f"relu{place}")

    return vgg16_body(data, conv)
