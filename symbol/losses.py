"""Losses of SSD and EfficientDet as symbol graphs; what depends on labels alone arrives as inputs (boxes/).

No shape of the input is in these graphs.
"""

import math

from machine.runtime import mx
from symbol.layers import Symbol
from symbol.network_options import EffDetOptions

EFFDET_LABELS = ("cls_target", "loc_target", "normaliser")  # what the losses read, made by EffDetAssigner
NO_NEGATIVE = -1e30  # logit of what is no negative: its focal loss and gradient are exactly 0
BOX_VALUES = 4


def multibox_loss(
    cls_pred: Symbol,
    loc_pred: Symbol,
    cls_target: Symbol,
    loc_target: Symbol,
    normaliser: Symbol,
    *,
    negative_ratio: float = 3.0,
    minimum_negatives: int = 0,
    alpha: float = 1.0,
) -> tuple[Symbol, Symbol]:
    """MultiBox loss with hard negative mining (SSD, section 2.2, equations 1-3 and "Hard negative mining").

    cls_pred (B, A, C + 1) logits, class 0 is the background; loc_pred and loc_target (B, A, 4) encoded offsets;
    cls_target (B, A): 0 background, k the class k - 1, -1 ignored; normaliser (B, 1): number of positives of the
    whole global batch.

    Per image the negatives of largest background loss are kept, max(negative_ratio * positives, minimum_negatives)
    of them or all there are. Returns the confidence loss (softmax cross entropy) and alpha times the localisation
    loss (smooth L1), both (B,), one value an image, divided by max(normaliser, 1): their sum over the global batch
    is the loss. Without positives both are 0, unless minimum_negatives asks for negatives.
    """
    positive = cls_target > 0  # (B, A)
    scale = mx.sym.reshape(1.0 / mx.sym.maximum(normaliser, 1.0), shape=(-1,))  # (B,)
    log_prob = mx.sym.log_softmax(cls_pred, axis=-1)  # (B, A, C + 1)
    # pick() clips an index of -1 to 0; the mask removes these terms.
    positive_loss = -mx.sym.sum(mx.sym.pick(log_prob, cls_target, axis=2) * positive, axis=1)  # (B,)
    negative_loss = _mined_negatives(log_prob, cls_target, positive, negative_ratio, minimum_negatives)
    error = mx.sym.smooth_l1(loc_pred - loc_target, scalar=1.0)  # (B, A, 4)
    error = mx.sym.broadcast_mul(error, mx.sym.expand_dims(positive, axis=2))
    cls_loss = (positive_loss + negative_loss) * scale
    loc_loss = mx.sym.sum(error, axis=(1, 2)) * scale * alpha
    return cls_loss, loc_loss


def _mined_negatives(log_prob: Symbol, cls_target: Symbol, positive: Symbol, ratio: float, minimum: int) -> Symbol:
    """Sum of the largest background losses of each image, (B,).

    One descending sort of the background loss serves: a sum over its first entries needs no ranks, and sort's gradient
    goes back to the entries that were summed. Positives and ignored anchors sort last as -1.
    """
    background = mx.sym.reshape(mx.sym.slice_axis(log_prob, axis=2, begin=0, end=1), shape=(0, -1))  # (B, A)
    loss = mx.sym.where(cls_target == 0, -background, mx.sym.ones_like(background) * -1.0)
    loss = mx.sym.sort(loss, axis=1, is_ascend=False)
    rank = mx.sym.contrib.arange_like(mx.sym.BlockGrad(loss), axis=1)  # (A,)
    count = mx.sym.sum(positive, axis=1, keepdims=True) * ratio
    count = mx.sym.maximum(mx.sym.floor(count), float(minimum))  # (B, 1)
    mined = mx.sym.broadcast_lesser(mx.sym.expand_dims(rank, axis=0), count) * (loss >= 0)
    return mx.sym.sum(loss * mined, axis=1)


def softplus(x: Symbol) -> Symbol:
    """log(1 + exp(x)), accurate in proportion for every x. Activation's softrelu is not: it gives 0 from -30 or so on.

    abs() would have the gradient 0 at 0; maximum() gives the left one, and so 1/2 in all.
    """
    return mx.sym.maximum(x, 0.0) + mx.sym.log1p(mx.sym.exp(-mx.sym.maximum(x, -x)))


def effdet_losses(cls: Symbol, reg: Symbol, num_classes: int, options: EffDetOptions) -> list[Symbol]:
    """Training outputs cls_loss and reg_loss, each (B,).

    cls: logits (B, A, num_classes); reg: (B, A, 4) as dy, dx, dh, dw. Reads EFFDET_LABELS.

    Of each image the class loss is the focal loss summed over its positive and negative anchors and all classes,
    divided by its positives (at least by 1), so that an image without objects contributes its negatives; the box loss
    is the mean of smooth L1 over its positives and their four values, times loc_weight, or 0. Both are divided by the
    number of images of the global batch, so that the sum over it is the mean over images. A padding image contributes
    nothing. Source: equations 4 and 5 with section 4 (there the normaliser is the same), FocalLoss of the PyTorch
    trainers.
    """
    target, offsets, images = (mx.sym.var(name) for name in EFFDET_LABELS)
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
