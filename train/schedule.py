"""Learning-rate schedules: functions of the number of updates alone, so that a resumed run continues on the same
curve."""

import math
from collections.abc import Sequence
from typing import TypeAlias

from config.run import TrainOptions
from config.runtime import mx

Scheduler: TypeAlias = mx.lr_scheduler.LRScheduler
NEVER = 2**31 - 1


def get_lr_scheduler(
    learning_rate: float,
    lr_refactor_step: Sequence[float | str],
    lr_refactor_ratio: float,
    num_example: int,
    batch_size: int,
    begin_epoch: int = 0,
    warmup_updates: int = 0,
) -> tuple[float, Scheduler | None]:
    """(start rate, scheduler): the rate is multiplied by the ratio at each of these epochs, or updates ("80000i").

    Updates are counted from begin_epoch on: steps that lie behind it lower the start rate, those ahead become relative.
    A ratio >= 1, or no step left, means a constant rate (scheduler None, unless there is a warm-up). Source: apache's
    example/ssd, train/train_net.py.
    """
    batches = max(1, math.ceil(num_example / batch_size))
    behind = batches * begin_epoch
    steps = {_updates(step, batches) - behind for step in lr_refactor_step if lr_refactor_ratio < 1}
    ahead = sorted(step for step in steps if step > 0)
    rate = learning_rate * lr_refactor_ratio ** (len(steps) - len(ahead))
    if not ahead:
        return rate, _constant(rate, warmup_updates)
    return rate, mx.lr_scheduler.MultiFactorScheduler(
        step=ahead, factor=lr_refactor_ratio, base_lr=rate, warmup_steps=warmup_updates
    )


def make_schedule(options: TrainOptions, num_example: int, relative_to: int = 0) -> tuple[float, Scheduler | None]:
    """(start rate, scheduler) of a run's options; relative_to: the epoch from which updates are counted.

    0, unless training began at a later epoch with weights alone. The cosine ends with the run.
    """
    batches = max(1, math.ceil(num_example / options.batch_size))
    warmup = round(options.warmup_epochs * batches)
    if options.lr_schedule == "steps":
        return get_lr_scheduler(
            options.lr, options.lr_steps, options.lr_factor, num_example, options.batch_size, relative_to, warmup
        )
    updates = max(warmup + 1, options.max_iter or (options.end_epoch - relative_to) * batches)
    return options.lr, mx.lr_scheduler.CosineScheduler(
        max_update=updates, base_lr=options.lr, final_lr=options.lr_final, warmup_steps=warmup
    )


def _updates(step: float | str, batches: int) -> int:
    """The number of updates that an epoch (80, "80") or a number of updates ("80000i") stands for."""
    text = str(step)
    return int(text[:-1]) if text.endswith("i") else round(float(text) * batches)


def _constant(rate: float, warmup_updates: int) -> Scheduler | None:
    if not warmup_updates:
        return None
    return mx.lr_scheduler.MultiFactorScheduler(step=[NEVER], factor=0.1, base_lr=rate, warmup_steps=warmup_updates)
