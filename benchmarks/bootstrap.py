"""Seconds of the bootstrap's resamples of COCO's AP, on a generated set the size of COCO's val2017.

python -m benchmarks.bootstrap
"""

import time
from dataclasses import replace

from benchmarks.coco_metric import BenchmarkOptions, generate
from benchmarks.common import machine, print_table
from config.command_line import parse_options
from evaluate.hits import coco_hits
from evaluate.intervals import draw_values
from machine.command import run_command

CASES = ((80, 200_000), (80, 500_000), (1, 500_000))  # classes, detections
RESAMPLES = 100


def main(argv: list[str]) -> None:
    """Prints a line for each of CASES."""
    options = parse_options(BenchmarkOptions, argv, "Time of the bootstrap; classes and detections are those of CASES")
    rows = []
    for classes, detections in CASES:
        found, truths = generate(replace(options, classes=classes, detections=detections))
        hits = coco_hits(found, truths, [str(k) for k in range(classes)], options.images)
        begin = time.perf_counter()
        draw_values(hits, RESAMPLES)
        seconds = time.perf_counter() - begin
        rows.append((f"{options.images}", f"{classes}", f"{detections}", f"{seconds:.1f}"))
    print(f"{machine()}\n")
    print_table(("images", "classes", "detections", f"seconds of {RESAMPLES} resamples"), rows)


if __name__ == "__main__":
    run_command(main)
