"""Which devices a run uses."""

import logging
from collections.abc import Sequence

from common.errors import OptionError
from machine.gpus import usable_gpus
from machine.runtime import mx

logger = logging.getLogger(__name__)


def contexts(gpus: str | None = None, cpu: bool = False, cpus: int = 1) -> list[mx.Context]:
    """Contexts of --gpus, --cpu and --cpus: the GPUs named, else all usable GPUs, else N CPU contexts (said in one
    line)."""
    if cpu:
        return [mx.cpu(k) for k in range(cpus)]
    usable, problem = usable_gpus()
    if gpus is None:
        if not usable:
            logger.info("running on the CPU: %s", problem)
        return [mx.gpu(k) for k in usable] or [mx.cpu(k) for k in range(cpus)]
    try:
        wanted = [int(part) for part in gpus.split(",") if part.strip()]
    except ValueError:
        raise OptionError(f"--gpus {gpus!r}: expected numbers like 0,1") from None
    missing = [k for k in wanted if k not in usable]
    if missing:
        reason = problem or f"usable are {', '.join(map(str, usable))}"
        raise OptionError(
            f"--gpus {gpus}: GPU {missing[0]} cannot be used ({reason}); leave --gpus out to use what there is"
        )
    return [mx.gpu(k) for k in wanted] or [mx.cpu(k) for k in range(cpus)]


def check_batch_size(batch_size: int, devices: Sequence[mx.Context]) -> None:
    """OptionError where a batch has less than one image for each device."""
    if batch_size < len(devices):
        raise OptionError(
            f"--batch-size {batch_size} is too small for {len(devices)} devices: each needs an image; raise it or use "
            "fewer devices"
        )
