"""The manifest: whole and of the right types, or refused with the field's name."""

import dataclasses
import json

import pytest

from model.manifest import (
    MANIFEST_FILE,
    Accuracy,
    Calibration,
    FileRecord,
    Manifest,
    PostProcessing,
    SourceCheckpoint,
)
from tests.signing import earlier, flips, signed

CALIBRATION = {"record": "a.rec", "mode": "naive", "images": 5, "thresholds": {"conv1": [-1.5, 2]}, "excluded": []}
NEW = ("input_format", "calibration", "accuracy", "bit_depth", "thresholds")  # later than the first version
GOOD = Manifest(
    class_names=("red", "grün"),
    mean=(1.0, 2.0, 3.0),
    std=(1.0, 1.0, 1.0),
    input_shape=(96, 80),
    network="mobilenet",
    options={"width": 0.25, "taps": []},
    postprocessing=PostProcessing("MultiBoxDetection", 0.45, 400, 0.01, False),
    versions={"mxnet": "1.9.1"},
    source=SourceCheckpoint("output/ssd", 12, {"mAP": 0.5}),
    files={"model-0000.params": FileRecord(3, "a" * 64)},
    dtype="int8",
    calibration=Calibration("a.rec", "naive", 5, {"conv1": (-1.5, 2.0)}, ("conv2",)),
    accuracy=Accuracy("a.rec", "VOC07 mAP", 0.8, 0.79),
)


TEXT = MANIFEST_FILE.to_json(GOOD)


def read(text, origin="manifest.json"):
    return MANIFEST_FILE.from_json(text, origin)


def changed(**changes):
    return signed({**json.loads(TEXT), **changes})


def test_round_trip():
    assert read(TEXT) == GOOD
    assert json.loads(TEXT)["format"] == 2
    assert GOOD.size == (96, 80)


def test_manifests_of_the_first_version_are_read_and_told_once(caplog):
    known = dataclasses.replace(GOOD, dtype="float32", calibration=None, accuracy=None)
    old = earlier(MANIFEST_FILE.to_json(known), without=NEW)
    for text in (old, old, json.dumps({**json.loads(old), "novelty": [1]})):
        assert read(text, "first/manifest.json") == known
    (record,) = caplog.records
    assert "first/manifest.json: of an earlier version, without a digest" in record.getMessage()


@pytest.mark.parametrize(
    "path", [(), ("postprocessing",), ("source",), ("calibration",), ("accuracy",), ("files", "model-0000.params")]
)
def test_keys_of_later_versions_are_refused_by_name(path):
    values = json.loads(TEXT)
    inner = values
    for name in path:
        inner = inner[name]
    inner["novelty"] = [1]
    with pytest.raises(ValueError, match=f"{'.'.join(('manifest', *path))} has the unknown key 'novelty'"):
        read(signed(values))


def test_no_flipped_bit_is_taken_for_another_manifest():
    refused = 0
    for content in flips(TEXT.encode(), 3):
        try:
            assert read(content.decode()) == GOOD
        except ValueError:
            refused += 1
    assert refused > 0.98 * 8 * len(TEXT) / 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 1),
        ("format", 3),
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
        ("thresholds", {"pink": 0.5}),
        ("thresholds", {"red": 1.5}),
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
    with pytest.raises(ValueError, match=name) as caught:
        read(changed(**{name: value}).replace("Infinity", "1e999"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", ["format", *(field.name for field in dataclasses.fields(Manifest) if field.name not in NEW)]
)
def test_fields_missing_in_the_first_version_are_named(name):
    values = json.loads(earlier(TEXT))
    del values[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read(json.dumps(values))


def test_fields_that_have_no_default_must_be_there():
    defaults = {"resize_mode": "force", "interpolation": "bilinear", "fill": 127}
    values = {name: value for name, value in json.loads(TEXT).items() if name not in defaults}
    assert read(signed(values)) == GOOD
    for name in ("network", "format"):
        with pytest.raises(ValueError, match=f"{name} is missing in manifest"):
            read(signed({key: value for key, value in values.items() if key != name}))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"format": NaN}'])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        read(text)
