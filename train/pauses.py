"""A run that a signal ends, or asks to save, in mid-epoch: PREFIX-paused-NNNN, from which --resume goes on exactly.

NNNN is the number of updates. The set is one like others, with the place in the epoch in its .json; the next checkpoint
of an epoch takes its place.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import CheckpointError
from machine.command import SignalRequests, held
from model.checkpoint import CheckpointMeta, list_epochs, read_meta, remove_checkpoint
from train.callbacks import finite_values
from train.metric import LossMetric
from train.saving import CheckpointWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where in a run a set was saved.

    Attributes:
        epoch: epochs done.
        batch: batches done of the next epoch; 0 = none.
        losses: state of the training metric, {} at the begin of an epoch.
        ranks: workers that served a part of each batch.
    """

    epoch: int = 0
    batch: int = 0
    losses: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1

    @classmethod
    def of(cls, meta: CheckpointMeta) -> "Position":
        """That of a set: the begin of an epoch, unless it is paused; CheckpointError where it is damaged."""
        if not meta.position:
            return cls(meta.epoch)
        try:
            numbers = (int(meta.position["epoch"]), int(meta.position["batch"]), dict(meta.position["losses"]))
            found = cls(*numbers, int(meta.position.get("ranks", 1)))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the place at which the run was paused is damaged ({error!r})") from error
        if found.epoch < 0 or found.batch < 0:
            raise CheckpointError(f"the place at which the run was paused cannot be: {found}")
        return found


def paused_prefix(prefix: str) -> str:
    """The prefix of the sets in mid-epoch of a run."""
    return f"{prefix}-paused"


def newest_paused(prefix: str) -> int | None:
    """The number of the set in mid-epoch that --resume auto takes: one that is further than all epochs; None without.

    Damaged sets are logged and passed over.
    """
    own, newest = paused_prefix(prefix), max(list_epochs(prefix), default=0)
    for number in reversed(list_epochs(own)):
        try:
            position = Position.of(read_meta(own, number))
        except CheckpointError as error:
            logger.warning("%s; it is passed over", error)
            continue
        if (position.epoch, position.batch) > (newest, 0):
            return number
    return None


def drop_paused(prefix: str, but: int | None = None) -> None:
    """Removes the sets in mid-epoch of a run but one."""
    for number in list_epochs(paused_prefix(prefix)):
        if number != but:
            remove_checkpoint(paused_prefix(prefix), number)


class Pauses:
    """Batch-end callback, and what the end of an epoch asks: saves and ends the run as signals request it.

    A set is saved after a whole update, as gradients of parts of one are not kept; at the end of an epoch its own
    checkpoint serves, if there is one.
    """

    def __init__(
        self, writer: CheckpointWriter, metric: LossMetric, requests: SignalRequests, take_over: Callable[[], None]
    ) -> None:
        """take_over: drops what an abandoned run has left; called once something is saved."""
        self._writer, self._metric, self._requests, self._take_over = writer, metric, requests, take_over
        self._prefix = writer.options.output.prefix
        self.is_saved = False

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if not self._requests or param.locals["end_of_batch"] or not self._writer.module.is_between_updates:
            return
        self._metric.flush()
        if self._metric.first_bad is None:  # else FiniteGuard ends the run
            self._writer.module.average_over_ranks()
            self._save(Position(param.epoch, param.nbatch + 1, self._metric.state(), self._metric.ranks.count))
            self._requests.fulfil()

    def at_epoch_end(self, number: int, is_saved: bool) -> None:
        """After the epoch of this number; is_saved: it has a checkpoint."""
        self._requests.agree()
        if not self._requests:
            return
        if not is_saved:
            self._save(Position(number))
        self._requests.fulfil()

    def _save(self, position: Position) -> None:
        module = self._writer.module
        update = module.num_update
        record: Mapping[str, Any] = {
            "num_update": update,
            "learning_rate": module.learning_rate,
            "train": finite_values(self._metric.get_name_value()),
            "validation": {},
        }
        place = {name: value for name, value in vars(position).items() if name != "ranks" or value > 1}
        with held():
            self._writer.save(paused_prefix(self._prefix), update, dict(record), place)
            drop_paused(self._prefix, update)
            self._take_over()
            self.is_saved = True
        logger.info(
            "saved after batch %d of epoch %d: %s-%04d.params",
            position.batch, position.epoch + 1, paused_prefix(self._prefix), update,
        )  # fmt: skip
