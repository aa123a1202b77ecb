"""The picture of a run: losses, validation score and learning rate over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing.figures import save_figure

DPI = 90
MEANS = {"mAP": (2.5, "black"), "AP": (2.5, "tab:red")}  # line width and colour; other values are thin


def save_curves(records: Sequence[dict[str, Any]], path: Path, live: Sequence[dict[str, Any]] = ()) -> None:
    """Draws the lines of metrics.jsonl as a PNG, replaced atomically. Nothing is drawn without any.

    live: points within epochs (epoch, train, learning_rate), drawn thinly.
    """
    if not records and not live:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    _draw_losses(losses, records, live)
    _draw_scores(scores, records)
    save_figure(figure, path, DPI)


def _draw_losses(axes: Axes, records: Sequence[dict[str, Any]], live: Sequence[dict[str, Any]]) -> None:
    """Losses of epochs as lines with dots, those within epochs thin and pale; the learning rate on an axis of its
    own; dashed, those of the validation."""
    newest = (live or records)[-1]
    for number, name in enumerate(newest["train"]):
        for points, style in ((live, {"alpha": 0.4}), (records, {"marker": ".", "label": name})):
            values = [point["train"].get(name) for point in points]
            axes.plot([point["epoch"] for point in points], values, color=f"C{number}", **style)
        validated = [record for record in records if name in record.get("validation_loss", {})]
        if validated:
            values = [record["validation_loss"][name] for record in validated]
            axes.plot([r["epoch"] for r in validated], values, "--", color=f"C{number}", label=f"{name}, validation")
    is_positive = any(value > 0 for point in (*records, *live) for value in point["train"].values())
    axes.set(xlabel="epoch", title="training losses", yscale="log" if is_positive else "linear")
    axes.legend()
    rate = axes.twinx()
    points = sorted([*records, *live], key=lambda point: point["epoch"])
    rate.plot([p["epoch"] for p in points], [p["learning_rate"] for p in points], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")


def _draw_scores(scores: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Values of the validation, which not every epoch has."""
    validated = [record for record in records if record["validation"]]
    epochs = [record["epoch"] for record in validated]
    for name in validated[-1]["validation"] if validated else ():
        values = [record["validation"].get(name) for record in validated]
        width, colour = MEANS.get(name, (1.0, None))
        scores.plot(epochs, values, label=name, linewidth=width, color=colour, marker=".")
    scores.set(xlabel="epoch", title="validation average precision", ylim=(0, 1))
    if validated:
        scores.legend()
