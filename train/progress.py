"""Where a run is: losses, speed, times of a step, memory and time left, in the log and as one line on a terminal."""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from dataset.iterator import RecordIter, WrappedIter
from machine.command import SHOWN_OTHERWISE, raise_lost_signal
from machine.runtime import mx
from train.metric import LossMetric

logger = logging.getLogger(__name__)
QUIET_SECONDS = 30.0  # longest time without a line while batches are done
REDRAWN_SECONDS = 0.1
MEGABYTE = 1 << 20
UNMEASURED_BATCHES, MEASURED_BATCHES = 2, 5
KILOBYTES = 1 << 10  # in a megabyte


class MeasuredIter(WrappedIter):
    """The batches of another iterator, and how long it kept the training waiting for them."""

    def __init__(self, iterator: mx.io.DataIter) -> None:
        """iterator stays the caller's to close."""
        super().__init__(iterator)
        self._is_new = True
        self.begun = time.monotonic()  # when the first batch of this epoch was asked for
        self.waited = 0.0  # seconds, in all

    def reset(self) -> None:
        """Begins the iterator's next epoch."""
        self._is_new = True
        super().reset()

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch."""
        asked = time.monotonic()
        if self._is_new:
            self.begun, self._is_new = asked, False
        try:
            return super().next()
        finally:
            self.waited += time.monotonic() - asked


class Progress:
    """Batch-end callback: a line in the log every `frequent` batches, after half a minute without one, and at the end
    of each epoch; a terminal shows as much of it as fits in its place, after each batch.

    Epochs count from 1, as checkpoints do. `step` is the time of a batch, `data` that of it in which training waited
    for the iterator; memory is the most that this process has had at once, and what a GPU holds.
    """

    def __init__(
        self,
        batch_size: int,
        frequent: int,
        batches: int,
        end_epoch: int,
        last_batches: int | None = None,
        source: MeasuredIter | None = None,
        devices: Sequence[mx.Context] = (),
    ) -> None:
        """batches: per epoch; end_epoch: the run stops before it; last_batches: of its last epoch, None = all.

        source: the iterator that is trained on. devices: whose memory is told, if they are GPUs.
        """
        self.batch_size, self.frequent, self.batches = batch_size, frequent, batches
        self.end_epoch = end_epoch
        self.last_batches = batches if last_batches is None else last_batches
        self.images_per_second = 0.0
        self._source, self._devices = source, devices
        self._bar: tqdm | None = None
        self._drawn = 0.0
        self._state: dict[str, str] = {}
        self._ended = time.monotonic()  # of the batch before
        self._first_ended = self._ended
        self._epoch, self._begun_at = -1, 0  # the current epoch, and the batch with which this process began it
        self._told = (self._ended, 0, 0.0)  # time, batches done and seconds waited at the newest line

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        raise_lost_signal()
        now, done = time.monotonic(), param.nbatch + 1
        total = self._batches_of(param.epoch)
        if param.epoch != self._epoch:
            self._epoch, self._begun_at = param.epoch, param.nbatch
            self._begin_epoch(now)
        else:
            done_here = param.nbatch - self._begun_at
            self.images_per_second = self.batch_size * done_here / max(now - self._first_ended, 1e-9)
        self._ended = now
        parts = [
            f"Epoch {param.epoch + 1}/{self.end_epoch}",
            f"{done}/{total}",
            shown_losses(param.eval_metric),
            f"{self.images_per_second:.1f} images/s" if self.images_per_second else "",
            f"ends in {self._left(param.epoch, done)}",
        ]
        words = ("epoch", "batch", "losses", "speed", "run ends in")
        self._state = dict(zip(words, (*parts[:4], parts[4].removeprefix("ends in ")), strict=True))
        self._state["epoch"] = parts[0].removeprefix("Epoch ")
        is_terminal = sys.stderr.isatty()
        quiet = now - self._told[0] > QUIET_SECONDS
        # Losses come a batch late: after the first of several there is nothing to tell.
        if done >= total or (param.nbatch > 0 and (done % self.frequent == 0 or quiet)):
            extra = SHOWN_OTHERWISE if is_terminal else None
            logger.info("%s", " ".join([*filter(None, parts), self._costs(now, done)]), extra=extra)
        if is_terminal:
            self._draw(parts, now, done, total)

    def state(self) -> dict[str, str]:
        """Where the run is, for its page."""
        return dict(self._state)

    def close(self) -> None:
        """Takes the terminal's line away; after the run, however it ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _batches_of(self, epoch: int) -> int:
        return self.last_batches if epoch + 1 >= self.end_epoch else self.batches

    def _begin_epoch(self, now: float) -> None:
        """The first batch is done; of several it tells no speed, as the device may still work on it."""
        begun = self._source.begun if self._source else self._ended
        self._first_ended = now
        self._told = (begun, self._begun_at, self._told[2])
        if self.batches == 1:
            self.images_per_second = self.batch_size / max(now - begun, 1e-9)

    def _costs(self, now: float, done: int) -> str:
        """Times as means of the batches since the line before, and memory."""
        begun, before, waited = self._told
        count = max(1, done - before)
        text = f"step {(now - begun) / count:.3f} s"
        if self._source:
            text += f", data {(self._source.waited - waited) / count:.3f} s"
        self._told = (now, done, self._source.waited if self._source else 0.0)
        return f"{text}, {self._memory()}"

    def _memory(self) -> str:
        used = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KILOBYTES]
        for device in self._devices:
            if device.device_type == "gpu":
                free, total = mx.context.gpu_memory_info(device.device_id)
                used.append((total - free) // MEGABYTE)
        return f"memory {' + '.join(map(str, used))} MB"

    def _left(self, epoch: int, done: int) -> str:
        """Time to the end of the run, validation left out; "?" while no speed is known."""
        if not self.images_per_second:
            return "?"
        later = max(0, self.end_epoch - 1 - epoch)  # epochs, of which the last one may be shorter
        batches = self._batches_of(epoch) - done + later * self.batches
        batches -= self.batches - self.last_batches if later else 0
        seconds = int(batches * self.batch_size / self.images_per_second)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _draw(self, parts: Sequence[str], now: float, done: int, total: int) -> None:
        """Redraws the terminal's line, not more often than an eye can follow."""
        if self._bar is None:
            self._bar = tqdm(total=total, bar_format="{desc}", leave=False)
        if now - self._drawn >= REDRAWN_SECONDS or done >= total:
            self._drawn = now
            self._bar.set_description_str(fitting(parts, shutil.get_terminal_size().columns - 1))
        if done >= total:
            self.close()


def fitting(parts: Sequence[str], columns: int) -> str:
    """Epoch, batch, losses, speed and time left in so many columns: where these are too few, without the speed, then
    without the last losses."""
    epoch, batch, losses, speed, left = parts
    words = losses.split(" ")
    shorter = ((epoch, batch, *words[: len(words) - k], left) for k in range(len(words) + 1))
    lines = [" ".join(filter(None, kept)) for kept in (tuple(parts), *shorter)]
    return next((line for line in lines if len(line) <= columns), lines[-1])


def shown_losses(metric: LossMetric) -> str:
    """The losses in four digits, nothing before the first have been read."""
    if not metric.totals()[1]:
        return ""
    return " ".join(f"{name.removesuffix('_loss')}={value:.4g}" for name, value in metric.get_name_value())


def seconds_a_batch(
    train: Callable[[mx.io.DataBatch], None],
    batches: RecordIter,
    seconds: float,
    agreed: Callable[[bool], bool] = bool,
) -> float:
    """How long a batch takes to train, measured over MEASURED_BATCHES or more and about `seconds`, whichever is more.

    train: begins to train a batch. batches: where they come from, epoch after epoch. The first batches, for which
    memory is reserved and kernels are chosen, do not count. agreed: what several processes make of the question whether
    it is enough.
    """
    done, begun = -UNMEASURED_BATCHES, time.monotonic()
    while True:
        for batch in batches:
            train(batch)
            raise_lost_signal()
            done += 1
            if done == 0:
                mx.nd.waitall()
                begun = time.monotonic()
            if done >= MEASURED_BATCHES and agreed(time.monotonic() - begun >= seconds):
                mx.nd.waitall()
                return (time.monotonic() - begun) / done
        batches.reset()


def seconds_of_validation(validate: Callable[[int], Any], batches: int) -> float:
    """How long a validation of so many batches takes, from its beginning and a few of them; validate: runs so many."""
    times = []
    for count in (1, min(batches, MEASURED_BATCHES)):
        begun = time.monotonic()
        validate(count)
        times.append(time.monotonic() - begun)
    each = max(0.0, times[1] - times[0]) / max(1, min(batches, MEASURED_BATCHES) - 1)
    return times[0] + (batches - 1) * each
