"""Names of the networks in symbol/registry.py, for those who must not import mxnet; a test compares the two."""

import difflib

from common.errors import OptionError

NETWORK_NAMES = (
    "densenet-tiny",
    "densenet121",
    "efficientdet_d0",
    "efficientdet_d1",
    "efficientdet_d2",
    "efficientdet_d3",
    "efficientdet_d4",
    "efficientdet_d5",
    "efficientdet_d6",
    "efficientdet_d7",
    "efficientdet_d7x",
    "efficientdet_mini",
    "efficientdet_small",
    "inceptionv3",
    "legacy_vgg16_ssd_300",
    "legacy_vgg16_ssd_512",
    "mobilenet",
    "mobilenet_v2",
    "resnet101",
    "resnet50",
    "vgg16_reduced",
    "vgg16_reduced_bn",
    "vgg16_ssd_coco",
    "vgg16_ssd_voc",
    "yolov3",
    "yolov3_spp",
    "yolov3_spp_mini",
    "yolov3_spp_small",
    "yolov3_tiny",
)


def check_network_name(network: str) -> None:
    """OptionError for a name that is in no table; PREFIX:NAME (gluoncv:..., darknet:...) is left to the registry."""
    if ":" in network or network in NETWORK_NAMES:
        return
    close = difflib.get_close_matches(network, NETWORK_NAMES, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise OptionError(f"--network {network}: unknown ({meant}known: {', '.join(NETWORK_NAMES)})")
