"""The number format of training: which ones a device has, which one is the fastest, and the loss scale of float16."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import OptionError
from config.options import replace_options
from graph.mixed_precision import BFLOAT16, FLOAT16, FLOAT32
from graph.number_formats import supports_bfloat16
from machine.runtime import mx
from train.stages import Stage

AUTO = "auto"
# Of GradScaler, torch.amp (https://docs.pytorch.org/docs/stable/amp.html).
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 65536.0, 2.0, 0.5, 2000
_WRONG_DEVICE = {
    BFLOAT16: "is a format for CPUs; give --dtype float16, or --cpu",
    FLOAT16: "is a format for GPUs; give --dtype bfloat16, or --gpus",
}
logger = logging.getLogger(__name__)


class LossScaler:
    """The factor by which losses are multiplied in float16, by GradScaler's rule.

    An update whose gradients are not all finite is skipped and halves the scale; it doubles after GROWTH_INTERVAL
    updates in a row that were made. Source: torch.amp.GradScaler; Micikevicius et al. 2018, section 3.2.
    """

    def __init__(self, scale: float = FIRST_SCALE, good: int = 0, skipped: int = 0) -> None:
        """good: updates since the scale changed or one was skipped; skipped: updates of the run that were."""
        self.scale, self.good, self.skipped = scale, good, skipped

    def note(self, is_finite: bool) -> None:
        """Takes note of an update's gradients; is_finite: whether all of them are."""
        if not is_finite:
            self.scale, self.good, self.skipped = self.scale * BACKOFF, 0, self.skipped + 1
            logger.info(
                "an update is skipped, the %s. of the run: its float16 gradients are not finite; the losses are now "
                "multiplied by %g", self.skipped, self.scale,
            )  # fmt: skip
            return
        self.good += 1
        if self.good == GROWTH_INTERVAL:
            grown = self.scale * GROWTH
            self.scale, self.good = grown if math.isfinite(grown) else self.scale, 0

    def state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}


def make_scaler(dtype: str, precision: Mapping[str, Any]) -> LossScaler | None:
    """The scaler that a run in float16 needs, as a checkpoint left it (CheckpointMeta.precision, {} = a new one)."""
    if dtype != FLOAT16:
        return None
    return LossScaler(**{name: value for name, value in precision.items() if name != "dtype"})


def check_dtype(dtype: str, devices: Sequence[mx.Context]) -> None:
    """OptionError where --dtype is none that these devices compute in."""
    on_cpu = all(device.device_type == "cpu" for device in devices)
    if dtype == (FLOAT16 if on_cpu else BFLOAT16):
        raise OptionError(f"--dtype {dtype} {_WRONG_DEVICE[dtype]}")
    if dtype == BFLOAT16 and not supports_bfloat16():
        raise OptionError("--dtype bfloat16: this CPU has no AVX-512, which oneDNN's bfloat16 needs; leave it out")


def with_dtype(
    stage: Stage, precision: Mapping[str, Any], devices: Sequence[mx.Context], measure: Callable[[Stage], float]
) -> Stage:
    """The stage in one number format: where --dtype is auto that of the run so far, else the fastest one.

    precision: CheckpointMeta.precision of the run so far, {} for a new one. measure: seconds of a batch of a stage.
    """
    if stage.options.device.dtype != AUTO:
        return stage
    dtype = precision.get("dtype") or _fastest(stage, devices, measure)
    return in_dtype(stage, dtype)


def in_dtype(stage: Stage, dtype: str) -> Stage:
    """The stage with another --dtype."""
    return replace(stage, options=replace_options(stage.options, dtype=dtype))


def _fastest(stage: Stage, devices: Sequence[mx.Context], measure: Callable[[Stage], float]) -> str:
    on_cpu = all(device.device_type == "cpu" for device in devices)
    narrow = BFLOAT16 if on_cpu else FLOAT16
    if on_cpu and not supports_bfloat16():
        logger.info("--dtype auto: float32, as this CPU has no AVX-512")
        return FLOAT32
    seconds = {dtype: measure(in_dtype(stage, dtype)) for dtype in (FLOAT32, narrow)}
    dtype = min(seconds, key=lambda name: seconds[name])
    shown = ", ".join(f"{name} {found:.3f} s" for name, found in seconds.items())
    logger.info("--dtype auto: %s (a batch takes: %s)", dtype, shown)
    return dtype
