"""Callbacks of mx.mod.Module.fit: progress, the guard against non-finite losses, and the end of an epoch."""

import logging
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import OptionError, TrainingError
from machine.runtime import mx
from train.metric import LossMetric

logger = logging.getLogger(__name__)


class FiniteGuard:
    """Batch-end callback: stops the run when the losses or gradients of a batch are not finite.

    Losses are read one batch late, so the records of the last batches are remembered to name those of the culprit.
    """

    MEMORY = 3

    def __init__(self) -> None:
        self._records: dict[int, np.ndarray] = {}

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if param.nbatch == 0:
            self._records.clear()
        self._records[param.nbatch] = param.locals["data_batch"].index
        self._records.pop(param.nbatch - self.MEMORY, None)
        bad = param.eval_metric.first_bad
        if bad is not None:
            records = ", ".join(map(str, self._records.get(bad, ())))
            raise TrainingError(
                f"the loss or its gradient is not finite in epoch {param.epoch}, batch {bad} (records {records}); "
                "checkpoints are untouched; try a lower --lr, --warmup-epochs or --clip-gradient"
            )


class Progress:
    """Batch-end callback: loss, speed and time left, as a bar on a terminal, elsewhere as lines.

    There is a line every `frequent` batches and at the end of each epoch.
    """

    def __init__(self, batch_size: int, frequent: int, batches: int, end_epoch: int) -> None:
        """batches: per epoch; end_epoch: the run stops before it."""
        self.batch_size, self.frequent, self.batches = batch_size, frequent, batches
        self.end_epoch = end_epoch
        self.images_per_second = 0.0
        self._bar: tqdm | None = None
        self._started = self._last = time.monotonic()
        self._last_batch = 0

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        now = time.monotonic()
        if param.nbatch == 0:
            self._started, self._last, self._last_batch = now, now, 0
        else:
            self.images_per_second = self.batch_size * param.nbatch / max(now - self._started, 1e-9)
        done = param.nbatch + 1
        if sys.stderr.isatty():
            self._draw(param, done)
        elif (done % self.frequent == 0 and param.nbatch > 0) or done == self.batches:  # losses come a batch late
            self._log(param, done, now)

    def _draw(self, param: Any, done: int) -> None:
        if done == 1:
            self._bar = tqdm(total=self.batches, desc=f"Epoch {param.epoch}", leave=False, unit="batch")
        if self._bar is None:
            return
        self._bar.update(1)
        if done % self.frequent == 0 or done == self.batches:
            speed = f"{self.images_per_second:.1f} images/s"
            self._bar.set_postfix_str(f"{_values(param.eval_metric)} {speed}, run ends in {self._left(param, done)}")
        if done >= self.batches:
            self._bar.close()

    def _log(self, param: Any, done: int, now: float) -> None:
        speed = self.batch_size * (param.nbatch - self._last_batch) / max(now - self._last, 1e-9)
        self._last, self._last_batch = now, param.nbatch
        logger.info(
            "Epoch[%d] Batch [%d/%d] Speed: %.1f samples/sec %s, run ends in %s",
            param.epoch, done, self.batches, speed, _values(param.eval_metric), self._left(param, done),
        )  # fmt: skip

    def _left(self, param: Any, done: int) -> str:
        """Time to the end of the run, validation left out."""
        if not self.images_per_second:
            return "?"
        batches = (self.end_epoch - param.epoch) * self.batches - done
        seconds = int(batches * self.batch_size / self.images_per_second)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _values(metric: LossMetric) -> str:
    """The losses, nothing before the first have been read."""
    if not metric.totals()[1]:
        return ""
    return " ".join(f"{name}={value:.4f}" for name, value in metric.get_name_value())


def finite_values(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    """{name: value} with nan (a class without ground truth) left out, as JSON has no nan."""
    return {name: float(value) for name, value in values if math.isfinite(value)}


def make_monitor(interval: int, pattern: str) -> mx.mon.Monitor | None:
    """Logs |x| / sqrt(size) of the arrays whose names match, every `interval` batches; 0 gives None.

    The arrays are outputs of layers, weights and moving averages; a name matches if it begins with the pattern.

    OptionError where the pattern is not a regular expression.
    """
    if not interval:
        return None
    try:
        return mx.mon.Monitor(interval, pattern=pattern, sort=True)
    except re.error as error:
        raise OptionError(f"--pattern {pattern!r}: not a regular expression ({error})") from error
