"""Runs yolo_losses on arrays and states what it should give, in numpy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from boxes.geometry import PAIRED_OVERLAPS, centres_to_corners
from boxes.yolo_assigner import COLUMNS, YOLOAssigner
from machine.runtime import mx
from symbol.backbone.darknet import Level
from symbol.network_options import YOLOOptions
from symbol.yolo_losses import LABELS, yolo_losses

Labels = dict[str, np.ndarray]


class Result(NamedTuple):
    """losses: {name: (B,)}; grads: gradients of their sum, one an output map."""

    losses: Labels
    grads: list[np.ndarray]


def batch_labels(
    assigner: YOLOAssigner, images: Sequence[np.ndarray], size: tuple[int, int], padding: int = 0
) -> Labels:
    """The labels of a batch of images with objects (n, 6) and of padding rows after them."""
    rows = [assigner(objects, size) for objects in images] + [assigner.ignored(size)] * padding
    labels = {name: np.stack([row[name] for row in rows]) for name in LABELS}
    labels["normaliser"][:] = labels["normaliser"].sum(axis=0)
    return labels


def run_yolo_losses(
    maps: Sequence[np.ndarray],
    labels: Labels,
    strides: Sequence[int],
    num_classes: int,
    scale: float = 1.0,
    new_coords: bool = False,
    **options: Any,
) -> Result:
    """Losses and gradients by the graph; maps (B, anchors * (5 + C), h, w); scale and new_coords of all maps."""
    inputs = {f"map{level}": array for level, array in enumerate(maps)}
    levels = [
        Level(mx.sym.var(name), (), stride, scale, new_coords) for name, stride in zip(inputs, strides, strict=True)
    ]
    outputs = yolo_losses(levels, num_classes, YOLOOptions(**options))
    symbol = mx.sym.Group(outputs)
    executor = symbol.bind(
        mx.cpu(),
        args={name: mx.nd.array(array) for name, array in {**inputs, **labels}.items() if name in symbol.list_inputs()},
        args_grad={name: mx.nd.zeros(array.shape) for name, array in inputs.items()},
        grad_req={name: "write" if name in inputs else "null" for name in symbol.list_arguments()},
    )
    executor.forward(is_train=True)
    executor.backward()
    names = [name.removesuffix("_loss") for name in symbol.list_outputs()]
    losses = {name: output.asnumpy() for name, output in zip(names, executor.outputs, strict=True)}
    return Result(losses, [executor.grad_dict[name].asnumpy() for name in inputs])


def reference_losses(
    maps: Sequence[np.ndarray],
    labels: Labels,
    strides: Sequence[int],
    num_classes: int,
    scale: float = 1.0,
    new_coords: bool = False,
    **options: Any,
) -> Labels:
    """The same losses (B,), positive by positive in float64."""
    hyp = YOLOOptions(**options)
    losses = {name: np.zeros(len(maps[0])) for name in ("box_loss", "obj_loss", "cls_loss")}
    counts = np.maximum(labels["normaliser"][0], 1)
    side = max(maps[0].shape[2:]) * strides[0]
    for level, raw in enumerate(maps):
        grid = raw.astype(np.float64).reshape(len(raw), -1, 5 + num_classes, *raw.shape[2:]).transpose(0, 1, 3, 4, 2)
        for image in np.flatnonzero(labels["image_mask"]):
            wanted = np.zeros(grid.shape[1:4])
            for row in labels["yolo_target"][image, level]:
                if row[0] < 0:
                    break
                at = dict(zip(COLUMNS, row.astype(np.float64), strict=True))
                place = int(at["anchor"]), int(at["row"]), int(at["column"])
                found = grid[image][place]
                factors = (2 * sigmoid(found[2:4])) ** 2 if new_coords else np.minimum(np.exp(found[2:4]), 1000)
                sides = factors * [at["anchor_w"], at["anchor_h"]]
                box = np.concatenate([sigmoid(found[:2]) * scale - (scale - 1) / 2, sides])
                truth = np.array([at[name] for name in ("dx", "dy", "w", "h")])
                overlap = PAIRED_OVERLAPS[hyp.box_loss](*(centres_to_corners(b[None]) for b in (box, truth)))[0]
                losses["box_loss"][image] += hyp.giou_gain * (1 - overlap) / counts[level]
                wanted[place] = 1 - hyp.gr + hyp.gr * max(overlap, 0)  # the last one stays
                smooth = np.full(num_classes, hyp.label_smoothing / 2)
                smooth[int(at["class"])] = 1 - hyp.label_smoothing / 2
                entropy = cross_entropy(found[5:], smooth, hyp.cls_pw, hyp.fl_gamma).mean()
                losses["cls_loss"][image] += hyp.cls_gain * num_classes / 80 * entropy / counts[level]
            entropy = cross_entropy(grid[image][..., 4], wanted, hyp.obj_pw, hyp.fl_gamma).mean()
            losses["obj_loss"][image] += hyp.obj_gain * side / 320 * entropy / counts[-1]
    return losses


def cross_entropy(
    logits: np.ndarray, target: np.ndarray, weight: float, gamma: float, alpha: float = 0.25
) -> np.ndarray:
    """Weighted binary cross entropy times the focal factor, as the papers write them."""
    entropy = (1 - target) * np.logaddexp(0, logits) + weight * target * np.logaddexp(0, -logits)
    if not gamma:
        return entropy
    p_t = target * sigmoid(logits) + (1 - target) * (1 - sigmoid(logits))
    return entropy * (target * alpha + (1 - target) * (1 - alpha)) * (1 - p_t) ** gamma


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
