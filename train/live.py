"""Loss curves while an epoch is running: the picture is redrawn every half minute, from values read already."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_atomically
from train.curves import save_curves
from train.metric import LossMetric
from train.module import DetectionModule

logger = logging.getLogger(__name__)
CURVES_EVERY_SECONDS = 30.0  # a picture costs a fraction of a second
MAX_POINTS = 2000  # twice as many are thinned out


class LiveCurves:
    """Batch-end callback and artist of PREFIX-curves.png; PREFIX-live.json tells where the run is.

    A point is the mean loss since the point before. Points are those of this process: a resumed run starts without.
    """

    def __init__(
        self, prefix: str, metric: LossMetric, module: DetectionModule, records: list[dict[str, Any]], batches: int
    ) -> None:
        """records: the lines of metrics.jsonl, which grow with the run; batches: of an epoch."""
        self.prefix, self.metric, self.module = prefix, metric, module
        self.records, self.batches = records, batches
        self.points: list[dict[str, Any]] = []
        self._drawn = time.monotonic()
        self._warned = False
        self._begin_epoch()

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if param.nbatch == 0:
            self._begin_epoch()
        if time.monotonic() - self._drawn > CURVES_EVERY_SECONDS:
            self._add_point(param.epoch, param.nbatch + 1)
            self.draw()

    def draw(self, *, force: bool = True) -> None:
        """Draws the picture; without force not if that was less than half a minute ago."""
        if force or time.monotonic() - self._drawn > CURVES_EVERY_SECONDS:
            self._try(save_curves, self.records, Path(f"{self.prefix}-curves.png"), self.points)
            self._drawn = time.monotonic()

    def _begin_epoch(self) -> None:
        self._sums, self._count = np.zeros(len(self.metric.names)), 0.0

    def _add_point(self, epoch: int, done: int) -> None:
        """Waits for nothing: the metric has read all batches but the newest."""
        sums, count = self.metric.totals()
        if count <= self._count:
            return
        means = (sums - self._sums) / (count - self._count)
        self._sums, self._count = sums, count
        train = {name: float(mean) for name, mean in zip(self.metric.names, means, strict=True) if np.isfinite(mean)}
        point = {"epoch": epoch + done / self.batches, "learning_rate": self.module.learning_rate, "train": train}
        self.points.append(point)
        if len(self.points) > 2 * MAX_POINTS:
            del self.points[::2]
        state = {**point, "num_update": self.module.num_update, "batch": done, "batches": self.batches}
        self._try(write_atomically, Path(f"{self.prefix}-live.json"), (json.dumps(state) + "\n").encode())

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        """Writes a file that training can do without: the first failure is a warning. ValueError: matplotlib takes
        class names with $ for formulas."""
        try:
            write(*arguments)
        except (OSError, ValueError) as error:
            if not self._warned:
                logger.warning("the curves of %s cannot be written (%s); training goes on", self.prefix, error)
            self._warned = True
