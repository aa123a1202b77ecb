"""Checkpoints: sets of files under one prefix that exist completely or not at all.

    PREFIX-symbol.json        the training symbol
    PREFIX-0012.params        weights, plain MXNet
    PREFIX-0012.optim.params  optimizer state by parameter name, plain MXNet arrays, never pickle
    PREFIX-0012.json          what is known of it (CheckpointMeta), among this sha256 and size of the files above

The .json is renamed last: a set without it does not exist.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.files import AtomicFile, check_prefix, file_sha256, numbered_files, publish_all, write_atomically
from common.signed_json import SignedKind
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES
from config.groups import METRICS
from dataset.transforms import parse_bit_depth
from graph.mixed_precision import DTYPES, FLOAT16
from graph.symbol_graph import Params
from graph.weight_gradients import WAYS
from model.manifest import FileRecord
from model.params_file import read_arrays, read_params, stage_arrays, with_kinds

_LENGTHS = {"mean_pixels": (3,), "std": (3,), "data_shape": (2,), "origin": (3, 5)}
SCALE_STATE = ("scale", "good", "skipped")  # of the losses in float16 (train/precision.py)
TIME_LIMIT = ("seconds", "updates", "end_epoch")
_PIXEL_FIELDS = ("mean_pixels", "std", "resize_mode", "fill")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointMeta:
    """What is known of one checkpoint. The fields with a default were added later: it is what was done before.

    Attributes:
        epoch, num_update: epochs and updates done; of a snapshot in mid-epoch both are the updates.
        learning_rate: of the last update.
        scores: values of the losses and metrics by name, under `train` and `validation`; None where there is nothing
            to find.
        seed: of the run.
        class_names: names in the order of the ids.
        mean_pixels, std: RGB, of pixels 0..255; the network reads (pixel - mean) / std.
        data_shape: (height, width) of the network input.
        network, options: what the symbol is built from.
        batch_size: images of a batch on all devices.
        symbol_sha256: of the training symbol, without what no weight depends on.
        resize_mode, fill: how images fill the input, and the colour of the borders.
        bit_depth: the rule by which pixels of more than 8 bits became 8 in the records; "" = images have 8.
        rect: what the sides of rectangular validation batches are multiples of; 0 = all have one size.
        metrics, overlap, use_difficult: the rule of the validation.
        freeze_epochs: of --freeze-epochs. earlier_updates: those of num_update that an earlier stage made.
        plateau: state of the schedule of that name. origin: what a schedule by updates counts from (`Origin`).
        patience: state of --patience. time_limit: seconds of --time-limit, the updates that it was found to mean, and
            the --end-epoch that steps of the schedule were made for.
        precision: number format of the training graph as `dtype`, and in float16 the state of the loss scale (`scale`,
            `good`, `skipped`); `gradients`, by layer, how its weight gradient is computed where it is not by its own
            kernel. {} = float32.
        begun: epochs that the run found done when it began with weights alone.
        position: of a set in mid-epoch from which the run goes on (train/pauses.py): epochs done, batches done of the
            next one, and the losses so far; {} for all others.
        left_out: records that could not be read and became padding (--bad-records), by `train` and `validation`: their
            place in the file, from 0, and why.
        records: sha256 of the records of the run, by `train` and `validation`; empty where they were not looked at.
        files: the set's .params and .optim.params by name; empty before they are written.
    """

    epoch: int
    num_update: int
    learning_rate: float
    scores: dict[str, dict[str, Any]]
    seed: int
    class_names: tuple[str, ...]
    mean_pixels: tuple[float, ...]
    data_shape: tuple[int, ...]
    network: str
    options: dict[str, Any]
    batch_size: int
    symbol_sha256: str
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize_mode: str = FORCE
    fill: int = DEFAULT_FILL
    bit_depth: str = ""
    rect: int = 0
    metrics: tuple[str, ...] = ("voc07",)
    overlap: float = 0.5
    use_difficult: bool = False
    freeze_epochs: int = 0
    earlier_updates: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    origin: tuple[int, ...] = (0, 0, 0)
    patience: dict[str, Any] = field(default_factory=dict)
    time_limit: dict[str, int] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    begun: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for a field with a value that no checkpoint has."""
        if self.bit_depth:
            parse_bit_depth(self.bit_depth)
        wrong = [name for name, lengths in _LENGTHS.items() if len(getattr(self, name)) not in lengths]
        wrong += ["data_shape"] if any(side < 1 for side in self.data_shape) else []
        wrong += ["origin"] if any(number < 0 for number in (*self.origin[:2], *self.origin[3:])) else []
        wrong += ["time_limit"] if self.time_limit and self.time_limit.keys() != set(TIME_LIMIT) else []
        wrong += ["precision"] if not _is_precision(self.precision) else []
        wrong += ["class_names"] if not self.class_names else []
        wrong += ["metrics"] if not self.metrics or not set(self.metrics) <= set(METRICS) else []
        wrong += ["resize_mode"] if self.resize_mode not in RESIZE_MODES else []
        if wrong:
            raise ValueError(f"field {wrong[0]} is wrong: {getattr(self, wrong[0])!r:.50}")

    @property
    def pixels(self) -> dict[str, Any]:
        """How an image becomes the network's input: arguments of the iterators, as `pixel_options` gives them."""
        return {name: getattr(self, name) for name in _PIXEL_FIELDS}


