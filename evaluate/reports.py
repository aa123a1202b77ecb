"""What an evaluation leaves for the eye: tables of AP and precision-recall curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drawing.figures import save_figure
from evaluate.coco_metric import COCOResult
from evaluate.decision import Decision
from evaluate.voc_eval import ClassResult, VOCResult

LABELLED_CURVES = 20  # with more classes the legend would hide the curves
PICTURE_INCHES = (7.0, 5.5)
PICTURE_DPI = 120


def format_table(result: VOCResult) -> str:
    """Text table with a line per class and the mean; '-' where a class has no objects to find."""
    width = max([len("class"), *(len(one.name) for one in result.classes)])
    lines = [f"{'class':<{width}}  {'AP':>6}  {'objects':>8}  {'detections':>10}  {'recall':>6}"]
    lines += [
        f"{one.name:<{width}}  {_cell(one.ap)}  {one.npos:>8}  {one.num_detections:>10}  {_cell(_final_recall(one))}"
        for one in result.classes
    ]
    return "\n".join([*lines, f"{'mAP':<{width}}  {_cell(result.mean_ap)}"])


def format_coco(result: COCOResult) -> str:
    """Text table of COCO's AP per class and the twelve numbers; '-' where there is nothing to find."""
    width = max([len("class"), *(len(name) for name in result.class_names)])
    lines = [f"{'class':<{width}}  {'COCO AP':>7}"]
    lines += [f"{name:<{width}}  {_cell(value):>7}" for name, value in result.class_ap.items()]
    cells = [f"{name:<5} {_cell(value)}" for name, value in result.stats.items()]
    return "\n".join([*lines, *("   ".join(cells[k : k + 3]) for k in range(0, len(cells), 3))])


def format_ious(results: Mapping[float, VOCResult]) -> str:
    """Text table of AP with a column for each IoU."""
    first = next(iter(results.values()))
    width = max([len("class"), *(len(one.name) for one in first.classes)])
    lines = [f"{'class':<{width}}" + "".join(f"  {f'AP@{overlap:g}':>7}" for overlap in results)]
    for k, one in enumerate(first.classes):
        cells = (_cell(result.classes[k].ap) for result in results.values())
        lines.append(f"{one.name:<{width}}" + "".join(f"  {cell:>7}" for cell in cells))
    means = (_cell(result.mean_ap) for result in results.values())
    return "\n".join([*lines, f"{'mAP':<{width}}" + "".join(f"  {cell:>7}" for cell in means)])


def format_decisions(numbers: Mapping[str, Decision]) -> str:
    """Text table with a line per class, and for all together, which "" stands for; '-' where there is nothing."""
    names = [name or "all" for name in numbers]
    width = max(len(name) for name in ("class", *names))
    lines = [
        f"{'class':<{width}}  {'escape':>6}  {'incomplete':>10}  {'false reject':>12}  {'count bias':>10}  "
        f"{'95 % limits':>15}  {'FROC':>6}"
    ]
    for name, one in zip(names, numbers.values(), strict=True):
        limits = "{:.2f} to {:.2f}".format(*one.limits)
        lines.append(
            f"{name:<{width}}  {_cell(one.escape_rate)}  {_cell(one.incomplete_rate):>10}  "
            f"{_cell(one.false_reject_rate):>12}  {_cell(one.bias):>10}  {limits:>15}  {_cell(one.froc)}"
        )
    return "\n".join(lines)


def save_pr_curves(result: VOCResult, path: str | Path) -> None:
    """Draws the precision-recall curve of every class that has objects as a PNG."""
    figure = Figure(figsize=PICTURE_INCHES)
    axes = figure.add_subplot(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=f"mAP {_cell(result.mean_ap).strip()}"
    )
    shown = [one for one in result.classes if one.npos]
    for one in shown:
        axes.plot(one.recall, one.precision, label=f"{one.name} {one.ap:.3f}")
    axes.grid(alpha=0.3)
    if 0 < len(shown) <= LABELLED_CURVES:
        axes.legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    save_figure(figure, Path(path), PICTURE_DPI)


def _final_recall(one: ClassResult) -> float:
    return one.true_positives / one.npos if one.npos else float("nan")


def _cell(value: float) -> str:
    return f"{'-':>6}" if np.isnan(value) else f"{value:6.4f}"
