"""What targets and losses of a YOLOv3 cost.

python -m benchmarks.yolo_losses          (about two minutes)

Full steps of a Module (forward, backward, update, wait) of one network, in turns: with its losses, and with given
gradients of the raw predictions instead. The assigner runs in the data workers and is measured apart, for one image in
one process.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import Seconds, in_turns, machine, median_ratio, print_table, seconds_of
from benchmarks.targets import make_step
from common.sizes import input_size
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.runtime import mx
from symbol.detector import yolo
from symbol.detector.yolo import find_row as find_yolo_row
from symbol.network_options import YOLOOptions
from symbol.symbol_factory import get_assigner, get_symbol_train
from train.stages import without_det

LOSSES, NO_LOSS, ASSIGNER = "losses", "no loss", "assigner"
WARM_UP = 2
SIDES = (0.02, 0.5)  # of the objects, of the image


@dataclass(frozen=True)
class YOLOLossesOptions:
    """What to measure."""

    network: str = option("yolov3_spp_small", "network")
    data_shape: tuple[int, ...] = option((416,), "input side, or height,width", minimum=32)
    batch_size: int = option(4, "images per batch", minimum=1)
    objects: int = option(100, "objects in each image", minimum=1)
    num_class: int = option(80, "number of classes", minimum=1)
    rounds: int = option(7, "measurements of each kind, in turns; the table has medians", minimum=1)


def random_objects(rng: np.random.Generator, options: YOLOLossesOptions) -> np.ndarray:
    """(n, 6) objects of all sizes."""
    side = rng.uniform(*SIDES, (options.objects, 2))
    low = rng.uniform(0, 1 - side)
    ids = rng.integers(0, options.num_class, (options.objects, 1))
    return np.concatenate([ids, low, low + side, np.zeros((options.objects, 1))], axis=1).astype(np.float32)


def make_runs(options: YOLOLossesOptions) -> dict[str, Callable[[], Any]]:
    """A step with losses, one without, and the assigner over a batch."""
    size, rng = input_size(options.data_shape), np.random.default_rng(0)
    data = rng.uniform(0, 1, (options.batch_size, 3, *size)).astype(np.float32)
    objects = [random_objects(rng, options) for _ in range(options.batch_size)]
    assigner = get_assigner(options.network, size, options.num_class)
    assert assigner is not None

    def match() -> list[dict[str, np.ndarray]]:
        return [assigner(rows, size) for rows in objects]

    targets = match()
    labels = {name: np.stack([one[name] for one in targets]) for name in targets[0]}
    labels["normaliser"][:] = labels["normaliser"].sum(axis=0)
    trained = without_det(get_symbol_train(options.network, size, options.num_class))
    row = find_yolo_row(options.network)
    raw = [level.symbol for level in yolo.levels(options.network, row, size, options.num_class, YOLOOptions())]
    return {
        LOSSES: make_step(trained, data, labels),
        NO_LOSS: make_step(mx.sym.Group(raw), data, {}),
        ASSIGNER: match,
    }


def report(options: YOLOLossesOptions, seconds: dict[str, Seconds]) -> None:
    """Prints the figures."""
    print(
        f"{options.network} at {options.data_shape}, batch {options.batch_size}, {options.objects} objects an image, "
        f"{options.num_class} classes; {machine()}\n"
    )
    rows = [(f"step, {name}", f"{1e3 * statistics.median(seconds[name]):.0f}") for name in (LOSSES, NO_LOSS)]
    print_table(("", "ms"), rows)
    extra = [a - b for a, b in zip(seconds[LOSSES], seconds[NO_LOSS], strict=True)]
    assigned = 1e3 * statistics.median(seconds[ASSIGNER]) / options.batch_size
    print(
        f"\nlosses: {1e3 * statistics.median(extra):.0f} ms, {median_ratio(extra, seconds[LOSSES]):.1%} of the step; "
        f"assigner: {assigned:.2f} ms an image"
    )


def main(argv: list[str]) -> None:
    """Measures and prints."""
    options = parse_options(YOLOLossesOptions, argv, "Cost of targets and losses of YOLOv3")
    runs = make_runs(options)
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    report(options, in_turns({name: partial(seconds_of, run) for name, run in runs.items()}, options.rounds))


if __name__ == "__main__":
    run_command(main)
