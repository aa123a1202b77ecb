"""The manifest: whole and of the right types, or refused with the field's name."""

import dataclasses
import json

import pytest

from model.manifest import (
    Accuracy,
    Calibration,
    FileRecord,
    Manifest,
    PostProcessing,
    Source,
    manifest_from_json,
    manifest_to_json,
)

CALIBRATION = {"record": "a.rec", "mode": "naive", "images": 5, "thresholds": {"conv1": [-1.5, 2]}, "excluded": []}
NEW = ("input_format", "calibration", "accuracy")  # later than the first version
GOOD = Manifest(
    class_names=("red", "grün"),
    mean=(1.0, 2.0, 3.0),
    std=(1.0, 1.0, 1.0),
    input_shape=(96, 80),
    network="mobilenet",
    options={"width": 0.25, "taps": []},
    postprocessing=PostProcessing("MultiBoxDetection", 0.45, 400, 0.01, False),
    versions={"mxnet": "1.9.1"},
    source=Source("output/ssd", 12, {"mAP": 0.5}),
    files={"model-0000.params": FileRecord(3, "a" * 64)},
    dtype="int8",
    calibration=Calibration("a.rec", "naive", 5, {"conv1": (-1.5, 2.0)}, ("conv2",)),
    accuracy=Accuracy("a.rec", "VOC07 mAP", 0.8, 0.79),
)


def test_round_trip_and_later_fields_are_ignored():
    values = json.loads(manifest_to_json(GOOD))
    assert manifest_from_json(json.dumps({**values, "novelty": [1]})) == GOOD
    assert GOOD.size == (96, 80)


def test_manifests_of_the_first_version_are_read():
    values = json.loads(manifest_to_json(dataclasses.replace(GOOD, dtype="float32", calibration=None, accuracy=None)))
    old = {name: value for name, value in values.items() if name not in NEW}
    read = manifest_from_json(json.dumps(old))
    assert (read.input_format, read.calibration, read.accuracy) == ("float32_nchw", None, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 2),
        ("format", True),
        ("class_names", "red"),
        ("class_names", []),
        ("class_names", ["red", "red"]),
        ("class_names", ["red", 3]),
        ("mean", [1, 2]),
        ("mean", [1, 2, "3"]),
        ("mean", [1, 2, 1e999]),
        pytest.param("mean", [1, 2, 10**400], id="mean-huge"),
        pytest.param("fill", 10**400, id="fill-huge"),
        ("std", [1, 1, 0]),
        ("input_shape", [96]),
        ("input_shape", [96.0, 80.0]),
        ("input_shape", [96, 10**9]),
        ("input_shape", [96, -80]),
        ("resize_mode", "fit"),
        ("interpolation", "cubic"),
        ("dtype", "float16"),
        ("dtype", ["int8"]),
        ("calibration", None),
        ("calibration", {**CALIBRATION, "thresholds": {"conv1": [1, 0]}}),
        ("calibration", {**CALIBRATION, "thresholds": {"conv1": [1]}}),
        ("calibration", {**CALIBRATION, "thresholds": {"conv1": [-1e31, 0]}}),
        ("calibration", {**CALIBRATION, "thresholds": {"conv1": "all"}}),
        ("calibration", {**CALIBRATION, "excluded": [1]}),
        ("input_format", "uint8"),
        ("accuracy", {"record": "a.rec"}),
        ("options", []),
        ("postprocessing", {}),
        ("postprocessing", None),
        ("versions", {"mxnet": 1}),
        ("source", {"prefix": "a", "epoch": "3", "scores": {}}),
        ("files", {"model-0000.params": {"size": 3}}),
    ],
)
def test_wrong_values_are_refused(name, value):
    values = json.loads(manifest_to_json(GOOD))
    with pytest.raises(ValueError, match=name) as caught:
        manifest_from_json(json.dumps({**values, name: value}).replace("Infinity", "1e999"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Manifest) if field.name not in NEW])
def test_missing_fields_are_named(name):
    values = json.loads(manifest_to_json(GOOD))
    del values[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        manifest_from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"format": NaN}'])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        manifest_from_json(text)
