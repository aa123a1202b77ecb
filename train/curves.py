"""The pictures of a run: losses, validation score and learning rate over the epochs, redrawn while it goes on.

PREFIX-curves.png, and with --live the page PREFIX-live.html. PREFIX-batches.png shows the first batches.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import write_atomically
from drawing.boxes import batch_sheet, captioned, png_of, sheet
from drawing.figures import save_figure, svg_of
from drawing.page import Template, page
from machine.runtime import mx
from train.metric import LossMetric, RecentMeans
from train.module import DetectionModule

logger = logging.getLogger(__name__)
CURVES_EVERY_SECONDS = 30.0  # a picture costs a fraction of a second
MAX_POINTS = 2000  # twice as many are thinned out
DPI = 90
MOST_NAMED = 14  # classes with a name in the legend
TRAINING_ROWS, ROW_IMAGES = 3, 4  # of PREFIX-batches.png
# Colour, dashes and width of scores that are means; those of COCO's sizes are of one colour.
SCORES = {
    "mAP": ("black", "-", 2.6),
    "AP": ("#0072B2", "-", 2.6),
    "AP50": ("#56B4E9", "-", 2.0),
    "AP75": ("#009E73", "-", 2.0),
    "APs": ("#E69F00", ":", 1.4),
    "APm": ("#E69F00", "-.", 1.4),
    "APl": ("#E69F00", "--", 1.4),
}
HIDDEN_SCORES = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # in metrics.jsonl alone
CLASS_COLOURS, CLASS_DASHES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"), ("-", "--", ":")


class LiveCurves:
    """Batch-end callback and artist of PREFIX-curves.png; PREFIX-live.json tells where the run is.

    A point is the mean loss since the point before. Points are those of this process: a resumed run starts without.
    """

    def __init__(
        self,
        prefix: str,
        metric: LossMetric,
        module: DetectionModule,
        records: list[dict[str, Any]],
        batches: int,
        state: Callable[[], dict[str, str]] | None = None,
    ) -> None:
        """records: the lines of metrics.jsonl, which grow with the run; batches: of an epoch.

        state: what PREFIX-live.html says of the run beside its curves; None = there is no such page.
        """
        self.prefix, self.module = prefix, module
        self.records, self.batches = records, batches
        self.points: list[dict[str, Any]] = []
        self._recent, self._state = RecentMeans(metric), state
        self._drawn = time.monotonic()
        self._warned = False
        self._has_page = False

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if param.nbatch == 0:
            self._recent.reset()
        if time.monotonic() - self._drawn > CURVES_EVERY_SECONDS:
            self._add_point(param.epoch, param.nbatch + 1)
            self.draw()
        elif self._state and not self._has_page:
            self._draw_page()

    def draw(self, *, force: bool = True, is_over: bool = False) -> None:
        """Draws the picture; without force not if that was less than half a minute ago. is_over: the run has ended."""
        if force or time.monotonic() - self._drawn > CURVES_EVERY_SECONDS:
            self._try(save_curves, self.records, Path(f"{self.prefix}-curves.png"), self.points)
            self._draw_page(is_over)
            self._drawn = time.monotonic()

    def _draw_page(self, is_over: bool = False) -> None:
        if self._state is None:
            return
        self._has_page = True
        path = Path(f"{self.prefix}-live.html")
        self._try(save_page, path, self.records, self.points, self._state(), is_over)

    def _add_point(self, epoch: int, done: int) -> None:
        """Waits for nothing: the metric has read all batches but the newest."""
        train = self._recent.take()
        if not train:
            return
        point = {"epoch": epoch + done / self.batches, "learning_rate": self.module.learning_rate, "train": train}
        self.points.append(point)
        if len(self.points) > 2 * MAX_POINTS:
            del self.points[::2]
        state = {**point, "num_update": self.module.num_update, "batch": done, "batches": self.batches}
        self._try(write_atomically, Path(f"{self.prefix}-live.json"), (json.dumps(state) + "\n").encode())

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        """Writes a file that training can do without: the first failure is a warning. ValueError: matplotlib takes
        class names with $ for formulas."""
        try:
            write(*arguments)
        except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
            if not self._warned:
                logger.warning("the curves of %s cannot be written (%s); training goes on", self.prefix, error)
            self._warned = True


class BatchPicture:
    """Batch-end callback and artist of PREFIX-batches.png: the first batches of a stage as the network gets them.

    A row for each of the first training batches, then one for the first batch of the first validation, with the
    objects of their labels. Arrays that the iterator has given are copied; the training is neither waited for nor
    changed.
    """

    def __init__(self, prefix: str, class_names: Sequence[str], pixels: Mapping[str, Any]) -> None:
        """pixels: mean_pixels and std of the input."""
        self.path, self.is_written = Path(f"{prefix}-batches.png"), False
        self._class_names = class_names
        self._mean, self._std = (np.array(pixels[name], np.float32) for name in ("mean_pixels", "std"))
        self._training: list[np.ndarray] = []
        self._validation: list[np.ndarray] = []
        self._warned = False

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if len(self._training) < TRAINING_ROWS and not self._validation:
            self._add(self._training, _place(param.epoch, param.nbatch), param.locals["data_batch"])

    def validation(self, batch: mx.io.DataBatch) -> None:
        """The first batch of a validation, which is drawn in the first one."""
        if not self._validation:
            self._add(self._validation, "validation, batch 1", batch)

    def draw(self, batches: Iterable[mx.io.DataBatch], epoch: int | None) -> None:
        """Draws what a run would of the first batches of training in an epoch (from 0), or for None of validation."""
        if epoch is None:
            self.validation(next(iter(batches)))
            return
        for number, batch in enumerate(islice(batches, TRAINING_ROWS)):
            self._add(self._training, _place(epoch, number), batch)

    def _add(self, rows: list[np.ndarray], name: str, batch: mx.io.DataBatch) -> None:
        """Adds a row and writes the picture; the first failure is a warning."""
        pixels = first_pixels(batch, ROW_IMAGES)
        objects = batch.label[0].asnumpy()[: len(pixels)]
        row = batch_sheet(pixels, objects, self._mean, self._std, self._class_names)
        size = "{2}x{3}".format(*batch.data[0].shape)
        rows.append(captioned(row, f"{name}: {len(pixels)} of {batch.data[0].shape[0]} inputs, {size}"))
        try:
            write_atomically(self.path, png_of(sheet([*self._training, *self._validation], columns=1)))
            self.is_written = True
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written (%s); training goes on", self.path, error)
            self._warned = True


def _place(epoch: int, number: int) -> str:
    return f"training, epoch {epoch + 1}, batch {number + 1}"


def first_pixels(batch: mx.io.DataBatch, most: int) -> np.ndarray:
    """The data (n, 3, H, W) of a batch's first samples, padding left out.

    It copies what is on the host, without an operation that would queue behind the training's.
    """
    return batch.data[0].asnumpy()[: min(most, batch.data[0].shape[0] - (batch.pad or 0))]


def save_curves(records: Sequence[dict[str, Any]], path: Path, live: Sequence[dict[str, Any]] = ()) -> None:
    """Draws the lines of metrics.jsonl as a PNG, replaced atomically. Nothing is drawn without any.

    live: points within epochs (epoch, train, learning_rate), drawn thinly.
    """
    if records or live:
        save_figure(draw_curves(records, live), path, DPI)


def save_page(
    path: Path,
    records: Sequence[dict[str, Any]],
    live: Sequence[dict[str, Any]],
    state: dict[str, str],
    is_over: bool = False,
) -> None:
    """Writes the same curves within a page (live_page), replaced atomically."""
    svg = svg_of(draw_curves(records, live)) if records or live else ""
    title = path.name.removesuffix("-live.html")
    write_atomically(path, live_page(title, svg, state, records, is_over=is_over))


def draw_curves(records: Sequence[dict[str, Any]], live: Sequence[dict[str, Any]] = ()) -> Figure:
    """The figure of lines of metrics.jsonl and of points within epochs, at least one of all."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    _draw_losses(losses, records, live)
    _draw_scores(scores, records)
    return figure


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
    """Values of the validation, which not every epoch has; those of single classes are thin, of many classes grey."""
    validated = [record for record in records if record["validation"]]
    epochs = [record["epoch"] for record in validated]
    names = [name for name in (validated[-1]["validation"] if validated else ()) if name not in HIDDEN_SCORES]
    classes = [name for name in names if name not in SCORES]
    is_many = len(classes) > MOST_NAMED
    for name in (*(name for name in names if name in SCORES), *classes):
        values = [record["validation"].get(name) for record in validated]
        place = classes.index(name) if name in classes else 0
        plain = CLASS_COLOURS[place % len(CLASS_COLOURS)], CLASS_DASHES[place // len(CLASS_COLOURS) % len(CLASS_DASHES)]
        colour, dashes, width = SCORES.get(name, ("0.75" if is_many else plain[0], plain[1], 1.2))
        label = name if name in SCORES or not is_many else f"{len(classes)} classes" if not place else None
        (line,) = scores.plot(epochs, values, dashes, color=colour, label=label, marker=".", markersize=4)
        line.set(linewidth=width, zorder=2 + width)
    scores.set(xlabel="epoch", title="validation average precision", ylim=(0, 1))
    scores.grid(alpha=0.25)
    if validated:
        scores.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


REFRESH_SECONDS = 20
ROWS = 20  # newest epochs in the table
STYLE = "div,.chart{overflow-x:auto}.chart svg{min-width:44em}table{margin-top:1em}td,th{text-align:right}"


def live_page(
    title: str, svg: str, state: Mapping[str, str], records: Sequence[Mapping[str, Any]], *, is_over: bool
) -> bytes:
    """The page.

    svg: the curves, "" before there are any. state: what is told above them, by name. records: lines of metrics.jsonl,
    of which the newest are listed. is_over: the page no longer reloads itself.
    """
    told = " &middot; ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in state.items())
    curves = f'<figure class="chart">{svg}</figure>' if svg else ""
    body = f"<h1>{escape(title)}</h1>\n<p>{told}</p>\n{curves}\n{_table(records)}"
    return page(title, Template(STYLE, body), refresh=0 if is_over else REFRESH_SECONDS)


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest epochs, the newest first."""
    rows = [{"epoch": r["epoch"], **r["train"], "lr": r["learning_rate"], **r["validation"]} for r in records[-ROWS:]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ["".join(f"<td>{_cell(row.get(name))}</td>" for name in names) for row in reversed(rows)]
    return f"<div><table><tr>{heads}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
