"""Decoding and non-maximum suppression in ONNX keep MXNet's detections, their order and their padding."""

import numpy as np
import pytest

from common.errors import OptionError
from machine.runtime import mx
from tests.deploy.onnx_runtimes import RUNTIMES, exported, run, run_mxnet

CLASSES = 3
# With equal scores, too; OpenVINO's TopK does not say which of equal numbers comes first.
TIES = [("onnxruntime", None), ("onnxruntime", 8), ("openvino", None)]
MADE = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1]], np.float32)  # IoU 0.5, 0.5 and 0


def boxes(rng, shape):
    """Random corners (*shape, 4) that overlap a lot; some boxes are points."""
    low = rng.uniform(0, 0.6, (*shape, 2))
    sides = rng.uniform(0, 0.4, (*shape, 2)) * (rng.random((*shape, 1)) > 0.1)
    return np.concatenate([low, low + sides], axis=-1)


def candidates(shape, seed=0, levels=None):
    """Random rows (*shape, 6) [id, score, corners]; levels: number of different scores, so that some are equal."""
    rng = np.random.default_rng(seed)
    scores = rng.random((*shape, 1)) if levels is None else rng.integers(0, levels, (*shape, 1)) / levels
    ids = rng.integers(0, CLASSES, (*shape, 1))
    return np.concatenate([ids, scores, boxes(rng, shape)], axis=-1).astype(np.float32)


def same_rows(symbol, data, runtime, params=None, batch=0):
    expected = run_mxnet(symbol, params or {}, data)
    found = run(runtime, exported(symbol, params or {}, data, CLASSES, batch), data)
    assert expected.shape == found.shape
    assert np.abs(expected - found).max() <= 1e-6
    return expected


NMS = {
    "classes": {"id_index": 0},
    "classes, force": {"id_index": 0, "force_suppress": True},
    "no ids": {},
    "high threshold": {"valid_thresh": 0.7},
    "nothing": {"valid_thresh": 2.0},
    "everything": {"valid_thresh": -1.0, "id_index": 0},
    "little overlap": {"overlap_thresh": 0.05, "id_index": 0},
    "any overlap": {"overlap_thresh": 1.0},
}


