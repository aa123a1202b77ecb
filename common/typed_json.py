"""JSON from files that may be damaged: its values checked against type hints."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Collection
from typing import Any


def parse_json(text: str, *, infinite: bool = False) -> Any:
    """The value of a JSON text; ValueError for what is none, or nested too deeply.

    infinite: whether NaN and Infinity are allowed, which Python writes although JSON has none.
    """
    try:
        return json.loads(text, parse_constant=None if infinite else _no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def typed(kind: Any, value: Any, where: str, optional: Collection[str] = ()) -> Any:
    """value, out of JSON, as an instance of `kind`: a dataclass, tuple[X, ...], dict[str, X], X | None, scalar or Any.

    optional: fields of dataclasses that may be missing; unknown ones are ignored. ValueError names the value by its
    path, which begins with `where`.
    """
    arguments = typing.get_args(kind)
    if kind is Any:
        return value
    if typing.get_origin(kind) is types.UnionType:  # X | None
        return None if value is None else typed(arguments[0], value, where, optional)
    if typing.get_origin(kind) is tuple:
        _require(value, list, where)
        return tuple(typed(arguments[0], item, where, optional) for item in value)
    if typing.get_origin(kind) is dict:
        _require(value, dict, where)
        return {name: typed(arguments[1], item, f"{where}.{name:.50}", optional) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _instance(kind, value, where, optional)
    _require(value, kind, where)
    return kind(value)


def _instance(kind: Any, value: Any, where: str, optional: Collection[str]) -> Any:
    _require(value, dict, where)
    hints = typing.get_type_hints(kind)
    missing = next((name for name in hints if name not in value and name not in optional), None)
    if missing:
        raise ValueError(f"{missing} is missing in {where}")
    found = {name: hint for name, hint in hints.items() if name in value}
    return kind(**{name: typed(hint, value[name], f"{where}.{name}", optional) for name, hint in found.items()})


def _require(value: Any, kind: type, where: str) -> None:
    """ValueError unless value, out of JSON, has this type; whole numbers are numbers, booleans and infinity are not."""
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed or (kind is float and not abs(value) <= sys.float_info.max):
        raise ValueError(f"{where} is not of type {kind.__name__}: {value!r:.50}")
