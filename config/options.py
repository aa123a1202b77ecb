"""Options declared once, as dataclass fields: the command line, the YAML preset and the manifest are derived from them.

A field is declared with option(); its annotation is one of bool, int, float, str, tuple[int, ...], tuple[float, ...],
tuple[str, ...], or one of these with `| None`. Field batch_size is the flag --batch-size (--batch_size works too), and
from_ is --from.
A text means the same on the command line and in a preset: `80,160` is a tuple, `none` is None (or the empty tuple). A
boolean is `--force`, `--no-force`, or `--force true|false`. An alias is another name of the same flag.
"""

import argparse
import dataclasses
import logging
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from common.errors import OptionError, did_you_mean

T = TypeVar("T")
PRESET_FOLDER = Path(__file__).parent / "presets"
MAX_PRESET_BYTES = 1 << 20
logger = logging.getLogger(__name__)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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
    obsolete: str = "",
) -> Any:
    """Declares a field: its default, help text, group in --help, allowed values and inclusive bounds.

    words tells how the value stands on the command line: "one" word after the flag, "several" words after the flag
    (`--exts .jpg .png`, tuples only), or "positional": one word without a flag, required.
    pattern: of a text, the regular expression that all of it matches, and what to call that in an error.
    aliases: further names of the flag (`gpu` is --gpu). obsolete: a sentence on what happens instead; who gives the
    option reads it.
    """
    metadata = {"help": help, "group": group, "choices": choices, "minimum": minimum, "maximum": maximum}
    metadata |= {"words": words, "pattern": pattern, "aliases": aliases, "obsolete": obsolete}
    return dataclasses.field(default=default, metadata=metadata)


def joined_options(name: str, *classes: type) -> type[Any]:
    """An option class with the fields of all the classes; ValueError where two declare one name differently."""
    found: dict[str, dataclasses.Field] = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        other = found.setdefault(field.name, field)
        if (other.type, other.default, other.metadata) != (field.type, field.default, field.metadata):
            raise ValueError(f"option {_flag(field.name)} is declared twice, and differently")
    bases = [cls for cls in classes if not any(cls in other.__mro__[1:] for other in classes)]
    joined = dataclasses.make_dataclass(name, (), bases=tuple(dict.fromkeys(bases)), frozen=True)
    joined.__module__, joined.__doc__ = classes[0].__module__, classes[0].__doc__
    return joined


def parse_options(
    cls: type[T],
    argv: Sequence[str],
    description: str,
    *,
    presets: bool = False,
    files: Mapping[str, Callable[[str], dict[str, Any]]] = MappingProxyType({}),
) -> T:
    """Reads argv into an instance of the option class cls.

    With presets=True, `--config NAME|FILE` is read first and the command line wins over it. files: flags `--NAME FILE`
    of files in other formats, and the functions that make {option: value} of them; they win over the preset. A mistake
    raises OptionError (one sentence); --help prints the groups and ends the process with status 0.
    """
    parser = _build_parser(cls, description, presets, tuple(files))
    given, unknown = parser.parse_known_args(_joined_words(cls, argv))
    if unknown:
        parser.refuse(unknown[0])
    values = {name: ",".join(v) if isinstance(v, list) else v for name, v in vars(given).items()}
    preset = values.pop("config", None)
    for name in [name for name in files if name in values]:
        path = values.pop(name)
        found = files[name](path)
        cls(**_checked(cls, found, path))
        values = found | values
    if preset is not None:
        values = read_preset(cls, preset) | values
    return from_mapping(cls, values)


def from_mapping(cls: type[T], values: dict[str, Any], origin: str = "") -> T:
    """Makes a checked instance of cls from {field: value}; unknown fields, types and bounds raise OptionError.

    An obsolete field is logged.
    """
    checked = _checked(cls, values, origin)
    for name in checked:
        if _fields(cls)[name].metadata["obsolete"]:
            logger.warning(_no_effect(_fields(cls)[name]))
    return cls(**checked)


