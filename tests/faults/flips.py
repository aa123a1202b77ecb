"""One bit flipped in a file of a run, a record or a model: it is told, or nothing is read otherwise."""

import logging
import random
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from dataset.record_source import _tell_once, open_source
from dataset.sidecar import read_sidecar, verify_sidecar
from model.checkpoint import best_epoch, load_checkpoint, load_optimizer_state
from model.folder import read_model_folder
from tests.faults.artefacts import EPOCHS
from tests.faults.table import Row
from train.options import TrainOptions
from train.run_files import MetricsFile

Reader = Callable[[], Any]


def readers(options: TrainOptions, model: Path) -> dict[str, tuple[Path, Reader]]:
    """By name: a file, and what reads it as the commands do and returns what it was told, to be compared."""
    prefix, record = options.output.prefix, Path(options.data.train_path)

    def checkpoint() -> Any:
        found = load_checkpoint(prefix, EPOCHS)
        load_optimizer_state(found)
        return found.meta

    def sidecar() -> Any:
        found = read_sidecar(record)
        if found:
            verify_sidecar(record, found, hash=True)
        return found

    def index() -> Any:
        _tell_once.cache_clear()
        return open_source(record, None, None).reader.keys.tolist()

    def metrics() -> Any:
        file = MetricsFile(prefix, EPOCHS)
        if file.damage:
            raise UserError(file.damage)
        return [{key: line.get(key) for key in COMPARED} for line in file.records]

    def folder() -> Any:
        return read_model_folder(model).manifest

    return {
        ".params": (Path(f"{prefix}-{EPOCHS:04d}.params"), checkpoint),
        ".optim.params": (Path(f"{prefix}-{EPOCHS:04d}.optim.params"), checkpoint),
        "checkpoint .json": (Path(f"{prefix}-{EPOCHS:04d}.json"), checkpoint),
        "-best.json": (Path(f"{prefix}-best.json"), lambda: best_epoch(prefix)),
        "-metrics.jsonl": (Path(f"{prefix}-metrics.jsonl"), metrics),
        "record .rec": (record, sidecar),
        "record .idx": (record.with_suffix(".idx"), index),
        "sidecar .json": (record.with_suffix(".json"), sidecar),
        "manifest.json": (model / "manifest.json", folder),
        "model-symbol.json": (model / "model-symbol.json", folder),
        "model-0000.params": (model / "model-0000.params", folder),
        "model.onnx": (model / "model.onnx", folder),
    }


# Of a line of metrics.jsonl: what decides on the best epoch and is drawn. Nobody reads the others back.
COMPARED = ("epoch", "train", "validation", "learning_rate")


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@contextmanager
def warnings_counted() -> Any:
    """Counts the warnings of the log."""
    handler, root = _Warnings(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)


def flip_files(options: TrainOptions, model: Path, count: int, seed: int, tell: Callable[[str], None]) -> list[Row]:
    """Flips `count` bits of each kind of file, one at a time."""
    rows = []
    for name, (path, read) in readers(options, model).items():
        rows.append(_flip(name, path, read, count, random.Random(f"{seed}/{name}")))
        tell(f"flips: {name} {rows[-1].done}, wrong {len(rows[-1].wrong)}, unnoticed {rows[-1].unnoticed}")
    return rows


def _flip(name: str, path: Path, read: Reader, count: int, rng: random.Random) -> Row:
    content, row = path.read_bytes(), Row("bit flip", name)
    with warnings_counted() as heard:
        before = repr(read())
        usual = heard.count
        for _ in range(count):
            place = rng.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            heard.count = 0
            _read(row, read, before, f"bit {place}", lambda: heard.count > usual)
    path.write_bytes(content)
    return row


def _read(row: Row, read: Reader, before: str, where: str, is_told: Callable[[], bool]) -> None:
    row.done += 1
    try:
        found = repr(read())
    except UserError:
        row.told += 1
        return
    except Exception:
        row.wrong.append(f"{where}: {traceback.format_exc()}")
        return
    if is_told():
        row.told += 1
    elif found == before:
        row.without_effect += 1
    else:
        row.unnoticed += 1
