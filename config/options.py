"""Options declared once, as dataclass fields: the command line, the YAML preset and the manifest are derived from them.

A field is declared with option(); its annotation is one of bool, int, float, str, tuple[int, ...], tuple[float, ...],
tuple[str, ...], or one of these with `| None`. A field whose type is an option class is a group: its options have the
same flat flags and preset lines as if they were the class's own. A text means the same on the command line
(config/command_line.py) and in a preset: `80,160` is a tuple, `none` is None (or the empty tuple). An alias is another
name of the same option.
"""

import dataclasses
import logging
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from common.errors import OptionError, did_you_mean

T = TypeVar("T", bound=Any)
DATA_SHAPE_FORM = "a whole number, or height,width"
CLASSIC = "classic, checked or without effect"  # the group that --help-all shows last
logger = logging.getLogger(__name__)
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def option(
    default: Any,
    help: str,
    group: str = "options",
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    words: str = "one",
    pattern: tuple[str, str] | None = None,
    aliases: tuple[str, ...] = (),
    hidden: Mapping[str, str] = MappingProxyType({}),
    obsolete: str = "",
    detection: bool = False,
    form: str = "",
) -> Any:
    """Declares a field: its default, help text, group in --help, allowed values and inclusive bounds.

    words tells how the value stands on the command line: "one" word after the flag, "several" words after the flag
    (`--exts .jpg .png`, tuples only), or "positional": one word without a flag, required.
    pattern: of a text, the regular expression that all of it matches, and what to call that in an error.
    aliases: further names of the flag (`gpu` is --gpu). hidden: names that work, too, but are in no help, each with the
    sentence for a value that the option does not take. obsolete: a sentence on what happens instead; who gives the
    option reads it. detection: of a network, evaluate.py and deploy.py may set another value than training had.
    form: what a value looks like, for the error where it is not of the field's type.
    """
    metadata: dict[str, Any] = {
        "help": help,
        "group": group,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
    }
    metadata |= {"words": words, "pattern": pattern, "aliases": aliases, "hidden": hidden, "obsolete": obsolete}
    metadata |= {"detection": detection, "form": form}
    return dataclasses.field(default=default, metadata=metadata)


def joined_options(name: str, *classes: type) -> type[Any]:
    """An option class with the fields of all the classes, those of the first one first.

    ValueError where two declare one name differently.
    """
    found: dict[str, dataclasses.Field] = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        other = found.setdefault(field.name, field)
        if (other.type, other.default, other.metadata) != (field.type, field.default, field.metadata):
            raise ValueError(f"option {flag_of(field.name)} is declared twice, and differently")
    bases = [cls for cls in classes if not any(cls in other.__mro__[1:] for other in classes)]
    joined = dataclasses.make_dataclass(name, (), bases=tuple(dict.fromkeys(reversed(bases))), frozen=True)
    joined.__module__, joined.__doc__ = classes[0].__module__, classes[0].__doc__
    return joined


def same_option(cls: type, name: str, note: str | None = "as in training") -> Any:
    """The field `name` of an option class once more, for one that takes it from elsewhere unless it is given.

    Its default is None, or () where that is the option's own, and its help ends with note; all else is as declared.
    Where note is None the default is as declared, too.
    """
    field = fields_of(cls)[name]
    if note is None:
        return dataclasses.field(default=field.default, metadata=field.metadata)
    text = re.sub(r" \(default: .*\)$", "", field.metadata["help"])
    metadata = {**field.metadata, "help": f"{text} (default: {note})"}
    return dataclasses.field(default=() if field.default == () else None, metadata=metadata)


def optional_class(name: str, cls: type, names: Sequence[str], doc: str) -> type[Any]:
    """An option class with the fields `names` of cls as same_option declares them."""
    kinds = {field.name: field.type for field in fields_of(cls).values()}
    made = [(one, _or_none(kinds[one]), same_option(cls, one)) for one in names]
    found = dataclasses.make_dataclass(name, made, frozen=True)
    found.__module__, found.__doc__ = cls.__module__, doc
    return found


