"""The picture of a run: losses, validation score and learning rate over the epochs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MEANS = {"mAP": (2.5, "black"), "AP": (2.5, "tab:red")}  # line width and colour; other values are thin


def save_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the lines of metrics.jsonl as a PNG, replaced atomically. Nothing is drawn without records."""
    if not records:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    losses, scores = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for name in records[-1]["train"]:
        losses.plot(epochs, [record["train"].get(name) for record in records], label=name)
    is_positive = any(value > 0 for record in records for value in record["train"].values())
    losses.set(xlabel="epoch", title="training losses", yscale="log" if is_positive else "linear")
    losses.legend()
    rate = losses.twinx()
    rate.plot(epochs, [record["learning_rate"] for record in records], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    for name in records[-1]["validation"]:
        values = [record["validation"].get(name) for record in records]
        width, colour = MEANS.get(name, (1.0, None))
        scores.plot(epochs, values, label=name, linewidth=width, color=colour)
    scores.set(xlabel="epoch", title="validation average precision", ylim=(0, 1))
    if records[-1]["validation"]:
        scores.legend()
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=90)
    os.replace(temporary, path)
