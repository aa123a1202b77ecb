"""JSON files that show damage: a format number, the fields of a dataclass, and a digest of both.

The digest is the sha256 of everything else in the file as JSON of one form (`content_digest`): whatever changes a value
or a name, such as one flipped bit, is found before the value is used. Files of format 1 were written before there were
digests; they are read with what that version took for granted, and a warning.

A later key is a field with a default that means what was done before it: files without the key stay readable, and
versions without the field refuse the key by its name.

Values are checked against the dataclass's type hints (`typed`).
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT, DIGEST = "format", "digest"  # first and last key of each file
SIGN = "python tools/sign_metadata.py"  # the remedy for a file that was edited on purpose
UNSIGNED = 1  # the format of files without digest, where they have a number

logger = logging.getLogger(__name__)
T = TypeVar("T", bound="DataclassInstance")
_reported: set[str] = set()  # files of format 1


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


@dataclass(frozen=True)
class SignedKind(Generic[T]):
    """One kind of file.

    Attributes:
        content: the dataclass of its fields, none of them called format or digest; its __post_init__ may raise
            ValueError.
        name: what sentences call it.
        format: the number that this version writes, above 1.
        always: the keys that format 1 had in each file although they have a default now; `format` is one of them, if
            the number stood there.
        infinite: whether NaN and Infinity are among the values.
        max_bytes: of a file.
    """

    content: type[T]
    name: str
    format: int
    always: frozenset[str] = frozenset()
    infinite: bool = False
    max_bytes: int = 4 << 20

    def to_json(self, value: T) -> str:
        """The text of a file, signed. ValueError for a number that JSON does not have, unless these are allowed."""
        fields = {FORMAT: self.format, **dataclasses.asdict(value)}
        values = json.loads(json.dumps(fields, allow_nan=self.infinite))  # as they are read: tuples are lists
        signed = {**values, DIGEST: content_digest(values)}
        text = json.dumps(signed, indent=1, ensure_ascii=False)
        if re.search("[\ud800-\udfff]", text):  # a path that is no UTF-8
            text = json.dumps(signed, indent=1)
        return text + "\n"

    def read(self, path: Path) -> T:
        """The content of a file; OSError, or ValueError that says what is wrong with it."""
        return self.from_json(read_text(path, self.max_bytes), path)

    def from_json(self, text: str, origin: str | Path) -> T:
        """The content of the text of the file `origin`; ValueError says what is wrong with it.

        A file of format 1 is reported in one line of the log, the first time that this process reads it.
        """
        values = self._parse(text)
        if not is_unsigned(values):
            _check_digest(values)
            return self._check(values, STRICT)
        value = self._check(values, Rules(self.always, ignores_unknown=True))
        _report_unsigned(os.path.abspath(origin))
        return value

    def from_edited(self, text: str) -> T:
        """The content of a text that was edited: its digest may be wrong. ValueError says why it cannot be signed; that
        it has unknown keys is a reason in format 1, too."""
        values = self._parse(text)
        return self._check(values, Rules(self.always) if is_unsigned(values) else STRICT)

    def _parse(self, text: str) -> dict[str, Any]:
        return typed(dict[str, Any], parse_json(text, infinite=self.infinite), self.name)

    def _check(self, values: dict[str, Any], rules: Rules) -> T:
        """values, out of JSON, as the dataclass, whatever their digest."""
        unsigned = is_unsigned(values)
        if FORMAT not in values and (FORMAT in self.always or not unsigned):
            raise ValueError(f"{FORMAT} is missing in {self.name}")
        number = typed(int, values.get(FORMAT, UNSIGNED), FORMAT)
        if number != (UNSIGNED if unsigned else self.format):
            raise ValueError(f"{FORMAT} is {number!r:.50}, this version reads {UNSIGNED} to {self.format} only")
        fields = {name: value for name, value in values.items() if name not in (FORMAT, DIGEST)}
        return typed(self.content, fields, self.name, rules)


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file; OSError, or ValueError for one that is too large or not UTF-8."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return path.read_text("utf-8")


def content_digest(values: dict[str, Any]) -> str:
    """The sha256, in hexadecimal, of all values of a file but its digest, which are as json.loads gives them.

    Their JSON has sorted keys, no blanks and no characters beyond ASCII. ValueError for what is nested too deeply.
    """
    content = {name: value for name, value in values.items() if name != DIGEST}
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def is_unsigned(values: dict[str, Any]) -> bool:
    """Whether a file with these values was written before there were digests: it has none, and no later format."""
    return DIGEST not in values and values.get(FORMAT, UNSIGNED) == UNSIGNED


def _check_digest(values: dict[str, Any]) -> None:
    if values.get(DIGEST) == content_digest(values):
        return
    what = "is not that of its content" if DIGEST in values else "is missing"
    raise ValueError(f"its digest {what}: if it was edited on purpose, sign it with {SIGN}")


def _report_unsigned(path: str) -> None:
    """Logs, once for each file, that damage to it goes unnoticed."""
    if path not in _reported:
        _reported.add(path)
        logger.warning("%s: of an earlier version, without a digest that would show damage; %s adds one", path, SIGN)
