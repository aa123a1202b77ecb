"""The command line of an option class: its flags, its help, and its values out of the words.

Field batch_size is the flag --batch-size (--batch_size works too), and from_ is --from. A boolean is `--force`,
`--no-force`, or `--force true|false`.
"""

import argparse
import dataclasses
import re
import shutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from common.errors import OptionError, did_you_mean
from config.options import CLASSIC, TRUTH, base_type, build, check_values, fields_of, flag_of, from_mapping
from config.preset import preset_names, read_preset

T = TypeVar("T")


def parse_options(
    cls: type[T],
    argv: Sequence[str],
    description: str,
    *,
    presets: bool = False,
    files: Mapping[str, Callable[[str], dict[str, Any]]] = MappingProxyType({}),
    example: str = "",
    first: Sequence[str] = (),
) -> T:
    """Reads argv into an instance of the option class cls.

    With presets=True, `--config NAME|FILE` is read first and the command line wins over it. files: flags `--NAME FILE`
    of files in other formats, and the functions that make {option: value} of them; they win over the preset. A mistake
    raises OptionError (one sentence). --help shows the example and, where there are any, the options `first` alone;
    --help-all shows all of them. Both end the process with status 0.
    """
    _show_help(cls, argv, _Texts(description, example, tuple(first)), presets, tuple(files))
    parser = _build_parser(cls, presets, tuple(files))
    given, unknown = parser.parse_known_args(_joined_words(cls, argv))
    if unknown:
        parser.refuse(unknown[0])
    values = {name: ",".join(v) if isinstance(v, list) else v for name, v in vars(given).items()}
    preset = values.pop("config", None)
    for name in [name for name in files if name in values]:
        path = values.pop(name)
        found = files[name](path)
        build(cls, check_values(cls, found, path))
        values = found | values
    if preset is not None:
        values = read_preset(cls, preset) | values
    return from_mapping(cls, values)


def boolean_flags(cls: type) -> set[str]:
    """The flags, aliases included, of the boolean fields of an option class: they need no value."""
    return {flag for field in fields_of(cls).values() if base_type(field) is bool for flag in _flags(field)}


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


class _Texts(typing.NamedTuple):
    """What --help says beside the options, and the names of those that it shows."""

    description: str
    example: str
    first: tuple[str, ...]


def _show_help(cls: type, argv: Sequence[str], texts: _Texts, presets: bool, files: Sequence[str]) -> None:
    """Prints the help that argv asks for and ends the process; a value that looks like the flag is none."""
    if not {"-h", "--help", "--help-all"} & set(argv):
        return
    short = texts.first if "--help-all" not in argv else ()
    parser = _build_parser(cls, presets and not short, () if short else files, short)
    parser.description = texts.description + (f"\n\nExample: {texts.example}" if texts.example else "")
    if short:
        more = len(fields_of(cls)) - len(short)
        parser.epilog = f"{more} more options: --help-all. Presets: --config NAME|FILE ({preset_names()})"
        parser.epilog = parser.epilog if presets else f"{more} more options: --help-all"
    parser.print_help()
    sys.exit(0)


def _build_parser(cls: type, presets: bool, files: Sequence[str] = (), names: Sequence[str] = ()) -> _Parser:
    """The parser of a class; names: those of the options that it has, in their order, () = all."""
    parser = _Parser(
        usage=" ".join(["%(prog)s", *_positionals(cls), "[--option value ...]"]),
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_HelpFormatter,
    )
    if presets:
        text = f"YAML preset, read before the flags ({preset_names()})"
        parser.add_argument("--config", metavar="NAME|FILE", help=text)
    for name in files:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{name} file of another trainer, read after the preset")
    fields = fields_of(cls)
    groups: dict[str, Any] = {"options": parser}
    for name in names or sorted(fields, key=lambda name: _is_classic(fields[name])):
        title = "options" if names else _title(fields[name])
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], name, fields[name])
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of the description, and leaves more room for flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(110, shutil.get_terminal_size().columns))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(_HelpFormatter, self)._fill_text(line, width, indent) for line in text.split("\n"))


def _is_classic(field: dataclasses.Field) -> bool:
    return bool(field.metadata["obsolete"]) or field.metadata["group"] == CLASSIC


def _title(field: dataclasses.Field) -> str:
    return CLASSIC if _is_classic(field) else field.metadata["group"]


def _add_flag(group: Any, name: str, field: dataclasses.Field) -> None:
    text = field.metadata["help"]
    if field.metadata["words"] == "positional":
        group.add_argument(name, metavar=name.upper(), help=text.replace("%", "%%"))
        return
    is_plain = field.default in ("", None, False, ())
    if "(default" not in text and not is_plain:  # a help text may tell what a default of none stands for
        text += f" (default: {_shown(field.default)})"
    text = text.replace("%", "%%")
    if base_type(field) is not bool:
        nargs = "+" if field.metadata["words"] == "several" else None
        group.add_argument(*_flags(field), dest=name, metavar=_metavar(field), help=text, nargs=nargs)
        for alias in field.metadata["hidden"]:
            group.add_argument(flag_of(alias), dest=alias, help=argparse.SUPPRESS)
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
    return word.lower() in TRUTH


def _positionals(cls: type) -> list[str]:
    return [name.upper() for name, field in fields_of(cls).items() if field.metadata["words"] == "positional"]


def _dashes(word: str) -> str:
    """--nms_topk=3 -> --nms-topk=3; other words stay as they are."""
    if not word.startswith("--"):
        return word
    flag, sign, value = word.partition("=")
    return flag.replace("_", "-") + sign + value


def _metavar(field: dataclasses.Field) -> str:
    if field.metadata["choices"]:
        return "|".join(str(choice) for choice in field.metadata["choices"])
    kind = base_type(field)
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0].__name__.upper() + ",..."
    return kind.__name__.upper()


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value) if value != "" else "''"


def _flags(field: dataclasses.Field) -> list[str]:
    return [flag_of(name) for name in (field.name, *field.metadata["aliases"])]