def _is_precision(precision: Mapping[str, Any]) -> bool:
    """Whether a checkpoint may have this as its `precision`."""
    dtype, ways = precision.get("dtype"), precision.get("gradients", {})
    if not isinstance(ways, dict) or not set(ways.values()) <= set(WAYS):
        return False
    names = {"dtype", *(SCALE_STATE if dtype == FLOAT16 else ()), *(["gradients"] if ways else [])}
    numbers = [value for name, value in precision.items() if name not in ("dtype", "gradients")]
    are_numbers = all(type(number) in (int, float) and number >= 0 for number in numbers)
    return not precision or dtype in DTYPES and precision.keys() == names and are_numbers


META_FILE = SignedKind(
    CheckpointMeta,
    "checkpoint",
    format=2,
    always=frozenset({"format", "files"}),
    infinite=True,  # the state of a new plateau
    max_bytes=16 << 20,
)


@dataclass(frozen=True)
class Best:
    """The best epoch, and the name and value of what it is best in."""

    epoch: int
    metric: str = ""
    score: float = 0.0


BEST_FILE = SignedKind(Best, "note of the best epoch", format=2)


@dataclass(frozen=True)
class Checkpoint:
    """One verified set. optimizer_state is read on demand (`load_optimizer_state`)."""

    prefix: str
    epoch: int
    arg_params: Params
    aux_params: Params
    meta: CheckpointMeta = field(repr=False)


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
    symbol_json: str,
    arg_params: Params,
    aux_params: Params,
    optimizer_state: Mapping[str, np.ndarray],
    meta: CheckpointMeta,
) -> None:
    """Writes the set of meta.epoch and the symbol: temporary names, fsync, read back, rename; the .json last.

    meta.files is filled in. Refuses weights that are not finite. CheckpointError names the file that could not be
    written; older sets stay whole.
    """
    epoch, arrays = meta.epoch, with_kinds(arg_params, aux_params)
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
        files = {f.path.name: FileRecord(f.temporary.stat().st_size, file_sha256(f.temporary)) for f in staged}
        meta_text = META_FILE.to_json(replace(meta, files=files))
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
    return numbered_files(prefix, "json")


def plain_epoch(prefix: str, epoch: int | str) -> int | None:
    """The epoch of a PREFIX-NNNN.params without a .json (mx.callback.do_checkpoint leaves none) that an epoch means.

    `auto` is the newest of them where no set of ours is there. None where there is no such file.
    """
    sets, alone = list_epochs(prefix), numbered_files(prefix, "params")
    wanted = int(epoch) if str(epoch).isdecimal() else None
    if epoch == "auto" and not sets and alone:
        return alone[-1]
    return wanted if wanted in alone and wanted not in sets else None


