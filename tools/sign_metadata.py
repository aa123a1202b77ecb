"""Signs metadata that was edited on purpose: a checkpoint's .json, PREFIX-best.json, manifest.json, a record's sidecar.

python -m tools.sign_metadata output/ssd-0012.json

Checks names and types of the values first and refuses what would not load. Files of earlier versions become files of
this one.
"""

import importlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if not __package__:
    importlib.import_module("as_module")

from common.errors import DataError, OptionError
from common.files import write_atomically
from common.signed_json import DIGEST, FORMAT, UNSIGNED, SignedKind, is_unsigned, parse_json, read_text
from config.command_line import parse_options
from dataset.sidecar import SIDECAR_FILE
from detect.inputs import split_words
from machine.command import run_command
from model.checkpoint import BEST_FILE, META_FILE, CheckpointMeta
from model.manifest import MANIFEST_FILE, Manifest, check_files

KINDS: tuple[SignedKind[Any], ...] = (META_FILE, MANIFEST_FILE, SIDECAR_FILE, BEST_FILE)
_MAX_BYTES = max(kind.max_bytes for kind in KINDS)


@dataclass(frozen=True)
class SignOptions:
    """None: the files are arguments without flags."""


def main(argv: list[str]) -> None:
    """Signs the files and prints a line for each; the first that cannot be signed ends it, and stays as it is."""
    words, flags = split_words(argv)
    parse_options(
        SignOptions,
        flags,
        "Signs metadata after an edit; pass the files as arguments: sign_metadata.py FILE.json ...",
        example="python tools/sign_metadata.py output/ssd-0012.json",
    )
    if not words:
        raise OptionError("no file is named; name those that were edited: sign_metadata.py FILE.json ...")
    for word in words:
        print(f"{word}: {sign(Path(word))}")


def sign(path: Path) -> str:
    """Gives a file the digest of its content; says what was done. DataError for what would not load."""
    try:
        text = read_text(path, _MAX_BYTES)
        values = parse_json(text, infinite=True)
        kind = _kind(values)
        value = kind.from_edited(text)
        _check_place(path, value)
        signed = kind.to_json(value)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not signed, as it is not text; name a .json file") from error
    except ValueError as error:
        raise DataError(f"{path}: not signed, as it would not load ({error}); correct it first") from error
    if values == json.loads(signed):
        return f"{kind.name}, nothing to do, its digest is right"
    write_atomically(path, signed.encode("utf-8"))
    if is_unsigned(values):
        return f"{kind.name} of an earlier version (format {UNSIGNED}), now of format {kind.format} and signed"
    return f"{kind.name}, signed"


def _kind(values: Any) -> SignedKind[Any]:
    """The kind of file whose keys are the most like these, and are at least half of these."""
    names = values.keys() - {FORMAT, DIGEST} if isinstance(values, dict) else set()
    kind = max(KINDS, key=lambda kind: len(names & _names(kind)))
    if not names or 2 * len(names & _names(kind)) < len(names):
        raise ValueError("it is no metadata of this trainer")
    return kind


def _names(kind: SignedKind[Any]) -> set[str]:
    return {field.name for field in fields(kind.content)}


def _check_place(path: Path, value: Any) -> None:
    """ValueError for a checkpoint's .json under the name of another epoch, and for a manifest without its files."""
    if isinstance(value, CheckpointMeta) and not path.name.endswith(f"-{value.epoch:04d}.json"):
        raise ValueError(f"field epoch is wrong: {value.epoch}, by the file's name it is another one")
    if isinstance(value, Manifest):
        check_files(value)


if __name__ == "__main__":
    run_command(main)
