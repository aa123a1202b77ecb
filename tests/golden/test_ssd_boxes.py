"""Box operations, priors, matching, NMS and detection of ssd.pytorch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from boxes.anchors import AnchorLayer, decode, encode, multibox_prior, ssd_priors
from boxes.assigners import match
from boxes.geometry import centres_to_corners, corners_to_centres, intersection, iou, log_sum_exp
from boxes.nms import nms
from tests.golden.loader import Case, assert_close, assert_outputs, cases


@pytest.mark.parametrize("case", cases("ssd_intersect"), ids=str)
def test_intersect(case: Case) -> None:
    assert_close(case, "out", intersection(case["box_a"], case["box_b"]))


@pytest.mark.parametrize("case", cases("ssd_jaccard"), ids=str)
def test_jaccard(case: Case) -> None:
    assert_close(case, "out", iou(case["box_a"], case["box_b"]))


@pytest.mark.parametrize("case", cases("ssd_point_form"), ids=str)
def test_point_form(case: Case) -> None:
    assert_close(case, "out", centres_to_corners(case["priors"]))


@pytest.mark.parametrize("case", cases("ssd_encode"), ids=str)
def test_encode(case: Case) -> None:
    assert_close(case, "out", encode(case["matched"], case["priors"], case.args["variances"]))


@pytest.mark.parametrize("case", cases("ssd_decode"), ids=str)
def test_decode(case: Case) -> None:
    assert_close(case, "out", decode(case["loc"], case["priors"], case.args["variances"]))


@pytest.mark.parametrize("case", cases("ssd_encode_decode"), ids=str)
def test_encode_decode(case: Case) -> None:
    priors, variances = case["priors"], case.args["variances"]
    assert_close(case, "out", decode(encode(case["matched"], priors, variances), priors, variances))


@pytest.mark.parametrize("case", cases("log_sum_exp"), ids=str)
def test_log_sum_exp(case: Case) -> None:
    assert_close(case, "out", log_sum_exp(case["x"], case.args["axis"]))


@pytest.mark.parametrize("case", cases("ssd_prior_box"), ids=str)
def test_priors(case: Case) -> None:
    assert_close(case, "priors", ssd_priors(case.args["prior_config"]))


@pytest.mark.parametrize("case", cases("ssd_prior_box"), ids=str)
def test_priors_by_the_parameters_of_multibox_prior(case: Case) -> None:
    config = case.args["prior_config"]
    corners = [
        multibox_prior((cells, cells), layer)
        for cells, layer in zip(config["feature_maps"], layers(config), strict=True)
    ]
    assert_close(case, "priors", corners_to_centres(np.concatenate(corners)))


def layers(config: Mapping[str, Any]) -> list[AnchorLayer]:
    """The maps of a PriorBox configuration with the parameters of MultiBoxPrior."""
    side, rows = config["min_dim"], []
    for step, low, high, ratios in zip(
        config["steps"], config["min_sizes"], config["max_sizes"], config["aspect_ratios"], strict=True
    ):
        pairs = [value for ratio in ratios for value in (ratio, 1 / ratio)]
        rows.append(
            AnchorLayer(
                sizes=(low / side, math.sqrt(low * high) / side),
                ratios=(1.0, *pairs),
                step=(step / side,) * 2,
                clip_centres=config["clip"],
            )
        )
    return rows


@pytest.mark.parametrize("case", cases("ssd_match"), ids=str)
def test_match(case: Case) -> None:
    truths, variances = case["truths"], case.args["variances"]
    priors = case["priors"] if "priors" in case else ssd_priors(case.args["prior_config"])
    owner, positive = match(truths, centres_to_corners(priors), case.args["threshold"])
    loc = encode(truths[owner], priors, variances)
    labels = np.where(positive, case["labels"][owner] + 1, 0)
    got = {"conf_t": labels, "pos_index": np.flatnonzero(positive), "loc_t_pos": loc[positive], "loc_t": loc}
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("ssd_nms"), ids=str)
def test_nms(case: Case) -> None:
    boxes = case["boxes"]
    keep = nms(boxes, case["scores"], case.args["overlap"], case.args["top_k"], keep_equal=True)
    if case.args.get("compare") == "boxes":
        np.testing.assert_array_equal(boxes[keep], boxes[case["keep"]])
    else:
        assert_close(case, "keep", keep)


@pytest.mark.parametrize("case", cases("ssd_detect"), ids=str)
def test_detect(case: Case) -> None:
    """Per class: score > conf_thresh, best top_k, NMS; the intended form keeps the top_k best of the image."""
    output = np.zeros((len(case["loc"]), case.args["num_classes"], case.args["top_k"], 5), np.float32)
    for image in range(len(output)):
        boxes = decode(case["loc"][image], case["priors"], case.args["variances"])
        for label in range(1, case.args["num_classes"]):
            scores = case["conf"][image, :, label]
            rows = np.flatnonzero(scores > case.args["conf_thresh"])
            kept = nms(boxes[rows], scores[rows], case.args["nms_thresh"], case.args["top_k"], keep_equal=True)
            rows = rows[kept]
            output[image, label, : len(rows)] = np.concatenate([scores[rows, None], boxes[rows]], axis=1)
    best = _only_best(output, case.args["top_k"])
    got = {"output": output, "output_intended": best, "counts": _counts(output), "counts_intended": _counts(best)}
    assert_outputs(case, got)


def _counts(output: np.ndarray) -> np.ndarray:
    """Detections of each image and class."""
    return (output[..., 0] > 0).sum(axis=2)


def _only_best(output: np.ndarray, top_k: int) -> np.ndarray:
    """Zeroes the rows of each image that are not among its top_k scores over all classes."""
    scores = output[..., 0].reshape(len(output), -1)  # (N, classes * rows)
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return np.where((rank < top_k).reshape(output.shape[:3])[..., None], output, 0)
