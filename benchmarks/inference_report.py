"""Results of benchmarks.inference: their file, the tables and how they compare with the goals."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import median_ratio, print_table
from benchmarks.inference_engines import BFLOAT16, CHANNELS_LAST, DETECTOR, FLOAT32, INT8, TORCH
from detect.detector import DECODING, POST, PRE
from engines.engine import AUTO, MXNET, ONNXRUNTIME, OPENVINO

NETWORK, END_TO_END = "network", "end-to-end"
NOTHING = "-"
PRE_POST_SHARE = 0.1  # of the network's time in int8
FASTEST = f"{DETECTOR}{AUTO} {INT8}"


@dataclass(frozen=True)
class Goal:
    """Our time relative to that of the fastest of some candidates, at most; below 1 means ahead."""

    ours: str
    others: tuple[str, ...]
    limit: float
    title: str


GOALS = (
    Goal(f"{MXNET} {FLOAT32}", (f"{OPENVINO} {FLOAT32}",), 1.15, "float32 / OpenVINO <= 1.15"),
    Goal(f"{MXNET} {BFLOAT16}", (f"{OPENVINO} {BFLOAT16}",), 1.25, "bfloat16 / OpenVINO <= 1.25"),
    Goal(f"{MXNET} {INT8}", (f"{OPENVINO} {INT8}",), 1.1, "int8 / OpenVINO <= 1.1"),
    Goal(f"{MXNET} {FLOAT32}", (f"{ONNXRUNTIME} {FLOAT32}",), 1.0, "float32 / ONNX Runtime < 1"),
    Goal(f"{MXNET} {INT8}", (f"{ONNXRUNTIME} {INT8}",), 1.0, "int8 / ONNX Runtime < 1"),
    Goal(
        f"{MXNET} {FLOAT32}", (f"{TORCH} {FLOAT32}", f"{CHANNELS_LAST} {FLOAT32}"), 1.0, "float32 / faster PyTorch < 1"
    ),
)


@dataclass(frozen=True)
class Setting:
    """What is measured of a network."""

    kind: str
    network: str
    batch: int
    cores: int

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.network}, {self.kind}, batch {self.batch}, {cores}"


@dataclass(frozen=True)
class Cell:
    """A candidate in a setting.

    Attributes:
        engine: what Detector chose.
        rounds: seconds of each run, of each round.
        memory: MiB at most.
        steps: median seconds of Detector's steps.
        error: why it did not run.
        run: when its setting was started; cells of one run can be compared.
        load: of the machine.
    """

    setting: Setting
    candidate: str
    engine: str = ""
    rounds: list[list[float]] = field(default_factory=list)
    memory: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    error: str = ""
    run: float = 0.0
    load: str = ""

    @property
    def seconds(self) -> list[float]:
        """Of all runs."""
        return [value for seconds in self.rounds for value in seconds]

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [statistics.median(seconds) for seconds in self.rounds]


Results = list[Cell]


def read(path: Path) -> Results:
    """The cells of a file; none if there is no file."""
    if not path.is_file():
        return []
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [Cell(**{**cell, "setting": Setting(**cell["setting"])}) for cell in cells]


def to_json(results: Results, about: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps({"about": about, "cells": [dataclasses.asdict(cell) for cell in results]}, indent=1) + "\n"


def merged(results: Results, measured: Iterable[Cell]) -> Results:
    """The results with newly measured cells in place of older ones."""
    found = {(cell.setting, cell.candidate): cell for cell in [*results, *measured]}
    return list(found.values())


def ratio(ours: Cell | None, others: Sequence[Cell | None]) -> float | None:
    """Median over the rounds of our time relative to the others' fastest; None where they are not of one run."""
    usable = [other for other in others if ours and other and other.run == ours.run and other.rounds]
    if not ours or not ours.rounds or not usable:
        return None
    fastest = min(usable, key=lambda cell: statistics.median(cell.seconds))
    if len(fastest.rounds) != len(ours.rounds):
        return None
    return median_ratio(ours.medians, fastest.medians)


