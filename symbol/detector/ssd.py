"""SSD: extra feature layers, multibox heads, training and detection symbols (Liu et al. 2016, https://arxiv.org/abs/1512.02325)."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from boxes.anchor_sets import MapAnchors
from boxes.anchors import AnchorLayer, expand_variances
from boxes.assigners import SSDAssigner
from common.errors import OptionError
from common.sizes import Size
from machine.runtime import mx
from symbol.backbone.gluon_body import PREFIX as GLUONCV
from symbol.detector.ssd_rows import Rows, Sizes, SSDRow, gluoncv_rows
from symbol.family import Family, FeatureMap
from symbol.layers import Layers, Symbol, Tap, l2_normalise, per_class_detection
from symbol.losses import multibox_loss
from symbol.network_options import PER_CLASS, SSDOptions

NO_OVERLAP = 1e-37  # a normal float32; MultiBoxDetection neither suppresses nor sorts with the threshold 0
# Labels that the training symbols read, by target rule.
LABELS = {"paper": ("cls_target", "loc_target", "normaliser"), "mxnet": ("label",)}
HEAD_LR_MULT = 2.0  # biases of the heads learn twice as fast (apache example/ssd)
EXTRA_KERNEL = 3
VARIANCES = SSDOptions().variances


class SSD(Family):
    """SSD on any body: the table of ssd_rows.py, and gluoncv:NAME."""

    name = "SSD"
    options = SSDOptions
    # The extra layers of the legacy networks belong to their bodies; of the heads the predicting convolutions count.
    freeze = MappingProxyType(
        {
            "body": r"(?!multi_feat_\d+_conv_|.*_(loc|cls)_pred_conv_|.*_scale$)",
            "all-but-heads": r"(?!.*_(loc|cls)_pred_conv_)",
        }
    )
    pattern = f"{GLUONCV}NAME"

    def row(self, network: str, size: Size, options: Any) -> SSDRow:
        """The row for an input of `size`; a side below the smallest one that the row allows raises OptionError."""
        del options
        row = next(row for smallest, row in self._rows(network) if min(size) >= smallest)
        if min(size) < row.smallest_side:
            raise OptionError(
                f"data shape {size[0]},{size[1]}: {network} needs a larger input, of at least {row.smallest_side} a "
                "side"
            )
        return row

    def _rows(self, network: str) -> Rows:
        return gluoncv_rows(network.removeprefix(GLUONCV)) if network not in self.rows else self.rows[network]

    def training(self, network: str, row: SSDRow, size: Size, num_classes: int, options: SSDOptions) -> Symbol:
        """See training_symbol."""
        return training_symbol(_heads(network, row, size, num_classes, options), options, size)

    def detection(self, network: str, row: SSDRow, size: Size, num_classes: int, options: SSDOptions) -> Symbol:
        """See detection_symbol."""
        return detection_symbol(_heads(network, row, size, num_classes, options), options, size)

    def assigner(
        self,
        network: str,
        row: SSDRow,
        size: Size,
        num_classes: int,
        options: SSDOptions,
        sizes: Sequence[Size] = (),
    ) -> SSDAssigner | None:
        """What makes the labels of `training`; None for targets=mxnet, where the graph matches by itself.

        OptionError if the network's anchors or layers allow only one size.
        """
        del num_classes
        layers = anchor_layers(customise(row, options), size)
        if sizes and any(layer.step[0] > 0 for layer in layers):
            raise OptionError(
                f"the anchors of {network} have fixed steps at data shape {size[0]},{size[1]}; leave out "
                "--multi-scale, or give another --data-shape"
            )
        if options.targets == "mxnet" and not sizes:
            return None
        shapes = {
            one: tuple((m.height, m.width) for m in self.feature_maps(network, row, one, options))
            for one in (size, *sizes)
        }
        if options.targets == "mxnet":
            return None
        return SSDAssigner(
            layers=layers,
            feature_shapes=shapes,
            threshold=options.overlap_threshold,
            variances=variances(options),
        )

    def label_names(self, options: SSDOptions) -> tuple[str, ...]:
        """Names of the labels that `training` reads."""
        return LABELS[options.targets]

    def feature_maps(self, network: str, row: SSDRow, size: Size, options: SSDOptions) -> list[FeatureMap]:
        """The maps that heads read in an input of (height, width)."""
        row, taps = _taps(network, row, size, options)
        shapes = mx.sym.Group([tap.symbol for tap in taps]).infer_shape(data=(1, 3, *size))[1]
        maps = zip(taps, shapes, anchor_layers(row, size), strict=True)
        return [FeatureMap(tap.name, shape[2], shape[3], layer.per_cell) for tap, shape, layer in maps]

    def anchor_set(self, network: str, row: SSDRow, size: Size, options: SSDOptions) -> MapAnchors:
        """Sizes and ratios of each map."""
        shapes = tuple((one.height, one.width) for one in self.feature_maps(network, row, size, options))
        layers = anchor_layers(customise(row, options), size)
        return MapAnchors(size, options.overlap_threshold, layers, shapes, "anchor_sizes", "anchor_ratios")

    def tap_names(self, network: str, row: SSDRow, size: Size, options: SSDOptions) -> tuple[str, ...]:
        """The layers of the body that heads read."""
        return customise(row, options).taps

    def usual_sizes(self, network: str) -> tuple[int, ...]:
        """Those of its row."""
        return self._rows(network)[0][1].usual_sizes if network in self.rows else super().usual_sizes(network)

    def only_size(self, network: str, data_shape: Any) -> str:
        """Anchors are fractions of the input that the symbol was built for."""
        return f"the anchors of {network} are fractions of an input of one size, {data_shape}"

    def unused_options(self, network: str) -> frozenset[str]:
        """The width, of bodies that have one alone."""
        rows = self.rows.get(network, ())
        return frozenset() if any(row.takes_width for _, row in rows) else frozenset({"width"})

    def ineffective_options(self, options: SSDOptions) -> Iterator[tuple[tuple[str, ...], str]]:
        """MultiBoxDetection keeps all that is left after suppression."""
        if options.post_process == "multibox":
            yield ("keep_topk",), "with --post-process multibox"

    def post_processing(self, options: SSDOptions) -> str:
        """What a manifest calls each post_process; keep_topk is in its options."""
        return PER_CLASS.get(options.post_process, "MultiBoxDetection")

    def mean_losses(self, options: SSDOptions) -> bool:
        """Those of the classic rule are."""
        return options.targets == "mxnet"


def _taps(network: str, row: SSDRow, size: Size, options: SSDOptions) -> tuple[SSDRow, list[Tap]]:
    row, layers = customise(row, options), Layers(freeze=options.freeze)
    maps = tapped_maps(row, row.backbone(mx.sym.var("data"), layers, options), layers)
    check_room(network, row, maps[len(row.taps) - 1], size)
    return row, maps


def _heads(network: str, row: SSDRow, size: Size, num_classes: int, options: SSDOptions) -> "SSDHeads":
    row, maps = _taps(network, row, size, options)
    return multibox_layer(maps, anchor_layers(row, size), num_classes, row.l2_scales, Layers(freeze=options.freeze))


def variances(options: SSDOptions) -> tuple[float, ...]:
    """The four variances of cx, cy, w, h; OptionError unless 2 (centre, size) or 4 were given."""
    if len(options.variances) not in (2, 4):
        raise OptionError(f"--variances takes 2 numbers (centre, size) or 4 (x, y, w, h), not {len(options.variances)}")
    return tuple(expand_variances(options.variances, float).tolist())


def customise(row: SSDRow, options: SSDOptions) -> SSDRow:
    """The row with the options' taps, extras, sizes and ratios in place of its own.

    OptionError for lists that are no numbers, or not as many as there are maps.
    """
    changes: dict = {}
    if options.taps:
        changes.update(taps=options.taps, l2_scales=(), steps=(), steps_for=0)
    if options.extra_filters is not None:
        extras = tuple((filters, 2, 1) for filters in options.extra_filters)
        changes.update(extras=extras, steps=(), steps_for=0)
    maps = len(options.taps or row.taps) + len(changes.get("extras", row.extras))
    if options.anchor_sizes:
        changes["sizes"] = _parse_lists("anchor-sizes", options.anchor_sizes)
    if options.anchor_ratios:
        ratios = _parse_lists("anchor-ratios", options.anchor_ratios)
        changes["ratios"] = ratios * maps if len(ratios) == 1 else ratios
    changed = dataclasses.replace(row, **changes)
    _check_lists(changed, options)
    return changed


def _check_lists(row: SSDRow, options: SSDOptions) -> None:
    """OptionError unless a row has anchor sizes and ratios for each of its maps; lists that the options do not give are
    said to be the network's own, and all that are to be given are named at once."""
    maps = len(row.taps) + len(row.extras)
    sizes, ratios = ("--anchor-sizes", options.anchor_sizes), ("--anchor-ratios", options.anchor_ratios)
    found, remedies = [], []
    for (flag, given), lists, more in ((sizes, row.sizes, ""), (ratios, row.ratios, ", or one for all maps")):
        if len(lists) != maps:
            found.append(
                f"{flag} has {len(lists)} list{'s' * (len(lists) > 1)}" + ("" if given else " (the network's own)")
            )
            remedies.append(f"{flag} with {maps} lists{more}")
    if found:
        raise OptionError(
            f"{' and '.join(found)}, but taps and extra layers make {maps} feature maps; give {' and '.join(remedies)}"
        )


