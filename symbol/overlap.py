"""Overlap of pairs of boxes as graphs that can be learned; boxes/geometry.py states the same in numpy."""

import math
from typing import NamedTuple

from boxes.geometry import EPSILON
from machine.runtime import mx
from symbol.layers import Symbol


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
