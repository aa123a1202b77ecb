"""EfficientDet: heads, decoding, training and detection symbols (Tan et al. 2020, https://arxiv.org/abs/1911.09070)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from boxes.effdet_assigner import PER_CELL, RATIOS, SCALES, STRIDES, EffDetAssigner
from common.errors import OptionError
from common.sizes import Size
from machine.runtime import mx
from symbol.backbone.efficientnet import BATCH_NORM_EPS, LITE0, LITE1, LITE2, EfficientNet, efficientnet
from symbol.detector.bifpn import FusionStyle, bifpn
from symbol.family import Family, FeatureMap
from symbol.layers import Layers, SharedSeparable, Symbol, activate, take_rows
from symbol.losses import EFFDET_LABELS, effdet_losses
from symbol.network_options import EffDetOptions

CLASS_BIAS = -math.log(99)  # at the start every class has the probability 0.01 (RetinaNet, section 4.1)
BODY_TAPS = slice(1, None)  # c3, c4 and c5: strides 8, 16 and 32
BOX_VALUES = 4


@dataclass(frozen=True)
class EffDetRow:
    """One EfficientDet (Tan et al. 2020, table 1): body, BiFPN, layers of the class and box nets, anchors."""

    body: EfficientNet
    input_size: int  # what it was designed for; any multiples of the last stride suit
    channels: int  # of BiFPN and heads
    cells: int
    head_layers: int
    attention: bool = True  # fusions weigh their inputs
    anchor_scale: float = 4.0
    levels: int = 5  # maps, from stride 8 on
    multiple: int = 0  # what the sides of inputs are multiples of; 0 = the last stride, half of it = its map rounds up


# Bodies: B0 to B6, B6 again and B7 (Tan, Le 2019, EfficientNet: widths and depths of the published networks).
_B6, _B7 = EfficientNet(1.8, 2.6), EfficientNet(2.0, 3.1)
_LITE: dict[str, Any] = {"head_layers": 3, "attention": False, "anchor_scale": 3.0, "multiple": 64}
# D6 and larger have fusions without weights for stable training (EfficientDet, section 5.1). The small ones keep five
# levels, two cells and shared heads, with fewer channels and blocks. EfficientDet-Lite is google/automl's
# (efficientdet/hparams_config.py): plain sums and ReLU6 throughout.
ROWS: dict[str, EffDetRow] = {
    "efficientdet_d0": EffDetRow(EfficientNet(1.0, 1.0), 512, channels=64, cells=3, head_layers=3),
    "efficientdet_d1": EffDetRow(EfficientNet(1.0, 1.1), 640, channels=88, cells=4, head_layers=3),
    "efficientdet_d2": EffDetRow(EfficientNet(1.1, 1.2), 768, channels=112, cells=5, head_layers=3),
    "efficientdet_d3": EffDetRow(EfficientNet(1.2, 1.4), 896, channels=160, cells=6, head_layers=4),
    "efficientdet_d4": EffDetRow(EfficientNet(1.4, 1.8), 1024, channels=224, cells=7, head_layers=4),
    "efficientdet_d5": EffDetRow(EfficientNet(1.6, 2.2), 1280, channels=288, cells=7, head_layers=4),
    "efficientdet_d6": EffDetRow(_B6, 1280, channels=384, cells=8, head_layers=5, attention=False),
    "efficientdet_d7": EffDetRow(_B6, 1536, channels=384, cells=8, head_layers=5, attention=False, anchor_scale=5.0),
    "efficientdet_d7x": EffDetRow(_B7, 1536, channels=384, cells=8, head_layers=5, attention=False, levels=6),
    "efficientdet_lite0": EffDetRow(LITE0, 320, channels=64, cells=3, **_LITE),
    "efficientdet_lite1": EffDetRow(LITE1, 384, channels=88, cells=4, **_LITE),
    "efficientdet_lite2": EffDetRow(LITE2, 448, channels=112, cells=5, **_LITE),
    "efficientdet_mini": EffDetRow(EfficientNet(0.25, 0.5), 384, channels=32, cells=2, head_layers=2),
    "efficientdet_small": EffDetRow(EfficientNet(0.5, 0.5), 384, channels=48, cells=2, head_layers=3),
}


class EfficientDet(Family):
    """EfficientDet D0 to D7x, EfficientDet-Lite 0 to 2, and small ones."""

    name = "EfficientDet"
    options = EffDetOptions
    # EfficientNet; all but the class and the box net.
    freeze = MappingProxyType({"body": "body_", "all-but-heads": "(?!cls_|box_)"})

    def training(self, network: str, row: EffDetRow, size: Size, num_classes: int, options: EffDetOptions) -> Symbol:
        """[cls_loss, reg_loss, det], the losses (B,)."""
        heads = predictions(network, row, size, num_classes, options, options.drop_connect)
        det = detection_symbol(heads, row, size, num_classes, options)
        losses = effdet_losses(heads.cls, heads.box, num_classes, options)
        return mx.sym.Group([*losses, mx.sym.BlockGrad(det, name="det_out")])

    def detection(self, network: str, row: EffDetRow, size: Size, num_classes: int, options: EffDetOptions) -> Symbol:
        """det (B, N, 6), best first; N = options.keep_topk, or all candidates if fewer."""
        heads = predictions(network, row, size, num_classes, options)
        return detection_symbol(heads, row, size, num_classes, options)

    def assigner(
        self,
        network: str,
        row: EffDetRow,
        size: Size,
        num_classes: int,
        options: EffDetOptions,
        sizes: Sequence[Size] = (),
    ) -> EffDetAssigner:
        """What makes the labels of `training`, for any input size that suits the network."""
        del num_classes
        for one in (size, *sizes):
            check_size(network, row, one)
        if options.neg_iou > options.pos_iou:
            raise OptionError(f"--neg-iou {options.neg_iou} is above --pos-iou {options.pos_iou}; exchange them")
        return EffDetAssigner(options.pos_iou, options.neg_iou, anchor_scale(row, options), row.levels)

    def reach(
        self, network: str, row: EffDetRow, size: Size, options: EffDetOptions, boxes: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Of its fixed anchors at their places."""
        assigner = self.assigner(network, row, size, 1, options)
        return assigner.best_iou(boxes, size), assigner.pos_iou

    def label_names(self, options: EffDetOptions) -> tuple[str, ...]:
        """Names of the labels that `training` reads."""
        del options
        return EFFDET_LABELS

    def feature_maps(self, network: str, row: EffDetRow, size: Size, options: EffDetOptions) -> list[FeatureMap]:
        """The maps of predictions of an input of (height, width)."""
        del options
        check_size(network, row, size)
        shapes = zip(STRIDES, map_shapes(size, row.levels), strict=False)
        return [FeatureMap(f"stride{stride}", *shape, PER_CELL) for stride, shape in shapes]

    def usual_sizes(self, network: str) -> tuple[int, ...]:
        """What the network was designed for."""
        return (self.rows[network].input_size,)

    def size_multiple(self, network: str) -> int:
        """The largest stride, of a Lite half of it."""
        return side_multiple(self.rows[network])

    def only_size(self, network: str, data_shape: Any) -> str:
        """Rectangular batches would have sides of other multiples."""
        return f"{network} needs inputs whose sides are multiples of {self.size_multiple(network)}"


