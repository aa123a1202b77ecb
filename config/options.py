"""Options declared once, as dataclass fields: the command line, the YAML preset and the manifest are derived from them.

A field is declared with option(); its annotation is one of bool, int, float, str, tuple[int, ...], tuple[float, ...],
tuple[str, ...], or one of these with `| None`. Field batch_size is the flag --batch-size (--batch_size works too).
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from config.errors import OptionError

T = TypeVar("T")
PRESET_FOLDER = Path(__file__).parent / "presets"
MAX_PRESET_BYTES = 1 << 20


def option(
    default: Any,
    help: str,
    group: str = "options",
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declares a field: its default, help text, group in --help, allowed values and inclusive bounds."""
    metadata = {"help": help, "group": group, "choices": choices, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def parse_options(cls: type[T], argv: Sequence[str], description: str, *, presets: bool = False) -> T:
    """Reads argv into an instance of the option class cls.

    With presets=True, `--config NAME|FILE` is read first and the command line wins over it. A mistake raises
    OptionError (one sentence); --help prints the groups and ends the process with status 0.
    """
    parser = _build_parser(cls, description, presets)
    given = vars(parser.parse_args([_dashes(word) for word in argv]))
    values: dict[str, Any] = {}
    preset = given.pop("config", None)
    if preset:
        values.update(read_preset(cls, preset))
    for name, text in given.items():
        values[name] = _from_text(_fields(cls)[name], text)
    return from_mapping(cls, values)


def from_mapping(cls: type[T], values: dict[str, Any], origin: str = "") -> T:
    """Makes a checked instance of cls from {field: value}; unknown fields, types and bounds raise OptionError."""
    fields = _fields(cls)
    where = f" in {origin}" if origin else ""
    for name in values:
        if name not in fields:
            raise OptionError(f"unknown option {name!r}{where}{_suggestion(name, fields)}")
    checked = {name: _check(fields[name], value, where) for name, value in values.items()}
    return cls(**checked)


def to_mapping(options: Any) -> dict[str, Any]:
    """The instance as a dict of plain values that JSON and YAML can hold (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def read_preset(cls: type, name: str) -> dict[str, Any]:
    """Reads {option: value} of a YAML preset: a file's path, or the name of a file in config/presets."""
    path = Path(name)
    if not path.is_file():
        path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESET_FOLDER.glob("*.yaml")))
        raise OptionError(f"--config {name}: no such file, and no preset of that name (presets: {known})")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise OptionError(f"{path}: a preset is a list of `option: value` lines")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    from_mapping(cls, values, str(path))
    return values


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases (an alias bomb needs them, a preset does not)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        repeated = [key for k, key in enumerate(keys) if key in keys[:k]]
        if repeated:
            raise yaml.YAMLError(f"key {repeated[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Loads a small YAML file without executing anything; a damaged one raises OptionError naming the file."""
    try:
        if path.stat().st_size > MAX_PRESET_BYTES:
            raise OptionError(f"{path}: larger than {MAX_PRESET_BYTES} bytes, this is not a preset")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise OptionError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error


class _Parser(argparse.ArgumentParser):
    """ArgumentParser whose mistakes are OptionErrors and whose unknown flags come with a suggestion."""

    def error(self, message: str) -> typing.NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            known = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown option {word}{_suggestion(word.split('=')[0], known)}"
        raise OptionError(f"{message}; see {self.prog} --help")


def _build_parser(cls: type, description: str, presets: bool) -> _Parser:
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if presets:
        names = ", ".join(sorted(p.stem for p in PRESET_FOLDER.glob("*.yaml"))) or "none yet"
        parser.add_argument("--config", metavar="NAME|FILE", help=f"YAML preset, read before the flags ({names})")
    groups: dict[str, Any] = {}
    for name, field in _fields(cls).items():
        meta = field.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        group = groups[meta["group"]]
        flag = "--" + name.replace("_", "-")
        text = f"{meta['help']} (default: {_shown(field.default)})".replace("%", "%%")
        kind = _base_type(field)
        if kind is bool:
            group.add_argument(flag, nargs="?", const="true", metavar="true|false", help=text)
            group.add_argument(
                "--no-" + name.replace("_", "-"), dest=name, action="store_const", const="false", help=argparse.SUPPRESS
            )
        else:
            group.add_argument(flag, metavar=_metavar(field), help=text)
    return parser


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _dashes(word: str) -> str:
    """--nms_topk=3 -> --nms-topk=3; other words stay as they are."""
    if not word.startswith("--"):
        return word
    flag, sign, value = word.partition("=")
    return flag.replace("_", "-") + sign + value


def _suggestion(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


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
    return "--" + name.replace("_", "-")


def _from_text(field: dataclasses.Field, text: str) -> Any:
    """A command-line word as a value of the field's type; `none` is None where that is allowed."""
    kind = _base_type(field)
    if _is_optional(field) and text.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_scalar(field, item, part.strip()) for part in text.split(",") if part.strip())
    return _scalar(field, kind, text)


def _scalar(field: dataclasses.Field, kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise OptionError(f"{_flag(field.name)} takes true or false, not {text!r}")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        name = "a whole number" if kind is int else "a number"
        raise OptionError(f"{_flag(field.name)} takes {name}, not {text!r}") from None


def _check(field: dataclasses.Field, value: Any, where: str) -> Any:
    """Type, finiteness, choices and bounds of one value, whatever it was read from."""
    kind, flag = _base_type(field), _flag(field.name) + where
    if value is None:
        if _is_optional(field):
            return None
        raise OptionError(f"{flag} needs a value")
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_check_scalar(field, typing.get_args(kind)[0], item, flag) for item in items)
    return _check_scalar(field, kind, value, flag)


def _check_scalar(field: dataclasses.Field, kind: Any, value: Any, flag: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"{flag} takes {kind.__name__}, not {value!r}")
    meta = field.metadata
    if kind is float and not math.isfinite(value):
        raise OptionError(f"{flag} takes a finite number, not {value}")
    if meta["choices"] and value not in meta["choices"]:
        raise OptionError(f"{flag} is one of {', '.join(map(str, meta['choices']))}, not {value!r}")
    if meta["minimum"] is not None and value < meta["minimum"]:
        raise OptionError(f"{flag} is at least {meta['minimum']}, not {value}")
    if meta["maximum"] is not None and value > meta["maximum"]:
        raise OptionError(f"{flag} is at most {meta['maximum']}, not {value}")
    return value
