"""How often the 95 % intervals of mAP and AP hold the truth, on simulated populations.

python -m benchmarks.interval_coverage --draws 400

Each draw is a set of images of a population (benchmarks/populations.py) whose interval is made as evaluate.py makes it,
and by the percentiles of the same bootstrap, for comparison. The truth is the value of many images.
"""

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.common import print_row, print_table
from benchmarks.populations import COCO_LEVELS, POPULATIONS, Population, draw_hits
from config.command_line import parse_options
from config.options import option
from evaluate.intervals import Draws, draw_values, intervals
from machine.command import run_command

METRICS = {"voc07": ("mAP", 1), "voc": ("mAP", 1), "coco": ("AP", COCO_LEVELS)}  # by kind: mean, IoU thresholds


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to simulate."""

    draws: int = option(400, "sets of images of each population", minimum=1)
    images: tuple[int, ...] = option((30, 72, 300), "images of a set", minimum=2)
    bootstrap: int = option(300, "resamples of each set", minimum=10)
    truth: int = option(100000, "images that stand for the population", minimum=1)
    seed: int = option(0, "of the simulation", minimum=0)


def main(argv: list[str]) -> None:
    """Simulates and prints a line for each population, metric and number of images."""
    options = parse_options(BenchmarkOptions, argv, "How often intervals of AP hold the truth")
    header = ("population", "metric", "images", "truth", "bias", "covered", "width", "percentiles", "width")
    print(f"{options.draws} draws each\n")
    print_table(header, [])
    for name, population in POPULATIONS.items():
        for metric in METRICS:
            rng = np.random.default_rng(options.seed)
            truth = float(draws_of(population, metric, options.truth, 0, rng).values[METRICS[metric][0]][0])
            for images in options.images:
                cells = coverage(population, metric, images, truth, options, rng)
                print_row((name, metric, str(images), f"{truth:.4f}", *cells))


def coverage(
    population: Population, kind: str, images: int, truth: float, options: BenchmarkOptions, rng: np.random.Generator
) -> tuple[str, ...]:
    """Bias, then share covered and mean width of our interval and of the percentiles'."""
    ends, values = [], []
    for _ in range(options.draws):
        draws = draws_of(population, kind, images, options.bootstrap, rng)
        ours = intervals(draws)[METRICS[kind][0]]
        percentiles = np.nanquantile(draws.values[METRICS[kind][0]][1:], [0.025, 0.975])
        ends.append([[ours.low, ours.high], percentiles])
        values.append(ours.value)
    low, high = np.array(ends).transpose(2, 1, 0)  # (draws, 2, 2) -> (ends, methods, draws)
    covered, width = ((low <= truth) & (truth <= high)).mean(axis=1), np.nanmean(high - low, axis=1)
    bias = float(np.mean(values)) - truth
    return f"{bias:+.4f}", f"{covered[0]:.3f}", f"{width[0]:.4f}", f"{covered[1]:.3f}", f"{width[1]:.4f}"


def draws_of(population: Population, kind: str, images: int, bootstrap: int, rng: np.random.Generator) -> Draws:
    """The bootstrap of a set of images by a kind of metric."""
    hits = replace(draw_hits(population, images, rng, METRICS[kind][1]), kind=kind)
    return draw_values(hits, bootstrap, int(rng.integers(1 << 31)))


if __name__ == "__main__":
    run_command(main)
