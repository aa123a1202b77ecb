"""Darknet's .weights: order and header, number of classes by the length, damaged files named."""

import math

import numpy as np
import pytest

from common.errors import CheckpointError
from model.weights import darknet
from model.weights.darknet import rescaled_for_unit_pixels
from symbol.darknet_cfg import format_cfg
from symbol.darknet_sections import Convolutional, MaxPool, Yolo, with_classes
from symbol.detector.yolo import find_row as find_yolo_row
from tests.model.weights.formula import formula

NETWORK, WIDTH = "yolov3_tiny", 0.125
ANCHORS = ((10.0, 13.0), (30.0, 61.0))
# A body of one normalised convolution, and one predictor.
SMALL = (Convolutional(4, 3, 2), Convolutional(14, 1, 1, False, "linear"), Yolo((0, 1), ANCHORS, 2))


def arrays_for(sections):
    return {name: formula(name, shape) for name, shape in darknet.file_order(sections)}


@pytest.fixture
def cfg(tmp_path):
    path = tmp_path / "small.cfg"
    path.write_text(format_cfg(SMALL, (64, 64)))
    return f"darknet:{path}"


def test_the_bytes_are_those_of_darknet(tmp_path, cfg):
    arrays = {
        "head_0_bn_beta": np.arange(4) + 0.0,
        "head_0_bn_gamma": np.arange(4) + 10.0,
        "head_0_bn_moving_mean": np.arange(4) + 20.0,
        "head_0_bn_moving_var": np.arange(4) + 30.0,
        "head_0_conv_weight": np.arange(108).reshape(4, 3, 3, 3) + 100.0,
        "pred_1_conv_bias": np.arange(14) + 1000.0,
        "pred_1_conv_weight": np.arange(56).reshape(14, 4, 1, 1) + 2000.0,
    }
    path = tmp_path / "a.weights"
    darknet.write(path, SMALL, arrays, seen=2**33 + 1)
    content = path.read_bytes()
    assert np.frombuffer(content[:12], "<i4").tolist() == [0, 2, 5]
    assert np.frombuffer(content[12:20], "<i8").tolist() == [2**33 + 1]
    assert np.array_equal(np.frombuffer(content[20:], "<f4"), np.concatenate([a.ravel() for a in arrays.values()]))
    arg, aux = darknet.rename(darknet.read(path), cfg, {})
    assert set(aux) == {"head_0_bn_moving_mean", "head_0_bn_moving_var"}
    assert all(np.array_equal({**arg, **aux}[name], array) for name, array in arrays.items())


def test_an_old_header_has_a_short_count(tmp_path, cfg):
    new, old = tmp_path / "new.weights", tmp_path / "old.weights"
    darknet.write(new, SMALL, arrays_for(SMALL), seen=5)
    old.write_bytes(np.array([0, 1, 0, 5], "<i4").tobytes() + new.read_bytes()[20:])
    assert np.array_equal(darknet.read(new)[str(new)], darknet.read(old)[str(old)])


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_the_length_tells_the_number_of_classes(tmp_path, classes):
    sections = with_classes(darknet._sections(NETWORK, {"width": WIDTH}), classes)
    path = tmp_path / "tiny.weights"
    darknet.write(path, sections, arrays_for(sections), seen=0)
    arg, _ = darknet.rename(darknet.read(path), NETWORK, {"width": WIDTH})
    assert arg["pred_15_conv_bias"].shape == (3 * (5 + classes),)


def test_a_body_alone_fills_the_sections_that_far(tmp_path):
    sections = find_yolo_row("yolov3_spp_mini").sections
    body = [p for p in darknet.file_order(sections) if p.name.startswith("body_")]
    path = tmp_path / "body.conv.74"
    values = [formula(name, shape).ravel() for name, shape in body]
    path.write_bytes(np.array([0, 2, 0, 0, 0], "<i4").tobytes() + np.concatenate(values).tobytes())
    arg, aux = darknet.rename(darknet.read(path), "yolov3_spp_mini", {})
    assert {*arg, *aux} == {name for name, _ in body}


@pytest.mark.parametrize("change", [-4, -400, 4, 4000])
def test_a_cut_off_or_too_long_file_is_named_with_the_counts(tmp_path, cfg, change):
    path = tmp_path / "a.weights"
    darknet.write(path, SMALL, arrays_for(SMALL), seen=0)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    count = sum(math.prod(shape) for _, shape in darknet.file_order(SMALL))
    with pytest.raises(
        CheckpointError, match=rf"a\.weights: has {count + change // 4} values, but .* takes {count}: it is cut off"
    ):
        darknet.rename(darknet.read(path), cfg, {})


def test_what_is_no_weights_file_is_named(tmp_path):
    path = tmp_path / "a.weights"
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=r"a\.weights: not a \.weights file"):
        darknet.read(path)
    path.write_bytes(bytes(25))
    with pytest.raises(CheckpointError, match=r"a\.weights: cut off"):
        darknet.read(path)
    with pytest.raises(CheckpointError, match=r"b\.weights: cannot be read"):
        darknet.read(tmp_path / "b.weights")
    arrays = arrays_for(SMALL)
    arrays["pred_1_conv_bias"][3] = np.nan
    darknet.write(path, SMALL, arrays, seen=0)
    with pytest.raises(CheckpointError, match=r"a\.weights: has values that are not finite; copy, "):
        darknet.read(path)
    darknet.write(path, SMALL, arrays_for(SMALL), seen=0)
    with pytest.raises(CheckpointError, match="--network mobilenet"):
        darknet.rename(darknet.read(path), "mobilenet", {})


def test_a_parameter_of_another_shape_is_named(tmp_path):
    arrays = arrays_for(SMALL) | {"pred_1_conv_bias": np.zeros(3, np.float32)}
    with pytest.raises(
        CheckpointError, match=r"pred_1_conv_bias of shape \(14,\) is needed, the checkpoint has \(3,\)"
    ):
        darknet.write(tmp_path / "a.weights", SMALL, arrays, seen=0)
    assert not list(tmp_path.iterdir())


def test_a_scale_goes_into_plain_convolutions_too():
    plain = (Convolutional(4, 3, 2, False), *SMALL[1:])
    arrays = {name: np.ones(shape, np.float32) for name, shape in darknet.file_order(plain)}
    folded, error = rescaled_for_unit_pixels("x", arrays, plain, [12.0, 0.0, 0.0], [3.0, 1.0, 1.0])
    assert np.array_equal(folded["head_0_conv_weight"][0, :, 1, 1], [85, 255, 255])
    assert np.array_equal(folded["head_0_conv_bias"], [1 - 9 * 4] * 4)
    assert error == 5 * 4  # a corner has five places outside
    assert all(folded[name] is array for name, array in arrays.items() if name.startswith("pred"))


def test_pixels_that_nothing_can_take_are_refused():
    pooled = (MaxPool(2, 2), *SMALL)
    arrays = arrays_for(pooled)
    assert rescaled_for_unit_pixels("x", arrays, pooled, [0.0] * 3, [255.0] * 3) == (arrays, 0.0)
    with pytest.raises(CheckpointError, match="x: the network does not begin with a convolution.* --std-r/g/b 255"):
        rescaled_for_unit_pixels("x", arrays, pooled, [0.0] * 3, [1.0] * 3)
