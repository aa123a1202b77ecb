"""EfficientDet: hyper-parameters, anchors, body, BiFPN, outputs, decoding and suppression of the PyTorch trainers."""

from typing import Any

import numpy as np
import pytest

from boxes.effdet_assigner import RATIOS, SCALES, STRIDES, effdet_anchors
from boxes.geometry import centres_to_corners, corners_to_centres
from machine.runtime import mx
from symbol.backbone.efficientnet import SQUEEZE, efficientnet
from symbol.detector.bifpn import FUSION_EPS, LOWEST, FusionStyle, cell, first_inputs
from symbol.detector.efficientdet import BATCH_NORM_EPS, anchors_of, decode, predictions, suppress
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.layers import Layers, Tap
from symbol.network_options import EffDetOptions
from symbol.symbol_factory import get_symbol
from tests.golden.effdet import network_of, parameters
from tests.golden.loader import Case, assert_outputs, cases
from tests.golden.test_yolo_network import run

LAYERS = Layers(batch_norm_eps=BATCH_NORM_EPS)


@pytest.mark.parametrize("case", cases("effdet_hparams"), ids=str)
def test_table(case: Case) -> None:
    """Every number of the original's table that concerns a detector."""
    wanted, row = case["row"], EFFDET_NETWORKS[f"efficientdet_{case.args['model'].lower()}"]
    stages, channels = [], row.body.stem
    for stage in row.body.stages:
        stages.append(
            {
                "kernel": stage.kernel,
                "stride": stage.stride,
                "expand": stage.expand,
                "in_ch": channels,
                "out_ch": stage.channels,
                "repeats": stage.repeats,
                "se_ratio": SQUEEZE,
            }
        )
        channels = stage.channels
    own = {
        "fpn_channels": row.channels,
        "fpn_cells": row.cells,
        "head_layers": row.head_layers,
        "anchor_scale": row.anchor_scale,
        "pyramid_levels": list(range(LOWEST, LOWEST + row.levels)),
        "num_anchors": len(SCALES) * len(RATIOS),
        "backbone_out_channels_p3_p4_p5": [row.body.stages[k].channels for k in (2, 4, 6)],
        "bifpn_attention": row.attention,
        "width": row.body.width,
        "depth": row.body.depth,
        "stem_channels": row.body.stem,
        "stages": stages,
    }
    assert {name: own[name] for name in own if name in wanted} == {n: wanted[n] for n in own if n in wanted}
    assert row.input_size in (wanted.get("input_size"), wanted["input_size_zylo117"])


@pytest.mark.parametrize("case", cases("effdet_hparams"), ids=str)
def test_common_numbers_are_the_defaults(case: Case) -> None:
    common, options = case["common"], EffDetOptions()
    assert (options.focal_alpha, options.focal_gamma) == (common["focal_alpha"], common["focal_gamma"])
    assert (options.pos_iou, options.neg_iou) == (common["iou_pos"], common["iou_neg"])
    assert options.smooth_l1_beta == pytest.approx(common["smooth_l1_beta"])
    assert options.drop_connect == common["drop_connect_rate"]
    assert (common["bn_eps"], common["bifpn_epsilon"]) == (BATCH_NORM_EPS, FUSION_EPS)
    np.testing.assert_allclose(SCALES, common["scales"])
    np.testing.assert_allclose(RATIOS, common["aspect_ratios"])


@pytest.mark.parametrize(
    "case", [c for c in cases("effdet_hparams") if "learnable_parameters_90_classes" in c["row"]], ids=str
)
def test_number_of_parameters(case: Case) -> None:
    network = f"efficientdet_{case.args['model'].lower()}"
    symbol = get_symbol(network, 256, 90)
    named = zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 256, 256))[0], strict=True)
    assert sum(np.prod(s) for n, s in named if n != "data") == case["row"]["learnable_parameters_90_classes"]


