"""The learning rate that falls when the validation loss does not."""

import math
from collections.abc import Mapping
from typing import Any

from common.errors import CheckpointError
from train.options import TrainOptions
from train.schedule import Rates, WarmUp, warm_up_of

THRESHOLD = 1e-4  # relative change of the loss that counts as better


class Plateau(Rates):
    """The rate is multiplied by a factor after more than `patience` validations in a row without a better loss.

    Better is a loss below (1 - THRESHOLD) times the best one so far; one that is not finite is not. Source: PyTorch's
    ReduceLROnPlateau with its defaults.
    """

    def __init__(
        self, base_lr: float, factor: float, patience: int, lowest: float, warm_up: WarmUp, state: Mapping[str, Any]
    ) -> None:
        """lowest: the rate does not fall below it. state: what `state` gave, {} = a new start; CheckpointError where it
        is damaged."""
        super().__init__(base_lr, lambda update: self.current, warm_up)
        self.factor, self.patience, self.lowest = min(factor, 1.0), patience, lowest
        try:
            self.current = float(state.get("rate", base_lr))
            self.best = float(state.get("best", math.inf))
            self.bad = int(state.get("bad", 0))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's state of the plateau is damaged ({error}); use another epoch"
            ) from error

    def observe(self, loss: float) -> None:
        """Takes in the loss of a validation."""
        if loss < self.best * (1.0 - THRESHOLD):
            self.best, self.bad = loss, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.current, self.bad = max(self.current * self.factor, min(self.lowest, self.current)), 0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON; no best before the first finite loss."""
        best = {"best": self.best} if math.isfinite(self.best) else {}
        return {"rate": self.current, "bad": self.bad, **best}


def make_plateau(options: TrainOptions, num_example: int, state: Mapping[str, Any]) -> Plateau:
    """The schedule of a run's options; state: of its checkpoint."""
    warm_up = warm_up_of(options, num_example)
    return Plateau(options.lr, options.lr_factor, options.lr_patience, options.lr_final, warm_up, state)
