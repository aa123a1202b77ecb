"""Seconds of our COCO metric and of pycocotools on one generated set the size of COCO's val2017.

python -m benchmarks.coco_metric
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import in_turns, machine, median_ratio, print_table, seconds_of
from common.errors import OptionError
from config.command_line import parse_options
from config.options import option
from evaluate.coco_metric import COCOResult, coco_eval
from machine.command import run_command

DETECTIONS_OF_AN_OBJECT = 4  # some near every object, the rest anywhere
WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure."""

    images: int = option(5000, "images", minimum=1)
    classes: int = option(80, "classes", minimum=1)
    objects: int = option(36000, "objects in all images", minimum=1)
    detections: int = option(200000, "detections in all images", minimum=1)
    rounds: int = option(3, "measurements of each", minimum=1)
    seed: int = option(0, "of the generated set", minimum=0)


def main(argv: list[str]) -> None:
    """Evaluates one set with both, compares the twelve numbers and prints the seconds."""
    options = parse_options(BenchmarkOptions, argv, "COCO metric beside pycocotools")
    detections, truths = generate(options)
    theirs = prepared(detections, truths, options)
    names = [str(k) for k in range(options.classes)]
    outcome: dict[str, Any] = {}
    candidates = {"evaluate/coco_metric.py": lambda: coco_eval(detections, truths, names), "pycocotools": theirs}
    seconds = in_turns({name: partial(timed, run, outcome, name) for name, run in candidates.items()}, options.rounds)
    ours, reference = outcome["evaluate/coco_metric.py"], outcome["pycocotools"]
    assert isinstance(ours, COCOResult)
    difference = np.abs(np.array(list(ours.stats.values())) - reference).max()
    print(f"{options.images} images, {len(truths)} objects, {len(detections)} detections, {options.classes} classes")
    print(f"{machine()}; largest difference of the twelve numbers: {difference:.1e}\n")
    print_table(("metric", "median s"), [(name, f"{np.median(times):.2f}") for name, times in seconds.items()])
    print(f"\npycocotools / ours: {median_ratio(seconds['pycocotools'], seconds['evaluate/coco_metric.py']):.0f}")


def timed(run: Callable[[], Any], outcome: dict[str, Any], name: str) -> float:
    """Seconds of run(), whose result is kept."""
    return seconds_of(lambda: outcome.update({name: run()}))


def generate(options: BenchmarkOptions) -> tuple[np.ndarray, np.ndarray]:
    """(detections (n, 7), truths (g, 8)) as coco_eval takes them."""
    rng = np.random.default_rng(options.seed)
    boxes = random_rows(rng, options.objects, options)
    area = boxes[:, 4] * boxes[:, 5]
    truths = np.column_stack([boxes, area, rng.random(options.objects) < 0.01])
    near = np.repeat(boxes, DETECTIONS_OF_AN_OBJECT, axis=0)[: options.detections]
    near[:, 2:] *= rng.lognormal(0, 0.1, (len(near), 4))
    found = np.concatenate([near, random_rows(rng, options.detections - len(near), options)])
    return np.column_stack([found[:, :2], rng.random(len(found)), found[:, 2:]]), truths


def random_rows(rng: np.random.Generator, count: int, options: BenchmarkOptions) -> np.ndarray:
    """(count, 6) rows [image, class, x, y, width, height]."""
    ids = rng.integers(0, (options.images, options.classes), (count, 2))
    return np.column_stack([ids, rng.uniform(0, (WIDTH, HEIGHT), (count, 2)), rng.lognormal(4, 1, (count, 2))])


def prepared(detections: np.ndarray, truths: np.ndarray, options: BenchmarkOptions) -> Callable[[], np.ndarray]:
    """pycocotools' evaluation, everything loaded beforehand."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise OptionError("this benchmark needs pycocotools: pip install pycocotools==2.0.11") from error
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k} for k in range(options.images)],
        "categories": [{"id": k} for k in range(options.classes)],
        "annotations": [entry | {"id": k} for k, entry in enumerate(entries(truths, 2, "area", "iscrowd"), 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(entries(detections, 3, "score"))

    def run() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats

    return run


def entries(rows: np.ndarray, box: int, *others: str) -> list[dict[str, Any]]:
    """Rows [image, class, ..., x, y, width, height, ...] as entries of a COCO file; others: the other columns."""
    rest = np.delete(rows, [0, 1, *range(box, box + 4)], axis=1).tolist()
    columns = zip(rows[:, :2].astype(int).tolist(), rows[:, box : box + 4].tolist(), rest, strict=True)
    return [
        {"image_id": image, "category_id": category, "bbox": corners, **dict(zip(others, values, strict=True))}
        for (image, category), corners, values in columns
    ]


if __name__ == "__main__":
    run_command(main)
