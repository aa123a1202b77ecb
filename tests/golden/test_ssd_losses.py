"""L2Norm and MultiBoxLoss of ssd.pytorch: values and gradients."""

from typing import Any

import numpy as np
import pytest

from boxes.anchors import encode, ssd_priors
from boxes.assigners import match
from boxes.geometry import centres_to_corners
from machine.runtime import mx
from symbol.layers import l2_normalise
from tests.golden.loader import Case, assert_close, assert_outputs, cases
from tests.symbol.loss_runner import Result, Targets, run_loss


@pytest.mark.parametrize("case", cases("ssd_l2norm_init"), ids=str)
def test_l2norm_init(case: Case) -> None:
    channels = case.args["n_channels"]
    symbol = l2_normalise(mx.sym.var("data"), "tap", channels, case.args["scale"])
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (1, channels, 2, 2))], for_training=False)
    module.init_params(mx.init.Xavier())
    assert_close(case, "weight_init", module.get_params()[0]["tap_scale"].reshape(-1))


@pytest.mark.parametrize("case", cases("ssd_l2norm"), ids=str)
def test_l2norm(case: Case) -> None:
    channels = case.args["n_channels"]
    symbol = l2_normalise(mx.sym.var("data"), "tap", channels, 1.0)
    arrays = {"data": mx.nd.array(case["x"]), "tap_scale": mx.nd.array(case["weight"]).reshape((1, channels, 1, 1))}
    gradients = {name: mx.nd.zeros(array.shape) for name, array in arrays.items()}
    executor = symbol.bind(mx.cpu(), args=arrays, args_grad=gradients)
    output = executor.forward(is_train=True)[0]
    got = {"y": output}
    if "grad_out" in case:
        executor.backward(mx.nd.array(case["grad_out"]))
        got |= {"grad_x": gradients["data"], "grad_weight": gradients["tap_scale"].reshape(-1)}
    assert_outputs(case, got)


@pytest.mark.parametrize("case", cases("ssd_multibox_loss") + cases("ssd_multibox_loss_full"), ids=str)
def test_multibox_loss(case: Case) -> None:
    inputs = [case[name] if name in case else case.formula_input(name) for name in ("conf", "loc")]
    priors = case["priors"] if "priors" in case else ssd_priors(case.args["prior_config"])
    targets = batch_targets(case, priors)
    result = run_loss(*inputs, targets, negative_ratio=case.args["neg_pos_ratio"])
    assert all(np.isfinite(array).all() for array in result)
    got = outputs(result, targets)
    counts = got.pop("num_neg")
    for role in case.tolerance:
        if role.startswith("grad") and f"{role}_rows" in case:
            rows = case[f"{role}_rows"]
            assert_close(case, role, got[role][rows[:, 0], rows[:, 1]])
        elif role != "num_neg":
            assert_close(case, role, got[role])
    if targets.normaliser == 0:
        assert not result.grad_cls.any()
        assert not result.grad_loc.any()
    if "num_neg" in case.tolerance:
        np.testing.assert_array_equal(counts, np.minimum(case["num_neg"], with_loss(inputs[0], targets)))


def batch_targets(case: Case, priors: np.ndarray) -> Targets:
    """Matches every image of the case; without objects everything is background, objects without area are dropped."""
    cls, loc = [], []
    for rows in np.split(case["gt"], np.cumsum(case["gt_counts"])[:-1]):
        rows = rows[(rows[:, 2:4] > rows[:, :2]).all(axis=1)]
        owner, positive = match(rows[:, :4], centres_to_corners(priors), case.args["overlap_threshold"])
        owned = rows[owner[positive]]
        labels, offsets = np.zeros(len(priors)), np.zeros((len(priors), 4))
        labels[positive] = owned[:, 4] + case.args["label_offset"]
        offsets[positive] = encode(owned[:, :4], priors[positive], case.args["variances"])
        cls.append(labels)
        loc.append(offsets)
    return Targets(np.array(cls), np.array(loc), float((np.array(cls) > 0).sum()))


def outputs(result: Result, targets: Targets) -> dict[str, Any]:
    """What the golden files call the results; *_rows are the (image, prior) of gradients that are not zero."""
    mined = (result.grad_cls != 0).any(axis=2) & (targets.cls == 0)
    return {
        "loss_l": result.loc_loss.sum(),
        "loss_c": result.cls_loss.sum(),
        "grad_loc": result.grad_loc,
        "grad_conf": result.grad_cls,
        "grad_loc_rows": np.argwhere((result.grad_loc != 0).any(axis=2)),
        "grad_conf_rows": np.argwhere((result.grad_cls != 0).any(axis=2)),
        "num_pos": (targets.cls > 0).sum(axis=1),
        "num_neg": mined.sum(axis=1),
    }


def with_loss(logits: np.ndarray, targets: Targets) -> np.ndarray:
    """(B,) background anchors whose loss has a gradient in float32: no more can be seen to be mined."""
    others = mx.nd.softmax(mx.nd.array(logits), axis=-1).asnumpy()[..., 1:]
    return ((others > 0).any(axis=2) & (targets.cls == 0)).sum(axis=1)
