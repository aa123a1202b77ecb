"""Checkpoints: sets of files under one prefix that exist completely or not at all.

    PREFIX-symbol.json        the training symbol
    PREFIX-0012.params        weights, plain MXNet
    PREFIX-0012.optim.params  optimizer state by parameter name, plain MXNet arrays, never pickle
    PREFIX-0012.json          epoch, num_update, learning rate, scores, seed, classes, network, sha256 and size of
    the files

The .json is renamed last: a set without it does not exist.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.files import AtomicFile, publish_all, write_atomically
from common.prefix import check_prefix
from common.typed_json import parse_json, typed
from config.augment_options import DEFAULT_FILL, FORCE
from config.run import METRICS
from dataset.sidecar import file_sha256
from model.params_file import Params, read_arrays, read_params, stage_arrays, with_kinds

FORMAT = 1
MAX_META_BYTES = 16 << 20
# Fields of the .json and their types, as common/typed_json.py reads them.
META_FIELDS: dict[str, Any] = {
    "format": int,
    "epoch": int,
    "num_update": int,
    "learning_rate": float,
    "scores": dict[str, dict[str, Any]],
    "seed": int,
    "class_names": tuple[str, ...],
    "mean_pixels": tuple[float, ...],
    "std": tuple[float, ...],
    "resize_mode": str,
    "fill": int,
    "rect": int,
    "metrics": tuple[str, ...],
    "overlap": float,
    "use_difficult": bool,
    "data_shape": tuple[int, ...],
    "network": str,
    "options": dict[str, Any],
    "batch_size": int,
    "freeze_epochs": int,
    "earlier_updates": int,
    "plateau": dict[str, Any],
    "origin": tuple[int, ...],
    "begun": int,
    "symbol_sha256": str,
    "files": dict[str, Any],
}
LENGTHS = {"mean_pixels": 3, "std": 3, "data_shape": 2, "origin": 3}
# Fields that earlier versions did not write, and what they did.
PIXEL_FIELDS = ("mean_pixels", "std", "resize_mode", "fill")
META_DEFAULTS: dict[str, Any] = {
    "std": [1.0, 1.0, 1.0],
    "resize_mode": FORCE,
    "fill": DEFAULT_FILL,
    "rect": 0,
    "metrics": ["voc07"],
    "overlap": 0.5,
    "use_difficult": False,
    "freeze_epochs": 0,
    "earlier_updates": 0,
    "plateau": {},
    "origin": [0, 0, 0],
    "begun": 0,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Best:
    """What is used of PREFIX-best.json."""

    epoch: int


@dataclass(frozen=True)
class Checkpoint:
    """One verified set. optimizer_state is read on demand (`load_optimizer_state`)."""

    prefix: str
    epoch: int
    arg_params: Params
    aux_params: Params
    meta: dict[str, Any] = field(repr=False)


def symbol_path(prefix: str) -> Path:
    """PREFIX-symbol.json."""
    return Path(f"{prefix}-symbol.json")


def params_path(prefix: str, epoch: int) -> Path:
    """PREFIX-0012.params."""
    return Path(f"{prefix}-{epoch:04d}.params")


def optimizer_path(prefix: str, epoch: int) -> Path:
    """PREFIX-0012.optim.params."""
    return Path(f"{prefix}-{epoch:04d}.optim.params")


def meta_path(prefix: str, epoch: int) -> Path:
    """PREFIX-0012.json."""
    return Path(f"{prefix}-{epoch:04d}.json")


def save_checkpoint(
    prefix: str,
    epoch: int,
    symbol_json: str,
    arg_params: Params,
    aux_params: Params,
    optimizer_state: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> None:
    """Writes one set and the symbol: temporary names, fsync, read back, rename; the .json last.

    Refuses weights that are not finite. CheckpointError names the file that could not be written; older sets stay
    whole.
    """
    arrays = with_kinds(arg_params, aux_params)
    broken = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if broken:
        raise CheckpointError(
            f"{params_path(prefix, epoch)}: not written, {broken} holds values that are not finite; try a lower --lr"
        )
    staged: list[AtomicFile] = []
    try:
        symbol_path(prefix).parent.mkdir(parents=True, exist_ok=True)
        staged.append(stage_arrays(params_path(prefix, epoch), arrays))
        staged.append(stage_arrays(optimizer_path(prefix, epoch), optimizer_state))
        files = {f.path.name: {"size": f.temporary.stat().st_size, "sha256": file_sha256(f.temporary)} for f in staged}
        meta_text = json.dumps({"format": FORMAT, "epoch": epoch, **meta, "files": files}, indent=1) + "\n"
        for path, text in ((symbol_path(prefix), symbol_json), (meta_path(prefix, epoch), meta_text)):
            staged.append(AtomicFile(path))
            staged[-1].file.write(text.encode("utf-8"))
        publish_all(staged)
    except OSError as error:
        raise CheckpointError(
            f"{params_path(prefix, epoch)}: not written ({error.strerror or error}); free space or change --prefix"
        ) from error
    finally:
        for file in staged:
            file.discard()


def list_epochs(prefix: str) -> list[int]:
    """Epochs of the sets under a prefix, ascending (those with a .json)."""
    return _numbers(prefix, "json")


def foreign_file(prefix: str, kept: int) -> Path | None:
    """A file under a prefix that a run of the epochs after `kept` might replace although no set of ours has it: the
    .params of such an epoch without its .json, or a symbol without any set; None without one."""
    epochs = list_epochs(prefix)
    alone = [number for number in _numbers(prefix, "params") if number > kept and number not in epochs]
    if alone:
        return params_path(prefix, alone[0])
    return symbol_path(prefix) if not epochs and symbol_path(prefix).is_file() else None


def _numbers(prefix: str, suffix: str) -> list[int]:
    """The numbers of the files PREFIX-NNNN.SUFFIX, ascending. What follows the last / begins the names, and no other
    part: Path would join `run/.` to run."""
    folder, name = os.path.split(prefix)
    pattern = re.compile(re.escape(name) + rf"-(\d{{4,}})\.{suffix}")
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def load_checkpoint(prefix: str, epoch: int | str = "auto") -> Checkpoint:
    """Loads and verifies a set: of an epoch, of `best`, or of `auto` (the newest sound one; damaged ones are logged).

    CheckpointError says what is missing or damaged and which epochs there are; OptionError for a prefix without name.
    """
    check_prefix(prefix)
    epochs = list_epochs(prefix)
    if not epochs:
        raise CheckpointError(f"{prefix}: no checkpoint there (looked for {prefix}-NNNN.json); check the prefix")
    if epoch == "auto":
        return _newest_sound(prefix, epochs)
    if epoch == "best":
        return load_checkpoint(prefix, best_epoch(prefix))
    if not str(epoch).isdecimal():
        raise CheckpointError(f"epoch {epoch!r}: expected a number, `auto` or `best`")
    number = int(epoch)
    if number not in epochs:
        raise CheckpointError(f"{prefix}: no checkpoint of epoch {number} (there are {', '.join(map(str, epochs))})")
    meta = read_meta(prefix, number)
    _verify(prefix, number, meta)
    arg_params, aux_params = read_params(params_path(prefix, number))
    return Checkpoint(prefix, number, arg_params, aux_params, meta)


def load_optimizer_state(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """{parameter:k} -> k-th state array of that parameter; empty for an optimizer without state."""
    return read_arrays(optimizer_path(checkpoint.prefix, checkpoint.epoch))


def read_meta(prefix: str, epoch: int) -> dict[str, Any]:
    """The .json of a set, the types of its values checked."""
    path = meta_path(prefix, epoch)
    try:
        meta = META_DEFAULTS | typed(dict[str, Any], _read_json(path), "the file")
        _check_meta(meta, epoch)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    return meta


def _check_meta(meta: Mapping[str, Any], epoch: int) -> None:
    """ValueError for a field that is missing or has a value that no set has."""
    for name, kind in META_FIELDS.items():
        if name not in meta:
            raise ValueError(f"field {name} is missing")
        typed(kind, meta[name], name)
    wrong = [name for name, length in LENGTHS.items() if len(meta[name]) != length]
    wrong += ["data_shape"] if any(side < 1 for side in meta["data_shape"]) else []
    wrong += ["origin"] if any(number < 0 for number in meta["origin"][:2]) else []
    wrong += ["class_names"] if not meta["class_names"] else []
    wrong += ["metrics"] if not meta["metrics"] or not set(meta["metrics"]) <= set(METRICS) else []
    wrong += ["epoch"] if meta["epoch"] != epoch else []
    if wrong:
        raise ValueError(f"field {wrong[0]} is wrong: {meta[wrong[0]]!r:.50}")


def best_epoch(prefix: str) -> int:
    """The epoch that PREFIX-best.json names; CheckpointError where no epoch was validated."""
    path = Path(f"{prefix}-best.json")
    try:
        return typed(_Best, _read_json(path), "the file").epoch
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no best epoch is recorded, as no validation rated one; name an epoch"
        ) from error


def _read_json(path: Path) -> Any:
    """OSError or ValueError for a file that is not there, too large or no JSON."""
    if path.stat().st_size > MAX_META_BYTES:
        raise ValueError(f"larger than {MAX_META_BYTES} bytes")
    return parse_json(path.read_text("utf-8"), infinite=True)  # the state of a new plateau


def write_best(prefix: str, epoch: int, name: str, score: float) -> None:
    """Records the best epoch and its score in PREFIX-best.json."""
    text = json.dumps({"epoch": epoch, "metric": name, "score": score}) + "\n"
    write_atomically(Path(f"{prefix}-best.json"), text.encode())


def remove_checkpoint(prefix: str, epoch: int) -> None:
    """Removes a set, its .json first, so that a half-removed set does not exist."""
    for path in (meta_path(prefix, epoch), params_path(prefix, epoch), optimizer_path(prefix, epoch)):
        path.unlink(missing_ok=True)


def drop_after(prefix: str, epoch: int, saved: int | None = None) -> list[int]:
    """Removes the sets of later epochs but that of `saved`, the note of the best and what killed runs left; returns
    the epochs removed.

    A run that keeps the sets up to `epoch` does this after its first save, so that `auto` never finds those of an
    abandoned run, and there is always a set.
    """
    later = [number for number in list_epochs(prefix) if number > epoch and number != saved]
    for number in later:
        remove_checkpoint(prefix, number)
    Path(f"{prefix}-best.json").unlink(missing_ok=True)
    folder, name = os.path.split(prefix)
    name = re.escape(name)
    for path in Path(folder).glob(".*.tmp"):
        if re.match(rf"\.{name}-(\d+|[a-z]+)\.", path.name):
            path.unlink(missing_ok=True)
    return later


def _newest_sound(prefix: str, epochs: list[int]) -> Checkpoint:
    problems = []
    for epoch in reversed(epochs):
        try:
            return load_checkpoint(prefix, epoch)
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
            problems.append(str(error))
    raise CheckpointError(f"{prefix}: no sound checkpoint ({problems[0]})")


def _verify(prefix: str, epoch: int, meta: Mapping[str, Any]) -> None:
    """Compares names, sizes and sha256 of the set's files with the .json."""
    for path in (params_path(prefix, epoch), optimizer_path(prefix, epoch)):
        expected = meta["files"].get(path.name)
        if not isinstance(expected, dict):
            raise CheckpointError(f"{path}: not listed in {meta_path(prefix, epoch).name}; was the set renamed?")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, the checkpoint of epoch {epoch} is incomplete")
        if path.stat().st_size != expected.get("size") or file_sha256(path) != expected.get("sha256"):
            raise CheckpointError(
                f"{path}: damaged (size or sha256 differs from {meta_path(prefix, epoch).name}); use another epoch"
            )
