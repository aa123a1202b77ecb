"""YOLOv3: decoding of predictions, training and detection symbols (Redmon, Farhadi 2018, https://arxiv.org/abs/1804.02767)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from boxes.anchor_sets import PixelAnchors
from boxes.yolo_assigner import YOLOAssigner
from common.errors import CheckpointError, OptionError
from common.sizes import Size
from machine.runtime import mx
from symbol.backbone.darknet import Level, centres, darknet, side_factors, yolov3, yolov3_tiny
from symbol.darknet_cfg import load_cfg, parse_anchors, parse_cfg
from symbol.darknet_sections import BOX_VALUES, Sections, Yolo, trace, with_anchors, with_width
from symbol.family import Family, FeatureMap
from symbol.layers import Layers, Symbol, take_rows
from symbol.network_options import YOLOOptions
from symbol.yolo_losses import LABELS, by_anchor, yolo_losses


@dataclass(frozen=True)
class YOLORow:
    """One YOLOv3: its sections, whose yolo sections hold the anchors."""

    sections: Sections


# YOLOv3's; the small ones have SPP and three levels too, with fewer channels and residual blocks.
ROWS: dict[str, YOLORow] = {
    "yolov3": YOLORow(yolov3(spp=False)),
    "yolov3_spp": YOLORow(yolov3(spp=True)),
    "yolov3_spp_small": YOLORow(yolov3(spp=True, width=0.5, depth=0.5)),
    "yolov3_spp_mini": YOLORow(yolov3(spp=True, width=0.25, depth=0.25)),
    "yolov3_tiny": YOLORow(yolov3_tiny()),
}
PREFIX = "darknet:"


class YOLOv3(Family):
    """YOLOv3 as Darknet has it: the table, and darknet:FILE.cfg."""

    name = "YOLOv3"
    options = YOLOOptions
    # Darknet-53, or what lies before the heads; all but the predicting convolutions.
    freeze = MappingProxyType({"body": r"body_\d+_", "all-but-heads": r"(?!pred_\d+_)"})
    embedded = ("darknet_cfg",)
    pattern = f"{PREFIX}FILE"

    def row(self, network: str, size: Size, options: YOLOOptions) -> YOLORow:
        """The table's, or that of the .cfg."""
        del size
        return find_row(network, options.darknet_cfg) if network not in self.rows else self.rows[network]

    def training(self, network: str, row: YOLORow, size: Size, num_classes: int, options: YOLOOptions) -> Symbol:
        """[box_loss, obj_loss, cls_loss (for more than one class), det], the losses (B,)."""
        maps = levels(network, row, size, num_classes, options)
        det = detection_symbol(maps, size, num_classes, options)
        losses = yolo_losses(maps, num_classes, options)
        return mx.sym.Group([*losses, mx.sym.BlockGrad(det, name="det_out")])

    def detection(self, network: str, row: YOLORow, size: Size, num_classes: int, options: YOLOOptions) -> Symbol:
        """det (B, N, 6), best first; N = options.keep_topk, or all candidates if fewer."""
        return detection_symbol(levels(network, row, size, num_classes, options), size, num_classes, options)

    def assigner(
        self,
        network: str,
        row: YOLORow,
        size: Size,
        num_classes: int,
        options: YOLOOptions,
        sizes: Sequence[Size] = (),
    ) -> YOLOAssigner:
        """What makes the labels of `training`, for any input size that suits the network.

        OptionError for an iou_t of 1, above which no overlap is.
        """
        if options.iou_t >= 1:
            raise OptionError(f"--iou-t {options.iou_t:g}: no anchor would learn any object; lower it, as to 0.2")
        maps = levels(network, row, size, num_classes, options)
        for other in sizes:
            _check_size(network, customise(row, options), other)
        return YOLOAssigner(
            anchors=tuple(level.anchors for level in maps),
            strides=tuple(level.stride for level in maps),
            iou_threshold=options.iou_t,
        )

    def label_names(self, options: YOLOOptions) -> tuple[str, ...]:
        """Names of the labels that `training` reads."""
        del options
        return LABELS

    def feature_maps(self, network: str, row: YOLORow, size: Size, options: YOLOOptions) -> list[FeatureMap]:
        """The maps of predictions of an input of (height, width)."""
        return [
            FeatureMap(f"stride{level.stride}", size[0] // level.stride, size[1] // level.stride, len(level.anchors))
            for level in levels(network, row, size, 1, options)
        ]

    def anchor_set(self, network: str, row: YOLORow, size: Size, options: YOLOOptions) -> PixelAnchors:
        """Widths and heights, of all maps together."""
        threshold = self.assigner(network, row, size, 1, options).iou_threshold
        anchors = next(section.anchors for section in customise(row, options) if isinstance(section, Yolo))
        return PixelAnchors(size, threshold, np.array(anchors, float), "yolo_anchors")

    def usual_sizes(self, network: str) -> tuple[int, ...]:
        """Those of the paper."""
        return (416, 608)

    def unused_options(self, network: str) -> frozenset[str]:
        """The text of a .cfg, but for darknet:FILE."""
        return frozenset() if network.startswith(PREFIX) else frozenset({"darknet_cfg"})

    def embedded_options(self, network: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The text of the .cfg, unless it is given."""
        if not network.startswith(PREFIX) or options.get("darknet_cfg"):
            return {}
        return {"darknet_cfg": load_cfg(network.removeprefix(PREFIX))}

    def check_rebuilding(self, network: str, options: Mapping[str, Any], origin: str) -> None:
        """A checkpoint names no file to read."""
        if network.startswith(PREFIX) and not options.get("darknet_cfg"):
            raise CheckpointError(
                f"{origin}: its options hold no darknet_cfg, the text of {network:.80}; train or convert it again"
            )


def find_row(network: str, cfg: str = "") -> YOLORow:
    """The row of a YOLOv3; darknet:FILE is that of the .cfg text `cfg`, or of the file where there is none."""
    if network.startswith(PREFIX):
        path = network.removeprefix(PREFIX)
        return YOLORow(parse_cfg(cfg or load_cfg(path), path))
    return ROWS[network]


def levels(network: str, row: YOLORow, size: Size, num_classes: int, options: YOLOOptions) -> list[Level]:
    """The maps of raw predictions; OptionError where the input or the anchors do not suit the network."""
    sections = customise(row, options)
    try:
        _check_size(network, sections, size)
        layers = Layers(freeze=options.freeze, batch_norm_eps=options.batch_norm_eps)
        return darknet(mx.sym.var("data"), sections, num_classes, layers)
    except ValueError as error:  # of a .cfg, with another width, or whose predictions something else reads
        raise OptionError(
            f"--network {network}, for {num_classes} classes and --width {options.width:g}: {error}"
        ) from error


def customise(row: YOLORow, options: YOLOOptions) -> Sections:
    """The row's sections with the options' width and anchors."""
    sections = with_width(row.sections, options.width)
    if not options.yolo_anchors:
        return sections
    try:
        return with_anchors(sections, parse_anchors(options.yolo_anchors))
    except ValueError as error:
        raise OptionError(f"--yolo-anchors {error}") from error


def _check_size(network: str, sections: Sections, size: Size) -> None:
    stride = max(extent.stride for extent in trace(sections))
    if any(side % stride for side in size):
        near = ",".join(str(max(1, round(side / stride)) * stride) for side in size)
        raise OptionError(
            f"data shape {size[0]},{size[1]}: {network} needs sides that are multiples of {stride}; give --data-shape "
            f"{near}"
        )


def decode(level: Level) -> Symbol:
    """Boxes and probabilities (B, anchors * h * w, 5 + C) of a map, in the order anchor, y, x.

    Values: centre x, y, width, height in pixels of the input, objectness, probability of each class (not multiplied by
    the objectness). Source: YOLOv3, section 2.1 and figure 2; centres and side_factors.
    """
    net = by_anchor(level.symbol, anchors=len(level.anchors))  # (B, n, h, w, 5 + C)
    x, y, w, h = (mx.sym.slice_axis(net, axis=4, begin=k, end=k + 1) for k in range(4))  # (B, n, h, w, 1)
    x, y, w, h = (of(level, value) for of, value in ((centres, x), (centres, y), (side_factors, w), (side_factors, h)))
    cell_x = mx.sym.reshape(mx.sym.contrib.arange_like(level.symbol, axis=3), shape=(1, 1, 1, -1, 1))
    cell_y = mx.sym.reshape(mx.sym.contrib.arange_like(level.symbol, axis=2), shape=(1, 1, -1, 1, 1))
    decoded = mx.sym.concat(
        mx.sym.broadcast_add(x, cell_x) * level.stride,
        mx.sym.broadcast_add(y, cell_y) * level.stride,
        _times_anchors(w, tuple(anchor[0] for anchor in level.anchors)),
        _times_anchors(h, tuple(anchor[1] for anchor in level.anchors)),
        mx.sym.sigmoid(mx.sym.slice_axis(net, axis=4, begin=4, end=None)),
        dim=4,
    )  # (B, n, h, w, 5 + C)
    return mx.sym.reshape(mx.sym.reshape(decoded, shape=(0, -3, 0, 0)), shape=(0, -3, 0))  # (B, n * h * w, 5 + C)


def _times_anchors(data: Symbol, sides: tuple[float, ...]) -> Symbol:
    """data (B, n, ...) times one number for each anchor."""
    parts = [mx.sym.slice_axis(data, axis=1, begin=k, end=k + 1) * float(side) for k, side in enumerate(sides)]
    return mx.sym.concat(*parts, dim=1)


def _input_sides(level: Level) -> tuple[Symbol, Symbol]:
    """Height and width of the input in pixels, (1,) each: the symbol does not know its size before it runs."""
    height, width = (
        (mx.sym.max(mx.sym.contrib.arange_like(level.symbol, axis=axis)) + 1) * level.stride for axis in (2, 3)
    )
    return height, width


def detection_symbol(
    maps: list[Level], size: Size, num_classes: int, options: YOLOOptions, name: str = "detection"
) -> Symbol:
    """det (B, N, 6) rows [id, score, xmin, ymin, xmax, ymax], best first; corners in [0, 1] of the input."""
    unknown = [number for number in options.only_classes if number >= num_classes]
    if unknown:
        raise OptionError(f"--only-classes {unknown[0]}: the ids of {num_classes} classes are 0 to {num_classes - 1}")
    if options.min_box >= options.max_box:
        raise OptionError(
            f"--min-box {options.min_box:g} is not below --max-box {options.max_box:g}: no box would be left; lower it"
        )
    boxes = mx.sym.concat(*(decode(level) for level in maps), dim=1)  # (B, A, 5 + C)
    if num_classes == 1 and options.one_class == "objectness":  # its class is not learned: there is no class loss
        certain = mx.sym.ones_like(mx.sym.slice_axis(boxes, axis=2, begin=BOX_VALUES, end=None))
        boxes = mx.sym.concat(mx.sym.slice_axis(boxes, axis=2, begin=0, end=BOX_VALUES), certain, dim=2)
    anchors = sum(len(level.anchors) * (size[0] // level.stride) * (size[1] // level.stride) for level in maps)
    found = suppress(boxes, anchors, num_classes, options)  # (B, N, 6), corners in pixels
    height, width = _input_sides(maps[0])
    sides = mx.sym.reshape(mx.sym.concat(width, height, width, height, dim=0), shape=(1, 1, 4))
    corners = mx.sym.broadcast_div(mx.sym.slice_axis(found, axis=2, begin=2, end=None), sides)
    corners = mx.sym.clip(corners, a_min=0.0, a_max=1.0)
    return mx.sym.concat(mx.sym.slice_axis(found, axis=2, begin=0, end=2), corners, dim=2, name=name)


def suppress(boxes: Symbol, anchors: int, num_classes: int, options: YOLOOptions) -> Symbol:
    """Detections (B, N, 6) rows [id, score, corners in pixels], best first, of decoded boxes (B, anchors, 5 + C).

    The score is objectness times class probability. Boxes with a side outside of (min_box, max_box) are dropped, and
    classes that only_classes leaves out; then the nms_topk best go on, of them those with a score above
    score_threshold: each suppresses worse ones of its class (force: of any class) with an IoU above nms; the keep_topk
    best remain. With multi_label a box counts once for each class, otherwise with its best class alone.
    """
    centre, sides = (mx.sym.slice_axis(boxes, axis=2, begin=k, end=k + 2) for k in (0, 2))  # (B, A, 2)
    corners = mx.sym.concat(centre - sides / 2, centre + sides / 2, dim=2)  # (B, A, 4)
    shortest, longest = mx.sym.min(sides, axis=2, keepdims=True), mx.sym.max(sides, axis=2, keepdims=True)
    sound = (shortest > options.min_box) * (longest < options.max_box)  # (B, A, 1)
    objectness = mx.sym.slice_axis(boxes, axis=2, begin=BOX_VALUES - 1, end=BOX_VALUES) * sound
    scores = mx.sym.broadcast_mul(mx.sym.slice_axis(boxes, axis=2, begin=BOX_VALUES, end=None), objectness)
    candidates = Candidates(corners, scores, min(options.nms_topk, anchors), num_classes)
    found = _every_class(candidates, options) if options.multi_label else _best_class(candidates, options)
    rows = min(options.nms_topk, candidates.looked_at * (num_classes if options.multi_label else 1))
    found = mx.sym.contrib.box_nms(
        found,
        overlap_thresh=options.nms,
        valid_thresh=options.score_threshold,
        id_index=0,
        score_index=1,
        coord_start=2,
        force_suppress=options.force,
        name="detection_nms",
    )
    return mx.sym.slice_axis(found, axis=1, begin=0, end=min(options.keep_topk, rows))


class Candidates(NamedTuple):
    """Boxes before suppression: corners (B, A, 4), scores (B, A, C); of the A boxes the best are looked at."""

    corners: Symbol
    scores: Symbol
    looked_at: int
    num_classes: int


def _every_class(candidates: Candidates, options: YOLOOptions) -> Symbol:
    """Rows (B, K, 6) of the K best pairs of box and class; they belong to the `looked_at` boxes of the best scores."""
    scores = candidates.scores
    if options.only_classes:
        ids = mx.sym.contrib.arange_like(scores, axis=2)  # (C,)
        scores = mx.sym.broadcast_mul(scores, mx.sym.reshape(_listed(ids, options.only_classes), shape=(1, 1, -1)))
    best = mx.sym.topk(mx.sym.max(scores, axis=2), axis=1, k=candidates.looked_at, name="detection_topk")  # (B, N)
    scores, corners = (take_rows(data, best, axes=2) for data in (scores, candidates.corners))  # (B, N, C), (B, N, 4)
    pairs = min(options.nms_topk, candidates.looked_at * candidates.num_classes)
    flat = mx.sym.reshape(scores, shape=(0, -1))  # (B, N * C)
    places = mx.sym.topk(flat, axis=1, k=pairs, name="detection_pairs")  # (B, K)
    rows = mx.sym.floor(places / candidates.num_classes)
    ids = mx.sym.expand_dims(places - rows * candidates.num_classes, axis=2)  # (B, K, 1)
    chosen = take_rows(mx.sym.expand_dims(flat, axis=2), places, axes=2)  # (B, K, 1)
    return mx.sym.concat(ids, chosen, take_rows(corners, rows, axes=2), dim=2)


def _best_class(candidates: Candidates, options: YOLOOptions) -> Symbol:
    """Rows (B, K, 6) of the K best boxes, each with its best class; a box is out if that class is not wanted."""
    ids = mx.sym.argmax(candidates.scores, axis=2)  # (B, A)
    scores = mx.sym.max(candidates.scores, axis=2)
    if options.only_classes:
        scores = scores * _listed(ids, options.only_classes)
    rows = mx.sym.topk(scores, axis=1, k=candidates.looked_at, name="detection_topk")  # (B, K)
    boxes = mx.sym.concat(mx.sym.stack(ids, scores, axis=2), candidates.corners, dim=2)  # (B, A, 6)
    return take_rows(boxes, rows, axes=2)


def _listed(ids: Symbol, wanted: tuple[int, ...]) -> Symbol:
    """1 where an id is among the wanted, else 0."""
    return mx.sym.add_n(*(ids == k for k in sorted(set(wanted))))
