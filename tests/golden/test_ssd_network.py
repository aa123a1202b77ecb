"""SSD300-VGG16 of ssd.pytorch as a whole: outputs, detections, losses and gradients with weights made by formula."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from boxes.anchors import expand_variances
from boxes.geometry import centres_to_corners
from machine.runtime import mx
from model.weights import pytorch
from symbol.layers import per_class_detection
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train
from tests.golden.loader import IS_OWN, Case, assert_outputs, case_of, cases, formula_parameters, largest_difference
from tests.model.weights.agreement import record

# Names of the originals' networks -> ours.
NETWORKS = {"ssd300_vgg16": "vgg16_ssd_voc"}
# Activation of the original -> ours. Pre-ReLU values are outputs of convolutions.
ACTIVATIONS = {
    "pool3": "pool3_output",
    "l2norm": "broadcast_mul0_output",
    "conv7_pre_relu": "fc7_output",
    "extras1_pre_relu": "multi_feat_2_conv_3x3_conv_output",
    "extras3_pre_relu": "multi_feat_3_conv_3x3_conv_output",
    "extras5_pre_relu": "multi_feat_4_conv_3x3_conv_output",
    "extras7_pre_relu": "multi_feat_5_conv_3x3_conv_output",
}


@cache
def state_dict(network: str, gain: float) -> dict[str, np.ndarray]:
    """The state_dict of a network of the originals, by formula."""
    return dict(formula_parameters(case_of("formula_params", network=network, gain=gain)))


def arguments(case: Case, symbol: Any) -> dict[str, Any]:
    """Data and weights of a case for our symbol."""
    arrays, _ = pytorch.rename_ssd(state_dict(case.args["network"], case.args["gain"]), "", {})
    arrays["data"] = case.formula_input("input")
    return {name: mx.nd.array(arrays[name]) for name in symbol.list_arguments() if name in arrays}


@pytest.mark.parametrize("case", cases("ssd300_forward"), ids=str)
def test_forward(case: Case) -> None:
    """The images are RGB in both: ssd.pytorch swaps OpenCV's channels after subtracting the mean."""
    network, size = NETWORKS[case.args["network"]], tuple(case.args["input_hw"])
    internals = get_symbol(network, size, case.args["num_classes"] - 1).get_internals()
    wanted = {"loc": "multibox_loc_pred_output", "conf": "multibox_cls_pred_output"}
    wanted |= {name: ACTIVATIONS[name] for name in case.args["activations"]}
    symbol = mx.sym.Group([internals[name] for name in wanted.values()])
    args = arguments(case, symbol)
    # A gradient keeps the executor from fusing convolutions with their ReLU, which would change the pre-ReLU outputs.
    executor = symbol.bind(
        mx.cpu(), args=args, args_grad={"data": mx.nd.zeros(args["data"].shape)}, grad_req={"data": "write"}
    )
    found = dict(zip(wanted, (output.asnumpy() for output in executor.forward(is_train=True)), strict=True))
    got = {name: found[name] for name in ("loc", "conf")}
    if IS_OWN:
        record("ssd.pytorch", case.args["network"], "PyTorch (tests/golden)", relative=largest_difference(case, got))
    for name, entry in case.args["activations"].items():
        values = found[name]
        sub = entry["sub"]
        got |= {
            f"act_{name}_shape": values.shape,
            f"act_{name}_sub": values[sub["image"], :: sub["channel_step"]][
                : sub["channel_count"], :: sub["row_step"], :: sub["col_step"]
            ],
            f"act_{name}_meanabs": np.abs(values).mean(),
        }
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("ssd300_train_step"), ids=str)
def test_train_step(case: Case) -> None:
    criterion, size = case.args["criterion"], tuple(case.args["input_hw"])
    options = {
        "overlap_threshold": criterion["overlap_threshold"],
        "negative_mining_ratio": criterion["neg_pos_ratio"],
        "variances": tuple(criterion["variances"]),
    }
    door = (NETWORKS[case.args["network"]], size, case.args["num_classes"] - 1)
    outputs = get_symbol_train(*door, **options)
    symbol = mx.sym.Group([outputs[k] for k in range(2)])  # without det
    arrays = arguments(case, symbol)
    assigner = get_assigner(*door, **options)
    assert assigner is not None
    images = np.split(case["gt"], np.cumsum(case["gt_counts"])[:-1])
    rows = [np.column_stack([gt[:, 4], gt[:, :4], np.zeros(len(gt))]).astype(np.float32) for gt in images]
    targets = [assigner(objects, size) for objects in rows]
    labels = {name: np.stack([target[name] for target in targets]) for name in targets[0]}
    labels["normaliser"][:] = labels["normaliser"].sum()
    gradients = {name: mx.nd.zeros(array.shape) for name, array in arrays.items() if name != "data"}
    args = arrays | {name: mx.nd.array(array) for name, array in labels.items()}
    executor = symbol.bind(mx.cpu(), args=args, args_grad=gradients)
    executor.forward(is_train=True)
    executor.backward()
    cls_loss, loc_loss = (output.asnumpy().sum() for output in executor.outputs)
    flat = [gradients[pytorch.ssd_name(name)].asnumpy().ravel().astype(np.float64) for name in case["param_names"]]
    got = {
        "loss_l": loc_loss,
        "loss_c": cls_loss,
        "grad_l2_and_maxabs": np.array([[np.linalg.norm(g), np.abs(g).max()] for g in flat]),
        "grad_samples": np.array([g[np.linspace(0, g.size - 1, 8).astype(np.int64)] for g in flat]),
    }
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("ssd_detect"), ids=str)
def test_detect_as_a_graph(case: Case) -> None:
    """post_process=per_class; all that NMS leaves, and the top_k best of the image."""
    per_class = min(case.args["top_k"], case["conf"].shape[1])
    everything = detect(case, per_class * (case.args["num_classes"] - 1))
    best = detect(case, case.args["top_k"])
    counts = [(output[..., 0] > 0).sum(axis=2) for output in (everything, best)]
    got = {"output": everything, "output_intended": best, "counts": counts[0], "counts_intended": counts[1]}
    assert_outputs(case, got)


def detect(case: Case, keep: int) -> np.ndarray:
    """det in the original's layout (N, classes, top_k, 5), rows (score, corners), class 0 empty."""
    arrays = {"prob": case["conf"], "loc": case["loc"], "anchors": centres_to_corners(case["priors"])[None]}
    symbol = per_class_detection(
        *(mx.sym.var(name) for name in arrays),
        topk=min(case.args["top_k"], len(case["priors"])),
        keep=keep,
        threshold=case.args["conf_thresh"],
        nms=case.args["nms_thresh"],
        force=False,
        variances=expand_variances(case.args["variances"]),
    )
    args = {name: mx.nd.array(array) for name, array in arrays.items()}
    det = symbol.bind(mx.cpu(), args=args, grad_req="null").forward()[0].asnumpy()
    output = np.zeros((len(det), case.args["num_classes"], case.args["top_k"], 5), np.float32)
    for image, rows in enumerate(det):
        for label in range(1, case.args["num_classes"]):
            found = rows[rows[:, 0] == label - 1, 1:]
            output[image, label, : len(found)] = found
    return output
