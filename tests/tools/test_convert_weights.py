"""The door for weights of other projects: report, files that training and detection take, one-sentence errors."""

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from detect.detector import Detector
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.folder import model_from_checkpoint
from model.params_file import read_params
from model.weights import darknet, pytorch
from model.weights.fit import expected_shapes
from symbol.darknet_cfg import format_cfg
from symbol.darknet_sections import with_classes
from symbol.symbol_factory import get_symbol, get_symbol_train
from tests.golden.loader import cases, formula_parameters
from tests.model.weights.formula import formula, formulas, old_json, params_v1
from tools import convert_weights


@pytest.fixture(scope="module")
def state_dict():
    """A whole ssd.pytorch state_dict of 20 classes."""
    case = next((case for case in cases("formula_params") if case.args["network"] == "ssd300_vgg16"), None)
    if case is None:
        pytest.skip("the golden data have no ssd300_vgg16")
    return dict(formula_parameters(case))


@pytest.fixture
def convert(monkeypatch, tmp_path, capsys):
    """Runs the command on a state_dict in place of a file; returns the prefix and what it printed."""

    def run(arrays, *flags):
        monkeypatch.setattr(pytorch, "read", lambda path: arrays)
        prefix = str(tmp_path / "out" / "ssd")
        convert_weights.main(["weights.pth", "--prefix", prefix, *flags])
        return prefix, capsys.readouterr().out

    return run


def test_a_whole_network_becomes_a_checkpoint_that_detects(convert, state_dict):
    prefix, text = convert(state_dict, "--from", "ssd.pytorch")
    assert "loaded (71)" in text
    assert "missing (0): none" in text
    assert "unused (0): none" in text
    meta = load_checkpoint(prefix, 0).meta
    assert meta.class_names[:2] == ("aeroplane", "bicycle")
    assert (meta.network, meta.data_shape) == ("vgg16_ssd_voc", (300, 300))
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    model = model_from_checkpoint(load_checkpoint(prefix, 0))
    rows = det(model.symbol, model.arg_params, image)
    np.testing.assert_allclose(rows, expected_rows(state_dict, image), rtol=1e-4, atol=1e-4)
    found = Detector(prefix, 0, threshold=0.5, ctx=mx.cpu()).detect(image)
    assert len(found) > 5
    assert (found[:, 1] > 0.5).all()


def det(symbol, arrays, image):
    """The rows of det for an image less the mean of ssd.pytorch."""
    data = (image - np.array([123, 117, 104])).transpose(2, 0, 1)[None]
    args = {name: mx.nd.array(data if name == "data" else arrays[name]) for name in symbol.list_arguments()}
    return symbol.bind(mx.cpu(), args=args, grad_req="null").forward()[0].asnumpy()[0]


def expected_rows(state_dict, image):
    """What the network itself finds with these weights."""
    symbol = get_symbol("vgg16_ssd_voc", 300, 20, post_process="per_class", nms_topk=200, keep_topk=200)
    return det(symbol, pytorch.rename_ssd(state_dict, "", {})[0], image)


def test_a_body_alone_becomes_a_params_file_to_start_from(convert, state_dict):
    body = {name.removeprefix("vgg."): array for name, array in state_dict.items() if name.startswith("vgg.")}
    prefix, text = convert(body | {"40.weight": np.zeros(3)}, "--network", "vgg16_reduced", "--num-class", "3")
    assert "loaded (30)" in text
    assert "unused (1): 40.weight" in text
    assert "relu4_3_cls_pred_conv_weight" in text.partition("missing")[2]
    args, aux = read_params(f"{prefix}-0000.params")
    assert (len(args), aux) == (30, {})
    np.testing.assert_array_equal(args["fc7_bias"].asnumpy(), body["33.bias"])
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_checkpoint(prefix, 0)


