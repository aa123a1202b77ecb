"""Is there memory for the batches that are made ahead? Asked before it is reserved: the kernel would kill a program,
and not always this one."""

import math
from collections.abc import Sequence

from common.errors import OptionError
from dataset.batch_spec import AHEAD, BatchPlan
from dataset.labels import label_width
from dataset.samples import DATA
from machine.memory import available_memory, shown_bytes

_FLOAT = 4  # bytes of a value


def check_memory(plans: Sequence[BatchPlan], others: int = 0) -> str:
    """A line with the estimate for batches that are in memory at once, training's first; OptionError where they do not
    fit, which names the option and what would fit. A machine that tells nothing of its memory has enough.

    others: bytes that a network keeps for a batch of the first plan, at least.
    """
    needed, free = sum(plan.memory for plan in plans), available_memory()
    network = f" and the network at least {shown_bytes(others)}" if others else ""
    takes = f"the batches in memory take {shown_bytes(needed)}{network}"
    if free is None:
        return takes
    if needed + others > free:
        option, remedy = _too_much(plans, others, free)
        raise OptionError(f"{option}: {takes}, but {shown_bytes(free)} are free; {remedy}")
    return f"{takes}; {shown_bytes(free)} are free"


def _too_much(plans: Sequence[BatchPlan], others: int, free: int) -> tuple[str, str]:
    """(the option that asks for too much, what of it would fit)."""
    first, spec = plans[0], plans[0].spec
    needed, slot = sum(plan.memory for plan in plans), first.layout.slot_bytes()
    pixels = sum(plan.slots * spec.batch_size * _FLOAT * math.prod(plan.maker.shapes()[DATA]) for plan in plans)
    if needed > 2 * pixels:
        width, rows = label_width(first.maker.max_objects), first.maker.max_objects * (free - others - pixels)
        fitting = (
            f"{label_width(rows // (needed - pixels))} would fit" if rows > needed - pixels else "give a smaller one"
        )
        return f"--label-width {width} (the labels' numbers)", fitting
    groups = (free - others - (needed - first.memory)) // slot - AHEAD
    if groups >= 1:
        flag = "--accumulate" if spec.accumulate == spec.largest_group else "--warmup-accumulate"
        return f"{flag} {spec.largest_group}", f"at most {groups} would fit"
    images = (free * spec.batch_size) // (needed + others)
    accumulated = f" with --accumulate {spec.largest_group}" if spec.largest_group > 1 else ""
    if images >= 1:
        return f"--batch-size {spec.batch_size}{accumulated}", f"at most {images} would fit"
    height, width = spec.size
    return f"--data-shape {height},{width}{accumulated}", "not even --batch-size 1 would fit: give a smaller one"
