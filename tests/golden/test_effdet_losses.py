"""get_target, encode_bbox and FocalLoss of the EfficientDet trainers: targets, values and gradients."""

from typing import Any

import numpy as np
import pytest

from boxes.effdet_assigner import RATIOS, SCALES, STRIDES, EffDetAssigner, decode_effdet, effdet_anchors
from boxes.geometry import centres_to_corners, corners_to_centres
from tests.golden.loader import Case, assert_close, assert_outputs, cases
from tests.symbol.effdet_loss_runner import Labels, batch_labels, run_effdet_losses

Y_FIRST = [1, 0, 3, 2]  # xyxy <-> yxyx
FAR = 60.0  # logit of a probability that float32 rounds to 1


@pytest.mark.parametrize("case", cases("effdet_anchors"), ids=str)
def test_anchors(case: Case) -> None:
    args = case.args
    levels = len(args["strides"])
    assert (list(STRIDES[:levels]), list(map(list, RATIOS))) == (args["strides"], args["ratios_xy"])
    np.testing.assert_allclose(SCALES, args["scales"])
    anchors = effdet_anchors(tuple(args["input_hw"]), args["anchor_scale"], levels)
    assert_outputs(case, {"anchors": centres_to_corners(anchors)[:, Y_FIRST]})


@pytest.mark.parametrize("case", cases("effdet_bbox_transform"), ids=str)
def test_decoding(case: Case) -> None:
    anchors = corners_to_centres(case["anchors"][:, Y_FIRST])
    assert_outputs(case, {"out": decode_effdet(case["regression"], anchors)})


def image_objects(case: Case) -> list[np.ndarray]:
    """Objects (n, 6) with normalised corners of every image of the batch."""
    height, width = case.args["input_hw"]
    rows, counts = case["annotations"].astype(np.float64), case["counts"]
    objects = np.column_stack([rows[:, 4], rows[:, :4] / ([width, height] * 2), np.zeros(len(rows))])
    return np.split(objects, np.cumsum(counts)[:-1])


def case_labels(case: Case) -> Labels:
    args = case.args
    assigner = EffDetAssigner(args["iou_pos"], args["iou_neg"], args["anchor_scale"])
    return batch_labels(assigner, image_objects(case), tuple(args["input_hw"]))


@pytest.mark.parametrize("case", cases("effdet_focal_loss"), ids=str)
def test_targets(case: Case) -> None:
    labels, codes = case_labels(case), case.args["state"]
    target = labels["cls_target"]
    state = np.where(target > 0, target - 1, np.where(target == 0, codes["negative"], codes["ignored"]))
    image, anchor = np.nonzero(target > 0)
    assert_close(case, "state", state)
    assert_close(case, "num_pos", (target > 0).sum(axis=1))
    assert_close(case, "encoded_rows", np.column_stack([image, anchor]))
    assert_close(case, "encoded", labels["loc_target"][image, anchor])
    assert not labels["loc_target"][target <= 0].any()


def run_case(case: Case, **options: Any) -> dict[str, np.ndarray]:
    """Losses of a case and their gradients with respect to probabilities and offsets."""
    args, p = case.args, case["cls"].astype(np.float64)
    logits = np.clip(np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(1 - p, 1e-30)), -FAR, FAR)
    options = {"prob_clamp": args["clamp"], **options}
    result = run_effdet_losses(
        logits,
        case["reg"],
        case_labels(case),
        focal_alpha=args["alpha"],
        focal_gamma=args["gamma"],
        smooth_l1_beta=args["smooth_l1_beta"],
        **options,
    )
    moved = result.grad_cls != 0
    grad = np.divide(result.grad_cls, p * (1 - p), out=np.zeros(p.shape), where=moved)  # d logit / d p
    return {
        "c_loss": result.cls_loss.sum(),
        "r_loss": result.reg_loss.sum(),
        "grad_cls": grad,
        "grad_reg": result.grad_reg,
    }


@pytest.mark.parametrize("case", cases("effdet_focal_loss"), ids=str)
def test_losses_and_gradients(case: Case) -> None:
    for role, value in run_case(case).items():
        assert_close(case, role, value)


@pytest.mark.parametrize("case", cases("effdet_focal_loss"), ids=str)
def test_other_trainers(case: Case) -> None:
    """A larger clamp, and the weight that the other trainer gives the boxes."""
    if "c_loss_head" in case:
        assert_close(case, "c_loss_head", run_case(case, prob_clamp=case.args["clamp_head"])["c_loss"])
    if "zylo" in case:
        found = run_case(case, loc_weight=case.args["zylo_reg_factor"])
        assert_close(case, "zylo", [found["c_loss"], found["r_loss"]])