def test_heads_of_another_number_of_classes_are_missing_with_their_shapes(convert, state_dict):
    _, text = convert(state_dict, "--num-class", "3")
    assert "loaded (59)" in text
    assert "missing (12): relu4_3_cls_pred_conv_weight (shape (84, 512, 3, 3) in the file, (16," in text


def test_mistakes_are_named(convert, state_dict, tmp_path):
    body = {name: array for name, array in state_dict.items() if name.startswith("vgg.")}
    for flags, message in (
        (["--from", "darkness"], "--from darkness: unknown .known: ssd.pytorch, torchvision"),
        (["other.pth"], "give one file to convert, not 2"),
        (["--class-names", "a,b", "--num-class", "3"], "--class-names has 2 names, but --num-class is 3; give a name"),
        (["--network", "resnet9000"], "resnet9000: unknown"),
    ):
        with pytest.raises(OptionError, match=message):
            convert(body, *flags)
    with pytest.raises(CheckpointError, match="none of the .* arrays of the file fits --network mobilenet"):
        convert(body, "--network", "mobilenet")


def test_a_gluon_classifier_becomes_the_body_of_a_narrow_mobilenet(tmp_path, capsys):
    from gluoncv.model_zoo import get_model

    net = get_model("mobilenet0.25", pretrained=False)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 64, 64)))
    net.save_parameters(str(tmp_path / "zoo.params"))
    flags = ["--network", "mobilenet", "--width", "0.25", "--prefix", str(tmp_path / "body")]
    convert_weights.main(["--from", "gluon", str(tmp_path / "zoo.params"), *flags])
    args, aux = read_params(tmp_path / "body-0000.params")
    assert "unused (2): output_weight, output_bias" in capsys.readouterr().out
    assert (len(args), len(aux)) == (27 * 3, 27 * 2)  # weight, gamma, beta; two moving averages


CLASSIC = {
    "width": 0.25, "targets": "mxnet", "nms": 0.33, "nms_topk": 123, "force": True, "score_threshold": 0.02,
    "variances": (0.2, 0.2, 0.1, 0.1), "anchor_sizes": "0.03,0.05;" * 6 + "0.9,0.97", "anchor_ratios": "1,2,0.5",
}  # fmt: skip


@pytest.fixture
def classic(tmp_path):
    """(PREFIX-0012.params, symbol, arrays) of a classic mobilenet, with PREFIX-symbol.json of MXNet 0.11."""
    symbol = get_symbol_train("mobilenet", 300, 2, **CLASSIC)
    wanted = [shapes for shapes in expected_shapes("mobilenet", 300, 2, **CLASSIC)]
    arrays = [formulas(shapes) for shapes in wanted]
    (tmp_path / "own-symbol.json").write_text(old_json(symbol, "attr"))
    kinds = zip(("arg", "aux"), arrays, strict=True)
    named = {f"{kind}:{name}": array for kind, part in kinds for name, array in part.items()}
    (tmp_path / "own-0012.params").write_bytes(params_v1(named))
    return tmp_path / "own-0012.params", symbol, arrays


def test_a_classic_checkpoint_needs_no_flags(classic, tmp_path, capsys):
    path, symbol, _ = classic
    convert_weights.main(["--from", "classic", str(path), "--prefix", str(tmp_path / "new")])
    text = capsys.readouterr().out
    assert "it does not tell the input's side: 300 is taken" in text
    assert "nothing is missing" in text
    checkpoint = load_checkpoint(str(tmp_path / "new"), 0)
    meta = checkpoint.meta
    assert (meta.network, meta.data_shape, len(meta.class_names)) == ("mobilenet", (300, 300), 2)
    assert get_symbol_train("mobilenet", 300, 2, **meta.options).tojson() == symbol.tojson()
    convert_weights.main(
        ["--from", "classic", str(path), "--prefix", str(tmp_path / "wide"), "--data-shape", "256,320"]
    )
    assert load_checkpoint(str(tmp_path / "wide"), 0).meta.data_shape == (256, 320)