def obsolete_options(options: Any) -> list[str]:
    """A sentence for each obsolete field of an instance that is not at its default, as from_mapping logs it."""
    given = (field for field in dataclasses.fields(options) if getattr(options, field.name) != field.default)
    return [_no_effect(field) for field in given if field.metadata["obsolete"]]


def _no_effect(field: dataclasses.Field) -> str:
    return f"{_flag(field.name)} has no effect: {field.metadata['obsolete']}"


def boolean_flags(cls: type) -> set[str]:
    """The flags, aliases included, of the boolean fields of an option class: they need no value."""
    return {flag for field in _fields(cls).values() if _base_type(field) is bool for flag in _flags(field)}


def to_mapping(options: Any) -> dict[str, Any]:
    """The instance as a dict of plain values that JSON and YAML can hold (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def read_preset(cls: type, name: str, flag: str = "--config") -> dict[str, Any]:
    """Reads {option: value} of a YAML preset: a file's path, or the name of a file in config/presets.

    flag: the option that gave the name, for OptionError.
    """
    path = name if os.path.isfile(name) else os.path.join(PRESET_FOLDER, f"{name}.yaml")
    if not os.path.isfile(path):
        raise OptionError(f"{flag} {name}: no such file, and no preset of that name (presets: {_preset_names()})")
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise OptionError(f"{path}: a preset is a list of `option: value` lines")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(values) < len(content):
        raise OptionError(f"{path}: an option is given twice, once with a dash and once with an underscore")
    cls(**_checked(cls, values, str(path)))
    return values


# What PyYAML lets through for values that do not fit their tag, such as 2020-99-99, `!!int ""` or `!!bool maybe`.
_YAML_VALUE_ERRORS = (ValueError, LookupError, TypeError, AttributeError)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases (an alias bomb needs them, a preset does not)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice")
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


class _TextLoader(_StrictLoader):
    """The same, but numbers, dates and words like `yes` stay the text that they are."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - declared so by PyYAML


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """Loads a small YAML file without executing anything; one that is missing or damaged raises OptionError naming it.

    as_text: numbers stay texts, with all their digits.
    """
    try:
        if path.stat().st_size > MAX_PRESET_BYTES:
            raise OptionError(f"{path}: larger than {MAX_PRESET_BYTES} bytes, this is not a preset")
        loader = _TextLoader if as_text else _StrictLoader
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, RecursionError, *_YAML_VALUE_ERRORS) as error:
        raise OptionError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error


class _Parser(argparse.ArgumentParser):
    """ArgumentParser whose mistakes are OptionErrors and whose unknown flags come with a suggestion."""

    def error(self, message: str) -> typing.NoReturn:
        raise OptionError(f"{message}; see {self.prog} --help")

    def refuse(self, word: str) -> typing.NoReturn:
        """Names a word that is neither a flag nor the value of one."""
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}")
        known = [flag for action in self._actions for flag in action.option_strings]
        self.error(f"unknown option {word}{did_you_mean(word.split('=')[0], known)}")


def _build_parser(cls: type, description: str, presets: bool, files: Sequence[str] = ()) -> _Parser:
    parser = _Parser(
        description=description,
        usage=" ".join(["%(prog)s", *_positionals(cls), "[--option value ...]"]),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if presets:
        text = f"YAML preset, read before the flags ({_preset_names()})"
        parser.add_argument("--config", metavar="NAME|FILE", help=text)
    for name in files:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{name} file of another trainer, read after the preset")
    groups: dict[str, Any] = {"options": parser}
    for name, field in _fields(cls).items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], name, field)
    return parser


def _add_flag(group: Any, name: str, field: dataclasses.Field) -> None:
    text = field.metadata["help"]
    if field.metadata["words"] == "positional":
        group.add_argument(name, metavar=name.upper(), help=text.replace("%", "%%"))
        return
    if "(default" not in text:  # a help text may tell what a default of none stands for
        text += f" (default: {_shown(field.default)})"
    text = text.replace("%", "%%")
    if _base_type(field) is not bool:
        nargs = "+" if field.metadata["words"] == "several" else None
        group.add_argument(*_flags(field), dest=name, metavar=_metavar(field), help=text, nargs=nargs)
        return
    group.add_argument(*_flags(field), dest=name, nargs="?", const="true", metavar="true|false", help=text)
    opposites = [f"--no-{flag[2:]}" for flag in _flags(field)]
    group.add_argument(*opposites, dest=name, action="store_const", const="false", help=argparse.SUPPRESS)


