"""Darknet's .cfg files: text from and to sections.

[name] begins a section, `key = value` lines follow, # and ; begin comments; the first section is [net]. A file is not
trusted: sections and keys that are not built, numbers out of bounds and references to nowhere are refused by name.
Source: Darknet, src/parser.c.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import DataError
from common.sizes import Size
from symbol.darknet_sections import (
    ACTIVATIONS,
    IMAGE_CHANNELS,
    Anchor,
    AvgPool,
    Convolutional,
    Dropout,
    MaxPool,
    Route,
    Sam,
    ScaleChannels,
    Section,
    Sections,
    Shortcut,
    Upsample,
    Yolo,
    section_name,
    trace,
)

MAX_CFG_BYTES = 1 << 18
MAX_SIZE, MAX_STEP, MAX_FILTERS, MAX_CLASSES, MAX_LIST, MAX_ANCHOR = 31, 32, 1 << 16, 10000, 100, 1e5
MAX_SIDE, MAX_DROPOUT = 1 << 14, 0.99
MIN_SCALE, MAX_SCALE = 1.0, 4.0  # of scale_x_y
NET_SECTIONS = ("net", "network")
# Keys that say how Darknet trains and fills its input; here options of the command line do. Sources: src/parser.c of
# pjreddie/darknet and of AlexeyAB/darknet, parse_net_options and parse_yolo.
_NET = """
batch subdivisions sequential_subdivisions dynamic_minibatch width height resize_step letter_box max_epochs
learning_rate learning_rate_min burn_in max_batches policy power gamma step scale steps scales seq_scales
sgdr_cycle sgdr_mult momentum decay adam B1 B2 eps clip ema_alpha loss_scale label_smooth_eps adversarial_lr
angle saturation exposure hue aspect flip blur gaussian_noise mixup cutmix mosaic mosaic_bound
max_crop min_crop max_ratio min_ratio
try_fix_nan weights_reject_freq equidistant_point badlabels_rejection_percentage num_sigmas_reject_badlabels
max_chart_loss optimized_memory workspace_size_limit_MB use_cuda_graph
"""
_YOLO = """
jitter resize random max ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer
obj_normalizer cls_normalizer delta_normalizer max_delta counters_per_class label_smooth_eps objectness_smooth
focal_loss show_details nms_kind beta_nms
"""
# Of any section, where training begins and ends in it.
_ANY = "stopbackward onlyforward dont_update burnin_update train_only_bn learning_rate"
IGNORED = {"net": frozenset(_NET.split()), "yolo": frozenset(f"{_YOLO} {_ANY}".split())}
# What only AlexeyAB's Darknet reads: it stretches images, pjreddie's keeps their proportions.
_ALEXEY_NET = "letter_box mosaic cutmix dynamic_minibatch ema_alpha max_epochs optimized_memory"
_ALEXEY_YOLO = """
scale_x_y new_coords iou_thresh iou_loss iou_normalizer obj_normalizer cls_normalizer nms_kind beta_nms max_delta
objectness_smooth counters_per_class resize
"""
_ALEXEY_SECTIONS = frozenset({"sam", "scale_channels"})
_ALEXEY_ACTIVATIONS = frozenset({"mish", "swish", "relu6"})


class _Block(NamedTuple):
    """A section as it stands in the file; `line` is that of its name."""

    line: int
    name: str
    values: dict[str, str]


def load_cfg(path: str | Path) -> str:
    """The text of a .cfg file; DataError for no name, or a file that cannot be read, is too large, or is no text."""
    if not str(path):
        raise DataError("--network darknet: names no file; add that of the network, as in darknet:my.cfg")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CFG_BYTES + 1)
        if len(content) > MAX_CFG_BYTES:
            raise DataError(f"{path}: larger than {MAX_CFG_BYTES} bytes, this is not a .cfg of Darknet")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path of the .cfg") from error
    if b"\0" in content:
        raise DataError(f"{path}: is not text; give the .cfg of the network, not its .weights")
    return content.decode("utf-8-sig", errors="replace")  # comments are in any encoding


def parse_cfg(text: str, origin: str) -> Sections:
    """The sections after [net] of a .cfg text; DataError naming `origin` and the line or section that does not fit."""
    try:
        blocks = list(_blocks(text))
        if not blocks or blocks[0].name not in NET_SECTIONS:
            raise ValueError("does not begin with [net]")
        _check_net(blocks[0])
        sections = tuple(_section(block) for block in blocks[1:])
        trace(sections)
    except ValueError as error:
        raise DataError(f"{origin}: {error}") from error
    return sections


@dataclass(frozen=True)
class CfgInput:
    """What a .cfg says of the input. size: (height, width), None where it gives none that can be.

    letterbox: whether images keep their proportions: as letter_box says; without that key in pjreddie's Darknet, but
    not in AlexeyAB's, whose files have keys, sections or activations that pjreddie's does not know.
    """

    size: Size | None
    letterbox: bool


def cfg_input(text: str, origin: str) -> CfgInput:
    """What a .cfg text, which parse_cfg reads, says of the input; DataError as there."""
    try:
        net, *blocks = _blocks(text)
        reader = _Reader(net, ignored=frozenset())
        sides = tuple(reader.number(side, 0, 0, MAX_SIDE) for side in ("height", "width"))
        letter_box = reader.number("letter_box", int(not _is_alexeys([net, *blocks])), 0, 1)
    except ValueError as error:
        raise DataError(f"{origin}: {error}") from error
    return CfgInput((sides[0], sides[1]) if all(sides) else None, bool(letter_box))


def _is_alexeys(blocks: Sequence[_Block]) -> bool:
    """Whether some block is of AlexeyAB's Darknet alone."""
    return any(
        block.name in _ALEXEY_SECTIONS
        or block.values.get("activation") in _ALEXEY_ACTIVATIONS
        or not set((_ALEXEY_NET if block.name in NET_SECTIONS else _ALEXEY_YOLO).split()).isdisjoint(block.values)
        or (block.name == "route" and "groups" in block.values)
        for block in blocks
    )


