"""How long each step of a detection takes on some images."""

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.preprocess import ImageInput

if TYPE_CHECKING:
    from detect.detector import Detector

WARM_BATCHES = 5


def benchmark(detector: "Detector", images: Sequence[ImageInput], count: int) -> list[str]:
    """Lines of a table: median and p99 of each step over `count` detections, and images a second of all together.

    The images are taken in turn, as often as need be. The first WARM_BATCHES batches are not counted.
    """
    endless = itertools.cycle(images)
    for _ in detector.stream(itertools.islice(endless, WARM_BATCHES * detector.batch_size)):
        pass
    detector.reset_statistics()
    started = time.perf_counter()
    for _ in detector.stream(itertools.islice(endless, count)):
        pass
    seconds = time.perf_counter() - started
    size = detector.batch_size
    lines = [f"engine {detector.engine}, {count} images in batches of {size}", f"{'':18}{'median':>12}{'p99':>12}"]
    for step, figures in detector.statistics().items():
        label = f"{step} ({size})" if step == "network" and size > 1 else step
        lines.append(f"{label:18}{figures.median * 1e3:9.2f} ms{figures.p99 * 1e3:9.2f} ms")
    return [*lines, f"{count / seconds:.1f} images/s from encoded image to boxes"]
