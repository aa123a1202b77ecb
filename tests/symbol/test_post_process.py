"""Per-class NMS as a graph against numpy: classes, limits before and after, ties, options on the way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes.anchors import decode
from boxes.geometry import corners_to_centres, iou
from boxes.nms import nms
from common.errors import OptionError
from machine.runtime import mx
from symbol.detector.ssd import multibox_detection
from symbol.layers import per_class_detection
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train

VARIANCES = (0.1, 0.1, 0.2, 0.2)
MOBILENET = {"network": "mobilenet", "data_shape": 64, "num_classes": 3, "width": 0.25}


def run(prob: np.ndarray, loc: np.ndarray, anchors: np.ndarray, **options: Any) -> np.ndarray:
    """det by the graph: prob (B, A, C + 1), loc (B, A, 4), anchors (A, 4) corners."""
    arrays = {"prob": prob, "loc": loc, "anchors": anchors[None]}
    defaults = {"topk": 50, "keep": 60, "threshold": 0.1, "nms": 0.45, "force": False, "variances": VARIANCES}
    symbol = per_class_detection(*(mx.sym.var(name) for name in arrays), **defaults | options)
    args = {name: mx.nd.array(array) for name, array in arrays.items()}
    return symbol.bind(mx.cpu(), args=args, grad_req="null").forward()[0].asnumpy()


def reference(prob: np.ndarray, loc: np.ndarray, anchors: np.ndarray, **options: Any) -> np.ndarray:
    """Rows (n, 6) of one image by boxes/nms.py, best first."""
    boxes = decode(loc, corners_to_centres(anchors), VARIANCES)
    rows = []
    for label in range(1, prob.shape[1]):
        index = np.argsort(-prob[:, label], kind="stable")[: options["topk"]]
        index = index[prob[index, label] > options["threshold"]]
        rows += [[label - 1, prob[k, label], *boxes[k]] for k in index]
    found = np.array(rows, np.float32).reshape(-1, 6)
    classes = None if options["force"] else found[:, 0]
    kept = found[nms(found[:, 2:], found[:, 1], options["nms"], classes=classes, keep_equal=True)]
    return kept[: options["keep"]]


def problem(seed: int, anchors: int = 60, classes: int = 3, batch: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (anchors, 2))
    corners = np.concatenate([low, low + rng.uniform(0.1, 0.4, (anchors, 2))], axis=1).astype(np.float32)
    prob = rng.dirichlet(np.ones(classes + 1), (batch, anchors)).astype(np.float32)
    return prob, rng.normal(0, 1, (batch, anchors, 4)).astype(np.float32), corners


@pytest.mark.parametrize("force", [False, True])
def test_multibox_with_nms_0_keeps_no_two_boxes_that_overlap(force):
    prob, loc, anchors = problem(3)
    arrays = {"prob": prob, "loc": loc, "anchors": anchors[None]}
    symbol = multibox_detection(
        *(mx.sym.var(name) for name in arrays), topk=50, threshold=0.1, nms=0.0, force=force, variances=VARIANCES
    )
    args = {name: mx.nd.array(array) for name, array in arrays.items()}
    det = symbol.bind(mx.cpu(), args=args, grad_req="null").forward()[0].asnumpy()
    for rows in det:
        found = rows[rows[:, 0] >= 0]
        assert 3 <= len(found) < len(rows)
        assert (np.diff(found[:, 1]) <= 0).all()
        same = force | (found[:, None, 0] == found[None, :, 0])
        assert not (np.triu(iou(found[:, 2:], found[:, 2:]), 1)[same] > 0).any()


@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(1, 40),
    st.sampled_from([0.05, 0.3, 0.6, 0.99]),
    st.sampled_from([0.2, 0.45, 1.0]),
    st.booleans(),
)
@settings(max_examples=40)
def test_the_graph_is_the_reference(
    seed: int, topk: int, keep: int, threshold: float, overlap: float, force: bool
) -> None:
    prob, loc, anchors = problem(seed)
    options = {"topk": topk, "keep": min(keep, 3 * topk), "threshold": threshold, "nms": overlap, "force": force}
    det = run(prob, loc, anchors, **options)
    assert det.shape == (2, options["keep"], 6)
    for image in range(2):
        expected = reference(prob[image], loc[image], anchors, **options)
        np.testing.assert_allclose(det[image, : len(expected)], expected, rtol=1e-5, atol=1e-6)
        assert (det[image, len(expected) :, 0] == -1).all()


def test_an_anchor_may_give_several_classes() -> None:
    prob, anchors = np.array([[[0.1, 0.5, 0.4]]]), np.array([[0.2, 0.2, 0.6, 0.6]])
    rows = run(prob, np.zeros((1, 1, 4)), anchors, topk=1, keep=2)[0]
    np.testing.assert_allclose(rows[:, :2], [[0, 0.5], [1, 0.4]])
    np.testing.assert_allclose(rows[:, 2:], [anchors[0]] * 2)
    forced = run(prob, np.zeros((1, 1, 4)), anchors, topk=1, keep=2, force=True)[0]
    assert forced[:, 0].tolist() == [0, -1]


def test_boxes_are_not_clipped() -> None:
    anchors = np.array([[-0.2, 0.5, 0.3, 1.4]])
    row = run(np.array([[[0.1, 0.9]]]), np.zeros((1, 1, 4)), anchors, topk=1, keep=1)[0, 0]
    np.testing.assert_allclose(row[2:], anchors[0], rtol=1e-6)


def test_clipped_boxes_suppress_as_they_are_shown() -> None:
    """Their IoU is 0.3, of what the image shows of them 1."""
    anchors = np.array([[0.2, 0.5, 0.6, 1.0], [0.2, 0.5, 0.6, 2.2]])
    prob = np.array([[[0.1, 0.9], [0.2, 0.8]]])
    for clip, count in ((False, 2), (True, 1)):
        rows = run(prob, np.zeros((1, 2, 4)), anchors, topk=2, keep=2, clip=clip)[0]
        assert (rows[:, 0] >= 0).sum() == count
    np.testing.assert_allclose(rows[0, 2:], anchors[0], rtol=1e-6)


@pytest.mark.parametrize("force", [False, True])
def test_pooled_classes_share_the_places_before_suppression(force: bool) -> None:
    prob, loc, anchors = problem(1)
    topk = 20
    det = run(prob, loc, anchors, topk=topk, keep=topk, nms=0.1, pooled=True, force=force)
    for image in range(2):
        limit = np.sort(prob[image, :, 1:].ravel())[-topk]
        few = np.where(prob[image] >= limit, prob[image], 0)
        expected = reference(few, loc[image], anchors, topk=60, keep=topk, threshold=0.1, nms=0.1, force=force)
        assert 3 < len(expected) < topk
        np.testing.assert_allclose(det[image, : len(expected)], expected, rtol=1e-5, atol=1e-6)
        assert (det[image, len(expected) :, 0] == -1).all()


def test_the_network_has_it_by_option() -> None:
    anchors = get_assigner(**MOBILENET).shapes((64, 64))["cls_target"][0]  # type: ignore[union-attr]
    shapes = [
        get_symbol(**MOBILENET, post_process="per_class", **limits).infer_shape(data=(2, 3, 64, 64))[1][0]
        for limits in ({}, {"nms_topk": 20}, {"keep_topk": 7})
    ]
    assert anchors < 200  # fewer than the defaults of nms_topk and keep_topk ask for
    assert shapes == [(2, min(200, 3 * anchors), 6), (2, 60, 6), (2, 7, 6)]
    pooled = get_symbol(**MOBILENET, post_process="pooled", nms_topk=20).infer_shape(data=(2, 3, 64, 64))[1][0]
    assert pooled == (2, 20, 6)
    training = get_symbol_train(**MOBILENET, post_process="per_class", keep_topk=7)
    assert training.infer_shape_partial(data=(2, 3, 64, 64))[1][-1] == (2, 7, 6)


@pytest.mark.parametrize("targets", ["paper", "mxnet"])
def test_variances_reach_targets_and_detections(targets: str) -> None:
    options = {"variances": (0.2, 0.4), "targets": targets}
    symbol = get_symbol_train(**MOBILENET, **options)
    found = {node["variances"] for node in symbol.attr_dict().values() if "variances" in node}
    assert found == {"(0.2, 0.2, 0.4, 0.4)"}
    assigner = get_assigner(**MOBILENET, **options)
    assert assigner is None or assigner.variances == (0.2, 0.2, 0.4, 0.4)
    per_class = get_symbol(**MOBILENET, **options, post_process="per_class").attr_dict().values()
    decoder = next(node for node in per_class if "std0" in node)
    assert [decoder[f"std{k}"] for k in range(4)] == ["0.2", "0.2", "0.4", "0.4"]


def test_other_numbers_of_variances_are_refused() -> None:
    with pytest.raises(OptionError, match="--variances takes 2 numbers .* or 4 .*, not 3"):
        get_symbol(**MOBILENET, variances=(0.1, 0.2, 0.2))
