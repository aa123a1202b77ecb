"""What a run leaves beside its checkpoints: log file, metrics.jsonl, run.json, a lock."""

import fcntl
import json
import logging
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from common.errors import CheckpointError, DataError, OptionError
from common.files import check_output_file, text_lines, write_atomically
from common.version import __version__
from config.options import to_mapping
from machine.runtime import mx
from model.checkpoint import CheckpointMeta, list_epochs, read_meta
from train.checks import is_resumed
from train.options import TrainOptions
from train.pauses import newest_paused, paused_prefix
from train.ps_lite import LAUNCHED

# Options that a resumed run may have of its own without another result.
_MACHINE = {"cpu", "workers"}  # batch norm works on what a device gets: their number decides results
_RANGE = {"begin_epoch", "end_epoch", "finetune", "resume"}
_SEEN = {
    "eval_every",
    "frequent",
    "keep",
    "log",
    "monitor",
    "overwrite",
    "patience",
    "pattern",
    "prefix",
    "save_best_only",
    "save_every",
    "verify_data",
    "allow_same_record",
}
_FOLLOWED = {"eval_every"}  # decides the learning rate of --lr-schedule plateau
_RENAMED = {"engine": "data_engine"}  # options of earlier versions
_NUMBERS = ("num_update", "seconds", "images_per_second")  # of a line of metrics.jsonl, and parts, that not all have
_PARTS = ("validation_loss", "best_f1")
WIDTH = 12  # of a column of PREFIX-results.txt
MAY_CHANGE = _MACHINE | _RANGE | _SEEN | {"tensorboard", "live"}


@contextmanager
def remembered_log() -> Iterator[list[logging.LogRecord]]:
    """Remembers what is logged in the block, for the log file that is not there yet."""
    lines: list[logging.LogRecord] = []
    handler = _ListHandler(lines)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield lines
    finally:
        root.removeHandler(handler)


class _ListHandler(logging.Handler):
    def __init__(self, lines: list[logging.LogRecord]) -> None:
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record)


