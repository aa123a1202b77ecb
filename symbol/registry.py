"""The table of networks: a new one is a row here (and, for a new backbone, one file in symbol/backbone/)."""

from collections.abc import Callable
from dataclasses import dataclass

from config.errors import OptionError
from config.network_options import NetworkOptions
from symbol.backbone.mobilenet import mobilenet
from symbol.backbone.vgg16_reduced import vgg16_reduced
from symbol.layers import Layers, Symbol, Tap

Sizes = tuple[tuple[float, ...], ...]
# From an image (N, 3, H, W) to the feature maps that heads may read, in the order of their strides.
Backbone = Callable[[Symbol, Layers, NetworkOptions], list[Tap]]

# Anchor sizes (s_k, sqrt(s_k * s_k+1)) as fractions of the image, and aspect ratios, of apache's example/ssd.
SIZES_6: Sizes = ((0.1, 0.141), (0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
SIZES_7: Sizes = (
    (0.07, 0.1025),
    (0.15, 0.2121),
    (0.3, 0.3674),
    (0.45, 0.5196),
    (0.6, 0.6708),
    (0.75, 0.8216),
    (0.9, 0.9721),
)
FEW = (1.0, 2.0, 0.5)
MANY = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
RATIOS_6: Sizes = (FEW, MANY, MANY, MANY, FEW, FEW)
RATIOS_7: Sizes = (FEW, MANY, MANY, MANY, MANY, FEW, FEW)


@dataclass(frozen=True)
class SSDRow:
    """One SSD: body taps by layer name, extra layers (filters, stride, pad of their 3x3), anchors per map."""

    backbone: Backbone
    taps: tuple[str, ...]
    extras: tuple[tuple[int, int, int], ...]
    sizes: Sizes
    ratios: Sizes
    # Scale of the L2 normalisation per tap; 0 = none (SSD section 3.1: relu4_3 only).
    l2_scales: tuple[float, ...] = ()
    # Anchor steps in pixels, used when the input is exactly steps_for x steps_for; otherwise 1 / map size.
    steps: tuple[float, ...] = ()
    steps_for: int = 0


def _extras(
    filters: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...]:
    return tuple(zip(filters, strides, pads, strict=True))


# name -> rows by the smallest input side they are for, largest first.
NETWORKS: dict[str, tuple[tuple[int, SSDRow], ...]] = {
    "vgg16_reduced": (
        (
            448,
            SSDRow(
                backbone=vgg16_reduced,
                taps=("relu4_3", "relu7"),
                extras=_extras((512, 256, 256, 256, 256), (2, 2, 2, 2, 1), (1, 1, 1, 1, 1)),
                sizes=SIZES_7,
                ratios=RATIOS_7,
                l2_scales=(20.0, 0.0),
                steps=(8, 16, 32, 64, 128, 256, 512),
                steps_for=512,
            ),
        ),
        (
            0,
            SSDRow(
                backbone=vgg16_reduced,
                taps=("relu4_3", "relu7"),
                extras=_extras((512, 256, 256, 256), (2, 2, 1, 1), (1, 1, 0, 0)),
                sizes=SIZES_6,
                ratios=RATIOS_6,
                l2_scales=(20.0, 0.0),
                steps=(8, 16, 32, 64, 100, 300),
                steps_for=300,
            ),
        ),
    ),
    "mobilenet": (
        (
            0,
            SSDRow(
                backbone=mobilenet,
                taps=("conv_12_relu", "conv_14_relu"),
                extras=_extras((512, 256, 256, 256, 256), (2,) * 5, (1,) * 5),
                sizes=SIZES_7,
                ratios=RATIOS_7,
            ),
        ),
    ),
}


def find_row(network: str, size: tuple[int, int]) -> SSDRow:
    """The row of a network for an input of (height, width); an unknown name raises OptionError with the known ones."""
    if network not in NETWORKS:
        raise OptionError(f"--network {network}: unknown (known: {', '.join(sorted(NETWORKS))})")
    return next(row for smallest, row in NETWORKS[network] if min(size) >= smallest)


def list_networks() -> list[str]:
    """Names of all networks, sorted."""
    return sorted(NETWORKS)
