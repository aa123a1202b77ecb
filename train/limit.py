"""The end of a run by number of updates (--max-iter): which epoch is the last, and where it stops."""

import math
from dataclasses import replace
from typing import Any

from common.errors import OptionError
from dataset.iterator import RecordIter
from machine.runtime import mx
from train.options import TrainOptions
from train.schedule import updates_per_epoch
from train.stages import Stage
from train.start import Start

NO_END = 2**31 - 1


def without_end(options: TrainOptions) -> TrainOptions:
    """The options with --end-epoch out of the way where --max-iter decides."""
    return replace(options, end_epoch=NO_END) if options.max_iter else options


def limit_updates(stage: Stage, start: Start, iterator: RecordIter) -> tuple[Stage, mx.io.DataIter]:
    """(stage with the end that --max-iter means, iterator that ends there).

    Updates are counted as the schedule does: on from those of the run that is continued. OptionError if that has made
    all of them.
    """
    options = stage.options
    if not options.max_iter:
        return stage, iterator
    left = options.max_iter - start.num_update
    if left <= 0:
        raise OptionError(f"{options.prefix} has made {start.num_update} updates; raise --max-iter to train further")
    last = start.epoch + math.ceil(left / updates_per_epoch(options, iterator.num_examples))
    return replace(stage, options=replace(options, end_epoch=last), run_end=last), LimitedIter(iterator, left)


class LimitedIter(mx.io.DataIter):
    """The batches of the first `limit` updates of an iterator, over all its epochs; afterwards its epochs are empty."""

    def __init__(self, iterator: RecordIter, limit: int) -> None:
        """iterator stays the caller's to close."""
        super().__init__(iterator.batch_size)
        self._iterator, self._left = iterator, limit

    @property
    def provide_data(self) -> list[Any]:
        """As the iterator's."""
        return self._iterator.provide_data

    @property
    def provide_label(self) -> list[Any]:
        """As the iterator's."""
        return self._iterator.provide_label

    def reset(self) -> None:
        """Begins the iterator's next epoch."""
        self._iterator.reset()

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch and at the limit."""
        if not self._left:
            raise StopIteration
        batch = self._iterator.next()
        self._left -= getattr(batch, "completes_update", True)
        return batch
