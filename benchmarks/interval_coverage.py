"""How often the 95 % intervals of mAP and AP hold the truth, on simulated populations.

python -m benchmarks.interval_coverage --draws 400

Each draw is a set of images of a population (benchmarks/populations.py) whose interval is made as evaluate.py makes it,
and by the percentiles of the same bootstrap, for comparison. The truth is the value of many images.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.common import print_row, print_table
from benchmarks.populations import COCO_LEVELS, POPULATIONS, Population, draw_hits
from config.command_line import parse_options
from config.options import option
from evaluate.intervals import draw_values, intervals
from machine.command import run_command

MEANS = {1: "mAP", COCO_LEVELS: "AP"}  # by IoU thresholds


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
        for levels, metric in MEANS.items():
            rng = np.random.default_rng(options.seed)
            truth = float(draw_values(draw_hits(population, options.truth, rng, levels), 0).values[metric][0])
            for images in options.images:
                cells = coverage(population, levels, images, truth, options, rng)
                print_row((name, metric, str(images), f"{truth:.4f}", *cells))


def coverage(
    population: Population, levels: int, images: int, truth: float, options: BenchmarkOptions, rng: np.random.Generator
) -> tuple[str, ...]:
    """Bias, then share covered and mean width of our interval and of the percentiles'."""
    ends, values = [], []
    for _ in range(options.draws):
        hits = draw_hits(population, images, rng, levels)
        draws = draw_values(hits, options.bootstrap, int(rng.integers(1 << 31)))
        ours = intervals(draws)[MEANS[levels]]
        percentiles = np.nanquantile(draws.values[MEANS[levels]][1:], [0.025, 0.975])
        ends.append([[ours.low, ours.high], percentiles])
        values.append(ours.value)
    low, high = np.array(ends).transpose(2, 1, 0)  # (draws, 2, 2) -> (ends, methods, draws)
    covered, width = ((low <= truth) & (truth <= high)).mean(axis=1), np.nanmean(high - low, axis=1)
    bias = float(np.mean(values)) - truth
    return f"{bias:+.4f}", f"{covered[0]:.3f}", f"{width[0]:.4f}", f"{covered[1]:.3f}", f"{width[1]:.4f}"


if __name__ == "__main__":
    run_command(main)
