"""EfficientDet: heads, decoding, training and detection symbols (Tan et al. 2020, https://arxiv.org/abs/1911.09070)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from boxes.effdet_anchors import PER_CELL, RATIOS, SCALES, STRIDES
from boxes.effdet_assigner import EffDetAssigner
from common.errors import OptionError
from config.network_options import SSD_OPTIONS, NetworkOptions
from config.yolo_options import YOLOOptions
from machine.runtime import mx
from symbol.backbone.efficientnet import efficientnet
from symbol.effdet_losses import LABELS, effdet_losses
from symbol.layers import Layers, SharedSeparable, Symbol, swish
from symbol.neck.bifpn import bifpn
from symbol.post_process import take_rows
from symbol.registry import EffDetRow, FeatureMap

BATCH_NORM_EPS = 1e-3
CLASS_BIAS = -math.log(99)  # at the start every class has the probability 0.01 (RetinaNet, section 4.1)
BODY_TAPS = slice(1, None)  # c3, c4 and c5: strides 8, 16 and 32
BOX_VALUES = 4
# Words of the option freeze: EfficientNet; all but the class and the box net.
FREEZE = {"body": "body_", "all-but-heads": "(?!cls_|box_)"}
# Options of other families; given with one of these networks they are refused.
UNUSED = SSD_OPTIONS | {"width"} | {field.name for field in dataclasses.fields(YOLOOptions)}


class Heads(NamedTuple):
    """Predictions of all maps in the order level, y, x, anchor: logits (B, A, C); boxes (B, A, 4) dy, dx, dh, dw."""

    cls: Symbol
    box: Symbol
    finest: Symbol  # the map of stride 8, (B, channels, H / 8, W / 8)


def training(network: str, row: EffDetRow, size: tuple[int, int], num_classes: int, options: NetworkOptions) -> Symbol:
    """[cls_loss, reg_loss, det], the losses (B,); `assigner` makes the labels."""
    heads = predictions(network, row, size, num_classes, options, options.drop_connect)
    det = detection_symbol(heads, row, size, num_classes, options)
    losses = effdet_losses(heads.cls, heads.box, num_classes, options)
    return mx.sym.Group([*losses, mx.sym.BlockGrad(det, name="det_out")])


def assigner(
    network: str, row: EffDetRow, size: tuple[int, int], num_classes: int, options: NetworkOptions
) -> EffDetAssigner:
    """What makes the labels of `training`, for any input size that suits the network."""
    del num_classes
    check_size(network, row, size)
    if options.neg_iou > options.pos_iou:
        raise OptionError(f"--neg-iou {options.neg_iou} is above --pos-iou {options.pos_iou}; exchange them")
    return EffDetAssigner(options.pos_iou, options.neg_iou, anchor_scale(row, options), row.levels)


def assigner_of_sizes(
    network: str,
    row: EffDetRow,
    size: tuple[int, int],
    num_classes: int,
    options: NetworkOptions,
    sizes: Sequence[tuple[int, int]],
) -> EffDetAssigner:
    """As assigner(), also for further inputs; OptionError for one that does not suit the network."""
    for other in sizes:
        check_size(network, row, other)
    return assigner(network, row, size, num_classes, options)


def label_names(options: NetworkOptions) -> tuple[str, ...]:
    """Names of the labels that `training` reads."""
    del options
    return LABELS


def detection(network: str, row: EffDetRow, size: tuple[int, int], num_classes: int, options: NetworkOptions) -> Symbol:
    """det (B, N, 6) for an input of (height, width), best first; N = options.keep_topk, or all candidates if fewer."""
    heads = predictions(network, row, size, num_classes, options)
    return detection_symbol(heads, row, size, num_classes, options)


def feature_maps(network: str, row: EffDetRow, size: tuple[int, int], options: NetworkOptions) -> list[FeatureMap]:
    """The maps of predictions of an input of (height, width)."""
    del options
    check_size(network, row, size)
    strides = STRIDES[: row.levels]
    return [FeatureMap(f"stride{stride}", size[0] // stride, size[1] // stride, PER_CELL) for stride in strides]


def anchor_scale(row: EffDetRow, options: NetworkOptions) -> float:
    """The option, or where it is 0 the network's own."""
    return options.anchor_scale or row.anchor_scale


