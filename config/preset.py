"""Small YAML files, read without executing anything, and presets: lists of `option: value` lines."""

import os
from pathlib import Path
from typing import Any

import yaml

from common.errors import OptionError, did_you_mean
from config.options import build, check_values

PRESET_FOLDER = Path(__file__).parent / "presets"
MAX_PRESET_BYTES = 1 << 20


def read_preset(cls: type, name: str, flag: str = "--config") -> dict[str, Any]:
    """Reads {option: value} of a YAML preset: a file's path, or the name of a file in config/presets.

    flag: the option that gave the name, for OptionError.
    """
    path = name if os.path.isfile(name) else os.path.join(PRESET_FOLDER, f"{name}.yaml")
    if not os.path.isfile(path):
        hint = did_you_mean(name, _names())
        raise OptionError(f"{flag} {name}: no such file, and no preset of that name{hint}; presets: {preset_names()}")
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise OptionError(f"{path}: a preset is a list of `option: value` lines")
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(values) < len(content):
        raise OptionError(f"{path}: an option is given twice, once with a dash and once with an underscore")
    build(cls, check_values(cls, values, str(path)))
    return values


def preset_names() -> str:
    """Names of the presets of this project, for a sentence."""
    return ", ".join(_names()) or "none yet"


def _names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


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