class EffDetHeads(NamedTuple):
    """Predictions of all maps in the order level, y, x, anchor: logits (B, A, C); boxes (B, A, 4) dy, dx, dh, dw."""

    cls: Symbol
    box: Symbol
    finest: Symbol  # the map of stride 8, (B, channels, H / 8, W / 8)


def anchor_scale(row: EffDetRow, options: EffDetOptions) -> float:
    """The option, or where it is 0 the network's own."""
    return options.anchor_scale or row.anchor_scale


def side_multiple(row: EffDetRow) -> int:
    """What the sides of inputs are multiples of."""
    return row.multiple or STRIDES[row.levels - 1]


def rounds_up(row: EffDetRow) -> bool:
    """Whether the last map may round up."""
    return side_multiple(row) < STRIDES[row.levels - 1]


def map_shapes(size: Size, levels: int) -> list[Size]:
    """(height, width) of the maps of an input; one that the stride does not divide rounds up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES[:levels]]


def check_size(network: str, row: EffDetRow, size: Size) -> None:
    """OptionError unless every map halves the one before, the last of a Lite perhaps rounded up."""
    multiple = side_multiple(row)
    if any(side % multiple for side in size):
        near = ",".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise OptionError(
            f"data shape {size[0]},{size[1]}: {network} needs sides that are multiples of {multiple}; give "
            f"--data-shape {near}"
        )


def predictions(
    network: str,
    row: EffDetRow,
    size: Size,
    num_classes: int,
    options: EffDetOptions,
    drop_connect: float = 0.0,
) -> EffDetHeads:
    """The network's outputs; OptionError where the input does not suit it. The symbol holds no input size."""
    check_size(network, row, size)
    layers = Layers(options.freeze, BATCH_NORM_EPS, options.bn_momentum)
    taps = efficientnet(mx.sym.var("data"), layers, row.body, drop_connect)[BODY_TAPS]
    style = FusionStyle(row.attention, row.body.activation, rounds_up(row))
    maps = bifpn(taps, layers, row.channels, row.cells, row.levels, style)
    cls = head(maps, layers, "cls", row, num_classes, CLASS_BIAS)
    return EffDetHeads(cls, head(maps, layers, "box", row, BOX_VALUES), maps[0])


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
            net = activate(net, f"{name}_{k}_p{level}", row.body.activation)
        net = mx.sym.transpose(pred(net, f"{name}_pred_p{level}"), axes=(0, 2, 3, 1))  # (B, h, w, 9 * values)
        outputs.append(mx.sym.reshape(net, shape=(0, -1, values)))  # (B, h * w * 9, values)
    return mx.sym.concat(*outputs, dim=1, name=f"{name}_pred")


