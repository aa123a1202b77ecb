"""The stages of a run with what each trains, and where a run ends: by its updates, its time, or its patience."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from common.errors import CheckpointError, OptionError
from config.options import replace_options
from dataset.iterator import RecordIter, WrappedIter
from machine.runtime import mx
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern, get_symbol_train, label_names
from train.options import BODY, TrainOptions, network_options, split_stages
from train.schedule import Pace, pace_of, shortened

Symbol: TypeAlias = mx.sym.Symbol
NO_END = 2**31 - 1
SPARE = 0.03  # part of --time-limit that is left for slower hours, the curves and the end of the process


@dataclass(frozen=True)
class Stage:
    """A part of a run under options of its own (train/options.py:split_stages); most runs have one.

    symbol: get_symbol_train's. frozen: names of the parameters that stay. run_end: the run stops before this epoch.
    last_batches: of the run's last epoch, where --max-iter ends it in its middle; None = all.
    time_limit: what --time-limit was found to mean (CheckpointMeta), {} without one.
    gradient_ways: how weight gradients are computed by layer (graph/weight_gradients.py); others by their own kernels.
    """

    options: TrainOptions
    classes: tuple[str, ...]
    symbol: Symbol
    frozen: tuple[str, ...]
    run_end: int
    last_batches: int | None = None
    time_limit: dict[str, int] = field(default_factory=dict)
    gradient_ways: dict[str, str] = field(default_factory=dict)

    @property
    def losses(self) -> Symbol:
        """The symbol without det."""
        return without_det(self.symbol)

    @property
    def digest(self) -> str:
        """symbol_digest of the symbol."""
        return symbol_digest(self.symbol)

    def pace(self, num_example: int) -> Pace:
        """Updates of epochs of so many images."""
        return pace_of(self.options.schedule, self.options.data.batch_size, num_example)


def make_stages(options: TrainOptions, classes: tuple[str, ...]) -> list[Stage]:
    """The stages of a run, in their order; OptionError where one of them cannot be trained."""
    return [_make_stage(part, classes, options.schedule.end_epoch) for part in split_stages(options)]


def _make_stage(options: TrainOptions, classes: tuple[str, ...], run_end: int) -> Stage:
    symbol = get_symbol_train(options.input.network, options.input.data_shape, len(classes), **network_options(options))
    if options.schedule.body_lr != 1.0:
        _require_body(options, symbol)
    return Stage(options, classes, symbol, tuple(frozen_parameters(options, symbol)), run_end)


def _require_body(options: TrainOptions, symbol: Symbol) -> None:
    """OptionError where --body-lr has no parameter to change the rate of."""
    pattern = freeze_pattern(options.input.network, BODY)
    if not any(matches(pattern, name) for name in symbol.list_arguments()):
        raise OptionError(f"--body-lr: --network {options.input.network} has no body apart; leave it out")


def stage_at(plan: Sequence[Stage], epoch: int) -> Stage:
    """The stage that trains the epoch of this number, from 0; the last one for epochs beyond the end."""
    return next((stage for stage in plan if epoch < stage.options.schedule.end_epoch), plan[-1])


def frozen_parameters(options: TrainOptions, symbol: Symbol) -> list[str]:
    """Names that --freeze matches; OptionError where it matches nothing, or all there is to train."""
    inputs = {"data", *label_names(options.input.network, **network_options(options))}
    names = [name for name in symbol.list_arguments() if name not in inputs]
    pattern = freeze_pattern(options.input.network, options.net.freeze)
    frozen = [name for name in names if matches(pattern, name)]
    if options.net.freeze and len(frozen) in (0, len(names)):
        amount = "every parameter: nothing is left to train" if frozen else f"no parameter (there is {names[0]})"
        raise OptionError(f"--freeze {options.net.freeze!r} matches {amount}")
    return frozen


def without_det(symbol: Symbol) -> Symbol:
    """The training outputs of get_symbol_train without the last, det: training does not compute it."""
    return mx.sym.Group([symbol[k] for k in range(len(symbol.list_outputs()) - 1)])


def symbol_digest(symbol: Symbol) -> str:
    """sha256 of the training part of a training symbol: equal for equal networks and losses."""
    return hashlib.sha256(without_det(symbol).tojson().encode()).hexdigest()


def without_end(options: TrainOptions) -> TrainOptions:
    """The options with --end-epoch out of the way where --max-iter or --time-limit decides."""
    is_limited = options.schedule.max_iter or options.schedule.time_limit
    return replace_options(options, end_epoch=NO_END) if is_limited else options


def limit_updates(
    stage: Stage, updates_made: int, epoch: int, iterator: RecordIter, first_epoch: int, within: int = 0
) -> tuple[Stage, mx.io.DataIter]:
    """(stage with the end that --max-iter means, iterator that ends there), for a start at an epoch.

    within: of the updates made, those of the epoch itself.

    Updates are counted as the schedule does, which begins at first_epoch: on from those of the run that is continued.
    """
    options = stage.options
    limit = options.schedule.max_iter
    if not limit:
        return stage, iterator
    left = limit - updates_made
    pace = stage.pace(iterator.places)
    end = pace.before(epoch - first_epoch) + within + left
    last = pace.epoch_of(end)  # from first_epoch on
    batches = min((end - pace.before(last)) * iterator.spec.group_size(first_epoch + last), iterator.num_batches)
    ended = replace_options(options, end_epoch=first_epoch + last + 1)
    limited = replace(stage, options=ended, run_end=first_epoch + last + 1, last_batches=batches)
    return limited, LimitedIter(iterator, left)


class LimitedIter(WrappedIter):
    """The batches of the first `limit` updates of an iterator, over all its epochs; afterwards its epochs are empty."""

    def __init__(self, iterator: RecordIter, limit: int) -> None:
        """iterator stays the caller's to close."""
        super().__init__(iterator)
        self._left = limit

    def next(self) -> mx.io.DataBatch:
        """The next batch; StopIteration at the end of the epoch and at the limit."""
        if not self._left:
            raise StopIteration
        batch = super().next()
        self._left -= getattr(batch, "completes_update", True)
        return batch


