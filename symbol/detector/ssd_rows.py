"""SSD's table of networks: a new one is a row here and, for a new backbone, one function in symbol/backbone/."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from symbol.backbone import gluon_body, inceptionv3
from symbol.backbone.densenet import densenet121, densenet_tiny
from symbol.backbone.efficientnet import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from symbol.backbone.mobilenet import mobilenet, mobilenet_v2
from symbol.backbone.resnet import resnet50, resnet101
from symbol.backbone.vgg import legacy_vgg16_ssd_300, legacy_vgg16_ssd_512, vgg16_reduced, vgg16_reduced_bn
from symbol.layers import Layers, Symbol, Tap
from symbol.network_options import SSDOptions

Sizes = tuple[tuple[float, ...], ...]
# From an image (N, 3, H, W) to the feature maps that heads may read, in the order of their strides.
Backbone = Callable[[Symbol, Layers, SSDOptions], list[Tap]]

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
    # Smallest side of an input that leaves something of the body's last map.
    smallest_side: int = 32
    # Limit centres and sides of the anchors to [0, 1] (ssd.pytorch); MultiBoxPrior's own clip limits corners.
    clip_centres: bool = False
    # Limit the anchors of the last map to the image.
    clip_last: bool = False
    # The body takes the option width.
    takes_width: bool = False
    # Sides of the square inputs that it is usually trained on.
    usual_sizes: tuple[int, ...] = (300, 512)


def _extras(
    filters: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...]:
    return tuple(zip(filters, strides, pads, strict=True))


def _vgg_300(backbone: Backbone) -> SSDRow:
    return SSDRow(
        backbone=backbone,
        taps=("relu4_3", "relu7"),
        extras=_extras((512, 256, 256, 256), (2, 2, 1, 1), (1, 1, 0, 0)),
        sizes=SIZES_6,
        ratios=RATIOS_6,
        l2_scales=(20.0, 0.0),
        steps=(8, 16, 32, 64, 100, 300),
        steps_for=300,
    )


def _vgg_512(backbone: Backbone) -> SSDRow:
    return SSDRow(
        backbone=backbone,
        taps=("relu4_3", "relu7"),
        extras=_extras((512, 256, 256, 256, 256), (2, 2, 2, 2, 1), (1, 1, 1, 1, 1)),
        sizes=SIZES_7,
        ratios=RATIOS_7,
        l2_scales=(20.0, 0.0),
        steps=(8, 16, 32, 64, 128, 256, 512),
        steps_for=512,
    )


def _legacy(row: SSDRow, backbone: Backbone, last_layer: int, smallest_side: int) -> SSDRow:
    """The same anchors on the extra layers 8 to last_layer of the body."""
    taps = (*row.taps, *(f"relu{number}_2" for number in range(8, last_layer + 1)))
    return replace(row, backbone=backbone, taps=taps, extras=(), smallest_side=smallest_side)


def _six_maps(backbone: Backbone, taps: tuple[str, ...], filters: tuple[int, ...], smallest_side: int = 32) -> SSDRow:
    """Taps and extra layers of stride 2 that make six maps."""
    extras = _extras(filters, (2,) * len(filters), (1,) * len(filters))
    return SSDRow(backbone, taps, extras, SIZES_6, RATIOS_6, smallest_side=smallest_side)


def _lite(backbone: Backbone) -> SSDRow:
    """EfficientNet-Lite; its halvings are even where sides are multiples of 32.

    Its maps have no activation, and with ImageNet's weights values of tens: they are L2-normalised, as relu4_3 is.
    """
    return replace(
        _six_maps(backbone, ("c3", "c4", "c5"), FILTERS_3), l2_scales=(10.0, 10.0, 10.0), usual_sizes=(256, 320, 512)
    )


def _inception(*blocks: str, filters: tuple[int, ...]) -> SSDRow:
    taps = tuple(f"ch_concat_{block}_chconcat" for block in blocks)
    return _six_maps(inceptionv3.inceptionv3, taps, filters, inceptionv3.SMALLEST_SIDE)


Rows = tuple[tuple[int, SSDRow], ...]
# Filters of the extra layers; the more taps, the fewer layers of the end.
FILTERS_5 = (512, 512, 256, 256, 128)
FILTERS_4 = FILTERS_5[1:]
FILTERS_3 = FILTERS_5[2:]


def _prior_sizes(side: int, edges: tuple[float, ...]) -> Sizes:
    """Anchor sizes of each map as fractions of the side: its min_size and sqrt(min_size * max_size).

    edges, in pixels: the min_size of each map and, last, the max_size of the last; a map's max_size is the next map's
    min_size.
    """
    return tuple((low / side, math.sqrt(low * high) / side) for low, high in pairwise(edges))


# Priors for 300 are those of ssd.pytorch (data/config.py). Those for 512 follow Caffe SSD's rule (weiliu89/caffe,
# examples/ssd/ssd_coco.py), percents of the side: VOC 7, then 15 to 90 in steps of 15; COCO 4, then 10 to 90 in steps
# of 16. The same numbers, with these aspect ratios, stand in lufficc/SSD, configs/vgg_ssd512_voc0712.yaml (537.65 for
# 537.6) and configs/vgg_ssd512_coco_trainval35k.yaml.
VOC_300 = _prior_sizes(300, (30, 60, 111, 162, 213, 264, 315))
COCO_300 = _prior_sizes(300, (21, 45, 99, 153, 207, 261, 315))
VOC_512 = _prior_sizes(512, (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6))
COCO_512 = _prior_sizes(512, (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72))

# SSD on VGG16 as ssd.pytorch has it: the layers of vgg16_reduced, but its priors, clipped in centre form.
_PYTORCH_300 = replace(_vgg_300(vgg16_reduced), sizes=VOC_300, clip_centres=True)
_PYTORCH_512 = replace(
    _PYTORCH_300,
    extras=_extras((512, 256, 256, 256, 256), (2,) * 5, (1,) * 5),  # the last map is 1x1 (Caffe: 4x4 kernel, stride 1)
    sizes=VOC_512,
    ratios=RATIOS_7,
    steps=(8, 16, 32, 64, 128, 256, 512),
    steps_for=512,
)

# torchvision's ssd300_vgg16 (models/detection/ssd.py): the layers of vgg16_reduced for 300, and scales of its own. Its
# sides are limited to 1; those of the last map alone are longer, and its centre is the image's.
_TORCHVISION_300 = replace(
    _vgg_300(vgg16_reduced),
    sizes=_prior_sizes(1, (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
    clip_last=True,
    usual_sizes=(300,),
)

_MOBILENET_V2 = _six_maps(mobilenet_v2, ("block_14_expand_relu", "conv_last_relu"), FILTERS_4)

# name -> rows by the smallest input side they are for, largest first.
ROWS: dict[str, Rows] = {
    "densenet-tiny": ((0, _six_maps(densenet_tiny, ("DBstage2_concat12", "DBstage3_concat18"), (256, 256, 256, 128))),),
    "densenet121": ((0, _six_maps(densenet121, ("DBstage3_concat24", "DBstage4_concat16"), (256, 256, 256, 128))),),
    "efficientnet_lite0": ((0, _lite(efficientnet_lite0)),),
    "efficientnet_lite1": ((0, _lite(efficientnet_lite1)),),
    "efficientnet_lite2": ((0, _lite(efficientnet_lite2)),),
    "inceptionv3": (
        (448, _inception("mixed_7", "mixed_10", filters=FILTERS_4)),
        (0, _inception("mixed_2", "mixed_7", "mixed_10", filters=FILTERS_3)),
    ),
    "legacy_vgg16_ssd_300": ((0, _legacy(_vgg_300(vgg16_reduced), legacy_vgg16_ssd_300, 11, 268)),),
    "legacy_vgg16_ssd_512": ((0, _legacy(_vgg_512(vgg16_reduced), legacy_vgg16_ssd_512, 12, 268)),),
    "vgg16_ssd_voc": ((448, _PYTORCH_512), (0, _PYTORCH_300)),
    "vgg16_ssd_coco": ((448, replace(_PYTORCH_512, sizes=COCO_512)), (0, replace(_PYTORCH_300, sizes=COCO_300))),
    "vgg16_ssd_torchvision": ((0, _TORCHVISION_300),),
    "mobilenet": (
        (
            0,
            SSDRow(
                backbone=mobilenet,
                taps=("conv_12_relu", "conv_14_relu"),
                extras=_extras((512, 256, 256, 256, 256), (2,) * 5, (1,) * 5),
                sizes=SIZES_7,
                ratios=RATIOS_7,
                takes_width=True,
            ),
        ),
    ),
    "mobilenet_v2": ((0, replace(_MOBILENET_V2, takes_width=True)),),
    "resnet101": ((0, _six_maps(resnet101, ("stage3_unit23_plus", "stage4_unit3_plus"), FILTERS_4)),),
    "resnet50": ((0, _six_maps(resnet50, ("stage3_unit6_plus", "stage4_unit3_plus"), FILTERS_4)),),
    "vgg16_reduced": ((448, _vgg_512(vgg16_reduced)), (0, _vgg_300(vgg16_reduced))),
    "vgg16_reduced_bn": ((448, _vgg_512(vgg16_reduced_bn)), (0, _vgg_300(vgg16_reduced_bn))),
}


def gluoncv_rows(model: str) -> Rows:
    """The rows of gluoncv:MODEL, any classifier of gluoncv, with the anchors of inceptionv3.

    Six maps: from 448 on the classifier's of stride 16 and 32, below that of stride 8 as well, then extra layers.
    """
    body, taps = gluon_body.gluoncv_body(model), gluon_body.tap_names(model)
    large = tuple(tap for tap in taps if tap != "stride8")
    return tuple((side, _six_maps(body, read, FILTERS_5[len(read) - 1 :])) for side, read in ((448, large), (0, taps)))
