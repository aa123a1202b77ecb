"""What mx.mod.Module.fit is given: the guard against non-finite losses, the monitor, the logger of its lines."""

import logging
import math
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from common.errors import OptionError, TrainingError
from machine.runtime import mx

FIT_LINE = "Epoch[%d]"  # what fit's lines begin with


class FiniteGuard:
    """Batch-end callback: stops the run when the losses or gradients of a batch are not finite.

    Losses are read one batch late, so the records of the last batches are remembered to name those of the culprit.
    """

    MEMORY = 3

    def __init__(self, names: Callable[[Sequence[int]], Sequence[str]] | None = None) -> None:
        """names: of images by the ids of their records, asked for when there is something to tell; None = the ids."""
        self._names = names
        self._records: dict[int, list[int]] = {}

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if param.nbatch == 0:
            self._records.clear()
        batch = param.locals["data_batch"]
        self._records[param.nbatch] = batch.index[: len(batch.index) - (batch.pad or 0)].tolist()
        self._records.pop(param.nbatch - self.MEMORY, None)
        bad = param.eval_metric.first_bad
        if bad is not None:
            ids = self._records.get(bad, [])
            images = ", ".join(self._names(ids) if self._names else map(str, ids))
            where = f"epoch {param.epoch + 1}, batch {bad + 1} (images {images})"
            raise TrainingError(
                f"the loss or its gradient is not finite in {where}; checkpoints are untouched; try a lower --lr, "
                "--warmup-epochs or --clip-gradient"
            )


class FitLog(logging.LoggerAdapter):
    """The logger of fit, whose epochs count from 0, with epochs that count from 1, as checkpoints do."""

    def __init__(self, logger: logging.Logger) -> None:
        """logger: where the lines go."""
        super().__init__(logger, {})

    def log(self, level: int, msg: object, *args: Any, **options: Any) -> None:
        """As Logger.log."""
        if args and str(msg).startswith(FIT_LINE):
            args = (args[0] + 1, *args[1:])
        super().log(level, msg, *args, **options)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leaves a line as it is."""
        return msg, kwargs


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
