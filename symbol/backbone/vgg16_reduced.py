"""VGG16 with fully convolutional fc6 and fc7 (SSD section 3.1; the "reduced" VGG of DeepLab-LargeFOV)."""

from config.network_options import NetworkOptions
from symbol.layers import Layers, Symbol, Tap, max_pool, relu

# Convolutions per stage and their width: Simonyan and Zisserman, table 1, column D.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def vgg16_reduced(data: Symbol, layers: Layers, options: NetworkOptions) -> list[Tap]:
    """Taps relu4_3 (512 channels, stride 8) and relu7 (1024 channels, stride 16) of an image (N, 3, H, W).

    pool3 rounds up (75 -> 38 for a 300 input), pool5 is 3x3 with stride 1 and fc6 has dilation 6.
    """
    taps, net = [], data
    for stage, (repeats, filters) in enumerate(STAGES, start=1):
        for k in range(1, repeats + 1):
            net = relu(layers.conv(net, f"conv{stage}_{k}", filters, 3), f"relu{stage}_{k}")
        if stage == 4:
            taps.append(Tap(net, "relu4_3", filters, 8))
        if stage < 5:
            net = max_pool(net, f"pool{stage}", 2, 2, ceil_mode=stage == 3)
    net = max_pool(net, "pool5", 3, 1, pad=1)
    net = relu(layers.conv(net, "fc6", 1024, 3, dilate=6), "relu6")
    net = relu(layers.conv(net, "fc7", 1024, 1), "relu7")
    return [*taps, Tap(net, "relu7", 1024, 16)]
