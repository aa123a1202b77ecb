"""One training step of EfficientDet with batch norm on its running statistics: losses, gradients of every parameter.

The network computes in float64, as the reference did.
"""

import numpy as np
import pytest

from machine.runtime import mx
from model.weights.pytorch import effdet_name
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.detector.efficientdet import predictions
from symbol.losses import effdet_losses
from symbol.network_options import EffDetOptions
from tests.golden.effdet import network_of, parameters
from tests.golden.loader import Case, assert_outputs, cases
from tests.golden.test_effdet_losses import case_labels

SAMPLES = 8


@pytest.mark.parametrize("case", cases("effdet_d0_train_step"), ids=str)
def test_train_step(case: Case) -> None:
    args, network = case.args, network_of(case)
    options = EffDetOptions(
        freeze=".*",
        focal_alpha=args["alpha"],
        focal_gamma=args["gamma"],
        prob_clamp=args["clamp"],
        smooth_l1_beta=args["smooth_l1_beta"],
    )
    row, size = EFFDET_NETWORKS[network], tuple(args["input_hw"])
    heads = predictions(network, row, size, args["num_classes"], options)
    cls, box = (mx.sym.cast(pred, dtype="float32") for pred in (heads.cls, heads.box))
    executor = step(case, mx.sym.Group(effdet_losses(cls, box, args["num_classes"], options)))
    names = [effdet_name(name) for name in case["param_names"]]
    flat = [executor.grad_dict[name].asnumpy().ravel().astype(np.float64) for name in names]
    got = {
        "losses": [output.asnumpy().sum() for output in executor.outputs],
        "grad_l2_and_maxabs": np.array([[np.linalg.norm(g), np.abs(g).max()] for g in flat]),
        "grad_samples": np.array([g[np.linspace(0, g.size - 1, SAMPLES).astype(np.int64)] for g in flat]),
    }
    assert_outputs(case, got)


def step(case: Case, symbol: mx.sym.Symbol) -> mx.executor.Executor:
    """The executor after forward and backward over the case's parameters."""
    learnt = parameters(case)
    inputs = learnt | {"data": case.formula_input("input")}
    arrays = {name: mx.nd.array(array, dtype="float64") for name, array in inputs.items()}
    arrays |= {name: mx.nd.array(array) for name, array in case_labels(case).items()}
    names = symbol.list_arguments()
    executor = symbol.bind(
        mx.cpu(),
        args={name: arrays[name] for name in names},
        args_grad={name: arrays[name].zeros_like() for name in names if name in learnt},
        grad_req={name: "write" if name in learnt else "null" for name in names},
        aux_states={name: arrays[name] for name in symbol.list_auxiliary_states()},
    )
    executor.forward(is_train=True)
    executor.backward()
    mx.nd.waitall()
    return executor
