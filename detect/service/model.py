"""The model of a service: its detectors, measured, and what /health says of it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from common.version import __version__
from config.groups import DeviceOptions
from config.serve_options import ServeOptions
from detect.detector import Detector
from detect.service.batching import Runner

logger = logging.getLogger(__name__)


def load_runner(options: ServeOptions) -> tuple[Runner, Detector]:
    """The model's detectors for single images and for batches, which keep every score; the one for single images."""
    single = _load(options, options.engine, 1)
    # The same engine for both: with another one, detections would depend on how many images come together.
    several = _load(options, single.engine, options.batch_size) if options.batch_size > 1 else None
    noise = np.random.default_rng(0).integers(0, 256, (*single.manifest.size, 3), np.uint8)
    runner = Runner(single, several, noise)
    for detector in filter(None, (single, several)):
        detector.reset_statistics()
    logger.info("%s: an image takes %.1f ms%s", options.model, 1e3 * runner.single_seconds, _about_batches(runner))
    return runner, single


def describe(options: ServeOptions, detector: Detector, runner: Runner) -> dict[str, Any]:
    """What may be told of a model to anybody; of its path, the name alone."""
    return {
        "model": Path(options.model).name,
        "network": detector.manifest.network,
        "dtype": detector.manifest.dtype,
        "engine": detector.engine,
        "input": detector.manifest.size,
        "version": __version__,
        "batches": {
            "most_images": runner.batch_size,
            "fewest_images": runner.least if runner.batch_size > 1 else 1,
            "image_ms": round(1e3 * runner.single_seconds, 2),
            "batch_ms": round(1e3 * runner.batch_seconds, 2),
        },
    }


def _load(options: ServeOptions, engine: str, batch_size: int) -> Detector:
    device = DeviceOptions(gpus=options.gpus, cpu=options.cpu)
    return Detector(options.model, options.epoch, engine=engine, ctx=device, threshold=0.0, batch_size=batch_size)


def _about_batches(runner: Runner) -> str:
    """What was decided about batches, and why; "" without them."""
    if runner.several_size == 1:
        return ""
    batch = f", {runner.several_size} together {1e3 * runner.batch_seconds:.1f} ms: "
    if runner.batch_size == 1:
        return batch + "images are run one by one"
    return batch + f"fewer than {runner.least} are run one by one"
