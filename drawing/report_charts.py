"""Charts of an evaluation: curves, confusions, errors and calibration.

Colours are those of Okabe and Ito, lines differ by dashes, too; each chart is as wide as a telephone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from drawing.set_charts import BAR_INCHES, BLUE, FONT_POINTS, HEIGHT, ORANGE, WIDTH, Chart, plain_name

# Of lines, one after the other, each with its dashes; yellow is none on white.
LINES = (
    ("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#56B4E9", "-"), ("#E69F00", "--"),
    ("#000000", "-."),
)  # fmt: skip
GREY, VERMILION, GREEN = "#888888", "#D55E00", "#009E73"
MOST_BARS = 30  # classes with a bar each
LABEL_WIDTH = 0.15  # of a bar that has room for its number
MOST_CELLS = 16  # classes of a confusion matrix that can be read on a telephone
MOST_POINTS = 200  # of a line
GRID = np.linspace(0, 1, 201)  # scores at which curves are drawn
NOTHING = "nothing"  # beside the classes of a confusion matrix


@dataclass(frozen=True)
class ClassCurves:
    """Of a class: name, average precision, precision over recall, and precision, recall and F1 at the scores of GRID;
    best: (score, F1) where F1 is highest, nan without."""

    name: str
    ap: float
    recalls: np.ndarray
    precisions: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: tuple[float, float]


@contextmanager
def _fonts() -> Iterator[None]:
    with rc_context({"font.size": FONT_POINTS}):
        yield


def _axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def ap_chart(names: Sequence[str], values: np.ndarray, what: str, ranges: Mapping[str, tuple[float, float]]) -> Chart:
    """AP (K,) of each class that has one, the highest first; ranges: intervals by name, as black lines."""
    order = [k for k in np.argsort(-values, kind="stable") if not np.isnan(values[k])]
    shown = order if len(order) <= MOST_BARS else [*order[: MOST_BARS // 2], *order[-(MOST_BARS // 2) :]]
    with _fonts():
        figure, axes = _axes(0.9 + BAR_INCHES * max(1, len(shown)))
        rows, own = np.arange(len(shown)), values[shown]
        axes.barh(rows, own, 0.62, color=BLUE)
        for row, k in enumerate(shown):
            if names[k] in ranges:
                axes.plot(ranges[names[k]], (row, row), color="black", linewidth=1.6, marker="|", markersize=7)
        for row, value in zip(rows, own, strict=True):
            place = (value / 2, "center", "white") if value >= LABEL_WIDTH else (value + 0.01, "left", "black")
            axes.text(place[0], row, f"{value:.3f}", va="center", ha=place[1], color=place[2])
        axes.set_yticks(rows, [plain_name(names[k]) for k in shown], parse_math=False)
        axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6), xlabel="average precision")
    text = f"{what} of each class that has objects."
    if len(shown) < len(order):
        text += f" Of {len(order)} classes the best and the worst {MOST_BARS // 2} are shown."
    if any(names[k] in ranges for k in shown):
        text += " Black lines: 95 % intervals."
    return Chart("ap", "Average precision", text, figure)


def precision_recall_chart(curves: Sequence[ClassCurves], what: str) -> Chart:
    """Precision over recall of each class that has objects."""
    shown = [one for one in curves if not np.isnan(one.ap)]
    with _fonts():
        figure, axes = _axes()
        lines = []
        for number, one in enumerate(shown):
            x, y = _thinned(one.recalls, one.precisions)
            colour, dashes = _style(number, len(shown))
            lines += axes.plot(x, y, dashes, color=colour, label=f" {plain_name(one.name)} {one.ap:.3f}")
        if len(shown) > len(LINES):
            grid = np.linspace(0, 1, MOST_POINTS)
            mean = np.mean([_highest(one, grid) for one in shown], axis=0)
            lines = axes.plot(grid, mean, color=BLUE, linewidth=2.5, label=f" mean of {len(shown)} classes")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        _legend(figure, lines)
    return Chart("precision_recall", "Precision by recall", f"Beside the names: {what}.", figure)


def _highest(one: ClassCurves, recalls: np.ndarray) -> np.ndarray:
    """The best precision (r,) at these recalls or above."""
    envelope = np.append(np.maximum.accumulate(one.precisions[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(one.recalls, recalls)]


def _style(number: int, count: int) -> tuple[str, str]:
    """Colour and dashes of a line; of many lines all are pale."""
    return LINES[number] if count <= len(LINES) else ("#c4c8ce", "-")


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line by at most MOST_POINTS of its points, evenly spread along x."""
    if len(x) <= MOST_POINTS:
        return x, y
    chosen = np.unique([*np.searchsorted(x, np.linspace(x[0], x[-1], MOST_POINTS - 1)).clip(0, len(x) - 1), len(x) - 1])
    return x[chosen], y[chosen]


def _legend(figure: Figure, lines: Sequence[object]) -> None:
    """Names above the axes, as they are written."""
    if lines:
        legend = figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)