def check_size(network: str, row: EffDetRow, size: tuple[int, int]) -> None:
    """OptionError unless every map halves the one before."""
    stride = STRIDES[row.levels - 1]
    if any(side % stride for side in size):
        near = ",".join(str(max(1, round(side / stride)) * stride) for side in size)
        raise OptionError(
            f"data shape {size[0]},{size[1]}: {network} needs sides that are multiples of {stride}; give --data-shape "
            f"{near}"
        )


def predictions(
    network: str,
    row: EffDetRow,
    size: tuple[int, int],
    num_classes: int,
    options: NetworkOptions,
    drop_connect: float = 0.0,
) -> Heads:
    """The network's outputs; OptionError where the input does not suit it. The symbol holds no input size."""
    check_size(network, row, size)
    layers = Layers(options.freeze, BATCH_NORM_EPS, options.bn_momentum)
    taps = efficientnet(mx.sym.var("data"), layers, row.body, drop_connect)[BODY_TAPS]
    maps = bifpn(taps, layers, row.channels, row.cells, row.levels, row.attention)
    cls = head(maps, layers, "cls", row, num_classes, CLASS_BIAS)
    return Heads(cls, head(maps, layers, "box", row, BOX_VALUES), maps[0])


def head(
    maps: Sequence[Symbol], layers: Layers, name: str, row: EffDetRow, values: int, bias_start: float = 0.0
) -> Symbol:
    """(B, A, values): convolutions that all maps share, with batch norm of each map's own (section 4.1, figure 3).

    Parameters: NAME_K_... and NAME_pred_... of the convolutions, NAME_K_bnL_... of layer K's batch norm on level L.
    """
    shared = [SharedSeparable(f"{name}_{k}", row.channels, row.channels) for k in range(row.head_layers)]
    pred = SharedSeparable(f"{name}_pred", row.channels, PER_CELL * values, bias_start)
    outputs = []
    for level, net in enumerate(maps, start=3):
        for k, conv in enumerate(shared):
            net = layers.batch_norm(conv(net, f"{name}_{k}_p{level}"), f"{name}_{k}_bn{level}")
            net = swish(net, f"{name}_{k}_p{level}_swish")
        net = mx.sym.transpose(pred(net, f"{name}_pred_p{level}"), axes=(0, 2, 3, 1))  # (B, h, w, 9 * values)
        outputs.append(mx.sym.reshape(net, shape=(0, -1, values)))  # (B, h * w * 9, values)
    return mx.sym.concat(*outputs, dim=1, name=f"{name}_pred")