def _parse_lists(name: str, text: str) -> Sizes:
    try:
        lists = tuple(tuple(float(x) for x in part.split(",") if x.strip()) for part in text.split(";") if part.strip())
    except ValueError:
        lists = ()
    if not lists or not all(lists) or any(not 0 < x < 100 for part in lists for x in part):
        raise OptionError(f"--{name} {text!r}: expected positive numbers like '0.1,0.14;0.2,0.27'")
    return lists


def tapped_maps(row: SSDRow, taps: list[Tap], layers: Layers) -> list[Tap]:
    """The maps that heads read: the row's taps of the backbone, then its extra layers (1x1, then 3x3 with stride)."""
    by_name = {tap.name: tap for tap in taps}
    unknown = [name for name in row.taps if name not in by_name]
    if unknown:
        body = row.backbone.__name__
        raise OptionError(f"--taps {unknown[0]}: {body} has no such layer (it has {', '.join(by_name)})")
    if len(set(row.taps)) < len(row.taps):
        raise OptionError(f"--taps {','.join(row.taps)}: a layer is named twice; name each once")
    maps = [by_name[name] for name in row.taps]
    for number, (filters, stride, pad) in enumerate(row.extras, start=len(maps)):
        name = f"multi_feat_{number}_conv_3x3"
        squeezed = layers.conv_relu(maps[-1].symbol, f"multi_feat_{number}_conv_1x1", max(128, filters // 2), 1)
        net = layers.conv_relu(squeezed, name, filters, EXTRA_KERNEL, stride=stride, pad=pad)
        maps.append(Tap(net, f"{name}_relu", filters, maps[-1].stride * stride))
    return maps


def check_room(network: str, row: SSDRow, last_tap: Tap, size: Size) -> None:
    """Raises OptionError if an input of (height, width) does not suit the body or leaves nothing for an extra layer
    without padding."""
    try:
        sides = last_tap.symbol.infer_shape_partial(data=(1, 3, *size))[1][0][2:]
    except mx.base.MXNetError as error:
        raise OptionError(
            f"data shape {size[0]},{size[1]}: the body of {network} cannot take it; give a larger --data-shape, "
            "or multiples of 32"
        ) from error
    for number, (_, stride, pad) in enumerate(row.extras, start=1):
        sides = tuple((side + 2 * pad - EXTRA_KERNEL) // stride + 1 for side in sides)
        if min(sides) < 1:
            raise OptionError(
                f"data shape {size[0]},{size[1]}: {network} needs a larger input for its extra layer {number}; raise "
                "--data-shape, or give fewer layers by --extra-filters, --anchor-sizes and --anchor-ratios"
            )


def anchor_layers(row: SSDRow, size: Size) -> tuple[AnchorLayer, ...]:
    """Anchor parameters of each map for an input of (height, width) pixels."""
    with_steps = size == (row.steps_for, row.steps_for)
    steps = (
        [(s / row.steps_for, s / row.steps_for) for s in row.steps] if with_steps else [(-1.0, -1.0)] * len(row.sizes)
    )
    clips = [False] * (len(row.sizes) - 1) + [row.clip_last]
    return tuple(
        AnchorLayer(sizes=sizes, ratios=ratios, step=step, clip=clip, clip_centres=row.clip_centres)
        for sizes, ratios, step, clip in zip(row.sizes, row.ratios, steps, clips, strict=True)
    )


@dataclass(frozen=True)
class SSDHeads:
    """Predictions over all maps, anchors in the order map, y, x, anchor: cls (B, A, C + 1) logits, loc (B, A, 4)."""

    cls_pred: Symbol
    loc_pred: Symbol
    anchors: Symbol  # (1, A, 4) corners


def multibox_layer(
    maps: list[Tap], anchors: tuple[AnchorLayer, ...], num_classes: int, l2_scales: tuple[float, ...], layers: Layers
) -> SSDHeads:
    """3x3 convolutions for classes and offsets on every map, and their anchors (SSD section 2.1)."""
    cls, loc, priors = [], [], []
    for k, (tap, anchor) in enumerate(zip(maps, anchors, strict=True)):
        net, name = tap.symbol, tap.name
        if k < len(l2_scales) and l2_scales[k] > 0:
            net = l2_normalise(net, name, tap.channels, l2_scales[k])
        per_cell = len(anchor.sizes) + len(anchor.ratios) - 1
        loc.append(_head(net, f"{name}_loc_pred_conv", per_cell, 4, layers))
        cls.append(_head(net, f"{name}_cls_pred_conv", per_cell, num_classes + 1, layers))
        priors.append(_prior(net, f"{name}_anchors", anchor))
    boxes = mx.sym.concat(*priors, dim=1, name="multibox_anchors")  # (1, A, 4)
    return SSDHeads(
        cls_pred=mx.sym.concat(*cls, dim=1, name="multibox_cls_pred"),
        loc_pred=mx.sym.concat(*loc, dim=1, name="multibox_loc_pred"),
        anchors=clip_centre_form(boxes) if anchors[0].clip_centres else boxes,
    )


def _head(net: Symbol, name: str, per_cell: int, values: int, layers: Layers) -> Symbol:
    net = layers.conv(net, name, per_cell * values, 3, bias_lr_mult=HEAD_LR_MULT)
    net = mx.sym.transpose(net, axes=(0, 2, 3, 1))  # (B, h, w, per_cell * values)
    return mx.sym.reshape(net, shape=(0, -1, values))  # (B, h * w * per_cell, values)


def _prior(net: Symbol, name: str, anchor: AnchorLayer) -> Symbol:
    return mx.sym.contrib.MultiBoxPrior(
        net,
        sizes=anchor.sizes,
        ratios=anchor.ratios,
        clip=anchor.clip,
        steps=anchor.step,
        offsets=anchor.offset,
        name=name,
    )  # (1, h * w * per_cell, 4)


def clip_centre_form(corners: Symbol) -> Symbol:
    """Corners (1, A, 4) of boxes whose centres, widths and heights are limited to [0, 1] (ssd.pytorch's PriorBox)."""
    low, high = (mx.sym.slice_axis(corners, axis=2, begin=k, end=k + 2) for k in (0, 2))  # (1, A, 2)
    centre = mx.sym.clip((low + high) / 2, a_min=0.0, a_max=1.0)
    half = mx.sym.clip(high - low, a_min=0.0, a_max=1.0) / 2
    return mx.sym.concat(centre - half, centre + half, dim=2, name="multibox_anchors_clipped")


def training_symbol(heads: SSDHeads, options: SSDOptions, size: Size) -> Symbol:
    """The training outputs and, last, det, for an input of (height, width).

    targets=paper: [cls_loss (B,), loc_loss (B,), det]; reads cls_target (B, A), loc_target (B, A, 4), normaliser (B,
    1). targets=mxnet: the classic [cls_prob (B, C + 1, A), loc_loss (B, 4 A), cls_label (B, A), det]; reads label
    (B, M, 6).
    """
    outputs = _classic_outputs(heads, options) if options.targets == "mxnet" else _paper_outputs(heads, options)
    det = mx.sym.BlockGrad(detection_symbol(heads, options, size), name="det_out")
    return mx.sym.Group([*outputs, det])


def _paper_outputs(heads: SSDHeads, options: SSDOptions) -> list[Symbol]:
    cls_loss, loc_loss = multibox_loss(
        heads.cls_pred,
        heads.loc_pred,
        *(mx.sym.var(name) for name in LABELS["paper"]),
        negative_ratio=options.negative_mining_ratio,
        minimum_negatives=options.min_neg_samples,
        alpha=options.loc_weight,
    )
    return [mx.sym.make_loss(cls_loss, name="cls_loss"), mx.sym.make_loss(loc_loss, name="loc_loss")]


def _classic_outputs(heads: SSDHeads, options: SSDOptions) -> list[Symbol]:
    """MultiBoxTarget, SoftmaxOutput over valid anchors and smooth L1, as in apache's example/ssd."""
    cls_pred = mx.sym.transpose(heads.cls_pred, axes=(0, 2, 1))  # (B, C + 1, A)
    loc_pred = mx.sym.reshape(heads.loc_pred, shape=(0, -1))  # (B, 4 A)
    loc_target, loc_mask, cls_target = mx.sym.contrib.MultiBoxTarget(
        heads.anchors,
        mx.sym.var("label"),
        cls_pred,
        overlap_threshold=options.overlap_threshold,
        ignore_label=-1,
        negative_mining_ratio=options.negative_mining_ratio,
        minimum_negative_samples=options.min_neg_samples,
        negative_mining_thresh=options.overlap_threshold,
        variances=variances(options),
        name="multibox_target",
    )
    cls_prob = mx.sym.SoftmaxOutput(
        cls_pred,
        cls_target,
        ignore_label=-1,
        use_ignore=True,
        multi_output=True,
        normalization="valid",
        name="cls_prob",
    )
    error = mx.sym.smooth_l1(loc_mask * (loc_pred - loc_target), scalar=1.0, name="loc_loss_")
    loc_loss = mx.sym.MakeLoss(error, grad_scale=options.loc_weight, normalization="valid", name="loc_loss")
    return [cls_prob, loc_loss, mx.sym.MakeLoss(cls_target, grad_scale=0, name="cls_label")]


def detection_symbol(heads: SSDHeads, options: SSDOptions, size: Size) -> Symbol:
    """det (B, N, 6) for an input of (height, width); N = A with MultiBoxDetection, else options.keep_topk or less."""
    prob = mx.sym.softmax(heads.cls_pred, axis=-1)  # (B, A, C + 1)
    common: dict[str, Any] = {
        "threshold": options.score_threshold,
        "nms": options.nms,
        "force": options.force,
        "variances": variances(options),
    }
    if options.post_process == "multibox":
        return multibox_detection(prob, heads.loc_pred, heads.anchors, topk=options.nms_topk, **common)
    _, anchors, classes = heads.cls_pred.infer_shape(data=(1, 3, *size))[1][0]
    pooled = options.post_process == "pooled"
    topk = min(options.nms_topk, anchors)
    keep = min(options.keep_topk, topk * (1 if pooled else classes - 1))
    clip = options.post_process == "clipped"
    return per_class_detection(
        prob, heads.loc_pred, heads.anchors, topk=topk, keep=keep, clip=clip, pooled=pooled, **common
    )


def multibox_detection(
    prob: Symbol,
    loc_pred: Symbol,
    anchors: Symbol,
    *,
    topk: int,
    threshold: float,
    nms: float,
    force: bool,
    variances: Sequence[float],
) -> Symbol:
    """det (B, A, 6) by MultiBoxDetection: each anchor has one class, its best.

    prob (B, A, C + 1) with the background first, loc_pred (B, A, 4) offsets, anchors (1, A, 4) corners. topk boxes of
    an image are considered; boxes are clipped to the image. A box goes if its IoU with a better one is nms or more;
    with nms 0, if they overlap at all.
    """
    return mx.sym.contrib.MultiBoxDetection(
        mx.sym.transpose(prob, axes=(0, 2, 1)),  # (B, C + 1, A)
        mx.sym.reshape(loc_pred, shape=(0, -1)),  # (B, 4 A)
        anchors,
        threshold=threshold,
        nms_threshold=max(nms, NO_OVERLAP),
        force_suppress=force,
        variances=tuple(variances),
        nms_topk=topk,
        name="detection",
    )
