"""How a Module updates, beside its optimizer: accumulation, averaged weights, warm-up, which epochs are validated."""

from collections.abc import Callable
from dataclasses import dataclass

from machine.runtime import mx
from model.params_file import Params
from train.average import RAMP_UPDATES


def no_change(optimizer: mx.optimizer.Optimizer) -> None:
    """Before an update: leaves the optimizer as it is."""


def every_epoch(epoch: int) -> bool:
    """Each epoch is validated."""
    return True


@dataclass(frozen=True)
class Recipe:
    """What DetectionModule does around mx.mod.Module's own steps.

    Gradients add up until a batch whose `completes_update` is true; a batch without the attribute completes one.
    means: gradients are those of means over a batch (targets=mxnet), so that their sum is divided by the number of
    batches; otherwise losses are divided by a number of the whole update already.
    ema, ema_ramp: of the averaged weights (train/average.py:decay_at), 0 = none; averages: to go on from, None = the
    first weights.
    before_update: called with the optimizer. validates: whether the epoch of this number is validated.
    earlier_updates: made by the optimizers of earlier stages of the run.
    bn_decay: whether the gamma of batch norms decays as weights do.
    """

    means: bool = False
    ema: float = 0.0
    ema_ramp: float = RAMP_UPDATES
    averages: tuple[Params, Params] | None = None
    before_update: Callable[[mx.optimizer.Optimizer], None] = no_change
    validates: Callable[[int], bool] = every_epoch
    earlier_updates: int = 0
    bn_decay: bool = True
