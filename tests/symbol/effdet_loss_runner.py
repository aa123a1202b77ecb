"""Runs effdet_losses on arrays and states what it should give, in numpy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from boxes.effdet_assigner import EffDetAssigner
from machine.runtime import mx
from symbol.losses import EFFDET_LABELS, effdet_losses
from symbol.network_options import EffDetOptions

Labels = dict[str, np.ndarray]


class Result(NamedTuple):
    """Losses (B,), and gradients of their sum."""

    cls_loss: np.ndarray
    reg_loss: np.ndarray
    grad_cls: np.ndarray
    grad_reg: np.ndarray


def batch_labels(
    assigner: EffDetAssigner, images: Sequence[np.ndarray], size: tuple[int, int], padding: int = 0
) -> Labels:
    """The labels of a batch of images with objects (n, 6) and of padding rows after them."""
    rows = [assigner(objects, size) for objects in images] + [assigner.ignored(size)] * padding
    labels = {name: np.stack([row[name] for row in rows]) for name in EFFDET_LABELS}
    labels["normaliser"][:] = labels["normaliser"].sum(axis=0)
    return labels


def run_effdet_losses(cls: np.ndarray, reg: np.ndarray, labels: Labels, **options: Any) -> Result:
    """Losses and gradients by the graph; cls (B, A, C) logits, reg (B, A, 4)."""
    inputs = {"cls": cls, "reg": reg}
    losses = effdet_losses(mx.sym.var("cls"), mx.sym.var("reg"), cls.shape[2], EffDetOptions(**options))
    symbol = mx.sym.Group(losses)
    executor = symbol.bind(
        mx.cpu(),
        args={name: mx.nd.array(array) for name, array in {**inputs, **labels}.items()},
        args_grad={name: mx.nd.zeros(array.shape) for name, array in inputs.items()},
        grad_req={name: "write" if name in inputs else "null" for name in symbol.list_arguments()},
    )
    executor.forward(is_train=True)
    executor.backward()
    gradients = [executor.grad_dict[name].asnumpy() for name in inputs]
    return Result(*(output.asnumpy() for output in executor.outputs), *gradients)


def reference_losses(cls: np.ndarray, reg: np.ndarray, labels: Labels, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same losses (B,), image by image in float64, as the papers write them."""
    hyp = EffDetOptions(**options)
    cls_losses, reg_losses = [], []
    for logits, offsets, target, wanted in zip(cls, reg, labels["cls_target"], labels["loc_target"], strict=True):
        positive = np.flatnonzero(target > 0)
        one_hot = np.zeros(logits.shape)
        one_hot[positive, target[positive].astype(int) - 1] = 1
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        p = np.clip(p, hyp.prob_clamp, 1 - hyp.prob_clamp)
        p_t = np.where(one_hot, p, 1 - p)
        alpha = np.where(one_hot, hyp.focal_alpha, 1 - hyp.focal_alpha)
        loss = -alpha * (1 - p_t) ** hyp.focal_gamma * np.log(p_t)
        cls_losses.append(loss[target >= 0].sum() / max(len(positive), 1))
        error, beta = np.abs(offsets - wanted)[positive].astype(np.float64), hyp.smooth_l1_beta
        smooth = np.where(error <= beta, error**2 / 2 / beta, error - beta / 2)
        reg_losses.append(hyp.loc_weight * smooth.sum() / max(4 * len(positive), 1))
    images = max(labels["normaliser"][0, 0], 1)
    return np.array(cls_losses) / images, np.array(reg_losses) / images