def _joined_words(cls: type, argv: Sequence[str]) -> list[str]:
    """--nms_topk -1 -> --nms-topk=-1, --force no -> --force=no, --force FILE -> --force=true FILE; others unchanged.

    argparse would take -1e-3 or -1,2 for a flag, and any word for the value of a boolean.
    """
    booleans = boolean_flags(cls)
    words: list[str] = []
    for word in argv:
        if words and words[-1] in booleans:
            words[-1] += f"={word}" if is_truth(word) else "=true"
            if is_truth(word):
                continue
        if words and re.match(r"--[a-z][^=]*$", words[-1]) and re.match(r"-[\d.]", word):
            words[-1] += f"={word}"
        else:
            words.append(_dashes(word))
    return words


def is_truth(word: str) -> bool:
    """Whether a word is a value of a boolean: true, false, yes, no, 1, 0."""
    return word.lower() in _TRUTH


def _positionals(cls: type) -> list[str]:
    return [name.upper() for name, field in _fields(cls).items() if field.metadata["words"] == "positional"]


def _preset_names() -> str:
    return ", ".join(sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))) or "none yet"


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _dashes(word: str) -> str:
    """--nms_topk=3 -> --nms-topk=3; other words stay as they are."""
    if not word.startswith("--"):
        return word
    flag, sign, value = word.partition("=")
    return flag.replace("_", "-") + sign + value


def _base_type(field: dataclasses.Field) -> Any:
    """The annotation without `| None`: bool, int, float, str or tuple[X, ...]."""
    kind: Any = field.type
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _is_optional(field: dataclasses.Field) -> bool:
    return isinstance(field.type, types.UnionType)


def _metavar(field: dataclasses.Field) -> str:
    if field.metadata["choices"]:
        return "|".join(str(choice) for choice in field.metadata["choices"])
    kind = _base_type(field)
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0].__name__.upper() + ",..."
    return kind.__name__.upper()


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value) if value != "" else "''"


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # field from_ is the flag --from


def _flags(field: dataclasses.Field) -> list[str]:
    return [_flag(name) for name in (field.name, *field.metadata["aliases"])]


def _parts(field: dataclasses.Field, text: str) -> Any:
    """A text as None or a tuple of texts, where the field can be that; otherwise the text."""
    nothing = text.strip().lower() == "none"
    if nothing and _is_optional(field):
        return None
    if typing.get_origin(_base_type(field)) is not tuple:
        return text
    return () if nothing else tuple(part.strip() for part in text.split(",") if part.strip())


def _checked(cls: type, values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The values of known fields, checked; OptionError for unknown ones."""
    fields = _fields(cls)
    where = f" in {origin}" if origin else ""
    for name in values:
        if name not in fields:
            raise OptionError(f"unknown option {name!r}{where}{did_you_mean(name, fields)}")
    return {name: _check(fields[name], value, where) for name, value in values.items()}


def _check(field: dataclasses.Field, value: Any, where: str) -> Any:
    """Type, finiteness, choices and bounds of one value, whatever it was read from."""
    kind, flag = _base_type(field), _flag(field.name) + where
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
    value = _converted(kind, value, flag)
    meta = field.metadata
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


def _converted(kind: Any, value: Any, flag: str) -> Any:
    """The value as kind: a text may stand for a number or a truth value, a number for a text, nothing else."""
    accepted = {bool: (bool, str), int: (int, str), float: (float, int, str), str: (str, int, float)}[kind]
    try:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        return _TRUTH[value.lower()] if kind is bool and isinstance(value, str) else kind(value)
    except (TypeError, KeyError, ValueError, OverflowError):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise OptionError(f"{flag} takes {names[kind]}, not {value!r:.80}") from None
