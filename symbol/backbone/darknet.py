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
    Anchor,
    Convolutional,
    MaxPool,
    Route,
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
from symbol.layers import Layers, Symbol, add, concat, max_pool

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

    The values of an anchor are x, y, w, h, objectness and classes, all as the convolution gives them; anchors are
    widths and heights in pixels.
    """

    symbol: Symbol
    anchors: tuple[Anchor, ...]
    stride: int


def darknet(data: Symbol, sections: Sequence[Section], num_classes: int, layers: Layers) -> list[Level]:
    """The maps of predictions in the order of the yolo sections, for num_classes classes.

    Parameters are called body_N, head_N or pred_N (layer_names) and _conv_weight, _conv_bias, _bn_gamma, _bn_beta,
    _bn_moving_mean, _bn_moving_var; N is the number of the section. ValueError names a section that does not fit.
    """
    sections = with_classes(sections, num_classes)
    extents, names = trace(sections), layer_names(sections)
    outputs: list[Symbol] = []
    levels = []
    for number, section in enumerate(sections):
        inputs = [data if k < 0 else outputs[k] for k in references(number, section)]
        outputs.append(_layer(section, inputs, names[number], layers, num_classes))
        if isinstance(section, Yolo):
            levels.append(Level(outputs[-1], section.own_anchors, extents[number].stride))
    return levels


def _layer(section: Section, inputs: list[Symbol], name: str, layers: Layers, num_classes: int) -> Symbol:
    match section:
        case Convolutional():
            return _convolutional(section, inputs[0], name, layers, num_classes)
        case Shortcut():
            return add(inputs[0], inputs[1], name=f"{name}_shortcut")
        case Route():
            return concat(*inputs, name=f"{name}_route") if len(inputs) > 1 else inputs[0]
        case MaxPool():
            return _pool(section, inputs[0], f"{name}_pool")
        case Upsample():
            return mx.sym.UpSampling(
                inputs[0], scale=section.stride, sample_type="nearest", num_args=1, name=f"{name}_upsample"
            )
        case Yolo():
            return inputs[0]


def _convolutional(section: Convolutional, data: Symbol, name: str, layers: Layers, num_classes: int) -> Symbol:
    bias = prior_bias(section.filters, num_classes) if name.startswith("pred_") else None
    net = layers.conv(
        data,
        f"{name}_conv",
        section.filters,
        section.size,
        stride=section.stride,
        pad=section.size // 2,
        bias=not section.batch_normalize,
        bias_start=bias,
    )
    if section.batch_normalize:
        net = layers.batch_norm(net, f"{name}_bn")
    if section.activation == "linear":
        return net
    return mx.sym.LeakyReLU(net, act_type="leaky", slope=LEAKY_SLOPE, name=f"{name}_leaky")


def prior_bias(filters: int, num_classes: int) -> np.ndarray:
    """(filters,) biases at the start: objectness -4.5, classes log(0.6 / (num_classes - 0.99)), boxes 0.

    So the first steps need not unlearn objects that are nowhere (Lin et al. 2017, RetinaNet, section 4.1).
    """
    values = np.zeros(BOX_VALUES + num_classes)
    values[BOX_VALUES - 1] = OBJECT_BIAS
    values[BOX_VALUES:] = math.log(0.6 / (num_classes - 0.99))
    return np.tile(values, filters // len(values))


def _pool(section: MaxPool, data: Symbol, name: str) -> Symbol:
    """Darknet's max pooling: an even size at stride 1 reads to the right and below, as if padded there alone."""
    if section.size % 2:
        return max_pool(data, name, section.size, section.stride, section.size // 2)
    if section.stride > 1:
        return max_pool(data, name, section.size, section.stride)
    net = max_pool(data, f"{name}_wide", section.size, 1, section.size // 2)
    for axis in (2, 3):
        net = mx.sym.slice_axis(net, axis=axis, begin=1, end=None, name=f"{name}_{axis}")
    return net
