"""Losses of YOLOv3 as graphs: box, objectness, class. What depends on labels alone is made by boxes/yolo_assigner.py.

The losses of the YOLOv3-SPP trainer (compute_loss); no shape of the input is in the graph. boxes/geometry.py
states the overlap in numpy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from boxes.geometry import EPSILON
from boxes.yolo_assigner import COLUMNS
from machine.runtime import mx
from symbol.backbone.darknet import Level, centres, side_factors
from symbol.layers import Symbol
from symbol.losses import softplus
from symbol.network_options import YOLOOptions

LABELS = ("yolo_target", "image_mask", "normaliser")  # what the losses read, made by YOLOAssigner
GAIN_CLASSES, GAIN_SIDE = 80, 320  # number of classes and input side that cls_gain and obj_gain are meant for
FOCAL_ALPHA = 0.25  # Lin et al. 2017, section 5.1
# exp(t) is a factor of the anchor's side, clamped to 1000 as in the reference; the lower end closes out 0 / 0 only.
LOG_SIDE_RANGE = (-20.0, math.log(1000.0))
MINIMUM_FOCAL_BASE = 1e-16


class Boxes(NamedTuple):
    """Boxes in centre form: centre (..., 2) x, y and sides (..., 2) width, height."""

    centre: Symbol
    sides: Symbol


def paired_overlap(a: Boxes, b: Boxes, kind: str) -> Symbol:
    """IoU, GIoU, DIoU or CIoU (...) of each box of a with its partner in b; kind is iou, giou, diou or ciou.

    Sources as in boxes/geometry.py. The weight alpha of CIoU is a constant to the gradient (Zheng et al. 2020 treat it
    so in their code; YOLOv3-SPP too), 0 for identical boxes. Finite while b has an area and no height is 0.
    """
    (low_a, high_a), (low_b, high_b) = _corners(a), _corners(b)
    common = _area(mx.sym.maximum(mx.sym.minimum(high_a, high_b) - mx.sym.maximum(low_a, low_b), 0.0))
    union = _area(a.sides) + EPSILON + _area(b.sides) - common
    iou = common / union
    if kind == "iou":
        return iou
    enclosing = mx.sym.maximum(high_a, high_b) - mx.sym.minimum(low_a, low_b)  # (..., 2)
    if kind == "giou":
        hull = _area(enclosing) + EPSILON
        return iou - (hull - union) / hull
    distance = mx.sym.sum(mx.sym.square(a.centre - b.centre), axis=-1)
    diou = iou - distance / (mx.sym.sum(mx.sym.square(enclosing), axis=-1) + EPSILON)
    return diou if kind == "diou" else diou - _aspect_penalty(a, b, iou)


def _aspect_penalty(a: Boxes, b: Boxes, iou: Symbol) -> Symbol:
    """alpha * v (...) of CIoU."""
    v = 4 / math.pi**2 * mx.sym.square(_aspect_angle(a) - _aspect_angle(b))
    alpha = v / mx.sym.maximum(mx.sym.maximum(1 - iou, 0.0) + v, EPSILON)
    return mx.sym.BlockGrad(alpha) * v


def _aspect_angle(boxes: Boxes) -> Symbol:
    width, height = _x_and_y(boxes.sides)
    return mx.sym.arctan(width / height)


def _corners(boxes: Boxes) -> tuple[Symbol, Symbol]:
    half = boxes.sides / 2
    return boxes.centre - half, boxes.centre + half


def _area(sides: Symbol) -> Symbol:
    width, height = _x_and_y(sides)
    return width * height


def _x_and_y(pairs: Symbol) -> Symbol:
    """The two halves (...) of pairs (..., 2)."""
    return mx.sym.split(pairs, num_outputs=2, axis=-1, squeeze_axis=True)


def yolo_losses(maps: Sequence[Level], num_classes: int, options: YOLOOptions) -> list[Symbol]:
    """Training outputs box_loss, obj_loss and, for more than one class, cls_loss, each (B,).

    maps: raw predictions in the order of the assigner's maps. Reads LABELS.

    On each map the box loss is the mean of 1 - overlap over the positives, the class loss the mean of the cross
    entropies over positives and classes, the objectness loss the mean over the cells of all real images; then sums over
    the maps, times their gains: that of classes by num_classes / 80, that of objectness by the longer side of the input
    / 320. Each row is the share of one image of the global batch, so that the sum over it is the loss. Without
    positives box and class loss are 0; a padding image contributes nothing.
    """
    target, mask, normaliser = (mx.sym.var(name) for name in LABELS)
    counts = [mx.sym.maximum(_column(normaliser, level, 1), 1.0) for level in range(len(maps) + 1)]  # (B,) each
    sums = []
    for level, predicted in enumerate(maps):
        rows = mx.sym.slice_axis(target, axis=1, begin=level, end=level + 1)
        rows = mx.sym.reshape(rows, shape=(0, -3, 0))  # (B, T, 11)
        box, obj, cls = _map_losses(predicted, rows, num_classes, options)
        sums.append((box / counts[level], obj, cls / (counts[level] * num_classes)))
    box, obj, cls = (mx.sym.add_n(*parts) for parts in zip(*sums, strict=True))
    obj = mx.sym.broadcast_mul(
        obj * mx.sym.reshape(mask, shape=(-1,)) / counts[-1], _longer_side(maps[0].symbol, maps[0].stride)
    )
    losses = {"box_loss": box * options.giou_gain, "obj_loss": obj * (options.obj_gain / GAIN_SIDE)}
    if num_classes > 1:
        losses["cls_loss"] = cls * (options.cls_gain * num_classes / GAIN_CLASSES)
    return [mx.sym.make_loss(loss, name=name) for name, loss in losses.items()]


def by_anchor(raw: Symbol, *, anchors: int = -1, values: int = -1) -> Symbol:
    """Raw predictions (B, anchors * values, h, w) as (B, anchors, h, w, values); one of the two numbers is enough."""
    net = mx.sym.reshape(raw, shape=(0, -4, anchors, values, 0, 0))  # (B, anchors, values, h, w)
    return mx.sym.transpose(net, axes=(0, 1, 3, 4, 2))


def _map_losses(level: Level, rows: Symbol, num_classes: int, options: YOLOOptions) -> tuple[Symbol, Symbol, Symbol]:
    """Sums over the positives of box and class loss, and mean over the cells of the objectness loss, each (B,)."""
    prediction = by_anchor(level.symbol, values=5 + num_classes)  # (B, anchors, h, w, 5 + C)
    found = _gather(prediction, rows)  # (B, T, 5 + C)
    positive = _column(rows, COLUMNS.index("anchor"), 2) >= 0  # (B, T)

    overlap = paired_overlap(_predicted_boxes(level, found, rows), _target_boxes(rows), options.box_loss)  # (B, T)
    box = mx.sym.sum((1 - overlap) * positive, axis=1)

    value = 1 - options.gr + options.gr * mx.sym.maximum(overlap, 0.0)
    logits = _column(prediction, 4, 4)  # (B, anchors, h, w)
    wanted = mx.sym.BlockGrad(_scatter(value * _column(rows, COLUMNS.index("owns_cell"), 2), rows, logits))
    obj = mx.sym.mean(focal_cross_entropy(logits, wanted, options.obj_pw, options.fl_gamma), axis=(1, 2, 3))

    high, low = smoothed_targets(options.label_smoothing)
    classes = _column(rows, COLUMNS.index("class"), 2)
    classes = mx.sym.one_hot(classes, depth=num_classes, on_value=high, off_value=low)  # (B, T, C)
    logits = mx.sym.slice_axis(found, axis=2, begin=5, end=None)  # (B, T, C)
    entropy = mx.sym.sum(focal_cross_entropy(logits, classes, options.cls_pw, options.fl_gamma), axis=2)
    return box, obj, mx.sym.sum(entropy * positive, axis=1)


def cross_entropy(logits: Symbol, target: Symbol, positive_weight: float = 1.0) -> Symbol:
    """Binary cross entropy of logits with targets in [0, 1]; the positive part is weighted. Shapes are kept.

    Value and gradient keep their relative accuracy however large the logits are.
    """
    return (1 - target) * softplus(logits) + positive_weight * target * softplus(-logits)


def focal_cross_entropy(
    logits: Symbol, target: Symbol, positive_weight: float, gamma: float, alpha: float = FOCAL_ALPHA
) -> Symbol:
    """cross_entropy times the focal weight alpha_t * (1 - p_t)^gamma (Lin et al. 2017, equation 5), with a gradient.

    Soft targets t mix both: alpha_t = t * alpha + (1 - t) * (1 - alpha), p_t likewise. gamma 0: no weight at all.
    """
    entropy = cross_entropy(logits, target, positive_weight)
    if not gamma:
        return entropy
    missed = target * mx.sym.sigmoid(-logits) + (1 - target) * mx.sym.sigmoid(logits)  # 1 - p_t
    weight = target * alpha + (1 - target) * (1 - alpha)
    return entropy * weight * mx.sym.maximum(missed, MINIMUM_FOCAL_BASE) ** gamma


def smoothed_targets(smoothing: float) -> tuple[float, float]:
    """Targets of the right and of the wrong classes (Szegedy et al. 2016, section 7, for two outcomes)."""
    return 1 - smoothing / 2, smoothing / 2


def _predicted_boxes(level: Level, found: Symbol, rows: Symbol) -> Boxes:
    """Boxes of gathered predictions (B, T, 5 + C) in cells, centres relative to their cell."""
    sides = mx.sym.clip(mx.sym.slice_axis(found, axis=2, begin=2, end=4), *LOG_SIDE_RANGE)  # (B, T, 2)
    return Boxes(
        centres(level, mx.sym.slice_axis(found, axis=2, begin=0, end=2)),
        side_factors(level, sides) * _pair(rows, "anchor_w"),
    )


def _target_boxes(rows: Symbol) -> Boxes:
    return Boxes(_pair(rows, "dx"), _pair(rows, "w"))


def _gather(prediction: Symbol, rows: Symbol) -> Symbol:
    """Predictions (B, T, P) of the anchors and cells of rows (B, T, 11) out of (B, anchors, h, w, P).

    Unused rows get cell 0. The gradients of rows with the same cell add up.
    """
    cell = mx.sym.maximum(mx.sym.slice_axis(rows, axis=2, begin=0, end=3), 0.0)  # (B, T, 3) anchor, row, column
    image = mx.sym.reshape(mx.sym.contrib.arange_like(rows, axis=0), shape=(-1, 1, 1))
    image = mx.sym.broadcast_like(image, mx.sym.slice_axis(rows, axis=2, begin=0, end=1))  # (B, T, 1)
    index = mx.sym.transpose(mx.sym.concat(image, cell, dim=2), axes=(2, 0, 1))  # (4, B, T)
    return mx.sym.gather_nd(prediction, index)


def _scatter(values: Symbol, rows: Symbol, like: Symbol) -> Symbol:
    """Map of the shape of `like` (B, anchors, h, w) with values (B, T) in the cells of rows (B, T, 11), 0 elsewhere.

    A product of indicators: its size follows the input, and no order of writing matters, as values of one cell add up
    (one of them is not 0, that of the row that owns the cell).
    """
    like = mx.sym.BlockGrad(like)
    hits = []
    for axis in (1, 2, 3):
        place = mx.sym.reshape(mx.sym.contrib.arange_like(like, axis=axis), shape=(1, 1, -1))
        index = mx.sym.slice_axis(rows, axis=2, begin=axis - 1, end=axis)  # (B, T, 1)
        hits.append(mx.sym.broadcast_equal(index, place))  # (B, T, length of the axis)
    anchor = mx.sym.broadcast_mul(hits[0], mx.sym.expand_dims(values, axis=2))
    left = mx.sym.broadcast_mul(mx.sym.expand_dims(anchor, axis=3), mx.sym.expand_dims(hits[1], axis=2))
    left = mx.sym.reshape(left, shape=(0, 0, -3))  # (B, T, anchors * h)
    return mx.sym.reshape_like(mx.sym.batch_dot(left, hits[2], transpose_a=True), like)


def _longer_side(raw: Symbol, stride: int) -> Symbol:
    """(1,) the longer side of the input in pixels, from one map (B, P, h, w)."""
    sides = mx.sym.slice_axis(mx.sym.shape_array(mx.sym.BlockGrad(raw)), axis=0, begin=2, end=4)
    return mx.sym.max(mx.sym.cast(sides, dtype="float32"), axis=0, keepdims=True) * stride


def _column(array: Symbol, index: int, axis: int) -> Symbol:
    """Entry `index` of the last axis, which goes."""
    return mx.sym.squeeze(mx.sym.slice_axis(array, axis=axis, begin=index, end=index + 1), axis=axis)


def _pair(rows: Symbol, first: str) -> Symbol:
    """(B, T, 2) two neighbouring columns of rows (B, T, 11)."""
    begin = COLUMNS.index(first)
    return mx.sym.slice_axis(rows, axis=2, begin=begin, end=begin + 2)