def test_a_classic_checkpoint_without_its_symbol_is_told(classic, tmp_path, capsys):
    path, *_ = classic
    path.with_name("own-symbol.json").unlink()
    with pytest.raises(CheckpointError, match=r"own-symbol\.json: no such file"):
        convert_weights.main(
            ["--from", "classic", str(path), "--network", "mobilenet", "--prefix", str(tmp_path / "n")]
        )
    assert "own-symbol.json is missing" in capsys.readouterr().out


def test_every_source_of_the_table_has_its_reader():
    for source in convert_weights.SOURCES.values():
        with pytest.raises(CheckpointError, match="nowhere"):
            source.read("nowhere-0001.params")


def test_files_that_are_there_are_kept(convert, state_dict, tmp_path, monkeypatch):
    body = {name.removeprefix("vgg."): array for name, array in state_dict.items() if name.startswith("vgg.")}
    flags = ["--network", "vgg16_reduced", "--num-class", "3"]
    prefix = tmp_path / "out" / "ssd"
    prefix.parent.mkdir()
    symbol, params = (prefix.with_name(f"ssd-{end}") for end in ("symbol.json", "0000.params"))
    symbol.write_text("classic")
    with pytest.raises(OptionError, match=r"ssd-symbol\.json is there already; .*--overwrite"):
        convert(body, *flags)
    convert(body, *flags, "--overwrite")
    assert params.is_file()
    before = params.read_bytes()
    symbol.unlink()
    with pytest.raises(OptionError, match=r"ssd-0000\.params is there already"):
        convert(body, *flags)
    monkeypatch.chdir(prefix.parent)
    with pytest.raises(OptionError, match="is the file to convert; choose another --prefix"):
        convert_weights.main(["--from", "classic", "--overwrite", "ssd-0000.params", "--prefix", str(prefix)])
    assert params.read_bytes() == before


def test_weights_that_are_not_finite_are_named(convert, state_dict):
    with pytest.raises(CheckpointError, match="conv1_1_weight of the file holds numbers that are not finite"):
        convert(state_dict | {"vgg.0.weight": np.full((64, 3, 3, 3), np.nan, np.float32)})


def test_an_input_larger_than_any_model_has_is_refused():
    with pytest.raises(OptionError, match="--data-shape is at most 8192"):
        convert_weights.main(["weights.pth", "--data-shape", "9000"])


def test_a_prefix_needs_a_name(tmp_path):
    with pytest.raises(OptionError, match="--prefix .*out/: its files would have no name; add one, as in .*out/model"):
        convert_weights.main(["weights.pth", "--prefix", str(tmp_path / "out") + "/"])


def test_class_names_may_be_a_file(tmp_path):
    (tmp_path / "mine.names").write_text("cell\n\nplatelet\n")
    options = convert_weights.ConvertOptions(class_names=(str(tmp_path / "mine.names"),))
    assert convert_weights._class_names(options, tmp_path / "a.pth", {}) == ("cell", "platelet")


def test_names_of_another_number_than_the_files_classes_are_refused(tmp_path):
    """Unless the other number is said to be meant: then the heads are left out."""
    sections = with_classes(darknet._sections("yolov3_tiny", {"width": 0.125}), 3)
    path = tmp_path / "tiny.weights"
    darknet.write(path, sections, {name: formula(name, shape) for name, shape in darknet.file_order(sections)}, seen=0)
    words = ["--from", "darknet", str(path), "--network", "yolov3_tiny", "--width", "0.125", "--class-names", "cat,dog"]
    with pytest.raises(OptionError, match=r"--class-names has 2 names, but .*tiny.weights has 3; .* or --num-class 2"):
        convert_weights.main(words)
    convert_weights.main([*words, "--num-class", "2"])
    assert not (tmp_path / "tiny-0000.json").exists()


