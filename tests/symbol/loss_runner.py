"""Runs multibox_loss on arrays and states what it should give, in numpy."""

from typing import Any, NamedTuple

import numpy as np

from boxes.geometry import log_sum_exp
from machine.runtime import mx
from symbol.losses import multibox_loss


class Targets(NamedTuple):
    """Constant inputs of the loss: cls (B, A), loc (B, A, 4), number of positives of the global batch."""

    cls: np.ndarray
    loc: np.ndarray
    normaliser: float


class Result(NamedTuple):
    """Losses (B,) and gradients of their sum."""

    cls_loss: np.ndarray
    loc_loss: np.ndarray
    grad_cls: np.ndarray
    grad_loc: np.ndarray


def run_loss(cls_pred: np.ndarray, loc_pred: np.ndarray, targets: Targets, **options: Any) -> Result:
    """Losses and gradients by the graph; cls_pred (B, A, C + 1), loc_pred (B, A, 4)."""
    names = ("cls_pred", "loc_pred", "cls_target", "loc_target", "normaliser")
    rows = np.full((len(cls_pred), 1), targets.normaliser)
    arrays = (cls_pred, loc_pred, targets.cls, targets.loc, rows)
    losses = multibox_loss(*(mx.sym.var(name) for name in names), **options)
    executor = mx.sym.Group([mx.sym.make_loss(loss) for loss in losses]).bind(
        mx.cpu(),
        args={name: mx.nd.array(array) for name, array in zip(names, arrays, strict=True)},
        args_grad={"cls_pred": mx.nd.zeros(cls_pred.shape), "loc_pred": mx.nd.zeros(loc_pred.shape)},
        grad_req={name: "write" if name.endswith("pred") else "null" for name in names},
    )
    executor.forward(is_train=True)
    executor.backward()
    gradients = [executor.grad_dict[name].asnumpy() for name in ("cls_pred", "loc_pred")]
    return Result(*(output.asnumpy() for output in executor.outputs), *gradients)


def reference_loss(
    cls_pred: np.ndarray,
    loc_pred: np.ndarray,
    targets: Targets,
    negative_ratio: float = 3.0,
    minimum_negatives: int = 0,
    alpha: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The same losses (B,), image by image in float64 (SSD, section 2.2)."""
    cls_losses, loc_losses = [], []
    for logits, offsets, labels, wanted in zip(cls_pred, loc_pred, targets.cls, targets.loc, strict=True):
        log_prob = logits - log_sum_exp(logits, 1)
        positive = np.flatnonzero(labels > 0)
        negatives = np.sort(-log_prob[labels == 0, 0])[::-1]
        count = max(int(negative_ratio * len(positive)), minimum_negatives)
        cross_entropy = -log_prob[positive, labels[positive].astype(int)].sum() + negatives[:count].sum()
        error = np.abs(offsets - wanted)[positive]
        smooth = np.where(error < 1, error**2 / 2, error - 0.5).sum()
        cls_losses.append(cross_entropy / max(targets.normaliser, 1))
        loc_losses.append(alpha * smooth / max(targets.normaliser, 1))
    return np.array(cls_losses), np.array(loc_losses)