def _or_none(kind: Any) -> Any:
    return kind | None


def group(cls: Any) -> Any:
    """Declares a field that is a group of options, of the class that the field is annotated with."""
    return dataclasses.field(default_factory=cls)


def from_mapping(cls: type[T], values: dict[str, Any], origin: str = "") -> T:
    """Makes a checked instance of cls from {field: value}; unknown fields, types and bounds raise OptionError.

    An obsolete field is logged.
    """
    checked = check_values(cls, values, origin)
    for name in checked:
        if fields_of(cls)[name].metadata["obsolete"]:
            logger.warning(_no_effect(fields_of(cls)[name]))
    return build(cls, checked)


def with_values(cls: type[T], **values: Any) -> T:
    """An instance of cls with these values of its options, whatever group they are in; values are taken as they are."""
    return build(cls, values)


def replace_options(options: T, **values: Any) -> T:
    """The options with other values, whatever group they are in."""
    own = {name: value for name, value in values.items() if name in {f.name for f in dataclasses.fields(options)}}
    groups = {name: getattr(options, name) for name, _ in groups_of(type(options))}
    for name, part in groups.items():
        inner = {field: values[field] for field in fields_of(type(part)) if field in values}
        if inner:
            own[name] = replace_options(part, **inner)
    unknown = set(values) - set(fields_of(type(options))) - set(groups)
    if unknown:
        raise TypeError(f"no option is called {', '.join(sorted(unknown))}")
    return dataclasses.replace(options, **own)


def flat_values(options: Any) -> dict[str, Any]:
    """{option: value} of an instance with all its groups."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        found |= flat_values(value) if _is_group(field) else {field.name: value}
    return found


def obsolete_options(options: Any) -> list[str]:
    """A sentence for each obsolete field of an instance that is not at its default, as from_mapping logs it."""
    values = flat_values(options)
    given = (field for name, field in fields_of(type(options)).items() if values[name] != field.default)
    return [_no_effect(field) for field in given if field.metadata["obsolete"]]


def _no_effect(field: dataclasses.Field) -> str:
    return f"{flag_of(field.name)} has no effect: {field.metadata['obsolete']}"


def to_mapping(options: Any) -> dict[str, Any]:
    """The instance as a dict of plain values that JSON and YAML can hold (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat_values(options).items()}


def fields_of(cls: type) -> Mapping[str, dataclasses.Field]:
    """The options of a class and of its groups, by name."""
    return _fields_of(cls)


@cache
def _fields_of(cls: Any) -> Mapping[str, dataclasses.Field]:
    found: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(cls):
        more = fields_of(_group_class(field)) if _is_group(field) else {field.name: field}
        twice = next((name for name in more if name in found), None)
        if twice:
            raise ValueError(f"{cls.__name__}: {flag_of(twice)} is declared twice")
        found |= more
    return MappingProxyType(found)


def groups_of(cls: type) -> list[tuple[str, type]]:
    """(name, class) of the groups of an option class."""
    return [(field.name, _group_class(field)) for field in dataclasses.fields(cls) if _is_group(field)]


def _is_group(field: dataclasses.Field) -> bool:
    return "help" not in field.metadata


