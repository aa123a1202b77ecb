"""The families that there are, and their tables of networks. Reading it imports no mxnet (machine/runtime.py is lazy).

A new family is one file in symbol/detector/ and a line here; a new network is a row in its family's table.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from common.errors import OptionError, did_you_mean
from config.options import fields_of, joined_options, optional_class
from symbol.detector.efficientdet import ROWS as EFFDET_ROWS
from symbol.detector.efficientdet import EfficientDet
from symbol.detector.ssd import SSD
from symbol.detector.ssd_rows import ROWS as SSD_ROWS
from symbol.detector.yolo import ROWS as YOLO_ROWS
from symbol.detector.yolo import YOLOv3
from symbol.family import Family

_families: list[Family] = [SSD(SSD_ROWS), YOLOv3(YOLO_ROWS), EfficientDet(EFFDET_ROWS)]


def families() -> tuple[Family, ...]:
    """The registered families, in the order of their registration."""
    return tuple(_families)


def networks() -> dict[str, tuple[Family, Any]]:
    """{name: (family, row)} of all tables, sorted by name."""
    return {name: (family, family.rows[name]) for name, family in sorted(_named())}


def list_networks() -> list[str]:
    """Names of all networks, sorted."""
    return list(networks())


def family_of(network: str) -> Family:
    """The family of a network; OptionError for an unknown name, with the known ones."""
    found = next((family for family in _families if family.has(network)), None)
    if found is None:
        names = list_networks()
        patterns = [family.pattern for family in _families if family.pattern]
        raise OptionError(
            f"--network {network}: unknown{did_you_mean(network, names)}; known: {', '.join([*names, *patterns])}"
        )
    return found


def register_family(family: Family) -> None:
    """Adds a family; ValueError where one of its networks has the name of another's."""
    taken = sorted(name for name in family.rows if any(other.has(name) for other in _families))
    if taken:
        raise ValueError(f"{family.name}: {taken[0]} is a network of another family")
    _families.append(family)


def register_network(family: type[Family], name: str, row: Any) -> None:
    """Adds a network to the table of a registered family; ValueError for a name that is taken."""
    if any(other.has(name) for other in _families):
        raise ValueError(f"{name} is a network already")
    next(one for one in _families if isinstance(one, family)).rows[name] = row


def network_options_class() -> type[Any]:
    """The options of all families in one class: what the command line offers and a checkpoint holds."""
    return _joined(tuple(family.options for family in _families))


def detection_options_class() -> type[Any]:
    """Those of these options that turn predictions into detections, None where they are not given: as in training."""
    cls = network_options_class()
    names = [name for name, field in fields_of(cls).items() if field.metadata["detection"]]
    return optional_class("DetectionOptions", cls, names, "Detection settings in place of a trained model's own.")


def given_detection(options: Any) -> dict[str, Any]:
    """The detection settings that were given: {name: value}."""
    values = {name: getattr(options, name) for name in fields_of(detection_options_class())}
    return {name: value for name, value in values.items() if value is not None}


@cache
def _joined(classes: tuple[type, ...]) -> type[Any]:
    return joined_options("NetworkOptions", *classes)


def _named() -> Iterator[tuple[str, Family]]:
    return ((name, family) for family in _families for name in family.rows)
