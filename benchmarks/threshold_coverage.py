"""How often thresholds that are said to keep a requirement do not keep it, on simulated populations.

python -m benchmarks.threshold_coverage --draws 1000

Each draw is a set of images of a population (benchmarks/populations.py), on which evaluate/thresholds.py tests. The
truth is that of many images. Targets are what the population keeps at TARGET_AT, which makes half of the thresholds
wrong, and, called hopeless, slightly more than it keeps anywhere, which makes all of them wrong.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.common import print_row, print_table
from benchmarks.populations import POPULATIONS, Population, draw_hits
from config.command_line import parse_options
from config.options import option
from evaluate.thresholds import FALSE_ALARMS, GRID, PRECISION, RECALL, Requirement, counts_of, try_requirement
from machine.command import run_command

TARGET_AT = {RECALL: 0.7, PRECISION: 0.4, FALSE_ALARMS: 0.4}
HOPELESS = 1.01


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to simulate."""

    draws: int = option(1000, "sets of images of each population and requirement", minimum=1)
    images: tuple[int, ...] = option((100, 400), "images of a set", minimum=1)
    truth: int = option(100000, "images that stand for the population", minimum=1)
    confidence: float = option(0.95, "of the requirement", minimum=0.5, maximum=0.999)
    seed: int = option(0, "of the simulation", minimum=0)


@dataclass(frozen=True)
class Outcome:
    """Shares of the draws: requirements that were said to be kept, promises that were broken; median of the
    last thresholds of the sequences."""

    shown: float
    broken: float
    threshold: float


def main(argv: list[str]) -> None:
    """Simulates and prints a line for each population, requirement and number of images."""
    options = parse_options(BenchmarkOptions, argv, "How often promised thresholds break their promise")
    print(f"{options.draws} draws each; at most {1 - options.confidence:.1%} of the promises may be broken\n")
    print_table(("population", "requirement", "images", "shown", "broken", "last threshold"), [])
    for name, population in POPULATIONS.items():
        rng = np.random.default_rng(options.seed)
        for requirement, truth in requirements_of(population, options.truth, options.confidence, rng):
            for images in options.images:
                outcome = simulate(population, requirement, truth, images, options.draws, rng)
                print_row((name, requirement.text, str(images), *_cells(outcome)))


def requirements_of(
    population: Population, images: int, confidence: float, rng: np.random.Generator
) -> list[tuple[Requirement, np.ndarray]]:
    """Requirements on the first class, each with what the population has at the thresholds of GRID."""
    counts = counts_of(draw_hits(population, images, rng), [0])
    found = []
    for measure, at in TARGET_AT.items():
        truth = counts.measured(measure)
        best = np.nanmin(truth[:-5]) / HOPELESS if measure == FALSE_ALARMS else np.nanmax(truth[:-5]) * HOPELESS
        for word, target in (("", float(truth[int(np.searchsorted(GRID, at))])), (", hopeless", float(best))):
            if 0 < target < 1 or (measure == FALSE_ALARMS and target > 0):
                text = f"{measure} {target:.3f}{word}"
                found.append((Requirement(text, measure, population.class_names[0], target, confidence), truth))
    return found


def simulate(
    population: Population,
    requirement: Requirement,
    truth: np.ndarray,
    images: int,
    draws: int,
    rng: np.random.Generator,
) -> Outcome:
    """Draws sets of images and counts; a promise is broken where any threshold said to keep it does not."""
    chosen: list[float] = []
    shown = broken = 0
    sign = -1 if requirement.measure == FALSE_ALARMS else 1
    for _ in range(draws):
        hits = draw_hits(population, images, rng)
        kept = try_requirement(requirement, hits)[0].kept
        shown += int(kept.any())
        broken += int((sign * truth[kept] < sign * requirement.target).any())
        chosen += [GRID[kept].max() if requirement.measure == RECALL else GRID[kept].min()] if kept.any() else []
    return Outcome(shown / draws, broken / draws, float(np.median(chosen)) if chosen else float("nan"))


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return f"{outcome.shown:.3f}", f"{outcome.broken:.3f}", f"{outcome.threshold:.2f}"


if __name__ == "__main__":
    run_command(main)
