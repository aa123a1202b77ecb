"""Pre-activation ResNet with bottlenecks (He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 4e).

Parameters have the names of the classic MXNet symbol, so that its ImageNet and SSD weights fit.
"""

from dataclasses import replace

from symbol.layers import Layers, Symbol, Tap, add, max_pool, relu
from symbol.network_options import SSDOptions

CHANNELS = (256, 512, 1024, 2048)  # after the units of each stage: He et al. 2016, "Deep Residual Learning", table 1
UNITS_50 = (3, 4, 6, 3)
UNITS_101 = (3, 4, 23, 3)
BATCH_NORM_EPS = 2e-5  # of the classic symbol


def resnet50(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps stage1_unit3_plus (stride 4), stage2_unit4_plus, stage3_unit6_plus and stage4_unit3_plus (stride 32).

    They are the sums that end the stages, before the activation: _plus12 and _plus15 of the classic symbol are the
    last two.
    """
    return _resnet(data, layers, UNITS_50)


def resnet101(data: Symbol, layers: Layers, options: SSDOptions) -> list[Tap]:
    """Taps as resnet50's, with stage3_unit23_plus (classic _plus29) and stage4_unit3_plus (classic _plus32)."""
    return _resnet(data, layers, UNITS_101)


def _resnet(data: Symbol, layers: Layers, units: tuple[int, ...]) -> list[Tap]:
    layers = replace(layers, batch_norm_eps=BATCH_NORM_EPS)
    net = layers.conv(layers.batch_norm(data, "bn_data"), "conv0", 64, 7, stride=2, bias=False)
    net = max_pool(relu(layers.batch_norm(net, "bn0"), "relu0"), "pool0", 3, 2, pad=1)
    taps = []
    for stage, (count, filters) in enumerate(zip(units, CHANNELS, strict=True), start=1):
        for unit in range(1, count + 1):
            name = f"stage{stage}_unit{unit}"
            net = _unit(net, layers, name, filters, stride=2 if stage > 1 and unit == 1 else 1, project=unit == 1)
        taps.append(Tap(net, f"{name}_plus", filters, 2 ** (stage + 1)))
    return taps


def _unit(data: Symbol, layers: Layers, name: str, filters: int, stride: int, project: bool) -> Symbol:
    """Bottleneck of 1x1, 3x3 (with the stride) and 1x1; the shortcut is the input or a projection of its activation."""
    activated = relu(layers.batch_norm(data, f"{name}_bn1"), f"{name}_relu1")
    net = layers.conv(activated, f"{name}_conv1", filters // 4, 1, bias=False)
    net = relu(layers.batch_norm(net, f"{name}_bn2"), f"{name}_relu2")
    net = layers.conv(net, f"{name}_conv2", filters // 4, 3, stride=stride, bias=False)
    net = relu(layers.batch_norm(net, f"{name}_bn3"), f"{name}_relu3")
    net = layers.conv(net, f"{name}_conv3", filters, 1, bias=False)
    shortcut = layers.conv(activated, f"{name}_sc", filters, 1, stride=stride, bias=False) if project else data
    return add(net, shortcut, f"{name}_plus")