def format_cfg(sections: Sections, size: Size, letterbox: bool = True) -> str:
    """The .cfg text of sections, which parse_cfg reads back as the same; size (height, width) goes into [net].

    letterbox: whether images keep their proportions.
    """
    net = {"width": size[1], "height": size[0], "channels": IMAGE_CHANNELS, "letter_box": int(letterbox)}
    blocks = [("net", net), *((section_name(section), _values(section)) for section in sections)]
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={_text(value)}\n" for key, value in values.items()) for name, values in blocks
    )


def _blocks(text: str) -> Iterator[_Block]:
    """The blocks of a text; ValueError names a line that is no part of one, or a key that is given twice."""
    block = None
    for number, line in enumerate(text.splitlines(), 1):
        line = re.split("[#;]", line, maxsplit=1)[0].strip()
        if line.startswith("["):
            if block:
                yield block
            block = _Block(number, line.strip("[] ").lower(), {})
        elif line:
            key, sign, value = (part.strip() for part in line.partition("="))
            if not block or not sign or not key:
                raise ValueError(f"line {number}, {line!r:.50}: expected [section] or key=value")
            if block.values.setdefault(key, value) != value and key not in _ignored(block.name):
                raise ValueError(f"line {number}: {key} is given twice in one section")
    if block:
        yield block


