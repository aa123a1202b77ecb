"""Hyper-parameter files (YAML) of the YOLOv3-SPP trainer, from and to options of train.py.

A file holds lines like `giou: 3.54` or `lr0: 0.001`; OPTIONS has each key's option beside it. lrf is the last learning
rate as a part of the first one, --lr-final the rate itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from config.errors import OptionError
from config.options import read_yaml

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


def read_hyp(path: str | Path) -> dict[str, Any]:
    """{option: value} of a file; OptionError names a file that is no YAML, an unknown key and what is no number.

    lrf needs lr0 in the same file.
    """
    values = read_yaml(Path(path))
    if not isinstance(values, dict) or not values:
        raise OptionError(f"--hyp {path}: a hyper-parameter file is a list of `key: number` lines")
    for key in values:
        if key not in OPTIONS:
            raise OptionError(f"--hyp {path}: unknown key {key!r:.60} (known: {', '.join(OPTIONS)})")
    numbers = {key: _number(value, f"--hyp {path}: {key}") for key, value in values.items()}
    if LAST in values and FIRST not in values:
        raise OptionError(f"--hyp {path}: {LAST} is a part of {FIRST}, which is missing; add it")
    if LAST in values:
        numbers[LAST] *= numbers[FIRST]
    return {OPTIONS[key]: value for key, value in numbers.items()}


def _number(value: Any, where: str) -> float:
    """A number, also one like 1e-3, which is a text in YAML 1.1."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise OptionError(f"{where} is {value!r:.60}, not a number")


def format_hyp(options: Mapping[str, Any]) -> str:
    """The text of a file that read_hyp reads back as these options; all of OPTIONS' values must be there.

    OptionError for a learning rate of 0, of which nothing is a part.
    """
    values = {key: float(options[name]) for key, name in OPTIONS.items()}
    if not values[FIRST]:
        raise OptionError("--lr 0: a hyper-parameter file has the last learning rate as a part of the first one")
    values[LAST] /= values[FIRST]
    text: str = yaml.safe_dump(values, sort_keys=False)
    return text
