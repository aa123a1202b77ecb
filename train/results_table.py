"""PREFIX-results.txt: a line of aligned columns for each epoch, to read and to plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically

WIDTH = 12


def write_results(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the lines of metrics.jsonl as a table: epoch, losses, learning rate, the validation's losses, P, R and
    scores; '-' = no value."""
    rows = [
        {**r["train"], "lr": r["learning_rate"], **_losses(r), **r.get("best_f1", {}), **r["validation"]}
        for r in records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=_place(records))
    widths = [max(WIDTH, len(name)) for name in names]
    heads = [f"{name:>{width}}" for name, width in zip(names, widths, strict=True)]
    lines = [" ".join([f"{'epoch':>6}", *heads])]
    for record, row in zip(records, rows, strict=True):
        cells = [f"{_cell(row.get(name)):>{width}}" for name, width in zip(names, widths, strict=True)]
        lines.append(" ".join([f"{record['epoch']:>6}", *cells]))
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))


def _place(records: Sequence[dict[str, Any]]) -> Any:
    """Order of the columns: losses, rate, P and R, values of the validation (which early epochs may lack)."""
    losses = {name for record in records for name in record["train"]}
    fixed = {"lr": 1, "P": 3, "R": 3} | {name: 2 for record in records for name in _losses(record)}
    return lambda name: 0 if name in losses else fixed.get(name, 4)


def _losses(record: dict[str, Any]) -> dict[str, float]:
    """The losses of the validation record, if they were computed (--val-loss)."""
    return {f"val_{name}": value for name, value in record.get("validation_loss", {}).items()}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
