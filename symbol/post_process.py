"""From predictions to det (B, N, 6), rows [id, score, xmin, ymin, xmax, ymax], id -1 = no detection."""

from collections.abc import Sequence

from machine.runtime import mx
from symbol.layers import Symbol


def per_class_detection(
    prob: Symbol,
    loc_pred: Symbol,
    anchors: Symbol,
    *,
    topk: int,
    keep: int,
    threshold: float,
    nms: float,
    force: bool,
    variances: Sequence[float],
) -> Symbol:
    """det (B, keep, 6), best first, as ssd.pytorch's Detect makes it: an anchor may give several classes.

    prob (B, A, C + 1) with the background first, loc_pred (B, A, 4) offsets, anchors (1, A, 4) corners. Of each class
    the topk best boxes (at most A) are considered; those with a score above the threshold suppress worse ones of their
    class (force: of any class) with an IoU above nms; the keep best of all classes (at most C * topk) remain. Boxes are
    not clipped. Source: SSD, section 3.1 (inference); Caffe's DetectionOutput.
    """
    scores = mx.sym.transpose(mx.sym.slice_axis(prob, axis=2, begin=1, end=None), axes=(0, 2, 1))  # (B, C, A)
    best = mx.sym.topk(scores, axis=2, k=topk, ret_typ="both", name="detection_topk")  # scores and anchors (B, C, topk)
    std = {f"std{k}": float(value) for k, value in enumerate(variances)}
    boxes = mx.sym.contrib.box_decode(loc_pred, anchors, format="corner", **std)  # (B, A, 4)
    boxes = take_rows(boxes, best[1], axes=3)  # (B, C, topk, 4)
    ids = mx.sym.contrib.arange_like(best[0], axis=1)  # (C,)
    ids = mx.sym.broadcast_like(mx.sym.reshape(ids, shape=(1, -1, 1)), best[0])  # (B, C, topk)
    found = mx.sym.concat(mx.sym.stack(ids, best[0], axis=3), boxes, dim=3)  # (B, C, topk, 6)
    if force:
        found = mx.sym.reshape(found, shape=(0, -3, 0))  # (B, C * topk, 6)
    found = mx.sym.contrib.box_nms(
        found, overlap_thresh=nms, valid_thresh=threshold, score_index=1, coord_start=2, name="detection_nms"
    )
    if not force:
        found = mx.sym.reshape(found, shape=(0, -3, 0))  # (B, C * topk, 6)
    scores = mx.sym.reshape(mx.sym.slice_axis(found, axis=2, begin=1, end=2), shape=(0, -1))  # (B, C * topk)
    rows = mx.sym.topk(scores, axis=1, k=keep, name="detection_keep")  # (B, keep)
    return take_rows(found, rows, axes=2, name="detection")


def take_rows(data: Symbol, rows: Symbol, axes: int, name: str | None = None) -> Symbol:
    """Rows of each image's own data (B, N, W): rows (B, ...) of `axes` axes hold their numbers; gives (B, ..., W)."""
    images = mx.sym.reshape(mx.sym.contrib.arange_like(data, axis=0), shape=(-1,) + (1,) * (axes - 1))
    return mx.sym.gather_nd(data, mx.sym.stack(mx.sym.broadcast_like(images, rows), rows, axis=0), name=name)