def foreign_file(prefix: str, kept: int) -> Path | None:
    """A file under a prefix that a run of the epochs after `kept` might replace although no set of ours has it: the
    .params of such an epoch without its .json, or a symbol without any set; None without one."""
    epochs = list_epochs(prefix)
    alone = [number for number in numbered_files(prefix, "params") if number > kept and number not in epochs]
    if alone:
        return params_path(prefix, alone[0])
    return symbol_path(prefix) if not epochs and symbol_path(prefix).is_file() else None


def load_checkpoint(prefix: str, epoch: int | str = "auto") -> Checkpoint:
    """Loads and verifies a set: of an epoch, of `best`, or of `auto` (the newest sound one; damaged ones are logged).

    CheckpointError says what is missing or damaged and which epochs there are; OptionError for a prefix without name.
    """
    check_prefix(prefix)
    epochs, plain = list_epochs(prefix), plain_epoch(prefix, epoch)
    if plain is not None:
        where = f"of epoch {plain} (there are {', '.join(map(str, epochs))})" if epochs else "there"
        raise CheckpointError(
            f"{prefix}: no checkpoint {where} but weights, {params_path(prefix, plain)} has no .json; train from it "
            f"with --pretrained {prefix} --epoch {plain}, or with its symbol make a checkpoint of it by `python "
            f"tools/convert_weights.py --from classic {params_path(prefix, plain)} --prefix NEW`"
        )
    if not epochs and (Path(prefix) / "manifest.json").is_file():
        raise CheckpointError(
            f"{prefix}: is a model folder of deploy.py; give the prefix of the training (demo.py takes either)"
        )
    if not epochs:
        raise CheckpointError(f"{prefix}: no checkpoint there (looked for {prefix}-NNNN.json); check the prefix")
    if epoch == "auto":
        return _newest_undamaged(prefix, epochs)
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


def read_meta(prefix: str, epoch: int) -> CheckpointMeta:
    """What the .json of a set says; CheckpointError where it is damaged or of another epoch."""
    path = meta_path(prefix, epoch)
    try:
        meta = META_FILE.read(path)
        if meta.epoch != epoch:
            raise ValueError(f"field epoch is wrong: {meta.epoch}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another epoch") from error
    return meta


def best_epoch(prefix: str) -> int:
    """The epoch that PREFIX-best.json names; CheckpointError where no epoch was validated, or the file is damaged."""
    path = Path(f"{prefix}-best.json")
    try:
        return BEST_FILE.read(path).epoch
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no best epoch is recorded, as no validation rated one; name an epoch"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); name an epoch") from error


def write_best(prefix: str, epoch: int, name: str, score: float) -> None:
    """Records the best epoch and its score in PREFIX-best.json."""
    write_atomically(Path(f"{prefix}-best.json"), BEST_FILE.to_json(Best(epoch, name, score)).encode())


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


def _newest_undamaged(prefix: str, epochs: list[int]) -> Checkpoint:
    problems = []
    for epoch in reversed(epochs):
        try:
            return load_checkpoint(prefix, epoch)
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
            problems.append(str(error))
    raise CheckpointError(f"{prefix}: no sound checkpoint ({problems[0]})")


def _verify(prefix: str, epoch: int, meta: CheckpointMeta) -> None:
    """Compares names, sizes and sha256 of the set's files with the .json."""
    for path in (params_path(prefix, epoch), optimizer_path(prefix, epoch)):
        expected = meta.files.get(path.name)
        if expected is None:
            raise CheckpointError(f"{path}: not listed in {meta_path(prefix, epoch).name}; was the set renamed?")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, the checkpoint of epoch {epoch} is incomplete")
        if path.stat().st_size != expected.size or file_sha256(path) != expected.sha256:
            raise CheckpointError(
                f"{path}: damaged (size or sha256 differs from {meta_path(prefix, epoch).name}); use another epoch"
            )
