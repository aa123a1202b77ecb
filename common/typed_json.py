"""JSON from files that may be damaged: its values checked against type hints."""

import dataclasses
import json
import sys
import types
import typing
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


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which fields of dataclasses may be missing, and what becomes of unknown ones.

    Attributes:
        needed: fields that must be there although they have a default; those without one always must.
        ignores_unknown: whether unknown fields are passed over; otherwise they are refused.
    """

    needed: frozenset[str] = frozenset()
    ignores_unknown: bool = False


STRICT = Rules()


def typed(kind: Any, value: Any, where: str, rules: Rules = STRICT) -> Any:
    """value, out of JSON, as an instance of `kind`: a dataclass, tuple[X, ...], dict[str, X], X | None, scalar or Any.

    rules: those of the dataclasses' fields. ValueError names the value by its path, which begins with `where`.
    """
    arguments = typing.get_args(kind)
    if kind is Any:
        return value
    if typing.get_origin(kind) is types.UnionType:  # X | None
        return None if value is None else typed(arguments[0], value, where, rules)
    if typing.get_origin(kind) is tuple:
        _require(value, list, where)
        return tuple(typed(arguments[0], item, where, rules) for item in value)
    if typing.get_origin(kind) is dict:
        _require(value, dict, where)
        return {name: typed(arguments[1], item, f"{where}.{name:.50}", rules) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _instance(kind, value, where, rules)
    _require(value, kind, where)
    return kind(value)


def _instance(kind: Any, value: Any, where: str, rules: Rules) -> Any:
    _require(value, dict, where)
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    missing = next((name for name in fields if name not in value and _is_needed(fields[name], rules)), None)
    if missing:
        raise ValueError(f"{missing} is missing in {where}")
    unknown = next((name for name in value if name not in fields), None)
    if unknown is not None and not rules.ignores_unknown:
        raise ValueError(f"{where} has the unknown key {unknown!r:.50}, written by a later version, or edited")
    return kind(**{name: typed(hints[name], value[name], f"{where}.{name}", rules) for name in fields if name in value})


def _is_needed(field: dataclasses.Field[Any], rules: Rules) -> bool:
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    return not has_default or field.name in rules.needed


def _require(value: Any, kind: type, where: str) -> None:
    """ValueError unless value, out of JSON, has this type; whole numbers are numbers, booleans and infinity are not."""
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed or (kind is float and not abs(value) <= sys.float_info.max):
        raise ValueError(f"{where} is not of type {kind.__name__}: {value!r:.50}")
