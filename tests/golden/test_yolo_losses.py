"""compute_loss, FocalLoss and smooth_BCE of the YOLOv3-SPP trainer: values and gradients."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from machine.runtime import mx
from symbol.yolo_losses import Boxes, focal_cross_entropy, paired_overlap, smoothed_targets
from tests.golden.loader import Case, assert_close, assert_outputs, cases
from tests.golden.test_yolo_boxes import image_objects, yolo_assigner
from tests.symbol.yolo_loss_runner import batch_labels, run_yolo_losses

LOSSES = ("box_loss", "obj_loss", "cls_loss")  # as the arrays `losses` have them


def loss_options(case: Case, size: tuple[int, ...], kind: str) -> dict[str, Any]:
    """The case's gains are scaled already; the graph scales them by classes and the longer side of (H, W)."""
    args = case.args
    return {
        "box_loss": kind,
        "giou_gain": args["gain_giou"],
        "obj_gain": args["gain_obj"] * 320 / max(size),
        "cls_gain": args["gain_cls"] * 80 / args["num_classes"],
        "obj_pw": args["obj_pos_weight"],
        "cls_pw": args["cls_pos_weight"],
        "fl_gamma": args["fl_gamma"],
        "gr": args["giou_ratio"],
        "label_smoothing": args["label_smoothing"],
    }


@pytest.mark.parametrize("case", cases("yolo_compute_loss"), ids=str)
def test_compute_loss(case: Case) -> None:
    size, strides = tuple(case.args["img_hw"]), case.args["strides"]
    assigner = dataclasses.replace(yolo_assigner(case), max_targets=100)
    labels = batch_labels(assigner, [image_objects(case, k) for k in range(case.args["batch"])], size)
    predictions = [case[f"p{level}"] for level in range(len(strides))]  # (B, anchors, h, w, 5 + C)
    maps = [raw.transpose(0, 1, 4, 2, 3).reshape(len(raw), -1, *raw.shape[2:4]) for raw in predictions]
    classes = case.args["num_classes"]
    result = run_yolo_losses(maps, labels, strides, classes, **loss_options(case, size, case.args["box_iou"]))
    got: dict[str, Any] = {"losses": [result.losses[name].sum() for name in LOSSES]}
    for level, (grad, raw) in enumerate(zip(result.grads, predictions, strict=True)):
        grad = grad.reshape(*raw.shape[:2], -1, *raw.shape[2:4])  # (B, anchors, 5 + C, h, w)
        got[f"grad_p{level}"] = grad.transpose(0, 1, 3, 4, 2)
    if "losses_plain_iou" in case.tolerance:
        plain = run_yolo_losses(
            maps, labels, strides, classes, **loss_options(case, size, case.args["losses_plain_iou"])
        )
        got["losses_plain_iou"] = [plain.losses[name].sum() for name in LOSSES]
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("yolo_bbox_iou"), ids=str)
def test_overlap_and_its_gradient(case: Case) -> None:
    box = mx.nd.array(case["box1_xywh"])
    other = case["box2_xywh"]
    data = mx.sym.var("box")
    pairs = [
        Boxes(mx.sym.slice_axis(b, axis=1, begin=0, end=2), mx.sym.slice_axis(b, axis=1, begin=2, end=4))
        for b in (data, mx.sym.var("other"))
    ]
    grad = mx.nd.zeros(box.shape)
    executor = paired_overlap(*pairs, case.args["kind"]).bind(
        mx.cpu(),
        {"box": box, "other": mx.nd.array(other)},
        args_grad={"box": grad},
        grad_req={"box": "write", "other": "null"},
    )
    overlap = executor.forward(is_train=True)[0]
    executor.backward(mx.nd.ones(overlap.shape))
    assert_close(case, "from_xywh", overlap)
    assert_close(case, "grad_box1_xywh", grad)


@pytest.mark.parametrize("case", cases("yolo_focal_loss"), ids=str)
def test_focal_loss(case: Case) -> None:
    args = case.args
    pred = mx.nd.array(case["pred"])
    pred.attach_grad()
    loss = focal_cross_entropy(mx.sym.var("pred"), mx.sym.var("true"), args["pos_weight"], args["gamma"], args["alpha"])
    reduced = {"mean": mx.sym.mean, "sum": mx.sym.sum, "none": lambda loss: loss}[args["reduction"]](loss)
    executor = reduced.bind(
        mx.cpu(),
        {"pred": pred, "true": mx.nd.array(case["true"])},
        args_grad={"pred": pred.grad},
        grad_req={"pred": "write", "true": "null"},
    )
    out = executor.forward(is_train=True)[0]
    executor.backward(mx.nd.ones(out.shape))
    assert_outputs(case, {"out": out.asnumpy().reshape(np.shape(case["out"])), "grad": pred.grad})


@pytest.mark.parametrize("case", cases("yolo_smooth_bce"), ids=str)
def test_smoothed_targets(case: Case) -> None:
    assert_close(case, "cp_cn", [smoothed_targets(float(eps)) for eps in case["eps"]])
