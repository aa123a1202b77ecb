"""Darknet's .cfg files: text from and to sections.

[name] begins a section, `key = value` lines follow, # and ; begin comments; the first section is [net]. A file is not
trusted: sections and keys that are not built, numbers out of bounds and references to nowhere are refused by name.
Source: Darknet, src/parser.c.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import DataError
from common.sizes import Size
from symbol.darknet_sections import (
    ACTIVATIONS,
    Anchor,
    Convolutional,
    MaxPool,
    Route,
    Section,
    Sections,
    Shortcut,
    Upsample,
    Yolo,
    trace,
)

MAX_CFG_BYTES = 1 << 18
MAX_SIZE, MAX_STEP, MAX_FILTERS, MAX_CLASSES, MAX_LIST, MAX_ANCHOR = 31, 32, 1 << 16, 10000, 100, 1e5
NET_SECTIONS = ("net", "network")
# Keys that say how Darknet trains and fills its input; here options of the command line do. Sources: src/parser.c of
# pjreddie/darknet and of AlexeyAB/darknet, parse_net_options and parse_yolo.
_NET = """
batch subdivisions sequential_subdivisions dynamic_minibatch width height resize_step letter_box
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
focal_loss show_details
"""
IGNORED = {"net": frozenset(_NET.split()), "yolo": frozenset(_YOLO.split())}


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
        return content.decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path of the .cfg") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text; give the .cfg of the network, not its .weights") from error


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


def format_cfg(sections: Sections, size: Size) -> str:
    """The .cfg text of sections, which parse_cfg reads back as the same; size (height, width) goes into [net]."""
    net = {"width": size[1], "height": size[0], "channels": 3}
    blocks = [("net", net), *((type(section).__name__.lower(), _values(section)) for section in sections)]
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
            if key in block.values:
                raise ValueError(f"line {number}: {key} is given twice in one section")
            block.values[key] = value
    if block:
        yield block


class _Reader:
    """Takes the values of a block one by one; what is left in the end is not built."""

    def __init__(self, block: _Block) -> None:
        self._where = f"line {block.line}, [{block.name}]"
        ignored = IGNORED.get("net" if block.name in NET_SECTIONS else block.name, frozenset())
        self._values = {key: value for key, value in block.values.items() if key not in ignored}

    def fail(self, message: str) -> ValueError:
        return ValueError(f"{self._where}: {message}")

    def text(self, key: str, default: str) -> str:
        return self._values.pop(key, default)

    def number(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number within bounds; default None = the key must be there."""
        return self._numbers(key, default, low, high, at_most=1)[0]

    def numbers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers within bounds."""
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

    def only(self, key: str, built: float) -> None:
        """A number that must be `built` where it is given, because another would change the network."""
        value = self.text(key, str(built))
        try:
            is_built = float(value) == built
        except ValueError:
            is_built = False
        if not is_built:
            raise self.fail(f"{key}={value!r:.50} is not built (there is {built:g})")

    def anchors(self) -> tuple[Anchor, ...]:
        """Pairs of widths and heights in pixels."""
        text = self.text("anchors", "")
        try:
            return parse_anchors(text)
        except ValueError as error:
            raise self.fail(f"anchors={error}") from error

    def finish(self) -> None:
        for key in self._values:
            raise self.fail(
                f"key {key!r:.50} is not built; remove it, or the network would not be the one that it means"
            )


def parse_anchors(text: str) -> tuple[Anchor, ...]:
    """Widths and heights from a text like '10,13, 16,30'; ValueError for another one."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or len(values) % 2 or len(values) > 2 * MAX_LIST or not all(0 < x <= MAX_ANCHOR for x in values):
        raise ValueError(f"{text!r:.80}: expected widths and heights in pixels like '10,13, 16,30'")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _check_net(block: _Block) -> None:
    reader = _Reader(block)
    reader.number("channels", 3, 3, 3)
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
        filters=reader.number("filters", None, 1, MAX_FILTERS),
        size=reader.number("size", None, 1, MAX_SIZE),
        stride=reader.number("stride", 1, 1, MAX_STEP),
        batch_normalize=bool(reader.number("batch_normalize", 0, 0, 1)),
        activation=reader.one_of("activation", "linear", ACTIVATIONS),
    )
    padding = reader.number("padding", 0, 0, MAX_SIZE)  # in pixels; pad=1 is half of the kernel, whatever this says
    if not reader.number("pad", 0, 0, 1) and padding != section.size // 2:
        raise reader.fail("without pad=1 the map would have another border, which is not built; set pad=1")
    return section


def _shortcut(reader: _Reader) -> Section:
    reader.one_of("activation", "linear", ("linear",))
    return Shortcut(reader.number("from", None, -MAX_FILTERS, MAX_FILTERS))


def _route(reader: _Reader) -> Section:
    return Route(reader.numbers("layers", -MAX_FILTERS, MAX_FILTERS))


def _maxpool(reader: _Reader) -> Section:
    return MaxPool(reader.number("size", None, 1, MAX_SIZE), reader.number("stride", 1, 1, MAX_STEP))


def _upsample(reader: _Reader) -> Section:
    return Upsample(reader.number("stride", 2, 1, MAX_STEP))


def _yolo(reader: _Reader) -> Section:
    anchors = reader.anchors()
    reader.only("scale_x_y", 1)
    reader.only("new_coords", 0)
    reader.number("num", len(anchors), len(anchors), len(anchors))
    return Yolo(reader.numbers("mask", 0, MAX_LIST), anchors, reader.number("classes", 20, 1, MAX_CLASSES))


_SECTIONS: Mapping[str, Callable[[_Reader], Section]] = {
    "convolutional": _convolutional,
    "shortcut": _shortcut,
    "route": _route,
    "maxpool": _maxpool,
    "upsample": _upsample,
    "yolo": _yolo,
}


def _values(section: Section) -> dict[str, Any]:
    match section:
        case Convolutional():
            norm = {"batch_normalize": 1} if section.batch_normalize else {}
            common = {"size": section.size, "stride": section.stride, "pad": 1, "activation": section.activation}
            return {**norm, "filters": section.filters, **common}
        case Shortcut():
            return {"from": section.from_, "activation": "linear"}
        case Yolo():
            num = len(section.anchors)
            return {"mask": section.mask, "anchors": section.anchors, "classes": section.classes, "num": num}
        case Route():
            return {"layers": section.layers}
        case MaxPool():
            return {"stride": section.stride, "size": section.size}
        case Upsample():
            return {"stride": section.stride}


def _text(value: Any) -> str:
    """A number, list of numbers, or list of pairs."""
    if isinstance(value, tuple):
        separator = ", " if value and isinstance(value[0], tuple) else ","
        return separator.join(_text(item) for item in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
