"""YOLOv3-SPP: sections, outputs, decoding and suppression of the YOLOv3-SPP trainer."""

import re
from typing import Any

import numpy as np
import pytest

from machine.runtime import mx
from symbol.backbone.darknet import Level
from symbol.darknet_sections import Convolutional, MaxPool, Route, Section, Shortcut, Upsample, Yolo, with_classes
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from symbol.detector.yolo import decode, suppress
from symbol.network_options import YOLOOptions
from symbol.yolo_losses import by_anchor
from tests.golden import yolo
from tests.golden.loader import Case, assert_outputs, cases


@pytest.mark.parametrize("case", [case for case in cases("formula_params") if "module_defs" in case], ids=str)
def test_sections(case: Case) -> None:
    """Every section of the original's .cfg."""
    sections = with_classes(YOLO_NETWORKS[case.args["network"]].sections, case.args["num_classes"])
    assert sections == tuple(map(_section, case["module_defs"]))


def _section(block: dict[str, Any]) -> Section:
    match block["type"]:
        case "convolutional":
            norm = bool(block["batch_normalize"])
            return Convolutional(block["filters"], block["size"], block["stride"], norm, block["activation"])
        case "shortcut":
            return Shortcut(*block["from"])
        case "route":
            return Route(tuple(block["layers"]))
        case "maxpool":
            return MaxPool(block["size"], block["stride"])
        case "upsample":
            return Upsample(block["stride"])
        case _:
            return Yolo(tuple(block["mask"]), tuple(map(tuple, block["anchors"])), block["classes"])


def run(symbol: Any, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of inference."""
    args = {name: mx.nd.array(arrays[name]) for name in symbol.list_arguments()}
    states = {name: mx.nd.array(arrays[name]) for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), args=args, aux_states=states, grad_req="null")
    return [output.asnumpy() for output in executor.forward(is_train=False)]


@pytest.mark.parametrize("case", cases("yolov3spp_forward"), ids=str)
def test_forward(case: Case) -> None:
    levels = yolo.levels(case)
    raw = {f"p{k}": by_anchor(level.symbol, anchors=len(level.anchors)) for k, level in enumerate(levels)}
    wanted = raw | {"io": mx.sym.concat(*map(decode, levels), dim=1)}
    internals = mx.sym.Group(list(wanted.values())).get_internals()
    outputs = internals.list_outputs()
    for name in case.args["activations"]:
        pattern = rf"(body|head|pred)_{name}_(conv|leaky|shortcut|route|pool|upsample)_output"
        wanted[name] = internals[[output for output in outputs if re.fullmatch(pattern, output)][-1]]
    arrays = yolo.parameters(case.args["network"], case.args["gain"]) | {"data": case.formula_input("input")}
    found = dict(zip(wanted, run(mx.sym.Group(list(wanted.values())), arrays), strict=True))
    got = {name: found[name] for name in (*raw, "io")}
    for name, entry in case.args["activations"].items():
        values, sub = found[name], entry["sub"]
        got |= {
            f"act_{name}_shape": values.shape,
            f"act_{name}_sub": values[sub["image"], :: sub["channel_step"]][
                : sub["channel_count"], :: sub["row_step"], :: sub["col_step"]
            ],
            f"act_{name}_meanabs": np.abs(values).mean(),
        }
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("yolo_decode"), ids=str)
def test_decode(case: Case) -> None:
    level = Level(mx.sym.var("raw"), tuple(map(tuple, case.args["anchors_px"])), case.args["stride"])
    p, io = run(
        mx.sym.Group([by_anchor(level.symbol, anchors=len(level.anchors)), decode(level)]), {"raw": case["raw"]}
    )
    assert_outputs(case, {"p": p, "io": io})


@pytest.mark.parametrize("case", cases("yolo_nms"), ids=str)
def test_suppression(case: Case) -> None:
    args, boxes = case.args, case["pred"].shape[1]
    options = YOLOOptions(
        score_threshold=args["conf_thres"],
        nms=args["iou_thres"],
        multi_label=args["multi_label"],
        only_classes=tuple(args["classes"] or ()),
        force=args["agnostic"],
        nms_topk=boxes * args["num_classes"],
        keep_topk=args["max_num"],
        min_box=args["min_wh"],
        max_box=args["max_wh"],
    )
    det = run(suppress(mx.sym.var("pred"), boxes, args["num_classes"], options), {"pred": case["pred"]})[0]
    counts = (det[..., 0] >= 0).sum(axis=1)
    rows = det[det[..., 0] >= 0]
    dets = np.concatenate([rows[:, 2:], rows[:, 1:2], rows[:, :1]], axis=1)
    assert_outputs(case, {"counts": np.where(counts, counts, args["none_count"]), "dets": dets})
