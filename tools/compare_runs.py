"""Training runs beside one another: their curves in one picture, the options that differ, and a table.

python -m tools.compare_runs output/a output/b output/c --output runs.png

Reads PREFIX-metrics.jsonl and PREFIX-run.json of each run; a run may still be training.
"""

import importlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    importlib.import_module("as_module")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import DataError, OptionError, did_you_mean
from common.files import check_output_file
from config.command_line import parse_options
from config.options import option
from detect.inputs import split_words
from drawing.figures import save_figure
from machine.command import run_command

# Okabe and Ito, Color universal design (2008); black and the yellow are left out: axes, and too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")
MOST_RUNS = len(COLOURS) * len(DASHES)
OWN_OPTIONS = {"prefix", "overwrite", "resume"}  # of one run; they say nothing about another
METRICS = ("mAP", "AP")  # whichever the runs have first
LONGEST_VALUE = 60  # letters
DPI = 120


@dataclass(frozen=True)
class CompareOptions:
    """What is drawn of the runs, which are arguments without flags."""

    output: str = option("runs.png", "picture (PNG) of the curves", "output")
    metric: str = option(
        "", "value of the validation that is drawn and told (default: mAP, or AP without it)", "output"
    )


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        prefix: its own.
        records: the lines of metrics.jsonl.
        options: of run.json, {} without it.
    """

    prefix: str
    records: tuple[dict[str, Any], ...]
    options: dict[str, Any]

    def values(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) of a metric of the validation, where there is one."""
        pairs = ((record["epoch"], (record.get("validation") or {}).get(metric)) for record in self.records)
        return [(epoch, float(value)) for epoch, value in pairs if value is not None and _is_number(value)]

    def losses(self) -> list[tuple[int, float]]:
        """(epoch, sum of the training losses)."""
        pairs = ((record["epoch"], list((record.get("train") or {}).values())) for record in self.records)
        return [(epoch, sum(values)) for epoch, values in pairs if values and all(map(_is_number, values))]


def main(argv: list[str]) -> None:
    """Prints the options that differ and the table, and draws the picture."""
    words, flags = split_words(argv)
    options = parse_options(
        CompareOptions,
        flags,
        "Draws several training runs together; pass their prefixes as arguments: compare_runs.py A B C",
        example="python tools/compare_runs.py output/a output/b --output runs.png",
    )
    if not 2 <= len(words) <= MOST_RUNS:
        raise OptionError(f"{len(words)} runs are named; name 2 to {MOST_RUNS}: compare_runs.py PREFIX PREFIX ...")
    if not options.output.endswith(".png"):
        raise OptionError(f"--output {options.output}: the name of a picture ends with .png")
    check_output_file("--output", options.output)
    runs = [read_run(word) for word in words]
    metric = _metric(runs, options.metric)
    print(*differing_options(runs), *table(runs, metric), sep="\n")
    save_figure(draw_runs(runs, metric), Path(options.output), DPI)
    print(f"curves: {options.output}")


def read_run(prefix: str) -> Run:
    """What a run has left; DataError where there is no metrics.jsonl of it, or a damaged one."""
    path = Path(f"{prefix}-metrics.jsonl")
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name the prefix of a training run") from error
    records = [_parsed(line) for line in lines]
    if None in records:
        raise DataError(f"{path}, line {records.index(None) + 1}: is no line of a training run; name another prefix")
    return Run(prefix, tuple(record for record in records if record), _options(prefix))


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl, None for what is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(record, dict) and _is_number(record.get("epoch"))
    parts = (record.get(name) for name in ("train", "validation")) if fits else ()
    return record if fits and all(part is None or isinstance(part, dict) for part in parts) else None


def _options(prefix: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(f"{prefix}-run.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    options = content.get("options") if isinstance(content, dict) else None
    return options if isinstance(options, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _metric(runs: Sequence[Run], wanted: str) -> str:
    """The metric that is told; OptionError for one that no run has."""
    known = list(
        dict.fromkeys(name for run in runs for record in run.records for name in record.get("validation") or ())
    )
    if wanted and wanted not in known:
        raise OptionError(
            f"--metric {wanted}: no run has it{did_you_mean(wanted, known)}; they have {', '.join(known)}"
        )
    return wanted or next((name for name in METRICS if name in known), known[0] if known else METRICS[0])


def differing_options(runs: Sequence[Run]) -> list[str]:
    """A line for each option that is not the same in all runs, with the value of each."""
    missing = [f"{run.prefix}-run.json cannot be read: its options are not known" for run in runs if not run.options]
    known = [run for run in runs if run.options]
    names = sorted({name for run in known for name in run.options} - OWN_OPTIONS)
    lines = []
    for name in names:
        values = [_value(run.options.get(name, "-")) for run in known]
        if len(set(values)) > 1:
            lines.append(f"--{name.replace('_', '-')}: {', '.join(values)}")
    told = [f"options that differ, of {', '.join(run.prefix for run in known)}:"] if lines else []
    return [*missing, *told, *lines] if lines else [*missing, "no option differs"]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def table(runs: Sequence[Run], metric: str) -> list[str]:
    """A line for each run: epochs, last losses, last and best value of the metric; '-' where there is none."""
    width = max(len("run"), *(len(run.prefix) for run in runs))
    lines = [f"{'run':<{width}}  {'epochs':>6}  {'loss':>8}  {metric:>8}  {'best':>8}  {'at':>5}"]
    for run in runs:
        values, losses = run.values(metric), run.losses()
        best = max(values, key=lambda pair: pair[1]) if values else None
        cells = [_cell(losses[-1][1] if losses else None), _cell(values[-1][1] if values else None)]
        cells += [_cell(best[1] if best else None), f"{best[0] if best else '-':>5}"]
        lines.append(f"{run.prefix:<{width}}  {len(run.records):>6}  {'  '.join(cells)}")
    return lines


def _cell(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.4f}"


def draw_runs(runs: Sequence[Run], metric: str) -> Figure:
    """The losses and the metric of all runs by epoch; the legend stands below, beside no data."""
    figure = Figure(figsize=(11, 4 + 0.2 * len(runs)), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    styles = itertools.product(DASHES, COLOURS)
    for run, (dash, colour) in zip(runs, styles, strict=False):
        _draw(losses, run.losses(), dash, colour, run.prefix)
        _draw(scores, run.values(metric), dash, colour, run.prefix)
    positive = all(value > 0 for run in runs for _, value in run.losses())
    losses.set(xlabel="epoch", title="sum of the training losses", yscale="log" if positive else "linear")
    scores.set(xlabel="epoch", title=f"validation: {_plain(metric)}")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
    figure.legend(handles=losses.lines, loc="outside lower left", frameon=False)
    return figure


def _draw(axes: Axes, points: Sequence[tuple[int, float]], dash: str, colour: str, name: str) -> None:
    marker = "." if len(points) < 2 else ""
    axes.plot([p[0] for p in points], [p[1] for p in points], dash, color=colour, marker=marker, label=_plain(name))


def _plain(text: str) -> str:
    """A text whose $ matplotlib does not take for formulas."""
    return text.replace("$", r"\$")


if __name__ == "__main__":
    run_command(main)
