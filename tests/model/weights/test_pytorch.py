"""State_dicts of PyTorch under our names: ssd.pytorch's, vgg16_reducedfc.pth, torchvision's."""

import numpy as np
import pytest

from common.errors import CheckpointError
from model.weights import pytorch
from model.weights.fit import compare, expected_shapes
from model.weights.vgg import CONVOLUTIONS
from tests.model.weights.formula import formula

SHAPES, _ = expected_shapes("vgg16_ssd_voc", 300, 20)
FC = {31: "fc6", 33: "fc7"}


def body(prefix, layers):
    """Arrays of VGG16's convolutions as a Sequential names them."""
    names = dict(zip(pytorch.VGG_INDICES, CONVOLUTIONS, strict=True)) | layers
    return {
        f"{prefix}{index}.{kind}": formula(f"{name}_{kind}", SHAPES[f"{name}_{kind}"])
        for index, name in names.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("prefix", ["", "vgg.", "module.vgg."])
def test_the_body_of_ssd_pytorch_fits_every_network_on_vgg16(prefix):
    arrays = body(prefix, FC)
    named, _ = pytorch.rename_ssd(arrays, "", {})
    report = compare(SHAPES, named)
    assert len(report.loaded) == len(arrays) == 30
    assert report.unused == ()
    for name in report.loaded:
        np.testing.assert_array_equal(named[name], formula(name, SHAPES[name]))


def test_torchvisions_images_and_ours_give_the_same():
    """Its first convolution on (rgb / 255 - mean) / std is ours on rgb less the mean pixels."""
    arrays = body("features.", {})
    named, _ = pytorch.rename_ssd(arrays, "", {})
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 3, 3))  # (channel, y, x): what one output sees
    scaled = (pixels / 255 - pytorch.MEAN[:, None, None]) / pytorch.STD[:, None, None]
    theirs = (arrays["features.0.weight"] * scaled).sum(axis=(1, 2, 3)) + arrays["features.0.bias"]
    ours = (named["conv1_1_weight"] * (pixels - pytorch.MEAN_PIXELS[:, None, None])).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(ours + named["conv1_1_bias"], theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(named["conv5_3_weight"], arrays["features.28.weight"])


def test_the_body_for_pixels_that_torchvision_ships_is_not_scaled():
    """VGG16_Weights.IMAGENET1K_FEATURES: Caffe's body, its classifier is NaN."""
    arrays = body("features.", {}) | {"classifier.0.weight": np.full((8, 4), np.nan, np.float32)}
    named, _ = pytorch.rename_ssd(arrays, "", {})
    np.testing.assert_array_equal(named["conv1_1_weight"], arrays["features.0.weight"])
    assert not any(name.startswith("fc") for name in named)


def test_unknown_names_stay_and_other_networks_are_refused():
    named, _ = pytorch.rename_ssd(body("vgg.", FC) | {"vgg.99.weight": np.zeros(3), "epoch": np.zeros(1)}, "", {})
    assert {"vgg.99.weight", "epoch"} <= named.keys()
    with pytest.raises(CheckpointError, match="hold no layer conv1_1 of VGG16"):
        pytorch.rename_ssd({"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3))}, "", {})


TORCHVISION = {
    "backbone.scale_weight": "relu4_3_scale",
    "backbone.features.0.weight": "conv1_1_weight",
    "backbone.features.21.bias": "conv4_3_bias",
    "backbone.extra.0.1.weight": "conv5_1_weight",
    "backbone.extra.0.7.1.weight": "fc6_weight",
    "backbone.extra.0.7.3.bias": "fc7_bias",
    "backbone.extra.1.0.weight": "multi_feat_2_conv_1x1_conv_weight",
    "backbone.extra.4.2.bias": "multi_feat_5_conv_3x3_conv_bias",
    "head.classification_head.module_list.0.weight": "relu4_3_cls_pred_conv_weight",
    "head.regression_head.module_list.5.bias": "multi_feat_5_conv_3x3_relu_loc_pred_conv_bias",
    "backbone.extra.9.1.weight": "backbone.extra.9.1.weight",
}


def test_torchvisions_ssd_has_our_layers():
    assert {name: pytorch.ssd_name(name) for name in TORCHVISION} == TORCHVISION
    heads = {f"head.{kind}_head.module_list.0.bias": np.zeros(size) for kind, size in
             (("classification", 4 * 91), ("regression", 16))}  # fmt: skip
    found = pytorch.describe_ssd(heads)
    assert (found.network, found.side, found.options["post_process"]) == ("vgg16_ssd_torchvision", 300, "clipped")
    assert found.pixels["mean_r"] == pytest.approx(122.99925)


@pytest.mark.parametrize(("classes", "network"), [(21, None), (81, "vgg16_ssd_coco"), (3, "vgg16_ssd_coco")])
def test_ssd_pytorch_takes_the_priors_of_coco_unless_the_classes_are_vocs(classes, network):
    found = pytorch.describe_ssd({"conf.0.bias": np.zeros(4 * classes), "loc.0.bias": np.zeros(16)})
    assert (found and found.network) == network
    assert pytorch.describe_ssd({"vgg.0.weight": np.zeros((64, 3, 3, 3))}) is None


@pytest.mark.parametrize("name", ["backbone.conv_stem.weight", "model.fpn.cell.0.fnode.0.x", "class_net.conv_rep.0.x"])
def test_an_efficientdet_of_effdet_is_told(name):
    arrays = {name: np.zeros((32, 3, 3, 3))}
    for rename, network in ((pytorch.rename_ssd, "vgg16_ssd_voc"), (pytorch.rename_effdet, "efficientdet_d0")):
        with pytest.raises(CheckpointError, match=r"of an EfficientDet of effdet \(rwightman\), .* not read yet; conv"):
            rename(arrays, network, {})
