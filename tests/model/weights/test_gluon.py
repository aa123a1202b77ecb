"""Gluon classifiers: the converted body computes what the Gluon block computes."""

import numpy as np
import pytest

from common.errors import CheckpointError
from machine.runtime import mx
from model.params_file import stage_arrays
from model.weights import gluon, vgg
from model.weights.fit import compare, expected_shapes
from symbol.symbol_factory import get_symbol
from tests.model.weights.formula import body, formula, outputs

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


def test_the_body_of_gluoncvs_ssd_computes_what_its_block_computes(tmp_path):
    from gluoncv.model_zoo import vgg16_atrous_300

    block = vgg16_atrous_300(pretrained=False)
    block.initialize()
    block(mx.nd.zeros((1, 3, 300, 300)))
    random = np.random.default_rng(0)
    for name, parameter in block.collect_params().items():
        if name.endswith(("weight", "bias")):  # of a size that activations keep
            values = random.normal(size=parameter.shape) * np.sqrt(2 / np.prod(parameter.shape[1:]))
            parameter.set_data(mx.nd.array(values))
    block.save_parameters(str(tmp_path / "vgg.params"))
    arg, _ = gluon.rename(gluon.read(tmp_path / "vgg.params"), "vgg16_reduced", {})
    report = compare(expected_shapes("vgg16_reduced", 300, 2)[0], arg)
    assert all("_pred_conv" in name for name in report.missing)
    assert report.unused == ("init_scale",)
    pixels = random.uniform(0, 255, (1, 3, 300, 300)).astype(np.float32)
    layers = ["broadcast_mul0", "relu7", *(f"multi_feat_{k}_conv_3x3_relu" for k in range(2, 6))]
    symbol = get_symbol("vgg16_reduced", 300, 2)
    group = mx.sym.Group([body(symbol, layer) for layer in layers])
    for found, map_ in zip(
        outputs(group, arg, {}, pixels - MEAN), block(mx.nd.array((pixels - MEAN) / STD)), strict=True
    ):
        expected = map_.asnumpy()
        assert expected.max() > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_gluoncvs_heads_are_renamed_by_feature_map():
    arrays = {"features.norm4.scale": np.ones((1, 4, 1, 1)), "features.stages.0.0.weight": np.ones((64, 3, 3, 3))}
    heads = {"class_predictors": "cls_pred_conv", "box_predictors": "loc_pred_conv"}
    maps = ("relu4_3", "relu7", *(f"multi_feat_{k}_conv_3x3_relu" for k in range(2, 7)))
    wanted = {
        f"{theirs}.{k}.predictor.{kind}": f"{name}_{ours}_{kind}"
        for theirs, ours in heads.items()
        for k, name in enumerate(maps)
        for kind in ("weight", "bias")
    }
    arrays |= {name: formula(name, (2, 2)) for name in wanted}
    arg, _ = gluon.rename(arrays, "vgg16_reduced", {})
    for theirs, ours in wanted.items():
        np.testing.assert_array_equal(arg[ours], arrays[theirs])


def test_the_last_layer_of_gluoncvs_ssd512_fits_the_legacy_network_and_the_variant_with_batch_norm_is_refused():
    names = {"features.norm4.scale": (1, 4, 1, 1), "features.stages.0.0.weight": (64, 3, 3, 3)}
    arrays = {
        name: formula(name, shape) for name, shape in {**names, "features.extras.4.2.weight": (4, 4, 4, 4)}.items()
    }
    arg, _ = gluon.rename(arrays, "legacy_vgg16_ssd_512", {})
    assert set(arg) == {"relu4_3_scale", "conv1_1_weight", "conv12_2_weight"}
    with pytest.raises(CheckpointError, match="batch normalisation"):
        gluon.rename({**arrays, "features.stages.0.1.running_mean": np.zeros(4)}, "vgg16_reduced", {})
    with pytest.raises(CheckpointError, match="use --network vgg16_reduced"):
        gluon.rename(arrays, "mobilenet", {})


def gluon_blocks():
    """A block that begins with a convolution, and one that begins with a batch normalisation (as resnet*_v2)."""
    nn = mx.gluon.nn
    blocks = {}
    for kind in ("convolution", "batch_norm"):
        block = nn.HybridSequential()
        if kind == "batch_norm":
            block.add(nn.BatchNorm(scale=False, center=False))
        block.add(nn.Conv2D(4, 3, use_bias=False), nn.BatchNorm(), nn.Activation("relu"))
        blocks[kind] = block
    return blocks


@pytest.mark.parametrize("kind", ["convolution", "batch_norm"])
def test_any_classifier_reads_pixels_after_conversion(tmp_path, kind):
    block = gluon_blocks()[kind]
    block.initialize()
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 3, 8, 8)).astype(np.float32) - MEAN
    block(mx.nd.array(pixels))
    paths = {parameter.name: path for path, parameter in block._collect_params_with_prefix().items()}
    for name, parameter in block.collect_params().items():
        parameter.set_data(mx.nd.array(formula(name.partition("_")[2], parameter.shape)))
    block.save_parameters(str(tmp_path / "net.params"))
    arg, aux = gluon.rename(gluon.read(tmp_path / "net.params"), "gluoncv:net", {})
    symbol = block(mx.sym.var("data"))
    ours = {name: f"body_{path.replace('.', '_')}" for name, path in paths.items()}
    used = [{name: arrays[ours[name]] for name in paths if ours[name] in arrays} for arrays in (arg, aux)]
    expected = block(mx.nd.array(pixels / STD)).asnumpy()
    assert expected.max() > 0.1
    np.testing.assert_allclose(outputs(symbol, *used, pixels), expected, rtol=1e-3, atol=1e-4)