@pytest.mark.parametrize(("runtime", "levels"), TIES)
@pytest.mark.parametrize("name", NMS)
def test_box_nms(name, levels, runtime):
    symbol = mx.sym.contrib.box_nms(mx.sym.var("data"), coord_start=2, score_index=1, **NMS[name])
    for batch in (1, 3):
        same_rows(symbol, candidates((batch, 40), seed=batch, levels=levels), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_box_nms_of_each_class(runtime):
    symbol = mx.sym.contrib.box_nms(mx.sym.var("data"), overlap_thresh=0.3, valid_thresh=0.2)
    same_rows(symbol, candidates((2, CLASSES, 30)), runtime)


@pytest.mark.parametrize("limit", [0.5, 0.5000001, 0.4999999])
def test_an_overlap_of_just_the_threshold(limit):
    """It does not suppress in MXNet and ONNX, while it does in OpenVINO."""
    rows = np.concatenate([np.zeros((3, 1)), [[0.9], [0.8], [0.7]], MADE], axis=1, dtype=np.float32)[None]
    symbol = mx.sym.contrib.box_nms(mx.sym.var("data"), overlap_thresh=limit, id_index=0)
    same_rows(symbol, rows, "onnxruntime")


def anchor_variable(count):
    return mx.sym.var("anchors", shape=(1, count, 4))


def multibox(data, count, **options):
    """MultiBoxDetection of data (B, count, C + 1 + 4): probabilities and offsets of each anchor."""
    prob = mx.sym.transpose(mx.sym.slice_axis(data, axis=2, begin=0, end=CLASSES + 1), axes=(0, 2, 1))
    offsets = mx.sym.reshape(mx.sym.slice_axis(data, axis=2, begin=CLASSES + 1, end=None), shape=(0, -1))
    return mx.sym.contrib.MultiBoxDetection(prob, offsets, anchor_variable(count), **options)


def predictions(shape, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.ones(CLASSES + 1), shape)
    prob = prob if levels is None else np.round(prob * levels) / levels
    return np.concatenate([prob, rng.normal(0, 1, (*shape, 4))], axis=-1).astype(np.float32)


def compare_multibox(options, data, anchors, runtime):
    """Equal but for rows behind the nms_topk best, where MXNet leaves other anchors' numbers with id -1."""
    symbol, params = multibox(mx.sym.var("data"), len(anchors), **options), {"anchors": mx.nd.array(anchors[None])}
    expected = run_mxnet(symbol, params, data)
    found = run(runtime, exported(symbol, params, data, CLASSES), data)
    topk = options.get("nms_topk", -1)
    rows = topk if 0 < topk < len(anchors) else len(anchors)
    assert np.abs(expected[:, :rows] - found[:, :rows]).max() <= 1e-5
    assert (expected[:, rows:, 0] == -1).all()
    assert (found[:, rows:] == -1).all()
    return expected


MULTIBOX = {
    "defaults": {},
    "force": {"force_suppress": True},
    "topk": {"nms_topk": 10},
    "topk, force, threshold": {"nms_topk": 10, "force_suppress": True, "threshold": 0.4},
    "not clipped": {"clip": False, "variances": (0.3, 0.2, 0.1, 0.05)},
    "nothing": {"threshold": 1.0},
    "threshold 0": {"threshold": 0.0, "nms_threshold": 0.2},
    "more than there are": {"nms_topk": 100, "nms_threshold": 1.0},
}


@pytest.mark.parametrize(("runtime", "levels"), TIES)
@pytest.mark.parametrize("name", MULTIBOX)
def test_multibox_detection(name, levels, runtime):
    anchors = boxes(np.random.default_rng(7), (50,))
    anchors[:, 2:] += 0.1
    for batch in (1, 3):
        compare_multibox(MULTIBOX[name], predictions((batch, 50), batch, levels), anchors, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_multibox_suppresses_from_the_threshold_on(runtime):
    prob = np.array([[0.05, 0.9, 0.05, 0], [0.15, 0.8, 0.05, 0], [0.2, 0.7, 0.1, 0]])
    data = np.concatenate([prob, np.zeros((3, 4))], axis=1, dtype=np.float32)[None]
    expected = compare_multibox({"nms_threshold": 0.5}, data, MADE, runtime)
    assert expected[0, :, 0].tolist() == [0, -1, -1]


@pytest.mark.parametrize("form", ["corner", "center"])
def test_box_decode(form):
    anchors = boxes(np.random.default_rng(3), (1, 20)) + [0, 0, 0.1, 0.1]
    symbol = mx.sym.contrib.box_decode(
        mx.sym.var("data"), anchor_variable(20), std0=0.1, std1=0.2, std2=0.3, std3=0.4, format=form
    )
    data = np.random.default_rng(0).normal(0, 1, (2, 20, 4)).astype(np.float32)
    same_rows(symbol, data, "onnxruntime", {"anchors": mx.nd.array(anchors)})


def test_anchors_are_constants():
    maps = mx.sym.var("data")
    anchors = mx.sym.contrib.MultiBoxPrior(maps, sizes=(0.3, 0.5), ratios=(1, 2), steps=(0.1, 0.2), clip=True)
    symbol = mx.sym.broadcast_add(anchors, mx.sym.mean(maps) * 0)
    same_rows(symbol, np.ones((1, 3, 4, 5), np.float32), "onnxruntime")
    assert "MultiBox" not in str(exported(symbol, {}, np.ones((1, 3, 4, 5), np.float32)))


def test_what_is_not_translated_is_said():
    data = candidates((1, 10))
    with pytest.raises(OptionError, match=r"box_nms \(odd\) .*in_format center"):
        exported(mx.sym.contrib.box_nms(mx.sym.var("data"), in_format="center", name="odd"), {}, data)
    params = {"anchors": mx.nd.zeros((1, 10, 4))}
    with pytest.raises(OptionError, match="nms_threshold 2"):
        exported(multibox(mx.sym.var("data"), 10, nms_threshold=2.0), params, predictions((1, 10)))
