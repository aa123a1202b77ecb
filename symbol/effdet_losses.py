"""Losses of EfficientDet as graphs: focal loss of the classes, smooth L1 of the boxes (Lin et al. 2017, Focal Loss).

What depends on labels alone is made by boxes/effdet_assigner.py; no shape of the input is in the graph.
"""

import math

from machine.runtime import mx
from symbol.layers import Symbol
from symbol.losses import softplus
from symbol.network_options import EffDetOptions

LABELS = ("cls_target", "loc_target", "normaliser")  # what the losses read, made by EffDetAssigner
NO_NEGATIVE = -1e30  # logit of what is no negative: its focal loss and gradient are exactly 0
BOX_VALUES = 4


def effdet_losses(cls: Symbol, reg: Symbol, num_classes: int, options: EffDetOptions) -> list[Symbol]:
    """Training outputs cls_loss and reg_loss, each (B,).

    cls: logits (B, A, num_classes); reg: (B, A, 4) as dy, dx, dh, dw. Reads LABELS.

    Of each image the class loss is the focal loss summed over its positive and negative anchors and all classes,
    divided by its positives (at least by 1), so that an image without objects contributes its negatives; the box loss
    is the mean of smooth L1 over its positives and their four values, times loc_weight, or 0. Both are divided by the
    number of images of the global batch, so that the sum over it is the mean over images. A padding image contributes
    nothing. Source: equations 4 and 5 with section 4 (there the normaliser is the same), FocalLoss of the PyTorch
    trainers.
    """
    target, offsets, images = (mx.sym.var(name) for name in LABELS)
    positive = target > 0  # (B, A)
    count = mx.sym.maximum(mx.sym.sum(positive, axis=1), 1.0) * mx.sym.maximum(
        mx.sym.reshape(images, shape=(-1,)), 1.0
    )  # (B,)
    cls_loss = _class_loss(clamped(cls, options.prob_clamp), target, positive, num_classes, options) / count
    # (B, A, 4); smooth_l1 turns at 1 / scalar^2
    error = mx.sym.smooth_l1(reg - offsets, scalar=1 / math.sqrt(options.smooth_l1_beta))
    error = mx.sym.sum(mx.sym.broadcast_mul(error, mx.sym.expand_dims(positive, axis=2)), axis=(1, 2))
    reg_loss = error / count * (options.loc_weight / BOX_VALUES)
    return [mx.sym.make_loss(cls_loss, name="cls_loss"), mx.sym.make_loss(reg_loss, name="reg_loss")]


def clamped(logits: Symbol, limit: float) -> Symbol:
    """Logits whose probabilities lie in [limit, 1 - limit], without gradient where they did not; 0 changes nothing.

    The same as a clamp of the probabilities, but that rounding does not spoil those close to 1.
    """
    if not limit:
        return logits
    bound = math.log((1 - limit) / limit)
    return mx.sym.clip(logits, -bound, bound)


def focal(logits: Symbol, gamma: float) -> Symbol:
    """Focal loss of outcomes that are wrong with these logits, without alpha: -p^gamma * log(1 - p), p their sigmoid.

    Value and gradient stay finite and accurate for all logits, as log p = x - softplus(x) never takes the log of 0.
    """
    entropy = softplus(logits)
    return mx.sym.exp((logits - entropy) * gamma) * entropy if gamma else entropy


def _class_loss(logits: Symbol, target: Symbol, positive: Symbol, num_classes: int, options: EffDetOptions) -> Symbol:
    """(B,) sums of the focal loss of logits (B, A, C).

    The entries that are no negatives are taken out of the large array before the loss and not after it: own classes of
    the positives have a small array of their own, and nothing of the shape (B, A, C) holds targets or weights.
    """
    own = mx.sym.pick(logits, target - 1, axis=2)  # (B, A); pick() clips, `positive` removes the rest
    matched = mx.sym.sum(focal(-own, options.focal_gamma) * positive, axis=1)
    hidden = mx.sym.one_hot(target - 1, depth=num_classes, on_value=NO_NEGATIVE, off_value=0.0)  # (B, A, C)
    ignored = mx.sym.expand_dims((target < 0) * NO_NEGATIVE, axis=2)  # (B, A, 1)
    negative = mx.sym.broadcast_add(logits + hidden, ignored)
    missed = mx.sym.sum(focal(negative, options.focal_gamma), axis=(1, 2))
    return matched * options.focal_alpha + missed * (1 - options.focal_alpha)