@pytest.mark.parametrize("case", cases("effdet_anchors"), ids=str)
def test_anchors(case: Case) -> None:
    """Those of the assigner, and those that the graph decodes with."""
    size, scale, levels = tuple(case.args["input_hw"]), case.args["anchor_scale"], len(case.args["pyramid_levels"])
    anchors = effdet_anchors(size, scale, levels)
    assert_outputs(case, {"anchors": centres_to_corners(anchors)[:, [1, 0, 3, 2]]})
    symbol = mx.sym.Group(anchors_of(mx.sym.var("numbers"), mx.sym.var("finest"), levels, scale))
    finest = np.zeros((1, 1, *(side // STRIDES[0] for side in size)))
    graph = run(symbol, {"numbers": np.arange(len(anchors))[None], "finest": finest})
    np.testing.assert_allclose(np.stack(graph, axis=2)[0], anchors, rtol=1e-6)


def sub(values: np.ndarray, steps: dict[str, int] | None) -> np.ndarray:
    """Every so many channels, rows and columns, as the case states them."""
    steps = steps or {}
    return values[:, :: steps.get("channel_step", 1), :: steps.get("row_step", 1), :: steps.get("col_step", 1)]


@pytest.mark.parametrize("case", cases("effdet_backbone"), ids=str)
def test_body(case: Case) -> None:
    body = EFFDET_NETWORKS[network_of(case)].body
    taps = efficientnet(mx.sym.var("data"), LAYERS, body)
    arrays = parameters(case) | {"data": case.formula_input("input")}
    found = dict(zip(case.args["outputs"], run(mx.sym.Group([tap.symbol for tap in taps]), arrays), strict=True))
    got = dict(found)
    for name, values in found.items():
        assert values.shape[1] == taps[case.args["outputs"].index(name)].channels
        got[f"{name}_sub"] = sub(values, case.args.get(f"{name}_sub"))
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("effdet_bifpn"), ids=str)
def test_bifpn_cell(case: Case) -> None:
    args = case.args
    names = sorted(role for role in case.keys if role.startswith("in_"))
    inputs = [mx.sym.var(name) for name in names]
    down = again = inputs
    if args["first_time"]:
        taps = [Tap(s, "", c, 0) for s, c in zip(inputs, args["conv_channels"], strict=True)]
        down, again = first_inputs(taps, LAYERS, "bifpn_0", args["num_channels"], 5)
    maps = cell(down, again, LAYERS, "bifpn_0", args["num_channels"], FusionStyle(args["attention"]))
    arrays = parameters(case) | {name: case[name] for name in names}
    outputs = run(mx.sym.Group(maps), arrays)
    assert_outputs(case, {f"out_p{level}": values for level, values in enumerate(outputs, start=LOWEST)})


@pytest.mark.parametrize("case", cases("effdet_d0_forward"), ids=str)
def test_forward(case: Case) -> None:
    network = network_of(case)
    row, size = EFFDET_NETWORKS[network], tuple(case.args["input_hw"])
    heads = predictions(network, row, size, case.args["num_classes"], EffDetOptions())
    internals = mx.sym.Group([heads.cls, heads.box]).get_internals()
    last = row.cells - 1
    names = ["conv3_up", *(f"conv{level}_down" for level in range(LOWEST + 1, LOWEST + row.levels))]
    features = [internals[f"bifpn_{last}_{name}_bn_output"] for name in names]
    arrays = parameters(case) | {"data": case.formula_input("input")}
    cls, box, *maps = run(mx.sym.Group([heads.cls, heads.box, *features]), arrays)
    got: dict[str, Any] = {
        "regression": box[:, case["rows"]],
        "classification": 1 / (1 + np.exp(-cls[:, case["rows"]])),
    }
    for level, values in enumerate(maps, start=LOWEST):
        name = f"feature_p{level}"
        got |= {name: values, f"{name}_sub": sub(values, case.args.get(f"{name}_sub"))}
    assert_outputs(case, got)
    assert cls.shape[1] == case.args["num_anchors"]


def corners_of(case: Case, regression: str) -> np.ndarray:
    """(B, A, 4) decoded corners x1, y1, x2, y2 in pixels, by the graph."""
    names = ("x", "y", "w", "h")
    symbol = decode(mx.sym.var("offsets"), tuple(mx.sym.var(name) for name in names))
    anchors = corners_to_centres(case["anchors"][:, [1, 0, 3, 2]])
    arrays = {name: anchors[None, :, k] for k, name in enumerate(names)}
    return run(symbol, arrays | {"offsets": case[regression]})[0]


@pytest.mark.parametrize("case", cases("effdet_bbox_transform"), ids=str)
def test_decoding(case: Case) -> None:
    assert_outputs(case, {"out": corners_of(case, "regression")})


@pytest.mark.parametrize("case", cases("effdet_decodebox"), ids=str)
def test_decoding_and_clipping(case: Case) -> None:
    height, width = case.args["input_hw"]
    corners = corners_of(case, "regression") / np.array([width, height, width, height])
    assert_outputs(case, {"out": np.clip(corners, *case.args["clamp"])})


def detections(probabilities: np.ndarray, corners: np.ndarray, nms: float, score: float) -> np.ndarray:
    """det (B, N, 6) by the graph."""
    count = probabilities.shape[1]
    options = EffDetOptions(nms=nms, score_threshold=score)
    symbol = suppress(mx.sym.var("logits"), mx.sym.var("corners"), count, options)
    probabilities = probabilities.astype(np.float64)
    arrays = {"logits": np.log(probabilities / (1 - probabilities)), "corners": corners}
    return run(symbol, arrays)[0]


@pytest.mark.parametrize("case", cases("effdet_nms"), ids=str)
def test_suppression(case: Case) -> None:
    """As the original, whose detections stand class by class."""
    args, pred = case.args, case["pred"]
    det = detections(pred[..., 4:], pred[..., :4], args["nms_thres"], args["conf_thres"])
    rows = [image[image[:, 0] >= 0] for image in det]
    counts = np.array([len(found) for found in rows])
    found = np.concatenate([image[np.argsort(image[:, 0], kind="stable")] for image in rows])
    boxes = to_image(found[:, 2:], args)[:, [1, 0, 3, 2]]
    got = {"counts": np.where(counts, counts, args["none_count"])}
    assert_outputs(case, got | {"dets": np.concatenate([boxes, found[:, 1:2], found[:, :1]], axis=1)})


def to_image(corners: np.ndarray, args: dict[str, Any]) -> np.ndarray:
    """Corners in [0, 1] of the input as pixels of the image, as the original takes letterboxing away."""
    shape, image = (np.array(args[name], np.float64) for name in ("input_shape", "image_shape"))
    offset, scale = np.zeros(2), np.ones(2)
    if args["letterbox_image"]:
        filled = np.round(image * (shape / image).min())
        offset, scale = (shape - filled) / 2 / shape, shape / filled
    points = (corners.reshape(-1, 2, 2) - offset[::-1]) * scale[::-1] * image[::-1]
    return points.reshape(-1, 4)


@pytest.mark.parametrize("case", cases("effdet_postprocess"), ids=str)
def test_decoding_and_suppression(case: Case) -> None:
    height, width = case.args["input_hw"]
    corners = np.clip(corners_of(case, "reg"), 0, None)
    corners[..., 2:] = np.minimum(corners[..., 2:], np.array([width - 1, height - 1]))  # the original's clipping
    det = detections(case["cls"], corners, case.args["iou_threshold"], case.args["threshold"])
    found = det[det[..., 0] >= 0]
    got = {"counts": (det[..., 0] >= 0).sum(axis=1), "rois": found[:, 2:], "scores": found[:, 1]}
    assert_outputs(case, got | {"class_ids": found[:, 0]})
