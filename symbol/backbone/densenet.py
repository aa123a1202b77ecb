"""DenseNet-BC (Huang et al. 2017, sections 3 and 4, table 1).

Parameters have the names of the classic MXNet symbol, so that its weights fit.
"""

from dataclasses import replace

from symbol.layers import Layers, Symbol, Tap, average_pool, concat, max_pool, relu
from symbol.network_options import SSDOptions

UNITS_121 = (6, 12, 24, 16)
UNITS_TINY = (6, 12, 18, 12)
BOTTLENECK = 4  # channels of a unit's 1x1 convolution, in growth rates
COMPRESSION = 0.5  # of the channels between two blocks
BATCH_NORM_EPS = 2e-5  # of the classic symbol


def densenet121(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps DBstage1_concat6 (stride 4), DBstage2_concat12, DBstage3_concat24, DBstage4_concat16 (32); growth 32."""
    return _densenet(data, layers, UNITS_121, growth=32)


def densenet_tiny(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps DBstage1_concat6 (stride 4), DBstage2_concat12, DBstage3_concat18, DBstage4_concat12 (32); growth 16."""
    return _densenet(data, layers, UNITS_TINY, growth=16)


def _densenet(data: Symbol, layers: Layers, units: tuple[int, ...], growth: int) -> list[Tap]:
    layers = replace(layers, batch_norm_eps=BATCH_NORM_EPS)
    channels = 2 * growth
    net = layers.conv(layers.batch_norm(data, "bn_data"), "conv0", channels, 7, stride=2, bias=False)
    net = max_pool(relu(layers.batch_norm(net, "bn0"), "relu0"), "pool0", 3, 2, pad=1)
    taps: list[Tap] = []
    for stage, count in enumerate(units, start=1):
        if taps:
            channels = int(channels * COMPRESSION)
            net = _transition(net, layers, f"TBstage{stage - 1}", channels)
        for unit in range(1, count + 1):
            new = _unit(net, layers, f"DBstage{stage}_unit{unit}", growth)
            net = concat(net, new, name=f"DBstage{stage}_concat{unit}")
        channels += count * growth
        taps.append(Tap(net, f"DBstage{stage}_concat{count}", channels, 2 ** (stage + 1)))
    return taps


def _unit(data: Symbol, layers: Layers, name: str, growth: int) -> Symbol:
    net = relu(layers.batch_norm(data, f"{name}_bn1"), f"{name}_relu1")
    net = layers.conv(net, f"{name}_conv1", BOTTLENECK * growth, 1, bias=False)
    net = relu(layers.batch_norm(net, f"{name}_bn2"), f"{name}_relu2")
    return layers.conv(net, f"{name}_conv2", growth, 3, bias=False)


def _transition(data: Symbol, layers: Layers, name: str, channels: int) -> Symbol:
    net = relu(layers.batch_norm(data, f"{name}_bn1"), f"{name}_relu1")
    return average_pool(layers.conv(net, f"{name}_conv1", channels, 1, bias=False), f"{name}_pool", 2, 2)