def _group_class(field: dataclasses.Field) -> Any:
    return field.default_factory


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of cls from flat values; TypeError for a name that is no option."""
    left = dict(values)
    groups: dict[str, Any] = {}
    for name, inner in groups_of(cls):
        groups[name] = build(inner, {field: left.pop(field) for field in fields_of(inner) if field in left})
    return cls(**groups, **left)


def base_type(field: dataclasses.Field) -> Any:
    """The annotation without `| None`: bool, int, float, str or tuple[X, ...]."""
    kind: Any = field.type
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _is_optional(field: dataclasses.Field) -> bool:
    return isinstance(field.type, types.UnionType)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.rstrip("_").replace("_", "-")  # field from_ is the flag --from


def _parts(field: dataclasses.Field, text: str) -> Any:
    """A text as None or a tuple of texts, where the field can be that; otherwise the text."""
    nothing = text.strip().lower() == "none"
    if nothing and _is_optional(field):
        return None
    if typing.get_origin(base_type(field)) is not tuple:
        return text
    return () if nothing else tuple(part.strip() for part in text.split(",") if part.strip())


def check_values(cls: type, values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The values of known fields, checked; OptionError for unknown ones."""
    fields = fields_of(cls)
    where = f" in {origin}" if origin else ""
    own = {
        alias: name
        for name, field in fields.items()
        for alias in (*field.metadata["aliases"], *field.metadata["hidden"], name)
    }
    for name in values:
        if name not in own:
            raise OptionError(f"unknown option {name!r}{where}{did_you_mean(name, fields)}; correct it or leave it out")
    return {own[name]: _check_named(fields[own[name]], name, value, where) for name, value in values.items()}


def _check_named(field: dataclasses.Field, name: str, value: Any, where: str) -> Any:
    """_check of a value that was given under this name of the field."""
    try:
        return _check(field, value, where)
    except OptionError:
        if name not in field.metadata["hidden"]:
            raise
        raise OptionError(f"{flag_of(name)}{where} {field.metadata['hidden'][name]}, not {value!r:.80}") from None


def _check(field: dataclasses.Field, value: Any, where: str) -> Any:
    """Type, finiteness, choices and bounds of one value, whatever it was read from."""
    kind, flag = base_type(field), flag_of(field.name) + where
    if isinstance(value, str):
        value = _parts(field, value)
    if value is None:
        if _is_optional(field):
            return None
        raise OptionError(f"{flag} needs a value")
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_check_scalar(field, typing.get_args(kind)[0], item, flag) for item in items)
    return _check_scalar(field, kind, value, flag)


def _check_scalar(field: dataclasses.Field, kind: Any, value: Any, flag: str) -> Any:
    meta = field.metadata
    value = _converted(kind, value, flag, meta["form"])
    if kind is float and not math.isfinite(value):
        raise OptionError(f"{flag} takes a finite number, not {value}")
    if meta["choices"] and value not in meta["choices"]:
        raise OptionError(f"{flag} is one of {', '.join(map(str, meta['choices']))}, not {value!r}")
    if meta["pattern"] and not re.fullmatch(meta["pattern"][0], value):
        raise OptionError(f"{flag} takes {meta['pattern'][1]}, not {value!r:.80}")
    if meta["minimum"] is not None and value < meta["minimum"]:
        raise OptionError(f"{flag} is at least {meta['minimum']}, not {value}")
    if meta["maximum"] is not None and value > meta["maximum"]:
        raise OptionError(f"{flag} is at most {meta['maximum']}, not {value}")
    return value


def _converted(kind: Any, value: Any, flag: str, form: str) -> Any:
    """The value as kind: a text may stand for a number or a truth value, a number for a text, nothing else."""
    accepted = {bool: (bool, str), int: (int, str), float: (float, int, str), str: (str, int, float)}[kind]
    try:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        return TRUTH[value.lower()] if kind is bool and isinstance(value, str) else kind(value)
    except (TypeError, KeyError, ValueError, OverflowError):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise OptionError(f"{flag} takes {form or names[kind]}, not {value!r:.80}") from None


def without_effect(options: Any, groups: Iterable[tuple[tuple[str, ...], str]]) -> list[str]:
    """A sentence for each option that is not at its default although another one keeps it from having an effect.

    groups: names of options, and why they have none (`with --dtype float32`).
    """
    values = flat_values(options)
    given = {name for name, field in fields_of(type(options)).items() if values[name] != field.default}
    return [
        f"--{name.replace('_', '-')} has no effect {reason}"
        for names, reason in groups
        for name in names
        if name in given
    ]
