"""The files of a model folder, read without mxnet: what they are called, the manifest, and whether they are whole."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, OptionError
from common.files import file_sha256
from model.manifest import MANIFEST_FILE, FileRecord, Manifest
from model.onnx_wire import check_self_contained

SYMBOL, PARAMS, MANIFEST = "model-symbol.json", "model-0000.params", "manifest.json"
ONNX, ONNX_INT8 = "model.onnx", "model-int8.onnx"
MAX_SYMBOL_BYTES, MAX_ONNX_BYTES = 16 << 20, 2 << 30
_NEEDED, _OPTIONAL = {SYMBOL, PARAMS}, {ONNX, ONNX_INT8}
FILES = _NEEDED | _OPTIONAL | {MANIFEST}


def is_model_folder(path: str | Path) -> bool:
    """Whether there is a manifest."""
    return Path(path, MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a model folder; CheckpointError if it is missing or damaged."""
    path = Path(folder, MANIFEST)
    try:
        manifest = MANIFEST_FILE.read(path)
        check_files(manifest)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); export the model again") from error
    return manifest


def check_files(manifest: Manifest) -> None:
    """ValueError unless the manifest has the files of a model folder, none of them too large."""
    if not _NEEDED <= manifest.files.keys() <= _NEEDED | _OPTIONAL:
        raise ValueError(f"files are not {SYMBOL} and {PARAMS}, with or without {ONNX} and {ONNX_INT8}")
    for name, limit in ((SYMBOL, MAX_SYMBOL_BYTES), (ONNX, MAX_ONNX_BYTES), (ONNX_INT8, MAX_ONNX_BYTES)):
        if name in manifest.files and manifest.files[name].size > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")


def verify_file(path: Path, record: FileRecord) -> None:
    """CheckpointError unless the file has the size and sha256 of its record."""
    _check_size(path, record)
    if file_sha256(path) != record.sha256:
        raise _damaged(path)


def read_verified(folder: str | Path, name: str, manifest: Manifest) -> bytes:
    """The bytes of a file of a model folder; CheckpointError unless they are those that the manifest describes.

    ONNX files must not name further files, as a runtime would read those.
    """
    path, record = Path(folder, name), manifest.files[name]
    _check_size(path, record)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise _damaged(path)
    if name in (ONNX, ONNX_INT8):
        _check_onnx(path, content)
    return content


def _check_onnx(path: Path, content: bytes) -> None:
    try:
        check_self_contained(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a model that can be run ({error}); export it again with --onnx") from error


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, the model folder is incomplete; export the model again")
    if path.stat().st_size != record.size:
        raise _damaged(path)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged (its size or sha256 is not that of {MANIFEST}); copy or export the model again"
    )


def check_options(manifest: Manifest, path: str | Path, epoch: int | str, detection_options: dict[str, Any]) -> None:
    """OptionError where a model folder is asked for another epoch or other detections: both are part of its symbol.

    Names that are no setting of detections are refused, too.
    """
    if epoch != "auto":
        raise OptionError(f"--epoch {epoch}: {path} is a model folder, which holds one epoch; leave --epoch out")
    known = [field.name for field in dataclasses.fields(manifest.postprocessing)]
    for name, value in detection_options.items():
        if name not in known:
            raise OptionError(f"unknown option {name!r}: {path} is a model folder, which has {', '.join(known)}")
        exported = getattr(manifest.postprocessing, name)
        if value != exported:
            flag = f"--{name.replace('_', '-')}"
            raise OptionError(
                f"{flag} {value}: {path} was exported with {exported}; export it again with {flag} {value}"
            )
