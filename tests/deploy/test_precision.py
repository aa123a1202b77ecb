"""int8: near to float32, made anew the same at every start, refused where a calibration does not fit."""

import dataclasses

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from deploy.main import main
from deploy.precision import (
    Int8Options,
    _calibration_batches,
    _with_fewest_float32_layers,
    calibrate,
    rank_layers,
    with_dtype,
)
from detect.detector import Detector
from engines.mxnet_engine import bind
from graph.number_formats import fuse, to_int8
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, read_model_folder
from model.manifest import CALIBRATION_MODES, MANIFEST, Accuracy
from tests.model.made_up import images, made_up, run
from tests.model.tiny import picture, save_tiny
from tests.signing import edit
from tests.train.tiny import CLASSES, write_record

FAMILIES = ["mobilenet", "yolov3_spp_mini", "efficientdet_mini"]


def body(model):
    """The part of a model up to its maps of predictions, fused."""
    fused = fuse(model.symbol, model.arg_params, model.aux_params)
    internals = fused.symbol.get_internals()
    outputs = [internals[f"{fused.layers[name]}_output"] for name in fused.predictions]
    return dataclasses.replace(fused, symbol=mx.sym.Group(outputs))


def largest_error(found, expected):
    """The largest root of a map's mean squared difference, relative to that of its values."""
    pairs = zip(found, expected, strict=True)
    return max(np.sqrt(np.square(a - b).sum() / np.square(b).sum()) for a, b in pairs)


@pytest.fixture(scope="module", params=FAMILIES)
def calibrated(request):
    """(fused body, data, thresholds) of a network of each family."""
    model = inference_model(made_up(request.param))
    fused, data = body(model), images(model, 2)
    return fused, data, calibrate(fused, [data], "naive")


def outputs(fused, data, thresholds, excluded=()):
    symbol, params = to_int8(fused, thresholds, tuple(excluded))
    return run(symbol, params, fused.aux_params, data)


def test_predictions_are_near_and_those_of_the_first_time(calibrated):
    fused, data, thresholds = calibrated
    expected = run(fused.symbol, fused.arg_params, {}, data)
    found = outputs(fused, data, thresholds)
    assert 0 < largest_error(found, expected) < 0.3
    for first, again in zip(found, outputs(fused, data, thresholds), strict=True):
        np.testing.assert_array_equal(first, again)


def test_without_its_layers_nothing_is_quantised_and_any_may_be_left_out(calibrated):
    fused, data, thresholds = calibrated
    expected = run(fused.symbol, fused.arg_params, {}, data)
    assert largest_error(outputs(fused, data, thresholds, fused.layers), expected) < 1e-5
    for keep in range(2):
        outputs(fused, data, thresholds, list(fused.layers)[keep::2])


def test_calibrations_of_other_networks_are_refused(calibrated):
    fused, _, thresholds = calibrated
    with pytest.raises(CheckpointError, match="no threshold for"):
        to_int8(fused, dict(list(thresholds.items())[1:]), ())
    with pytest.raises(CheckpointError, match="layer nothing"):
        to_int8(fused, thresholds, ("nothing",))


def test_names_last_though_mxnet_numbers_layers_anew(calibrated):
    fused, _, thresholds = calibrated
    assert not [name for name in thresholds if name.startswith("sg_mkldnn")]
    assert set(fused.layers) <= set(thresholds)


def test_entropy_cuts_off_what_is_rare():
    symbol = mx.sym.Activation(mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3)), act_type="relu")
    symbol = mx.sym.Convolution(symbol, num_filter=4, kernel=(3, 3), name="last")
    shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=(2, 3, 16, 16))[0], strict=True))
    rng = np.random.default_rng(3)
    data = mx.nd.array(rng.normal(0, 1, shapes.pop("data")))
    data[0, 0, 0, 0] = 1000
    fused = fuse(symbol, {name: mx.nd.array(rng.normal(0, 1, shape)) for name, shape in shapes.items()}, {})
    naive, entropy = (calibrate(fused, [data], mode) for mode in CALIBRATION_MODES)
    assert naive.keys() == entropy.keys()
    assert naive["data"][1] == 1000
    assert entropy["data"][1] < 100
    for name, (low, _) in naive.items():
        assert (entropy[name][0] == 0) == (low >= 0)


def test_layers_are_ranked_by_the_harm_that_they_do():
    model = inference_model(made_up("mobilenet"))
    fused, data = fuse(model.symbol, model.arg_params, model.aux_params), images(model, 2)
    thresholds = calibrate(fused, [data], "naive")
    low, high = thresholds["conv_5_conv2d"]
    thresholds["conv_5_conv2d"] = (low, high / 20)  # most of its values become the highest
    ranked = rank_layers(fused, thresholds, data)
    assert sorted(layer for _, layer in ranked) == sorted(fused.layers)
    assert ranked[0][0] > ranked[-1][0]
    assert "conv_5_conv2d" in [layer for _, layer in ranked[:2]]


