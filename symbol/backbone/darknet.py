"""Darknet networks: the sections of YOLOv3's variants, and any sections as a symbol.

Sources: Redmon, Farhadi 2018, YOLOv3, table 1 and section 2.3 (https://arxiv.org/abs/1804.02767); for SPP: Huang et al.
2019, DC-SPP-YOLO, section 3.2 (https://arxiv.org/abs/1903.08589).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from machine.runtime import mx
from symbol.darknet_sections import (
    BOX_VALUES,
    IMAGE_CHANNELS,
    Anchor,
    AvgPool,
    Convolutional,
    Dropout,
    Extent,
    MaxPool,
    Route,
    Sam,
    ScaleChannels,
    Section,
    Sections,
    Shortcut,
    Upsample,
    Yolo,
    layer_names,
    references,
    trace,
    with_classes,
    with_width,
)
from symbol.layers import Layers, Symbol, add, concat, max_pool, mish, relu, relu6, swish

LEAKY_SLOPE = 0.1
OBJECT_BIAS = -4.5  # at the start few places hold an object
CLASSES = 80  # of the table below; a network is built for those of its data

# Widths and heights in pixels, found on COCO at 416 (YOLOv3, section 2.3) and, for yolov3-tiny, in its .cfg.
ANCHORS: tuple[Anchor, ...] = (
    (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326),
)  # fmt: skip
TINY_ANCHORS: tuple[Anchor, ...] = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))

# (filters, residual blocks) of Darknet-53's stages of stride 2, 4, 8, 16, 32.
STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
SPP_SIZES = (5, 9, 13)
# Anchors and filters of the squeezing convolutions of the levels of stride 32, 16, 8.
LEVELS = (((6, 7, 8), 512), ((3, 4, 5), 256), ((0, 1, 2), 128))


def yolov3(*, spp: bool, width: float = 1.0, depth: float = 1.0) -> Sections:
    """YOLOv3 with or without spatial pyramid pooling; channels times width, residual blocks times depth.

    A stage keeps at least one residual block; the three levels and SPP keep their layers.
    """
    body: list[Section] = [Convolutional(32, 3)]
    ends = []
    for filters, blocks in STAGES:
        block: list[Section] = [Convolutional(filters // 2, 1), Convolutional(filters, 3), Shortcut()]
        body += [Convolutional(filters, 3, 2), *block * max(1, round(blocks * depth))]
        ends.append(len(body) - 1)
    sections = [*body, *_level(*LEVELS[0], spp=spp)]
    for (mask, filters), end in zip(LEVELS[1:], (ends[3], ends[2]), strict=True):
        sections += [Route((-4,)), Convolutional(filters, 1), Upsample(), Route((-1, end)), *_level(mask, filters)]
    return with_width(sections, width)


def _level(mask: tuple[int, ...], filters: int, *, spp: bool = False) -> list[Section]:
    """Six convolutions, SPP after the third if there is one, the predictor and its yolo section."""
    squeeze, widen = Convolutional(filters, 1), Convolutional(2 * filters, 3)
    pair: list[Section] = [squeeze, widen]
    layers = [*pair, squeeze, *_pyramid(), *pair, *pair] if spp else pair * 3
    return [*layers, *_predictor(mask, ANCHORS)]


def _pyramid() -> list[Section]:
    """Max pooling of three sizes beside the map itself, then one convolution over all."""
    small, middle, large = SPP_SIZES
    pools: list[Section] = [MaxPool(small), Route((-2,)), MaxPool(middle), Route((-4,)), MaxPool(large)]
    return [*pools, Route((-1, -3, -5, -6))]


def _predictor(mask: tuple[int, ...], anchors: tuple[Anchor, ...]) -> list[Section]:
    filters = len(mask) * (BOX_VALUES + CLASSES)
    return [Convolutional(filters, 1, batch_normalize=False, activation="linear"), Yolo(mask, anchors, CLASSES)]


def yolov3_tiny() -> Sections:
    """yolov3-tiny: seven plain convolutions with max pooling between them, levels of stride 32 and 16."""
    body: list[Section] = []
    for filters in (16, 32, 64, 128, 256):
        body += [Convolutional(filters, 3), MaxPool(2, 2)]
    body += [Convolutional(512, 3), MaxPool(2, 1), Convolutional(1024, 3)]
    end = 8  # the convolution of stride 16
    deep: list[Section] = [Convolutional(256, 1), Convolutional(512, 3), *_predictor((3, 4, 5), TINY_ANCHORS)]
    joined: list[Section] = [Route((-4,)), Convolutional(128, 1), Upsample(), Route((-1, end)), Convolutional(256, 3)]
    return (*body, *deep, *joined, *_predictor((0, 1, 2), TINY_ANCHORS))


class Level(NamedTuple):
    """A map of raw predictions (B, anchors * (5 + classes), H / stride, W / stride), anchor by anchor.

    The values of an anchor are x, y, w, h, objectness and classes, before any sigmoid; anchors are widths and heights
    in pixels; scale_x_y and new_coords as in Yolo.
    """

    symbol: Symbol
    anchors: tuple[Anchor, ...]
    stride: int
    scale_x_y: float = 1.0
    new_coords: bool = False


def centres(level: Level, logits: Symbol) -> Symbol:
    """Centres in cells from the corner of their cell: sigmoid, stretched about 1/2 by scale_x_y (Bochkovskiy et al.
    2020, YOLOv4, section 3.4, grid sensitivity)."""
    inside = mx.sym.sigmoid(logits)
    return inside if level.scale_x_y == 1 else inside * level.scale_x_y - (level.scale_x_y - 1) / 2


def side_factors(level: Level, logits: Symbol) -> Symbol:
    """By what the sides of anchors are multiplied."""
    return mx.sym.square(2 * mx.sym.sigmoid(logits)) if level.new_coords else mx.sym.exp(logits)


def darknet(data: Symbol, sections: Sequence[Section], num_classes: int, layers: Layers) -> list[Level]:
    """The maps of predictions in the order of the yolo sections, for num_classes classes.

    Parameters are called body_N, head_N or pred_N (layer_names) and _conv_weight, _conv_bias, _bn_gamma, _bn_beta,
    _bn_moving_mean, _bn_moving_var; N is the number of the section. ValueError names a section that does not fit.
    """
    sections = with_classes(sections, num_classes)
    extents, names = trace(sections), layer_names(sections)
    image = Extent(IMAGE_CHANNELS, 1)
    outputs: list[Symbol] = []
    levels = []
    for number, section in enumerate(sections):
        places = references(number, section)
        inputs = [data if k < 0 else outputs[k] for k in places]
        shapes = [image if k < 0 else extents[k] for k in places]
        if isinstance(section, Yolo):
            level = Level(inputs[0], section.own_anchors, extents[number].stride, section.scale_x_y, section.new_coords)
            levels.append(level)
        outputs.append(_layer(section, inputs, shapes, names[number], layers, num_classes))
    return levels


def _layer(
    section: Section, inputs: list[Symbol], shapes: list[Extent], name: str, layers: Layers, num_classes: int
) -> Symbol:
    match section:
        case Convolutional():
            return _convolutional(section, inputs[0], name, layers, num_classes)
        case Shortcut():
            return _activated(_sum(inputs, [shape.channels for shape in shapes], name), section.activation, name)
        case Route():
            return _route(section, inputs, [shape.channels for shape in shapes], name)
        case MaxPool():
            return _pool(section, inputs[0], f"{name}_pool")
        case AvgPool():
            return mx.sym.Pooling(inputs[0], global_pool=True, pool_type="avg", kernel=(1, 1), name=f"{name}_mean")
        case Dropout():
            return mx.sym.Dropout(inputs[0], p=section.probability, name=f"{name}_dropout")
        case ScaleChannels() | Sam():
            return _activated(
                mx.sym.broadcast_mul(inputs[1], inputs[0], name=f"{name}_scaled"), section.activation, name
            )
        case Upsample():
            return mx.sym.UpSampling(
                inputs[0], scale=section.stride, sample_type="nearest", num_args=1, name=f"{name}_upsample"
            )
        case Yolo():
            return inputs[0]


def _sum(inputs: list[Symbol], channels: list[int], name: str) -> Symbol:
    """The sum of the channels that both maps have, then the others of the first map."""
    first, other = inputs
    both = min(channels)
    if channels[1] > both:
        other = mx.sym.slice_axis(other, axis=1, begin=0, end=both, name=f"{name}_first")
    if channels[0] == both:
        return add(first, other, name=f"{name}_shortcut")
    total = add(mx.sym.slice_axis(first, axis=1, begin=0, end=both), other, name=f"{name}_partial")
    return concat(total, mx.sym.slice_axis(first, axis=1, begin=both, end=None), name=f"{name}_shortcut")


def _route(section: Route, inputs: list[Symbol], channels: list[int], name: str) -> Symbol:
    """Maps, or one group of the channels of each, one after the other."""
    parts = list(inputs)
    if section.groups > 1:
        for k, size in enumerate(count // section.groups for count in channels):
            begin = section.group_id * size
            parts[k] = mx.sym.slice_axis(inputs[k], axis=1, begin=begin, end=begin + size, name=f"{name}_part{k}")
    return concat(*parts, name=f"{name}_route") if len(parts) > 1 else parts[0]


def _convolutional(section: Convolutional, data: Symbol, name: str, layers: Layers, num_classes: int) -> Symbol:
    """A predictor gives its values before any sigmoid: with new_coords its logistic function is left to the decoder."""
    is_predictor = name.startswith("pred_")
    net = layers.conv(
        data,
        f"{name}_conv",
        section.filters,
        section.size,
        stride=section.stride,
        pad=section.size // 2,
        groups=section.groups,
        bias=not section.batch_normalize,
        bias_start=prior_bias(section.filters, num_classes) if is_predictor else None,
    )
    if section.batch_normalize:
        net = layers.batch_norm(net, f"{name}_bn")
    return net if is_predictor else _activated(net, section.activation, name)


def _activated(data: Symbol, activation: str, name: str) -> Symbol:
    """A function of ACTIVATIONS of a map."""
    match activation:
        case "leaky":
            return mx.sym.LeakyReLU(data, act_type="leaky", slope=LEAKY_SLOPE, name=f"{name}_leaky")
        case "linear":
            return data
        case "logistic":
            return mx.sym.Activation(data, act_type="sigmoid", name=f"{name}_logistic")
    return {"mish": mish, "relu": relu, "relu6": relu6, "swish": swish}[activation](data, f"{name}_{activation}")


def prior_bias(filters: int, num_classes: int) -> np.ndarray:
    """(filters,) biases at the start: objectness -4.5, classes log(0.6 / (num_classes - 0.99)), boxes 0.

    So the first steps need not unlearn objects that are nowhere (Lin et al. 2017, RetinaNet, section 4.1).
    """
    values = np.zeros(BOX_VALUES + num_classes)
    values[BOX_VALUES - 1] = OBJECT_BIAS
    values[BOX_VALUES:] = math.log(0.6 / (num_classes - 0.99))
    return np.tile(values, filters // len(values))


def _pool(section: MaxPool, data: Symbol, name: str) -> Symbol:
    """Darknet's max pooling: the padding is size - 1 in all, of it the smaller half above and on the left.

    Sides are multiples of the stride here, so that what it adds on the right and below is read at stride 1 alone.
    """
    before = (section.size - 1) // 2
    if section.size % 2 or section.stride > 1:
        return max_pool(data, name, section.size, section.stride, before)
    net = max_pool(data, f"{name}_wide", section.size, 1, section.size // 2)
    for axis in (2, 3):
        net = mx.sym.slice_axis(net, axis=axis, begin=1, end=None, name=f"{name}_{axis}")
    return net