@contextmanager
def log_to_file(
    path: Path, first_lines: Sequence[str] = (), records: Sequence[logging.LogRecord] = ()
) -> Iterator[None]:
    """Appends the log to a file, too, and the error that ends it; first_lines, as warnings, and records were logged
    before the file was there."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--log {path}: cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for line in first_lines:
        handler.handle(logging.makeLogRecord({"levelname": "WARNING", "msg": line}))
    for record in records:
        handler.handle(record)
    root.addHandler(handler)
    try:
        yield
    except Exception as error:  # the terminal hears of it from the command
        handler.handle(logging.makeLogRecord({"levelname": "ERROR", "msg": f"{type(error).__name__}: {error}"}))
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def check_lock(prefix: str) -> None:
    """OptionError where another run holds PREFIX.lock, or there will be no folder to write it in; makes nothing."""
    path = Path(f"{prefix}.lock")
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held(prefix) from error
    except OSError:
        check_output_file("--prefix", str(path), make_folders=True)


def _held(prefix: str) -> OptionError:
    return OptionError(f"--prefix {prefix}: another run is writing there; choose another --prefix")


def lock_prefix(prefix: str) -> TextIO:
    """Holds PREFIX.lock until the file is closed; OptionError where another run holds it or it cannot be written."""
    path = Path(f"{prefix}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - held for the run
    except OSError as error:
        raise OptionError(f"--prefix {prefix}: {path.parent} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise _held(prefix) from error
    return file


def command_to_continue(is_saved: bool, argv: Sequence[str] | None = None) -> str:
    """This run's command, with `--resume auto` if it has a checkpoint to continue from, after that of tools/launch.py
    where this has started it."""
    argv = sys.argv if argv is None else argv
    launched = os.environ.get(LAUNCHED, "")
    if not is_saved:
        return f"{launched} {shlex.join(['python', *argv])}".lstrip()
    kept, dropping = [], False
    for word in argv:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in ("--resume", "--finetune", "--overwrite")
        if not dropping:
            kept.append(word)
    return f"{launched} {shlex.join(['python', *kept, '--resume', 'auto'])}".lstrip()


def write_run_file(
    prefix: str,
    options: TrainOptions,
    way_to_continue: Callable[[bool], str] = command_to_continue,
    time_limit: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """PREFIX-run.json: options, command and versions; way_to_continue: of a run with a checkpoint; time_limit: what
    --time-limit was found to mean."""
    content = {
        "command": shlex.join(sys.argv),
        "continue": way_to_continue(True),
        "options": to_mapping(options),
        "versions": {"trainer": __version__, "mxnet": mx.__version__, "python": platform.python_version()},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **({"time_limit": dict(time_limit)} if time_limit else {}),
    }
    write_atomically(Path(f"{prefix}-run.json"), (json.dumps(content, indent=1) + "\n").encode())


def resumed_meta(options: TrainOptions) -> CheckpointMeta | None:
    """What the checkpoint says that a resumed run goes on from: that of --resume, or the newest that can be read.

    None without one, or for a run that is not resumed; resuming says what is wrong with a damaged one.
    """
    if not is_resumed(options):
        return None
    wanted, prefix = options.start.resume, options.output.prefix
    paused = newest_paused(prefix) if wanted == "auto" else None
    if paused is not None:
        return read_meta(paused_prefix(prefix), paused)
    epochs = list_epochs(prefix) if wanted == "auto" else [int(wanted)] if wanted.isdecimal() else []
    for epoch in reversed(epochs):
        with suppress(CheckpointError):
            return read_meta(prefix, epoch)
    return None


def changed_options(prefix: str, options: TrainOptions) -> list[str]:
    """A line for each option that decides results and is not what PREFIX-run.json says of the run so far.

    Nothing unless the run is resumed and there is such a file that can be read: the checkpoints know what they must.
    """
    if not is_resumed(options):
        return []
    now = to_mapping(options)
    before = {_RENAMED.get(name, name): value for name, value in _earlier_options(prefix).items()}
    may_change = MAY_CHANGE - (_FOLLOWED if options.schedule.lr_schedule == "plateau" else set())
    # Texts of both, as --epoch was a number before it could be `best`.
    names = [name for name in before if name in now and name not in may_change and str(before[name]) != str(now[name])]
    return [f"--{name.replace('_', '-')} is now {now[name]}, was {before[name]} in the run so far" for name in names]


def is_own_prefix(prefix: str) -> bool:
    """Whether what is under a prefix comes from a run of ours, even if that was killed before it had a checkpoint.

    A run with --overwrite proves nothing: what it was to replace may still be there.
    """
    return _earlier_options(prefix).get("overwrite") is False


def _earlier_options(prefix: str) -> dict[str, Any]:
    """The options in PREFIX-run.json, {} without such a file that can be read."""
    try:
        options = json.loads(Path(f"{prefix}-run.json").read_text("utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


class MetricsFile:
    """PREFIX-metrics.jsonl: one JSON object per epoch. A damaged one is no reason to stop: it is begun anew.

    Attributes:
        records: the lines.
        damage: a sentence about the file that was found damaged, "" for a sound one.
    """

    def __init__(self, prefix: str, kept_epochs: int) -> None:
        """Reads the lines of the first kept_epochs epochs; the others are cut by the first append()."""
        self.path = Path(f"{prefix}-metrics.jsonl")
        self.records: list[dict[str, Any]] = []
        self.damage = ""
        if kept_epochs and os.path.lexists(self.path):
            try:
                self.records = [line for line in _metrics_lines(self.path) if line["epoch"] <= kept_epochs]
                _check_with_checkpoints(self.path, self.records, _lines_of_checkpoints(prefix, kept_epochs))
            except DataError as error:
                self.damage = f"{error}; it becomes {self._aside.name} and is begun anew from what the checkpoints hold"
                self.records = _lines_of_checkpoints(prefix, kept_epochs)

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.damaged")

    def move_damaged(self) -> None:
        """Moves a damaged file out of the way, over one of an earlier time; OSError where that cannot be done."""
        if self.damage:
            os.replace(self.path, self._aside)

    def append(self, record: dict[str, Any]) -> None:
        """Adds the line of an epoch."""
        self.records.append(record)
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.records).encode())


def _lines_of_checkpoints(prefix: str, kept_epochs: int) -> list[dict[str, Any]]:
    """What the checkpoints of the first kept_epochs epochs tell of metrics.jsonl."""
    lines = []
    for epoch in (number for number in list_epochs(prefix) if number <= kept_epochs):
        with suppress(CheckpointError, ValueError, KeyError, TypeError, ArithmeticError):
            meta = read_meta(prefix, epoch)
            scores = {
                part: {name: value for name, value in meta.scores[part].items() if value is not None}
                for part in ("train", "validation")
            }
            line = {"epoch": epoch, **scores, "learning_rate": meta.learning_rate, "num_update": meta.num_update}
            _check_line(line)
            lines.append(line)
    return lines


def _metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, which write_results and the curves can take; DataError for others."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(text_lines(path), 1):
        try:
            if text:
                lines.append(json.loads(text))
                _check_line(lines[-1])
                if len(lines) > 1 and lines[-2]["epoch"] >= lines[-1]["epoch"]:
                    raise ValueError("its epochs do not rise")
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: damaged (line {number}: {reason:.200})") from error
    return lines


def _check_with_checkpoints(path: Path, lines: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """DataError where the line of an epoch says other numbers than its checkpoint, whose digest is right."""
    own = {line["epoch"]: line for line in lines}
    for expected in saved:
        found = own.get(expected["epoch"], expected)
        wrong = next((name for name, value in expected.items() if found.get(name, value) != value), None)
        if wrong:
            raise DataError(f"{path}: damaged (epoch {expected['epoch']}: {wrong} is not that of its checkpoint)")


def _check_line(line: Any) -> None:
    """ValueError, KeyError, TypeError or OverflowError for what is not the line of an epoch."""
    if type(line["epoch"]) is not int or line["epoch"] < 1:
        raise ValueError("epoch is no number of an epoch")
    optional = {name: line[name] for name in _NUMBERS if name in line}
    parts = (line["train"], line["validation"], *(line[name] for name in _PARTS if name in line))
    for part in ({"learning_rate": line["learning_rate"]}, optional, *parts):
        if not isinstance(part, dict):
            raise TypeError(f"{part!r:.80} has no names")
        for name, value in part.items():
            name.encode("utf-8")  # refuses half of a pair of surrogates
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name!r:.80} is no number")


def write_results(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the lines of metrics.jsonl as a table: epoch, losses, learning rate, the validation's losses, P, R and
    scores; '-' = no value."""
    rows = [
        {**r["train"], "lr": r["learning_rate"], **_validation_losses(r), **r.get("best_f1", {}), **r["validation"]}
        for r in records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=_column_order(records))
    widths = [max(WIDTH, len(name)) for name in names]
    heads = [f"{name:>{width}}" for name, width in zip(names, widths, strict=True)]
    lines = [" ".join([f"{'epoch':>6}", *heads])]
    for record, row in zip(records, rows, strict=True):
        cells = [f"{_cell(row.get(name)):>{width}}" for name, width in zip(names, widths, strict=True)]
        lines.append(" ".join([f"{record['epoch']:>6}", *cells]))
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))


def _column_order(records: Sequence[dict[str, Any]]) -> Any:
    """Order of the columns: losses, rate, P and R, values of the validation (which early epochs may lack)."""
    losses = {name for record in records for name in record["train"]}
    fixed = {"lr": 1, "P": 3, "R": 3} | {name: 2 for record in records for name in _validation_losses(record)}
    return lambda name: 0 if name in losses else fixed.get(name, 4)


def _validation_losses(record: dict[str, Any]) -> dict[str, float]:
    """The losses of the validation record, if they were computed (--val-loss)."""
    return {f"val_{name}": value for name, value in record.get("validation_loss", {}).items()}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
