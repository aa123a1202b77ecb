"""Hyper-parameter files (YAML) of the YOLOv3-SPP trainer, from and to options of train.py.

A file holds lines like `giou: 3.54` or `lr0: 0.001`; OPTIONS has each key's option beside it. lrf is the last learning
rate as a part of the first one, --lr-final the rate itself.
"""

import math
from collections.abc import Mapping
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import yaml

from common.errors import OptionError, did_you_mean
from config.preset import read_yaml

# Key of a file -> option of train.py.
OPTIONS = {
    "giou": "giou_gain",
    "cls": "cls_gain",
    "cls_pw": "cls_pw",
    "obj": "obj_gain",
    "obj_pw": "obj_pw",
    "iou_t": "iou_t",
    "lr0": "lr",
    "lrf": "lr_final",
    "momentum": "momentum",
    "weight_decay": "wd",
    "fl_gamma": "fl_gamma",
    "hsv_h": "hsv_h",
    "hsv_s": "hsv_s",
    "hsv_v": "hsv_v",
    "degrees": "degrees",
    "translate": "translate",
    "scale": "scale",
    "shear": "shear",
}
FIRST, LAST = "lr0", "lrf"
DIGITS = (20, 60)  # of lrf, where those of a float do not bring back --lr-final
# For products of lrf and lr0; one that is no number or too large comes out as such, and is refused.
_EXACT = Context(prec=100, traps=[])


def read_hyp(path: str | Path) -> dict[str, Any]:
    """{option: value} of a file; OptionError names a file that is no YAML, an unknown key and what is no number.

    lrf needs lr0 in the same file.
    """
    try:
        values = read_yaml(Path(path), as_text=True)
    except OptionError as error:
        raise OptionError(f"--hyp {error}") from error
    if not isinstance(values, dict) or not values:
        raise OptionError(f"--hyp {path}: a hyper-parameter file is a list of `key: number` lines")
    for key in values:
        if key not in OPTIONS:
            raise OptionError(
                f"--hyp {path}: unknown key {key!r:.60}{did_you_mean(str(key), OPTIONS)}; known: {', '.join(OPTIONS)}"
            )
    numbers = {key: _number(value) for key, value in values.items()}
    if LAST in values and FIRST not in values:
        raise OptionError(f"--hyp {path}: {LAST} is a part of {FIRST}, which is missing; add it")
    if LAST in values and not math.isnan(numbers[LAST]):
        numbers[LAST] = _last_rate(values[LAST], numbers[FIRST])
    for key, number in numbers.items():
        if not math.isfinite(number):
            raise OptionError(f"--hyp {path}: {key} is {values[key]!r:.60}, not a number")
    return {OPTIONS[key]: value for key, value in numbers.items()}


def _number(value: Any) -> float:
    """A number out of its text; nan for another."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _last_rate(lrf: Any, first: float) -> float:
    """The learning rate of which lrf, a number or its text, is the part of the first one; rounded once."""
    return float(_EXACT.multiply(_EXACT.create_decimal(str(lrf)), Decimal(repr(first))))


def format_hyp(options: Mapping[str, Any]) -> str:
    """The text of a file that read_hyp reads back as these options; all of OPTIONS' values must be there.

    OptionError for a learning rate of 0, of which nothing is a part.
    """
    values = {key: float(options[name]) for key, name in OPTIONS.items()}
    if not values[FIRST]:
        raise OptionError("--lr 0: a hyper-parameter file has the last learning rate as a part of the first one")
    texts = {key: _yaml_number(value) for key, value in values.items()}
    texts[LAST] = _part(values[LAST], values[FIRST])
    return "".join(f"{key}: {text}\n" for key, text in texts.items())


def _part(last: float, first: float) -> str:
    """The text of last / first from which _last_rate gives `last` again: that of a float, or one of more digits."""
    part = Context(prec=DIGITS[-1]).divide(Decimal(last), Decimal(repr(first)))
    texts = (_yaml_number(float(part)), *(f"{part:.{digits}e}" for digits in DIGITS))
    return next(text for text in texts if _last_rate(text, first) == last)


def _yaml_number(value: float) -> str:
    """A float as YAML 1.1 writes it: 1.0e-05, where 1e-05 would be a text."""
    return str(yaml.safe_dump(value)).split()[0]
