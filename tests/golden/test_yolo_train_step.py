"""One training step of YOLOv3-SPP: losses, gradients of every parameter, states of batch norm.

The network computes in float64, as the reference did: in float32 each rounding that turns the sign of a leaky ReLU
changes gradients by more than the tolerance, differently in each library.
"""

from typing import Any

import numpy as np
import pytest

from machine.runtime import mx
from symbol.darknet_sections import trace
from symbol.detector.yolo import find_row as find_yolo_row
from symbol.network_options import YOLOOptions
from symbol.symbol_factory import get_assigner
from symbol.yolo_losses import yolo_losses
from tests.golden import yolo
from tests.golden.loader import Case, assert_outputs, cases
from tests.golden.test_yolo_boxes import image_objects
from tests.golden.test_yolo_losses import LOSSES, loss_options
from tests.symbol.yolo_loss_runner import batch_labels

SAMPLES = 8


@pytest.mark.parametrize("case", cases("yolov3spp_train_step"), ids=str)
def test_train_step(case: Case) -> None:
    size, data = tuple(case.args["input_hw"]), case.formula_input("input")
    options = yolo.options(case, iou_t=case.args["iou_t"], **loss_options(case, size, case.args["box_iou"]))
    assigner = get_assigner(case.args["network"], size, case.args["num_classes"], **options)
    assert assigner is not None
    labels = batch_labels(assigner, [image_objects(case, k) for k in range(len(data))], size)
    levels = yolo.levels(case)
    raw = [level.symbol for level in levels]
    maps = [level._replace(symbol=mx.sym.cast(level.symbol, dtype="float32")) for level in levels]
    losses = yolo_losses(maps, case.args["num_classes"], YOLOOptions(**options))
    raw = [mx.sym.BlockGrad(level) for level in raw]
    executor = step(case, mx.sym.Group([*losses, *raw]), labels, data)
    got = gradients(case, executor.grad_dict) | states(case, executor.aux_dict)
    values = [output.asnumpy() for output in executor.outputs]
    got["losses"] = [loss.sum() for loss in values[: len(LOSSES)]]
    for level, grid in enumerate(values[len(LOSSES) :]):
        grid = grid.reshape(len(grid), -1, 5 + case.args["num_classes"], *grid.shape[2:])
        got[f"p{level}"] = grid.transpose(0, 1, 3, 4, 2)
    assert_outputs(case, got)


def step(case: Case, symbol: Any, labels: dict[str, np.ndarray], data: np.ndarray) -> Any:
    """The executor after forward and backward over the case's parameters."""
    parameters = yolo.parameters(case.args["network"], case.args["gain"])
    arrays = {name: mx.nd.array(array, dtype="float64") for name, array in (parameters | {"data": data}).items()}
    arrays |= {name: mx.nd.array(array) for name, array in labels.items()}
    names = symbol.list_arguments()
    executor = symbol.bind(
        mx.cpu(),
        args={name: arrays[name] for name in names},
        args_grad={name: arrays[name].zeros_like() for name in names if name in parameters},
        grad_req={name: "write" if name in parameters else "null" for name in names},
        aux_states={name: arrays[name] for name in symbol.list_auxiliary_states()},
    )
    executor.forward(is_train=True)
    executor.backward()
    mx.nd.waitall()  # batch norm's backward writes its states unknown to the engine
    return executor


def gradients(case: Case, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Norms, maxima and samples of the gradient of every parameter."""
    names = [yolo.own_name(case.args["network"], name) for name in case["param_names"]]
    flat = [arrays[name].asnumpy().ravel().astype(np.float64) for name in names]
    return {
        "grad_l2_and_maxabs": np.array([[np.linalg.norm(g), np.abs(g).max()] for g in flat]),
        "grad_samples": np.array([g[np.linspace(0, g.size - 1, SAMPLES).astype(np.int64)] for g in flat]),
    }


def states(case: Case, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The moving averages; the share of the batch's variance times n / (n - 1), as the reference's is unbiased."""
    network, images = case.args["network"], case.formula_input("input").shape[0]
    before = yolo.parameters(network, case.args["gain"])
    extents = trace(find_yolo_row(network).sections)
    after = []
    for name in case["bn_names"]:
        own = yolo.own_name(network, name)
        state, stride = arrays[own].asnumpy().astype(np.float64), extents[int(name.split(".")[1])].stride
        if own.endswith("var"):
            count = images * np.prod(case.args["input_hw"]) / stride**2
            kept = (1 - case.args["bn_momentum_torch"]) * before[own]
            state = kept + (state - kept) * count / (count - 1)
        after.append(state)
    return {
        "bn_after_l2": np.array([np.linalg.norm(state) for state in after]),
        "bn_after_first4": np.array([state[:4] for state in after]),
    }