def test_bodies_need_paths_and_an_image_as_input():
    with pytest.raises(CheckpointError, match="save_parameters"):
        gluon.rename({"resnet0_conv0_weight": np.zeros((4, 3, 3, 3))}, "gluoncv:resnet18_v1", {})
    with pytest.raises(CheckpointError, match="three channels"):
        gluon.rename({"conv.weight": np.zeros((4, 1, 3, 3))}, "gluoncv:resnet18_v1", {})


def gluoncvs_ssd(exported):
    """Names and arrays, tiny but for what is looked at, of a whole SSD300 of gluoncv by save_parameters or export."""
    names = {"features.norm4.scale": "normalize0_normalize_scale", "features.stages.0.0.weight": "conv0_weight",
             "features.stages.4.4.bias": "conv12_bias", "features.stages.5.2.weight": "dilated_conv1_weight",
             "features.extras.3.0.bias": "extra3_conv0_bias"}  # fmt: skip
    names = {path: f"arg:ssd0_vggatrousextractor0_{name}" for path, name in names.items()}
    for k in range(6):
        for part, number in (("class", 2 * k), ("box", 2 * k + 1)):
            names[f"{part}_predictors.{k}.predictor.weight"] = f"arg:ssd0_convpredictor{number}_conv0_weight"
        names[f"anchor_generators.{k}.anchors"] = f"arg:ssd0_ssdanchorgenerator{k}_anchor_{k}"
    arrays = {}
    for path, name in names.items():
        array = formula(path, (64, 3, 3, 3) if path == "features.stages.0.0.weight" else (1, 4, 1, 1))
        if path.startswith("anchor"):
            array = gluoncvs_anchors(int(path.split(".")[1]))
        arrays[name if exported else path] = array
    return arrays


def gluoncvs_anchors(k, scale=1.0):
    """(1, 1, 2, 2, 4 * per cell) as SSDAnchorGenerator makes them for 300 pixels."""
    edges, steps = (30, 60, 111, 162, 213, 264, 315), (8, 16, 32, 64, 100, 300)
    low, step = edges[k], steps[k] * scale
    sides = [(low, low), (np.sqrt(low * edges[k + 1]),) * 2]
    sides += [(low * np.sqrt(r), low / np.sqrt(r)) for r in ((2, 0.5, 3, 1 / 3) if 0 < k < 4 else (2, 0.5))]
    cells = [[(x + 0.5) * step, (y + 0.5) * step, *side] for y in range(2) for x in range(2) for side in sides]
    return np.array(cells, np.float32).reshape(1, 1, 2, 2, -1)


def test_save_parameters_and_export_of_gluoncvs_ssd_say_the_same():
    saved, exported = gluoncvs_ssd(False), gluoncvs_ssd(True)
    assert gluon.describe(saved) == gluon.describe(exported)
    ours, theirs = (gluon.rename(arrays, "vgg16_reduced", {})[0] for arrays in (saved, exported))
    wanted = {name for name in ours if "anchor" not in name}
    assert {"conv5_3_bias", "fc7_weight", "multi_feat_5_conv_1x1_conv_bias", "relu7_cls_pred_conv_weight"} <= wanted
    for name in wanted:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_gluoncvs_ssd_says_how_it_detects():
    found = gluon.describe(gluoncvs_ssd(False))
    assert (found.network, found.side) == ("vgg16_reduced", 300)
    assert found.pixels == {"mean_r": 123.675, "mean_g": 116.28, "mean_b": 103.53}
    assert found.options["post_process"] == "pooled"
    assert found.options["anchor_sizes"].startswith("0.1,0.14142136;0.2,")
    assert "anchor_ratios" not in found.options
    assert gluon.describe({"features.norm4.scale": np.ones(3)}) is None  # a body alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_generators.0.anchors": gluoncvs_anchors(0, 2.0)}, "have steps 16, 16, 32, .* not read"),
        ({"anchor_generators.6.anchors": np.zeros((1, 1, 1, 1, 16))}, "6 class predictors and 7 arrays of anchors"),
        (
            {"features.expand_conv0_weight": np.zeros(3)},
            "of a gluoncv SSD on another body than VGG16, which is not read",
        ),
        ({"yolo_outputs.0.prediction.weight": np.zeros(3)}, "of gluoncv's YOLOv3, which is not read"),
    ],
)
def test_detectors_of_gluoncv_that_are_not_read_are_told(changes, message):
    with pytest.raises(CheckpointError, match=message):
        gluon.describe(gluoncvs_ssd(False) | changes)