class _Reader:
    """Takes the values of a block one by one; what is left in the end is not built."""

    def __init__(self, block: _Block, ignored: frozenset[str] | None = None) -> None:
        """ignored: keys that are not looked at; None: those of IGNORED."""
        self._where = f"line {block.line}, [{block.name}]"
        ignored = _ignored(block.name) if ignored is None else ignored
        self._values = {key: value for key, value in block.values.items() if key not in ignored}

    def fail(self, message: str) -> ValueError:
        return ValueError(f"{self._where}: {message}")

    def text(self, key: str, default: str) -> str:
        return self._values.pop(key, default)

    def number(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number within bounds; default None = the key must be there."""
        return self._numbers(key, default, low, high, at_most=1)[0]

    def numbers(self, key: str, low: int, high: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of whole numbers within bounds; default None = the key must be there."""
        if key not in self._values and default is not None:
            return default
        return self._numbers(key, None, low, high, at_most=MAX_LIST)

    def _numbers(self, key: str, default: int | None, low: int, high: int, at_most: int) -> tuple[int, ...]:
        if key not in self._values and default is not None:
            return (default,)
        parts = self.text(key, "").split(",")
        if len(parts) > at_most or not all(re.fullmatch(r"\s*[+-]?\d{1,9}\s*", part, re.ASCII) for part in parts):
            raise self.fail(
                f"{key}={','.join(parts)!r:.50}: expected {'a whole number' if at_most == 1 else 'numbers'}"
            )
        found = tuple(int(part) for part in parts)
        if not all(low <= value <= high for value in found):
            raise self.fail(f"{key}={','.join(parts)}: expected {low} to {high}")
        return found

    def one_of(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.fail(f"{key}={value!r:.50} is not built (there is {', '.join(choices)})")
        return value

    def decimal(self, key: str, default: float, low: float, high: float) -> float:
        """A number within bounds."""
        text = self.text(key, str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.fail(f"{key}={text!r:.50}: expected a number from {low:g} to {high:g}")
        return value

    def activation(self, default: str = "linear") -> str:
        """The function that follows a section."""
        return self.one_of("activation", default, ACTIVATIONS)

    def anchors(self) -> tuple[Anchor, ...]:
        """Pairs of widths and heights in pixels."""
        text = self.text("anchors", "")
        try:
            return parse_anchors(text)
        except ValueError as error:
            raise self.fail(f"anchors={error}") from error

    def finish(self) -> None:
        for key in self._values:
            raise self.fail(f"key {key!r:.50} is not built, so that this network cannot be read; choose one without it")


def parse_anchors(text: str) -> tuple[Anchor, ...]:
    """Widths and heights from a text like '10,13, 16,30'; ValueError for another one."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or len(values) % 2 or len(values) > 2 * MAX_LIST or not all(0 < x <= MAX_ANCHOR for x in values):
        raise ValueError(f"{text!r:.80}: expected widths and heights in pixels like '10,13, 16,30'")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _ignored(name: str) -> frozenset[str]:
    """Keys of a section that do not change what it computes."""
    return IGNORED.get("net" if name in NET_SECTIONS else name, frozenset(_ANY.split()))


def _check_net(block: _Block) -> None:
    reader = _Reader(block)
    reader.number("channels", IMAGE_CHANNELS, IMAGE_CHANNELS, IMAGE_CHANNELS)
    reader.finish()


def _section(block: _Block) -> Section:
    if block.name not in _SECTIONS:
        raise ValueError(f"line {block.line}, [{block.name}]: not built (there are {', '.join(_SECTIONS)})")
    reader = _Reader(block)
    section = _SECTIONS[block.name](reader)
    reader.finish()
    return section


def _convolutional(reader: _Reader) -> Section:
    section = Convolutional(
        filters=reader.number("filters", 1, 1, MAX_FILTERS),
        size=reader.number("size", 1, 1, MAX_SIZE),
        stride=reader.number("stride", 1, 1, MAX_STEP),
        batch_normalize=bool(reader.number("batch_normalize", 0, 0, 1)),
        activation=reader.activation("logistic"),
        groups=reader.number("groups", 1, 1, MAX_FILTERS),
    )
    padding = reader.number("padding", 0, 0, MAX_SIZE)  # in pixels; pad=1 is half of the kernel, whatever this says
    if not reader.number("pad", 0, 0, 1) and padding != section.size // 2:
        raise reader.fail("without pad=1 the map has another border, which is not built")
    return section


def _shortcut(reader: _Reader) -> Section:
    return Shortcut(reader.number("from", None, -MAX_FILTERS, MAX_FILTERS), reader.activation())


def _route(reader: _Reader) -> Section:
    return Route(
        reader.numbers("layers", -MAX_FILTERS, MAX_FILTERS),
        reader.number("groups", 1, 1, MAX_FILTERS),
        reader.number("group_id", 0, 0, MAX_FILTERS),
    )


def _maxpool(reader: _Reader) -> Section:
    stride = reader.number("stride", 1, 1, MAX_STEP)
    section = MaxPool(reader.number("size", stride, 1, MAX_SIZE), stride)
    reader.number("padding", section.size - 1, section.size - 1, section.size - 1)
    return section


def _avgpool(reader: _Reader) -> Section:
    del reader
    return AvgPool()


def _dropout(reader: _Reader) -> Section:
    return Dropout(reader.decimal("probability", Dropout.probability, 0.0, MAX_DROPOUT))


def _scale_channels(reader: _Reader) -> Section:
    reader.number("scale_wh", 0, 0, 0)
    return ScaleChannels(reader.number("from", None, -MAX_FILTERS, MAX_FILTERS), reader.activation())


def _sam(reader: _Reader) -> Section:
    return Sam(reader.number("from", None, -MAX_FILTERS, MAX_FILTERS), reader.activation())


def _upsample(reader: _Reader) -> Section:
    return Upsample(reader.number("stride", 2, 1, MAX_STEP))


def _yolo(reader: _Reader) -> Section:
    anchors = reader.anchors()
    reader.number("num", len(anchors), 1, len(anchors))
    return Yolo(
        reader.numbers("mask", 0, MAX_LIST, tuple(range(len(anchors)))),
        anchors,
        reader.number("classes", 20, 1, MAX_CLASSES),
        reader.decimal("scale_x_y", 1.0, MIN_SCALE, MAX_SCALE),
        bool(reader.number("new_coords", 0, 0, 1)),
    )


_SECTIONS: Mapping[str, Callable[[_Reader], Section]] = {
    "convolutional": _convolutional,
    "shortcut": _shortcut,
    "route": _route,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "dropout": _dropout,
    "scale_channels": _scale_channels,
    "sam": _sam,
    "upsample": _upsample,
    "yolo": _yolo,
}


def _values(section: Section) -> dict[str, Any]:
    """The keys of a section in its file; those that stand for Darknet's default are left out, but for activations."""
    match section:
        case Convolutional():
            norm = {"batch_normalize": 1} if section.batch_normalize else {}
            groups = {"groups": section.groups} if section.groups > 1 else {}
            common = {"size": section.size, "stride": section.stride, "pad": 1, "activation": section.activation}
            return {**norm, "filters": section.filters, **groups, **common}
        case Shortcut() | ScaleChannels() | Sam():
            return {"from": section.from_, "activation": section.activation}
        case Yolo():
            num = len(section.anchors)
            common = {"mask": section.mask, "anchors": section.anchors, "classes": section.classes, "num": num}
            scale = {"scale_x_y": section.scale_x_y} if section.scale_x_y != 1 else {}
            return {**common, **scale, **({"new_coords": 1} if section.new_coords else {})}
        case Route():
            groups = {"groups": section.groups, "group_id": section.group_id} if section.groups > 1 else {}
            return {"layers": section.layers, **groups}
        case MaxPool():
            return {"stride": section.stride, "size": section.size}
        case Dropout():
            return {"probability": section.probability}
        case Upsample():
            return {"stride": section.stride}
        case AvgPool():
            return {}


def _text(value: Any) -> str:
    """A number, list of numbers, or list of pairs."""
    if isinstance(value, tuple):
        separator = ", " if value and isinstance(value[0], tuple) else ","
        return separator.join(_text(item) for item in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
