"""The command demo.py: detects in files, folders and globs; leaves pictures and a JSON file."""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import threads
from config.demo_options import DemoOptions
from config.errors import DataError, OptionError
from config.options import boolean_flags, parse_options
from config.run import DeviceOptions
from dataset.files import write_atomically
from dataset.transforms import shape_of
from detect.draw import draw
from detect.heatmap import draw_heatmap, score_map
from detect.inputs import find_images, plan_outputs, split_words
from detect.preprocess import encode_image, read_image

if TYPE_CHECKING:
    from detect.detector import Detector

logger = logging.getLogger(__name__)
UNREADABLE_STATUS = 2


@dataclass(frozen=True)
class Job:
    """An image to read, and the files for its picture with boxes and for that with the heat map, None = not wanted."""

    image: Path
    picture: Path | None = None
    heatmap: Path | None = None


@dataclass
class Outcome:
    """What a run found: the JSON record of each image that was read, and the errors of the others."""

    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Parses the options and detects; status 2 if an image could not be read."""
    words, flags = split_words(argv, boolean_flags(DemoOptions))
    options = parse_options(DemoOptions, flags, "Detect objects in images; python demo.py [IMAGE ...] --model MODEL.")
    images = find_images([*words, options.images], options.dir, options.ext)
    jobs = _plan(images, options)
    threads.configure()
    from config.terminal_log import log_to_terminal

    log_to_terminal()
    detector = _load(options)
    for file in (options.json and Path(options.json), jobs[0].picture, jobs[0].heatmap):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcome = detect_files(detector, jobs, options.thresh)
    _report(options, outcome, time.monotonic() - started)
    return UNREADABLE_STATUS if outcome.problems else 0


def _load(options: DemoOptions) -> "Detector":
    """The detector of the options, which is the model that they expect; heat maps need all of its boxes."""
    from detect.detector import Detector
    from train.expected_model import check_model

    detection = {name: getattr(options, name) for name in ("nms", "force") if getattr(options, name) is not None}
    detector = Detector(
        options.model,
        options.epoch,
        engine=options.engine,
        ctx=DeviceOptions(gpus=options.gpus, cpu=options.cpu),
        threshold=0.0 if options.heatmap else options.thresh,
        batch_size=options.batch_size,
        **detection,
    )
    known = detector.manifest
    check_model(
        options,
        options.model,
        network=known.network,
        class_names=known.class_names,
        data_shape=known.size,
        mean_pixels=known.mean,
    )
    return detector


def _plan(images: Sequence[Path], options: DemoOptions) -> list[Job]:
    """The files of each image; OptionError where pictures and heat maps would be the same files."""
    folders = [options.output, options.heatmap]
    if all(folders) and Path(folders[0]).resolve() == Path(folders[1]).resolve():
        raise OptionError(f"--heatmap {options.heatmap}: the pictures with boxes go there; choose another folder")
    planned = [plan_outputs(images, Path(folder)) if folder else [None] * len(images) for folder in folders]
    return [Job(*files) for files in zip(images, *planned, strict=True)]


def detect_files(detector: "Detector", jobs: Sequence[Job], threshold: float = 0.0) -> Outcome:
    """Detects in image files, a batch at a time; writes the files of each job; logs each image.

    threshold: lowest score shown and recorded, beside that of the detector; heat maps show all that it finds.
    """
    outcome = Outcome()
    readable = _read_all(jobs, outcome)
    while batch := list(itertools.islice(readable, detector.batch_size)):
        found = detector.detect([picture for _, picture in batch])
        for (job, picture), rows in zip(batch, found, strict=True):
            detections = rows[rows[:, 1] >= threshold]
            if job.picture:
                _write(job.picture, draw(picture, detections, detector.class_names))
            if job.heatmap:
                _write(job.heatmap, draw_heatmap(picture, score_map(rows, shape_of(picture))))
            outcome.records.append(_record(job.image, picture, detections, detector.class_names))
            done = len(outcome.records) + len(outcome.problems)
            logger.info("[%d/%d] %s: %s", done, len(jobs), job.image, _summary(outcome.records[-1]))
    return outcome


def _write(path: Path, picture: np.ndarray) -> None:
    write_atomically(path, encode_image(picture, path.suffix.lower()))


def _read_all(jobs: Sequence[Job], outcome: Outcome) -> Iterator[tuple[Job, np.ndarray]]:
    """Those jobs whose image can be read, with its pixels; the errors of the others join outcome.problems."""
    for job in jobs:
        try:
            yield job, read_image(job.image, str(job.image))
        except DataError as error:
            outcome.problems.append(str(error))


def _record(path: Path, picture: np.ndarray, detections: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    return {
        "image": str(path),
        "width": picture.shape[1],
        "height": picture.shape[0],
        "detections": [
            {
                "class": names[int(row[0])],
                "id": int(row[0]),
                "score": round(float(row[1]), 6),
                "box": [round(float(value), 3) for value in row[2:]],
            }
            for row in detections
        ],
    }


def _summary(record: dict[str, Any]) -> str:
    counts = Counter(detection["class"] for detection in record["detections"])
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


def _report(options: DemoOptions, outcome: Outcome, seconds: float) -> None:
    """Writes the JSON file; logs the totals and, last, the images that could not be read."""
    if options.json:
        text = json.dumps(outcome.records, indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(options.json), text.encode("utf-8"))
        logger.info("detections: %s", options.json)
    if options.output and outcome.records:
        logger.info("pictures: %s", options.output)
    if options.heatmap and outcome.records:
        logger.info("heat maps: %s", options.heatmap)
    found = sum(len(record["detections"]) for record in outcome.records)
    logger.info("%d images, %d detections, %.2f s", len(outcome.records), found, seconds)
    for problem in outcome.problems:
        logger.error("error: %s", problem)