def detection_symbol(
    heads: Heads, row: EffDetRow, size: tuple[int, int], num_classes: int, options: NetworkOptions
) -> Symbol:
    """det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], best first; corners in [0, 1] of the input.

    Only the nms_topk anchors of the best scores are decoded.
    """
    del num_classes
    anchors = sum((size[0] // stride) * (size[1] // stride) * PER_CELL for stride in STRIDES[: row.levels])
    best = best_anchors(heads.cls, min(options.nms_topk, anchors))  # (B, K)
    logits, offsets = take_rows(heads.cls, best, axes=2), take_rows(heads.box, best, axes=2)  # (B, K, C), (B, K, 4)
    height, width = ((_count(heads.finest, axis)) * STRIDES[0] for axis in (2, 3))  # (1,) each
    corners = decode(offsets, anchors_of(best, heads.finest, row.levels, anchor_scale(row, options)))
    sides = mx.sym.reshape(mx.sym.concat(width, height, width, height, dim=0), shape=(1, 1, 4))
    corners = mx.sym.clip(mx.sym.broadcast_div(corners, sides), a_min=0.0, a_max=1.0)
    return suppress(logits, corners, min(options.keep_topk, options.nms_topk, anchors), options)


def best_anchors(logits: Symbol, count: int) -> Symbol:
    """Numbers (B, count) of the anchors of largest class logits (B, A, C), best first."""
    return mx.sym.topk(mx.sym.max(logits, axis=2), axis=1, k=count, name="detection_topk")


def suppress(logits: Symbol, corners: Symbol, keep: int, options: NetworkOptions) -> Symbol:
    """det (B, keep, 6) of boxes (B, K, 4) with class logits (B, K, C), each for its best class, best first.

    Those with a score above score_threshold suppress worse ones of their class (force: of any class) with an IoU above
    nms; the `keep` best remain, keep <= K.
    """
    ids, scores = mx.sym.argmax(logits, axis=2), mx.sym.sigmoid(mx.sym.max(logits, axis=2))  # (B, K)
    found = mx.sym.contrib.box_nms(
        mx.sym.concat(mx.sym.stack(ids, scores, axis=2), corners, dim=2),  # (B, K, 6)
        overlap_thresh=options.nms,
        valid_thresh=options.score_threshold,
        id_index=0,
        score_index=1,
        coord_start=2,
        force_suppress=options.force,
        name="detection_nms",
    )
    return mx.sym.slice_axis(found, axis=1, begin=0, end=keep, name="detection")


def _count(data: Symbol, axis: int) -> Symbol:
    """(1,) length of an axis: the symbol does not know its size before it runs."""
    return mx.sym.max(mx.sym.contrib.arange_like(data, axis=axis)) + 1


def decode(offsets: Symbol, anchors: tuple[Symbol, Symbol, Symbol, Symbol]) -> Symbol:
    """Corners (B, K, 4) in pixels, not clipped, of offsets (B, K, 4) from anchors x, y, w, h (B, K) in pixels."""
    x, y, w, h = anchors
    dy, dx, dh, dw = (
        mx.sym.reshape(mx.sym.slice_axis(offsets, axis=2, begin=k, end=k + 1), shape=(0, -1)) for k in range(BOX_VALUES)
    )
    x, y = x + dx * w, y + dy * h
    half_w, half_h = mx.sym.exp(dw) * w / 2, mx.sym.exp(dh) * h / 2
    return mx.sym.stack(x - half_w, y - half_h, x + half_w, y + half_h, axis=2)


def anchors_of(numbers: Symbol, finest: Symbol, levels: int, scale: float) -> tuple[Symbol, Symbol, Symbol, Symbol]:
    """Centre x, y, width and height in pixels, each as numbers (B, K), of the anchors that have these numbers.

    The order is that of boxes.effdet_anchors; finest: the map of stride 8. All numbers are below 2^24, so that
    float32 is exact.
    """
    rows, columns = (mx.sym.reshape(_count(finest, axis), shape=(1, 1)) for axis in (2, 3))
    size = start = rows * columns * PER_CELL  # anchors of a level, of it and all finer ones
    zoom, first = numbers * 0 + 1, numbers * 0  # a cell in cells of the finest map, its level's first number
    for _ in range(1, levels):
        beyond = mx.sym.broadcast_add(numbers, start * -1) > -0.5
        zoom, first, size = zoom + zoom * beyond, first + mx.sym.broadcast_mul(beyond, size), size / 4
        start = start + size
    place = mx.sym.floor((numbers - first) / PER_CELL)
    kind = numbers - first - place * PER_CELL
    width = mx.sym.broadcast_div(columns, zoom)
    y = mx.sym.floor(mx.sym.broadcast_div(place, width))
    x = place - y * width
    stride, scale_row = zoom * STRIDES[0], mx.sym.floor(kind / len(RATIOS))
    side, ratio = stride * _chosen(SCALES, scale_row) * scale, kind - scale_row * len(RATIOS)
    sides = (side * _chosen(column, ratio) for column in zip(*RATIOS, strict=True))
    return ((x + 0.5) * stride, (y + 0.5) * stride, *sides)


def _chosen(values: Sequence[float], index: Symbol) -> Symbol:
    """values[index] of every entry."""
    return mx.sym.add_n(*((index == k) * float(value) for k, value in enumerate(values)))