@dataclass(frozen=True)
class Costs:
    """Seconds of a training batch, of a validation and of a checkpoint, as they were measured."""

    batch: float
    validation: float
    checkpoint: float


def updates_within(seconds: float, costs: Costs, pace: Pace, batches: int, every: int, begin: int) -> int:
    """How many updates, at least one, a run makes in so many seconds from the begin of an epoch of its stage on.

    The last epoch may be a part of one, and is validated and saved. batches: of an epoch; every: epochs between
    validations, 0 = there is that of the last epoch alone.
    """
    left = seconds - costs.validation - costs.checkpoint
    epochs = left / (batches * costs.batch + costs.checkpoint + (costs.validation / every if every else 0.0))
    whole = max(0, int(epochs))
    next_epoch = pace.before(begin + whole + 1) - pace.before(begin + whole)
    made = pace.before(begin + whole) - pace.before(begin)
    return max(1, made + int(max(0.0, epochs - whole) * next_epoch))


def end_after(stage: Stage, limit: dict[str, int], pace: Pace, first_epoch: int) -> Stage:
    """The stage of a run with --time-limit whose schedule, made for the limit's end_epoch, ends with its updates."""
    meant = replace_options(stage.options, end_epoch=limit["end_epoch"]).schedule
    changes = shortened(meant, pace, first_epoch, limit["updates"])
    return replace(stage, options=replace_options(stage.options, **changes), time_limit=limit)


class Patience:
    """Ends a run whose score has not become better for so many epochs; only epochs that are validated count."""

    def __init__(self, epochs: int, state: Mapping[str, Any]) -> None:
        """epochs: 0 = it ends nothing. state: what `state` gave, {} = a new start; CheckpointError where it is
        damaged."""
        self.epochs = epochs
        try:
            self.best = float(state["best"]) if state else None
            self.best_epoch, self.newest = int(state.get("epoch", 0)), int(state.get("newest", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's state of --patience is damaged ({error!r}); use another epoch"
            ) from error

    def observe(self, epoch: int, score: float | None) -> None:
        """Takes in the score of an epoch that was validated; None: there was nothing to measure."""
        if score is not None and (self.best is None or score > self.best):
            self.best, self.best_epoch = score, epoch
        self.newest = epoch

    @property
    def waited(self) -> int:
        """Epochs since the best score, 0 before the first one."""
        return self.newest - self.best_epoch if self.best is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return 0 < self.epochs <= self.waited

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""
        if not self.epochs or self.best is None:
            return {}
        return {"best": self.best, "epoch": self.best_epoch, "newest": self.newest}