def detection_symbol(
    heads: EffDetHeads, row: EffDetRow, size: Size, num_classes: int, options: EffDetOptions
) -> Symbol:
    """det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], best first; corners in [0, 1] of the input.

    Only the nms_topk anchors of the best scores are decoded.
    """
    del num_classes
    anchors = sum(height * width * PER_CELL for height, width in map_shapes(size, row.levels))
    best = best_anchors(heads.cls, min(options.nms_topk, anchors))  # (B, K)
    logits, offsets = take_rows(heads.cls, best, axes=2), take_rows(heads.box, best, axes=2)  # (B, K, C), (B, K, 4)
    height, width = ((_count(heads.finest, axis)) * STRIDES[0] for axis in (2, 3))  # (1,) each
    scale = anchor_scale(row, options)
    corners = decode(offsets, anchors_of(best, heads.finest, row.levels, scale, rounds_up(row)))
    sides = mx.sym.reshape(mx.sym.concat(width, height, width, height, dim=0), shape=(1, 1, 4))
    corners = mx.sym.clip(mx.sym.broadcast_div(corners, sides), a_min=0.0, a_max=1.0)
    return suppress(logits, corners, min(options.keep_topk, options.nms_topk, anchors), options)


def best_anchors(logits: Symbol, count: int) -> Symbol:
    """Numbers (B, count) of the anchors of largest class logits (B, A, C), best first."""
    return mx.sym.topk(mx.sym.max(logits, axis=2), axis=1, k=count, name="detection_topk")


def suppress(logits: Symbol, corners: Symbol, keep: int, options: EffDetOptions) -> Symbol:
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


def anchors_of(
    numbers: Symbol, finest: Symbol, levels: int, scale: float, rounds_up: bool = False
) -> tuple[Symbol, Symbol, Symbol, Symbol]:
    """Centre x, y, width and height in pixels, each as numbers (B, K), of the anchors that have these numbers.

    The order is that of effdet_anchors; finest: the map of stride 8. All numbers are below 2^24, so that
    float32 is exact. rounds_up: for inputs that not every stride divides (other operators would give the losses behind
    them other names, and checkpoints of the networks that do without it another digest).
    """
    rows, columns = (mx.sym.reshape(_count(finest, axis), shape=(1, 1)) for axis in (2, 3))
    size = start = rows * columns * PER_CELL  # anchors of a level, of it and all finer ones
    zoom, first = numbers * 0 + 1, numbers * 0  # a cell in cells of the finest map, its level's first number
    halved = rows, columns
    for _ in range(1, levels):
        beyond = mx.sym.broadcast_add(numbers, start * -1) > -0.5
        zoom, first = zoom + zoom * beyond, first + mx.sym.broadcast_mul(beyond, size)
        if rounds_up:
            halved = mx.sym.floor((halved[0] + 1) / 2), mx.sym.floor((halved[1] + 1) / 2)
        size = halved[0] * halved[1] * PER_CELL if rounds_up else size / 4
        start = start + size
    place = mx.sym.floor((numbers - first) / PER_CELL)
    kind = numbers - first - place * PER_CELL
    width = mx.sym.broadcast_div(columns, zoom)
    if rounds_up:
        width = -mx.sym.floor(-width)
    y = mx.sym.floor(mx.sym.broadcast_div(place, width))
    x = place - y * width
    stride, scale_row = zoom * STRIDES[0], mx.sym.floor(kind / len(RATIOS))
    side, ratio = stride * _chosen(SCALES, scale_row) * scale, kind - scale_row * len(RATIOS)
    sides = (side * _chosen(column, ratio) for column in zip(*RATIOS, strict=True))
    return ((x + 0.5) * stride, (y + 0.5) * stride, *sides)


def _chosen(values: Sequence[float], index: Symbol) -> Symbol:
    """values[index] of every entry."""
    return mx.sym.add_n(*((index == k) * float(value) for k, value in enumerate(values)))
