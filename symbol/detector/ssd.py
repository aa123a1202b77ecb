"""SSD: extra feature layers, multibox heads, training and detection symbols (Liu et al. 2016, https://arxiv.org/abs/1512.02325)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boxes.anchors import AnchorLayer
from boxes.assigners import SSDAssigner
from boxes.coders import expand_variances
from common.errors import OptionError
from config.effdet_options import EffDetOptions
from config.network_options import NetworkOptions
from config.yolo_options import YOLOOptions
from machine.runtime import mx
from symbol.layers import Layers, Symbol, Tap, l2_normalise
from symbol.losses import multibox_loss
from symbol.post_process import multibox_detection, per_class_detection
from symbol.registry import FeatureMap, Sizes, SSDRow

# Labels that the training symbols read, by target rule.
LABELS = {"paper": ("cls_target", "loc_target", "normaliser"), "mxnet": ("label",)}
HEAD_LR_MULT = 2.0  # biases of the heads learn twice as fast (apache example/ssd)
EXTRA_KERNEL = 3
VARIANCES = NetworkOptions().variances
# Words of the option freeze: the body's parameters (the extra layers of the legacy networks belong to their bodies);
# all but those of the predicting convolutions.
FREEZE = {
    "body": r"(?!multi_feat_\d+_conv_|.*_(loc|cls)_pred_conv_|.*_scale$)",
    "all-but-heads": r"(?!.*_(loc|cls)_pred_conv_)",
}
# Options of other families; given with one of these networks they are refused.
UNUSED = frozenset(field.name for family in (YOLOOptions, EffDetOptions) for field in dataclasses.fields(family))


def training(network: str, row: SSDRow, size: tuple[int, int], num_classes: int, options: NetworkOptions) -> Symbol:
    """The training symbol of an SSD for an input of (height, width); see training_symbol."""
    return training_symbol(_heads(network, row, size, num_classes, options), options, size)


def detection(network: str, row: SSDRow, size: tuple[int, int], num_classes: int, options: NetworkOptions) -> Symbol:
    """The detection symbol of an SSD for an input of (height, width); see detection_symbol."""
    return detection_symbol(_heads(network, row, size, num_classes, options), options, size)


def assigner(
    network: str, row: SSDRow, size: tuple[int, int], num_classes: int, options: NetworkOptions
) -> SSDAssigner | None:
    """What makes the labels of `training`; None for targets=mxnet, where the graph matches by itself."""
    del num_classes
    if options.targets == "mxnet":
        return None
    return SSDAssigner(
        layers=anchor_layers(customise(row, options), size),
        feature_shapes={size: _map_shapes(network, row, size, options)},
        threshold=options.overlap_threshold,
        variances=variances(options),
    )


def assigner_of_sizes(
    network: str,
    row: SSDRow,
    size: tuple[int, int],
    num_classes: int,
    options: NetworkOptions,
    sizes: Sequence[tuple[int, int]],
) -> SSDAssigner | None:
    """As assigner(), also for further inputs of the same symbol; OptionError if its anchors or layers allow only one
    size."""
    if any(layer.step[0] > 0 for layer in anchor_layers(customise(row, options), size)):
        raise OptionError(
            f"the anchors of {network} have fixed steps at data shape {size[0]},{size[1]}; leave out --multi-scale, or "
            "give another --data-shape"
        )
    found = assigner(network, row, size, num_classes, options)
    shapes = {other: _map_shapes(network, row, other, options) for other in sizes}
    return found and dataclasses.replace(found, feature_shapes={**found.feature_shapes, **shapes})


def _map_shapes(
    network: str, row: SSDRow, size: tuple[int, int], options: NetworkOptions
) -> tuple[tuple[int, int], ...]:
    return tuple((m.height, m.width) for m in feature_maps(network, row, size, options))


def label_names(options: NetworkOptions) -> tuple[str, ...]:
    """Names of the labels that `training` reads."""
    return LABELS[options.targets]


def feature_maps(network: str, row: SSDRow, size: tuple[int, int], options: NetworkOptions) -> list[FeatureMap]:
    """The maps that heads read in an input of (height, width)."""
    row, taps = _taps(network, row, size, options)
    shapes = mx.sym.Group([tap.symbol for tap in taps]).infer_shape(data=(1, 3, *size))[1]
    maps = zip(taps, shapes, anchor_layers(row, size), strict=True)
    return [FeatureMap(tap.name, shape[2], shape[3], layer.per_cell) for tap, shape, layer in maps]


def _taps(network: str, row: SSDRow, size: tuple[int, int], options: NetworkOptions) -> tuple[SSDRow, list[Tap]]:
    row, layers = customise(row, options), Layers(freeze=options.freeze)
    maps = tapped_maps(row, row.backbone(mx.sym.var("data"), layers, options), layers)
    check_room(network, row, maps[len(row.taps) - 1], size)
    return row, maps


def _heads(network: str, row: SSDRow, size: tuple[int, int], num_classes: int, options: NetworkOptions) -> "Heads":
    row, maps = _taps(network, row, size, options)
    return multibox_layer(maps, anchor_layers(row, size), num_classes, row.l2_scales, Layers(freeze=options.freeze))


def variances(options: NetworkOptions) -> tuple[float, ...]:
    """The four variances of cx, cy, w, h; OptionError unless 2 (centre, size) or 4 were given."""
    if len(options.variances) not in (2, 4):
        raise OptionError(f"--variances takes 2 numbers (centre, size) or 4 (x, y, w, h), not {len(options.variances)}")
    return tuple(expand_variances(options.variances, float).tolist())


def customise(row: SSDRow, options: NetworkOptions) -> SSDRow:
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


def _check_lists(row: SSDRow, options: NetworkOptions) -> None:
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


def check_room(network: str, row: SSDRow, last_tap: Tap, size: tuple[int, int]) -> None:
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


def anchor_layers(row: SSDRow, size: tuple[int, int]) -> tuple[AnchorLayer, ...]:
    """Anchor parameters of each map for an input of (height, width) pixels."""
    with_steps = size == (row.steps_for, row.steps_for)
    steps = (
        [(s / row.steps_for, s / row.steps_for) for s in row.steps] if with_steps else [(-1.0, -1.0)] * len(row.sizes)
    )
    return tuple(
        AnchorLayer(sizes=sizes, ratios=ratios, step=step, clip_centres=row.clip_centres)
        for sizes, ratios, step in zip(row.sizes, row.ratios, steps, strict=True)
    )


@dataclass(frozen=True)
class Heads:
    """Predictions over all maps, anchors in the order map, y, x, anchor: cls (B, A, C + 1) logits, loc (B, A, 4)."""

    cls_pred: Symbol
    loc_pred: Symbol
    anchors: Symbol  # (1, A, 4) corners


def multibox_layer(
    maps: list[Tap], anchors: tuple[AnchorLayer, ...], num_classes: int, l2_scales: tuple[float, ...], layers: Layers
) -> Heads:
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
    return Heads(
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


def training_symbol(heads: Heads, options: NetworkOptions, size: tuple[int, int]) -> Symbol:
    """The training outputs and, last, det, for an input of (height, width).

    targets=paper: [cls_loss (B,), loc_loss (B,), det]; reads cls_target (B, A), loc_target (B, A, 4), normaliser (B,
    1). targets=mxnet: the classic [cls_prob (B, C + 1, A), loc_loss (B, 4 A), cls_label (B, A), det]; reads label
    (B, M, 6).
    """
    outputs = _classic_outputs(heads, options) if options.targets == "mxnet" else _paper_outputs(heads, options)
    det = mx.sym.BlockGrad(detection_symbol(heads, options, size), name="det_out")
    return mx.sym.Group([*outputs, det])


def _paper_outputs(heads: Heads, options: NetworkOptions) -> list[Symbol]:
    cls_loss, loc_loss = multibox_loss(
        heads.cls_pred,
        heads.loc_pred,
        *(mx.sym.var(name) for name in LABELS["paper"]),
        negative_ratio=options.negative_mining_ratio,
        minimum_negatives=options.min_neg_samples,
        alpha=options.loc_weight,
    )
    return [mx.sym.make_loss(cls_loss, name="cls_loss"), mx.sym.make_loss(loc_loss, name="loc_loss")]


def _classic_outputs(heads: Heads, options: NetworkOptions) -> list[Symbol]:
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


def detection_symbol(heads: Heads, options: NetworkOptions, size: tuple[int, int]) -> Symbol:
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
    topk = min(options.nms_topk, anchors)
    keep = min(options.keep_topk, topk * (classes - 1))
    return per_class_detection(prob, heads.loc_pred, heads.anchors, topk=topk, keep=keep, **common)
