"""Gluon classifiers: the converted body computes what the Gluon block computes."""

import numpy as np
import pytest

from config.errors import CheckpointError
from config.runtime import mx
from symbol.symbol_factory import get_symbol
from tests.train.weights.formula import body, formula, outputs
from train.params_file import stage_arrays
from train.weights import gluon, vgg
from train.weights.report import compare, expected_shapes

MEAN = np.float32([123.675, 116.28, 103.53]).reshape(1, 3, 1, 1)
STD = np.float32([58.395, 57.12, 57.375]).reshape(1, 3, 1, 1)
WIDTH = {"width": 0.25}


@pytest.fixture(scope="module")
def mobilenet():
    """gluoncv's mobilenet0.25 with formula weights."""
    from gluoncv.model_zoo import get_model

    block = get_model("mobilenet0.25", pretrained=False)
    block.initialize()
    block(mx.nd.zeros((1, 3, 64, 64)))
    for name, parameter in block.collect_params().items():
        parameter.set_data(mx.nd.array(formula(name.partition("_")[2], parameter.shape)))
    return block


@pytest.mark.parametrize("form", ["save_parameters", "export"])
def test_mobilenet_computes_what_the_gluon_block_computes(tmp_path, mobilenet, form):
    if form == "export":
        mobilenet.hybridize()
        mobilenet(mx.nd.zeros((1, 3, 64, 64)))
        mobilenet.export(str(tmp_path / "net"))
    else:
        mobilenet.save_parameters(str(tmp_path / "net-0000.params"))
    arg, aux = gluon.rename(gluon.read(tmp_path / "net-0000.params"), "mobilenet", WIDTH)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 64)).astype(np.float32)
    expected = mobilenet.features[:-2](mx.nd.array((pixels - MEAN) / STD)).asnumpy()
    found = outputs(body(get_symbol("mobilenet", 64, 2, **WIDTH), "conv_14_relu"), arg, aux, pixels - MEAN)
    assert expected.max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_report_of_mobilenet_misses_nothing_of_the_body_and_calls_the_classifier_unused(tmp_path, mobilenet):
    mobilenet.save_parameters(str(tmp_path / "net.params"))
    arg, aux = gluon.rename(gluon.read(tmp_path / "net.params"), "mobilenet", WIDTH)
    wanted, wanted_aux = expected_shapes("mobilenet", 300, 2, **WIDTH)
    report = compare({**wanted, **wanted_aux}, {**arg, **aux})
    assert report.unused == ("output_weight", "output_bias")
    assert report.misfits == {}
    assert all(name.startswith("multi_feat") or "_pred_conv" in name for name in report.missing)
    assert len(report.loaded) == 27 * 5


def vgg_arrays(structural):
    """vgg16's parameters under either naming; tiny but for conv1_1."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    names = [f"features.{n}." if structural else f"vgg0_conv{k}_" for k, n in enumerate(places)]
    dense = ["features.31.", "features.33.", "output."] if structural else [f"vgg0_dense{k}_" for k in range(3)]
    shapes = {name: (64, 3, 3, 3) if name == names[0] else (2, 2, 3, 3) for name in names} | {d: (4, 3) for d in dense}
    out = {}
    for name in sorted(shapes):  # files may hold any order
        out |= {f"{name}weight": formula(name, shapes[name]), f"{name}bias": formula(name + "b", shapes[name][:1])}
    return names, dense, out


@pytest.mark.parametrize("structural", [True, False])
def test_vgg16_layers_are_taken_in_the_order_of_the_network(tmp_path, structural):
    names, dense, arrays = vgg_arrays(structural)
    stage_arrays(tmp_path / "vgg.params", arrays).publish()
    arg, aux = gluon.rename(gluon.read(tmp_path / "vgg.params"), "vgg16_reduced", {})
    assert aux == {}
    ours = (*vgg.CONVOLUTIONS, "fc6", "fc7", "output")
    assert set(arg) == {f"{name}_{kind}" for name in ours for kind in ("weight", "bias")}
    for mine, theirs in zip(ours[1:], (*names, *dense)[1:], strict=True):
        np.testing.assert_array_equal(arg[f"{mine}_weight"], arrays[f"{theirs}weight"])
    np.testing.assert_allclose(arg["conv1_1_weight"] * STD.reshape(3, 1, 1), arrays[f"{names[0]}weight"], rtol=1e-6)


def test_the_zoo_is_asked_for_pretrained_weights(monkeypatch, mobilenet):
    from gluoncv import model_zoo

    asked = []
    monkeypatch.setattr(model_zoo, "get_model", lambda name, pretrained: asked.append((name, pretrained)) or mobilenet)
    arrays = gluon.read("gluoncv:mobilenet0.25")
    assert asked == [("mobilenet0.25", True)]
    expected = mobilenet.features[0].weight.data().asnumpy()
    np.testing.assert_array_equal(arrays["features.0.weight"], expected)


def test_a_failed_download_and_an_unknown_name_are_one_sentence(monkeypatch):
    from gluoncv import model_zoo

    def refuse(name, pretrained):
        raise OSError("Name or service not known")

    monkeypatch.setattr(model_zoo, "get_model", refuse)
    with pytest.raises(CheckpointError, match=r"gluoncv:vgg16: no pretrained weights \(Name or service"):
        gluon.read("gluoncv:vgg16")
    with pytest.raises(CheckpointError, match="no such model"):
        gluon.read("gluoncv:vgg1")


def test_weights_of_another_network_or_width_are_refused(tmp_path, mobilenet):
    mobilenet.save_parameters(str(tmp_path / "net.params"))
    arrays = gluon.read(tmp_path / "net.params")
    with pytest.raises(CheckpointError, match="give --width 0.25"):
        gluon.rename(arrays, "mobilenet", {})
    with pytest.raises(CheckpointError, match="27 convolutions and 27 batch normalisations, vgg16 has 13 and 0"):
        gluon.rename(arrays, "vgg16_reduced", {})
    with pytest.raises(CheckpointError, match="not resnet50"):
        gluon.rename(arrays, "resnet50", {})
    with pytest.raises(CheckpointError, match="'anchors'"):
        gluon.rename({**arrays, "anchors": np.zeros(3)}, "mobilenet", WIDTH)
    with pytest.raises(CheckpointError, match="'features.1' is no convolution"):
        gluon.rename({"features.1.gamma": np.zeros(3)}, "mobilenet", WIDTH)
