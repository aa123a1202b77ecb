"""How long the steps of a detection take: measured by a Detector all the time, and by demo.py --benchmark."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.preprocess import ImageInput

if TYPE_CHECKING:
    from detect.detector import Detector

WINDOW = 1024  # latest values of a step that its figures are of
DECODING, PRE, NETWORK, POST = STEPS = ("decoding", "pre-processing", "network", "post-processing")
WARM_BATCHES = 5


@dataclass(frozen=True)
class StepStatistics:
    """How often a step ran, and the seconds that it took in the latest WINDOW of these times; NaN if it never ran."""

    count: int
    mean: float
    median: float
    p99: float


class Timings:
    """A ring buffer of the latest seconds of each step; any number of threads may add to it."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._seconds = {step: np.zeros(WINDOW) for step in STEPS}
            self._counts = dict.fromkeys(STEPS, 0)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Adds the time that a `with` block takes, unless it raises."""
        begin = time.perf_counter()
        yield
        self.add(step, time.perf_counter() - begin)

    def add(self, step: str, seconds: float) -> None:
        """Adds one run of a step of STEPS."""
        with self._lock:
            self._seconds[step][self._counts[step] % WINDOW] = seconds
            self._counts[step] += 1

    def summary(self) -> dict[str, StepStatistics]:
        """The figures of each step of STEPS."""
        with self._lock:
            latest = {step: (n, self._seconds[step][: min(n, WINDOW)].copy()) for step, n in self._counts.items()}
        return {step: _statistics(count, seconds) for step, (count, seconds) in latest.items()}


def _statistics(count: int, seconds: np.ndarray) -> StepStatistics:
    if not count:
        return StepStatistics(0, *[float("nan")] * 3)
    median, p99 = np.percentile(seconds, [50, 99])
    return StepStatistics(count, float(seconds.mean()), float(median), float(p99))


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