def print_all(results: Results, path: Path) -> None:
    """All tables, then the goals."""
    if path.is_file():
        about = json.loads(path.read_text("utf-8"))["about"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
        print(f"{about['cpu']}; {versions}")
    by_setting: dict[Setting, dict[str, Cell]] = {}
    for cell in results:
        by_setting.setdefault(cell.setting, {})[cell.candidate] = cell
    for setting, cells in by_setting.items():
        print_setting(setting, cells)
    print_goals({s: cells for s, cells in by_setting.items() if s.kind == NETWORK})
    for setting, cells in by_setting.items():
        if setting.kind == END_TO_END:
            print_end_to_end_goals(setting, cells)


def print_setting(setting: Setting, cells: dict[str, Cell]) -> None:
    """The table of a setting and the candidates that failed."""
    loads = sorted({cell.load for cell in cells.values()})
    print(f"\n{setting} ({'; '.join(loads)})\n")
    header = ("candidate", "median ms", "p99 ms", "runs", "images/s", "peak MiB", "relative to OpenVINO")
    print_table(header, [_row(setting, cell, cells) for cell in cells.values() if cell.rounds])
    for cell in cells.values():
        if cell.error:
            print(f"\n{cell.candidate}: did not run: {cell.error:.300}")


def _row(setting: Setting, cell: Cell, cells: dict[str, Cell]) -> tuple[str, ...]:
    median, slow = np.percentile(cell.seconds, [50, 99])
    precision = cell.candidate.rpartition(" ")[2]
    rivals = (f"{OPENVINO} {precision}", f"{DETECTOR}{OPENVINO} {precision}")
    relative = ratio(cell, [cells.get(name) for name in rivals])
    chosen = f" ({cell.engine})" if AUTO in cell.candidate else ""
    return (
        f"{cell.candidate}{chosen}",
        f"{1e3 * median:.1f}",
        f"{1e3 * slow:.1f}",
        str(len(cell.seconds)),
        f"{setting.batch / median:.1f}",
        f"{cell.memory:.0f}",
        NOTHING if relative is None else f"{relative:.2f}",
    )


def print_goals(by_setting: dict[Setting, dict[str, Cell]]) -> None:
    """Our engine's time relative to the others', goal by goal; a figure that misses its goal is in bold type."""
    rows, met, total = [], 0, 0
    for setting, cells in by_setting.items():
        row = [f"{setting.network}, batch {setting.batch}, cores {setting.cores}"]
        for goal in GOALS:
            value = ratio(cells.get(goal.ours), [cells.get(name) for name in goal.others])
            reached = value is not None and (value < 1 if goal.limit == 1 else value <= goal.limit)
            met, total = met + reached, total + (value is not None)
            row.append(NOTHING if value is None else f"{value:.2f}" if reached else f"**{value:.2f}**")
        rows.append(row)
    if total:
        print("\nTime of the mxnet engine relative to the others; bold type: the goal is not met\n")
        print_table(("setting", *(goal.title for goal in GOALS)), rows)
        print(f"\n{met} of {total} goals met")


def print_end_to_end_goals(setting: Setting, cells: dict[str, Cell]) -> None:
    """Whether Detector's pre- and post-processing is small, and whether `auto` is the fastest."""
    ours = cells.get(f"{DETECTOR}{MXNET} {INT8}")
    if ours and ours.steps:
        around, network = ours.steps[PRE] + ours.steps[POST], ours.steps["network"]
        share = around / network
        print(
            f"\n{setting.network}: pre- and post-processing {1e3 * around:.2f} ms, {share:.1%} of int8's network "
            f"{1e3 * network:.1f} ms ({_verdict(share < PRE_POST_SHARE)}: below {PRE_POST_SHARE:.0%}); decoding of the "
            f"JPEG {1e3 * ours.steps[DECODING]:.2f} ms"
        )
    _print_fastest(setting, cells)


def _print_fastest(setting: Setting, cells: dict[str, Cell]) -> None:
    auto = cells.get(FASTEST)
    same: Callable[[str], bool] = lambda name: auto is not None and name == f"{DETECTOR}{auto.engine} {INT8}"  # noqa: E731
    others = [cell for name, cell in cells.items() if name != FASTEST and not same(name)]
    value = ratio(auto, others)
    if auto is None or value is None:
        return
    best = min((cell for cell in others if cell.rounds), key=lambda cell: statistics.median(cell.seconds))
    print(
        f"{setting.network}: {FASTEST} ({auto.engine}) takes {value:.2f} times as long as the fastest other, "
        f"{best.candidate} ({_verdict(value <= 1)}: the fastest)"
    )


def _verdict(met: bool) -> str:
    return "met" if met else "NOT met"