def f1_chart(curves: Sequence[ClassCurves]) -> Chart:
    """F1 by score, with the best of each class marked."""
    shown = [one for one in curves if not np.isnan(one.best[1])]
    with _fonts():
        figure, axes = _axes()
        lines = []
        for number, one in enumerate(shown):
            colour, dashes = _style(number, len(shown))
            label = f" {plain_name(one.name)} {one.best[1]:.3f} at {one.best[0]:.2f}"
            lines += axes.plot(GRID, one.f1, dashes, color=colour, label=label)
            axes.plot(*one.best, "o", color=GREY if len(shown) > len(LINES) else colour, markersize=5)
        if len(shown) > len(LINES):
            mean = np.mean([one.f1 for one in shown], axis=0)
            lines = axes.plot(GRID, mean, color=BLUE, linewidth=2.5, label=f" mean of {len(shown)} classes")
        axes.set(xlabel="score from which detections count", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        _legend(figure, lines)
    return Chart("f1", "F1 by score", "Dots: the best F1 of each class, and the score that gives it.", figure)


def score_chart(curves: Sequence[ClassCurves]) -> Chart:
    """Means over the classes of precision, recall and F1 by score."""
    shown = [one for one in curves if not np.isnan(one.ap)]
    with _fonts():
        figure, axes = _axes()
        lines = []
        for (colour, dashes), name in zip(LINES, ("precision", "recall", "F1"), strict=False):
            rows = np.array([getattr(one, name.lower()) for one in shown]).reshape(-1, len(GRID))
            known = ~np.isnan(rows)
            mean = np.where(known, rows, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
            lines += axes.plot(GRID, mean, dashes, color=colour, label=f" {name}", linewidth=2)
        axes.set(xlabel="score from which detections count", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        figure.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False)
    text = "Means over the classes; precision of those that still have detections."
    return Chart("score", "Precision and recall by score", text, figure)


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> Chart | None:
    """Objects (rows) and what they are found as, (K + 1, K + 1) counts; None where it could not be read.

    Colours are shares of the row, in the last row of the column: what part of the detections has no object.
    """
    if len(names) > MOST_CELLS:
        return None
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    side = len(matrix)
    small = max(4.5, FONT_POINTS - max(0, side - 5) * 0.55)
    with _fonts():
        figure, axes = _axes(min(WIDTH, 2.2 + 0.55 * side))
        is_right = np.eye(side, dtype=bool)
        for colours, hidden in (("Blues", ~is_right), ("Oranges", is_right)):
            axes.imshow(np.ma.array(shares, mask=hidden | (matrix == 0)), cmap=colours, vmin=0, vmax=1, aspect="auto")
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=small)
        labels = [plain_name(name) for name in (*names, NOTHING)]
        turned = 0 if side <= 5 else 90
        axes.set_xticks(range(side), labels, rotation=turned, parse_math=False, fontsize=small)
        axes.set_yticks(range(side), labels, parse_math=False, fontsize=small)
        axes.set(xlabel="found as", ylabel="annotated as")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(side + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(side + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#d5d9e0", linewidth=0.8)
        axes.tick_params(which="both", length=0)
    return Chart("confusion", "Confusions", "", figure)


def error_chart(lost: Mapping[str, float], ap: float) -> Chart:
    """What AP each type of error costs, in points of 100."""
    with _fonts():
        figure, axes = _axes(0.9 + BAR_INCHES * len(lost))
        rows, values = np.arange(len(lost)), np.nan_to_num([100 * value for value in lost.values()])
        colours = [BLUE] * 6 + [ORANGE] * (len(lost) - 6)
        bars = axes.barh(rows, values, 0.62, color=colours)
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
        axes.set_yticks(rows, list(lost))
        axes.set(ylim=(len(lost) - 0.4, -0.6), xlim=(0, max(1.0, values.max(initial=0) * 1.18)))
        axes.set_xlabel("points of AP at IoU 0.5 that would be gained")
    text = (
        f"AP is {100 * ap:.1f} points. Blue: without the errors of one type; orange: without any false positive, or "
        "with no object left to be found. Gains do not add up."
    )
    return Chart("errors", "What errors cost", text, figure)


def calibration_chart(counts: np.ndarray, score: np.ndarray, right: np.ndarray, text: str) -> Chart:
    """Share of right detections by score, and how many there are; (bins,) each."""
    with _fonts():
        figure = Figure(figsize=(WIDTH, HEIGHT + 0.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        width = 1 / len(counts)
        middle = (np.arange(len(counts)) + 0.5) * width
        upper.bar(middle, np.nan_to_num(right), width, color="#56B4E9", edgecolor="white", label="right detections")
        upper.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="as they should be")
        upper.plot(score, right, "o", color=VERMILION, markersize=5, label="at their mean score")
        upper.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1))
        lower.bar(middle, counts, width, color=GREY, edgecolor="white")
        lower.set(xlabel="score", ylabel="number")
        if counts.any():
            lower.set(yscale="log", ylim=(0.5, 2 * max(10, counts.max())))
            lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_minor_locator(NullLocator())
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return Chart("calibration", "Calibration of scores", text, figure)