@pytest.mark.parametrize(("more", "mode", "fill"), [("", "letterbox", 127), ("mosaic=1\n", "force", 127)])
def test_the_input_is_the_cfgs(tmp_path, capsys, more, mode, fill):
    sections = with_classes(darknet._sections("yolov3_tiny", {"width": 0.125}), 3)
    weights, cfg = tmp_path / "a.weights", tmp_path / "a.cfg"
    arrays = {name: formula(name, shape) for name, shape in darknet.file_order(sections)}
    darknet.write(weights, sections, arrays, seen=0)
    text = format_cfg(sections, (64, 96)).replace("letter_box=1\n", more)
    cfg.write_text(text)
    words = ["--from", "darknet", str(weights), "--network", f"darknet:{cfg}", "--prefix"]
    convert_weights.main([*words, f"{tmp_path}/told"])
    assert f"by its .cfg, images are taken as --resize-mode {mode} does" in capsys.readouterr().out
    meta = load_checkpoint(f"{tmp_path}/told", 0).meta
    assert (meta.resize_mode, meta.fill, meta.data_shape) == (mode, fill, (64, 96))
    for name, value in (("min_box", 0.0), ("one_class", "product"), ("batch_norm_eps", 1e-6), ("nms", 0.45)):
        assert meta.options[name] == value
    other = "force" if mode == "letterbox" else "letterbox"
    convert_weights.main([*words, f"{tmp_path}/given", "--resize-mode", other])
    assert load_checkpoint(f"{tmp_path}/given", 0).meta.resize_mode == other


PAGES = {
    "page": b"<!DOCTYPE html><title>404</title>",
    "blanks and a BOM": b"\xef\xbb\xbf\r\n  <html lang='en'>",
    "UTF-16": "\ufeff<!doctype HTML>".encode("utf-16-le"),
    "an answer of S3": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
}


@pytest.mark.parametrize("source", convert_weights.SOURCES)
@pytest.mark.parametrize("page", PAGES)
def test_an_html_page_instead_of_weights_is_told(tmp_path, source, page):
    path = tmp_path / "net-0001.params"
    path.write_bytes(PAGES[page])
    with pytest.raises(CheckpointError, match=r"net-0001.params: an HTML page, not weights.* download the file again"):
        convert_weights.SOURCES[source].read(str(path))


def test_what_a_file_says_wins_over_its_source_and_a_given_network_is_told(capsys):
    source = convert_weights.SOURCES["ssd.pytorch"]
    arrays = {"conf.0.bias": np.zeros(4 * 81), "loc.0.bias": np.zeros(16)}
    options = convert_weights.ConvertOptions()
    found = convert_weights._described(source, options, arrays)
    assert (found.network, found.options) == ("vgg16_ssd_coco", source.options)
    assert "priors of COCO: vgg16_ssd_coco; --network says another one" in capsys.readouterr().out
    whole = {f"head.{kind}_head.module_list.0.bias": np.zeros(16) for kind in ("classification", "regression")}
    found = convert_weights._described(source, convert_weights.ConvertOptions(network="vgg16_ssd_voc"), whole)
    assert found.options["post_process"] == "clipped"
    assert "detects as --network vgg16_ssd_torchvision --data-shape 300, not as what" in capsys.readouterr().out
    assert convert_weights._described(source, options, {}) is source


def test_anchors_of_a_file_are_not_for_networks_with_other_maps(capsys):
    source = convert_weights.SOURCES["caffe"]
    names = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2")
    arrays = {f"{name}_mbox_conf[1]": np.zeros(4 * 21) for name in names}
    for flags, has_anchors in (({}, True), ({"network": "vgg16_reduced"}, True), ({"data_shape": (512,)}, False)):
        found = convert_weights._described(source, convert_weights.ConvertOptions(**flags), arrays)
        assert ("anchor_sizes" in found.options) == has_anchors
    assert "ssd_pascal.py are taken; --network says another one" in capsys.readouterr().out
