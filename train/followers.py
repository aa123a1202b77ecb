"""The callbacks of a worker other than rank 0: the decisions of rank 0's, without its files."""

from collections.abc import Callable
from typing import Any

from config.groups import best_metric
from machine.command import SignalRequests, raise_lost_signal
from train.callbacks import finite_values
from train.epoch_end import RunEnds, is_given_up, observe_losses, seed_epoch
from train.metric import LossMetric
from train.pauses import Pauses, Position
from train.saving import CheckpointWriter, Snapshots


class FollowerPauses(Pauses):
    """Ends the run, or goes on, where rank 0 has saved it."""

    def _save(self, position: Position) -> None:
        self.is_saved = True


class FollowerSnapshots(Snapshots):
    """Gives its part to the snapshots that rank 0 writes."""

    def _save(self, update: int) -> None:
        """The moving averages have been averaged; nothing is left to do."""


class FollowerEnd:
    """The end of an epoch, in the place of EpochEnd."""

    def __init__(
        self,
        writer: CheckpointWriter,
        metric: LossMetric,
        validates: Callable[[int], bool],
        requests: SignalRequests,
        end_epoch: int,
    ) -> None:
        """As EpochEnd; the writer writes nothing. end_epoch: the run stops before it."""
        self.writer, self.metric, self.module, self.options = writer, metric, writer.module, writer.options
        self.pauses = FollowerPauses(writer, metric, requests, _nothing)
        self.module.served = [] if self.options.output.report else None
        self._validates, self._end_epoch = validates, end_epoch

    @property
    def is_saved(self) -> bool:
        """Whether rank 0 has saved the run in mid-epoch."""
        return self.pauses.is_saved

    def callbacks(self, num_update: int) -> list[Callable[[Any], None]]:
        """The batch-end callbacks beside the guard; num_update: when the run started."""
        return [self.pauses, _raise_lost, FollowerSnapshots(self.writer, self.metric, num_update)]

    def without_validation(self, epoch: int, *_: Any) -> None:
        """epoch_end_callback of fit."""
        if not self._validates(epoch):
            self._end(epoch, {})

    def with_validation(self, param: Any) -> None:
        """eval_end_callback of fit."""
        self._end(param.epoch, finite_values(param.eval_metric.get_global_name_value()))

    def close(self) -> None:
        """There is nothing to close."""

    def log_summary(self) -> None:
        """Rank 0 tells what the run has come to."""

    def _end(self, epoch: int, validation: dict[str, float]) -> None:
        number, validates = epoch + 1, self._validates(epoch)
        self.module.average_over_ranks()
        if validates and self.module.validation_losses:
            observe_losses(self.writer, self.module.validation_losses)
        if validates and is_given_up(self.writer, number, validation, best_metric(self.options.validation)):
            raise RunEnds
        if number < self._end_epoch:
            self.pauses.at_epoch_end(number, is_saved=True)
        seed_epoch(self.options.data.seed, number)


def _raise_lost(param: Any) -> None:
    raise_lost_signal()


def _nothing() -> None:
    """What an abandoned run has left is rank 0's to drop."""