@dataclasses.dataclass
class Attempts:
    """Stands for models: the loss is 0.5 unless all needed layers are left out."""

    needed: set[str]
    made: int = 0

    def __call__(self, excluded):
        self.made += 1
        accuracy = Accuracy("a.rec", "mAP", 0.8, 0.8 if self.needed <= set(excluded) else 0.3)
        manifest = dataclasses.replace(SMALL.manifest, accuracy=accuracy)
        return dataclasses.replace(SMALL, symbol=excluded, manifest=manifest)


SMALL = made_up("yolov3_tiny")


@pytest.mark.parametrize("needed", [{"l0"}, {"l13"}, {"l5", "l9"}, {"l0", "l39"}])
def test_as_few_layers_as_suffice_are_left_out(needed):
    attempts = Attempts(needed)
    ranked = [f"l{k}" for k in range(40)]
    numbers = sorted(int(name[1:]) for name in needed)
    assert _with_fewest_float32_layers(attempts, ranked, 0.01).symbol == tuple(ranked[numbers[0] : numbers[-1] + 1])
    assert attempts.made < 20


def test_a_limit_that_all_layers_in_float32_miss_is_told(caplog):
    ranked = [f"l{k}" for k in range(5)]
    assert _with_fewest_float32_layers(Attempts({"no layer"}), ranked, 0.01).symbol == tuple(ranked)
    assert "mAP loss 0.5000 is above --max-loss 0.0100 with all layers in float32" in caplog.text


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("record") / "shapes.rec", 6)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run") / "tiny", class_names=CLASSES)


def test_the_command_writes_a_folder_that_says_how_good_it_is(prefix, record, tmp_path, capsys):
    words = ["--prefix", prefix, "--output", str(tmp_path / "model"), "--dtype", "int8", "--calib-rec", record]
    assert main([*words, "--num-calib", "5", "--uint8-input"]) == 0
    assert "calibrated on 5 images" in capsys.readouterr().out
    manifest = read_model_folder(tmp_path / "model").manifest
    assert (manifest.dtype, manifest.input_format) == ("int8", "uint8_nhwc")
    assert (manifest.calibration.record, manifest.calibration.mode) == (record, "naive")
    assert manifest.accuracy.record == record
    assert 0 <= manifest.accuracy.this <= 1
    assert len(Detector(tmp_path / "model", engine="mxnet", threshold=0.0).detect(picture(1, 80, 90))) > 5
    edit(tmp_path / "model" / MANIFEST, lambda values: values["calibration"].update(excluded=["none"]))
    with pytest.raises(CheckpointError, match="layer none"):
        Detector(tmp_path / "model", engine="mxnet")


@pytest.mark.parametrize(("images", "sizes"), [(2, [2]), (5, [4, 1]), (48, [4, 2])])
def test_as_many_images_as_asked_for_or_there_are_calibrate(prefix, record, images, sizes):
    model = model_from_checkpoint(load_checkpoint(prefix, "auto"))
    batches = _calibration_batches(model, Int8Options(record, "naive", images, 0.01))
    assert [len(batch) for batch in batches] == sizes


def test_all_layers_return_to_float32_where_nothing_else_helps(prefix, record, monkeypatch, caplog):
    monkeypatch.setattr("deploy.precision.rank_layers", lambda fused, *_: [(0.0, name) for name in fused.layers])
    model = inference_model(model_from_checkpoint(load_checkpoint(prefix, "auto")))
    changed = with_dtype(model, "int8", "", Int8Options(record, "naive", 2, max_loss=-1.0))
    assert "above --max-loss -1.0000" in caplog.text
    assert changed.manifest.calibration.images == 2
    assert len(changed.manifest.calibration.excluded) == len(fuse(model.symbol, model.arg_params, {}).layers)
    data = images(model)
    det = [bind(one, mx.cpu(), 1).run(data * 50) for one in (model, changed)]
    np.testing.assert_allclose(det[0], det[1], atol=1e-5)


def test_records_without_objects_or_of_other_classes_are_refused(prefix, tmp_path):
    words = ["--prefix", prefix, "--output", str(tmp_path / "model"), "--dtype", "int8", "--calib-rec"]
    empty = write_record(tmp_path / "empty.rec", 3, empty=True)
    with pytest.raises(DataError, match="without objects there is no accuracy"):
        main([*words, empty])
    other = write_record(tmp_path / "other.rec", 3, names=("x", "y", "z"))
    with pytest.raises(OptionError, match="holds the classes"):
        main([*words, other])
    with pytest.raises(DataError, match="no such file"):
        main([*words, str(tmp_path / "none.rec")])
    assert not (tmp_path / "model").exists()
