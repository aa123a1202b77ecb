"""The classic arguments of DetRecordIter as a BatchSpec: settings by their names in cfg, labels by their width."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.errors import OptionError, did_you_mean
from common.sizes import DataShape
from config.config import cfg, iterator_options, quiet_settings
from dataset.batch_spec import BatchSpec
from dataset.labels import HEADER_WIDTH, OBJECT_WIDTH

BATCH_FIELDS = frozenset(field.name for field in fields(BatchSpec))


def classic_spec(
    path_imgrec: str | Path, batch_size: int, data_shape: DataShape, label_pad_width: int = 0, **more: Any
) -> BatchSpec:
    """The spec of a call of DetRecordIter, whose docstring says what the arguments mean.

    OptionError for an unknown name, for settings of cfg beside augment, and for what iterator_options and BatchSpec
    refuse.
    """
    unknown = next((name for name in more if name not in BATCH_FIELDS and name not in cfg.train), None)
    if unknown:
        known = (*BATCH_FIELDS, *cfg.train, "label_pad_width")
        raise OptionError(f"the iterator has no argument {unknown!r}{did_you_mean(unknown, known)}")
    if label_pad_width > 0:
        more["max_objects"] = _rows(label_pad_width, more.get("max_objects"))
    settings = {name: value for name, value in more.items() if name in cfg.train}
    others = {name: value for name, value in more.items() if name not in settings}
    return BatchSpec(path_imgrec, batch_size, data_shape, **_views(settings, "augment" in others) | others)


def _views(settings: Mapping[str, Any], has_augment: bool) -> dict[str, Any]:
    """The fields of BatchSpec that settings of cfg mean; what is not among them does nothing, as in C++."""
    if has_augment:
        beside = next((name for name in settings if name not in BATCH_FIELDS), None)
        if beside:
            raise OptionError(f"augment and {beside} exclude each other; give one TrainAugment, or settings of cfg")
        return dict(settings)
    found = iterator_options(quiet_settings() | dict(settings))
    return found if "preprocess_threads" in settings else found | {"workers": None}


def _rows(label_pad_width: int, max_objects: int | None) -> int:
    """Rows of the label for so many numbers: the header, and the numbers of each object."""
    rows = (label_pad_width - HEADER_WIDTH) // OBJECT_WIDTH
    if max_objects is not None:
        raise OptionError("label_pad_width and max_objects exclude each other; give one of them")
    if rows < 1:
        least = HEADER_WIDTH + OBJECT_WIDTH
        raise OptionError(f"label_pad_width {label_pad_width} has no room for an object; give {least} or more, or 0")
    return rows
