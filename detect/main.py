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
from config.errors import DataError
from config.options import boolean_flags, parse_options
from config.run import DeviceOptions
from dataset.files import write_atomically
from detect.draw import draw
from detect.inputs import find_images, plan_outputs, split_words
from detect.preprocess import encode_image, read_image

if TYPE_CHECKING:
    from detect.detector import Detector

logger = logging.getLogger(__name__)
UNREADABLE_STATUS = 2


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
    outputs = plan_outputs(images, Path(options.output)) if options.output else [None] * len(images)
    threads.configure()
    from detect.detector import Detector
    from train.devices import contexts
    from train.expected_model import check_model
    from train.run_files import log_to_terminal

    log_to_terminal()
    device = contexts(DeviceOptions(gpus=options.gpus, cpu=options.cpu))[0]
    detection = {name: getattr(options, name) for name in ("nms", "force") if getattr(options, name) is not None}
    detector = Detector(
        options.model, options.epoch, ctx=device, threshold=options.thresh, batch_size=options.batch_size, **detection
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
    for folder in [Path(options.output)] * bool(options.output) + [Path(options.json).parent] * bool(options.json):
        folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcome = detect_files(detector, images, outputs)
    _report(options, outcome, time.monotonic() - started)
    return UNREADABLE_STATUS if outcome.problems else 0


def detect_files(detector: "Detector", images: Sequence[Path], outputs: Sequence[Path | None]) -> Outcome:
    """Detects in image files, a batch at a time; writes a picture to each output that is not None; logs each image."""
    outcome = Outcome()
    readable = _read_all(images, outputs, outcome)
    while batch := list(itertools.islice(readable, detector.batch_size)):
        found = detector.detect([picture for _, _, picture in batch])
        for (path, output, picture), detections in zip(batch, found, strict=True):
            if output:
                marked = draw(picture, detections, detector.class_names)
                write_atomically(output, encode_image(marked, output.suffix.lower()))
            outcome.records.append(_record(path, picture, detections, detector.class_names))
            done = len(outcome.records) + len(outcome.problems)
            logger.info("[%d/%d] %s: %s", done, len(images), path, _summary(outcome.records[-1]))
    return outcome


def _read_all(
    images: Sequence[Path], outputs: Sequence[Path | None], outcome: Outcome
) -> Iterator[tuple[Path, Path | None, np.ndarray]]:
    """Path, output and pixels of those images that can be read; the others join outcome.problems."""
    for path, output in zip(images, outputs, strict=True):
        try:
            yield path, output, read_image(path, str(path))
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
    found = sum(len(record["detections"]) for record in outcome.records)
    logger.info("%d images, %d detections, %.2f s", len(outcome.records), found, seconds)
    for problem in outcome.problems:
        logger.error("error: %s", problem)
