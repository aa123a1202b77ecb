"""Losses as symbol graphs; what depends on labels alone arrives as inputs (boxes/assigners.py)."""

from machine.runtime import mx
from symbol.layers import Symbol


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
