"""Schedules: learning rate, its warm-up, momentum and the biases' rate as functions of the number of updates alone, so
that a resumed run continues on the same curve; `Plateau` alone has a state, which the checkpoints hold."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from common.errors import CheckpointError, OptionError
from config.groups import ScheduleOptions, batches_per_update, warmup_span
from config.options import from_mapping
from machine.runtime import mx
from train.recipe import no_change

Scheduler: TypeAlias = mx.lr_scheduler.LRScheduler
BIASES = ("_bias", "_beta")
WITH_MOMENTUM = ("sgd", "nag")
logger = logging.getLogger(__name__)


def cosine_factor(x: float, length: float, final: float) -> float:
    """Half a cosine from 1 at x = 0 to `final` at x >= length.

    Source: the learning rate per epoch of the YOLOv3-SPP trainer, after Loshchilov, Hutter 2017 (SGDR), section 3.
    """
    return (1.0 + math.cos(math.pi * min(x / length, 1.0))) / 2.0 * (1.0 - final) + final


def warmup_factor(x: float, length: float, start: float) -> float:
    """A line from `start` at x = 0 to 1 at x >= length; 1 where length is 0.

    Source: warmup_lr_scheduler of torchvision's detection references.
    """
    share = min(x / length, 1.0) if length > 0 else 1.0
    return start * (1.0 - share) + share


@dataclass(frozen=True)
class WarmUp:
    """A linear rise over the first `updates` updates; `factor` is where it begins.

    A rise from 0 begins before the first update, which would else change nothing; another one with the first.
    """

    updates: int = 0
    factor: float = 0.0

    def at(self, update: int, start: float | None = None) -> float:
        """Value in [start, 1] at update 1, 2, ...; start: None = factor."""
        first = 1 if self.factor else 0
        return warmup_factor(update - first, self.updates - first, self.factor if start is None else start)


@dataclass(frozen=True)
class Pace:
    """Updates of each epoch of a stage: `early` in the first early_epochs (--warmup-accumulate), then `updates`."""

    updates: int
    early_epochs: int = 0
    early: int = 0

    @property
    def first(self) -> int:
        """Updates of the first epoch."""
        return self.early if self.early_epochs else self.updates

    def surplus(self, epochs: float) -> int:
        """How many updates more than epochs * updates the first so many epochs have; 0 where epochs is negative."""
        return round(max(0, min(epochs, self.early_epochs)) * (self.early - self.updates))

    def before(self, epochs: int) -> int:
        """Updates of the first so many epochs."""
        return epochs * self.updates + self.surplus(epochs)

    def epoch_of(self, update: int) -> int:
        """The epoch, from 0, in which update 1, 2, ... is made; that of update 1 for earlier ones."""
        place, early = max(0, update - 1), self.early_epochs * self.early
        return place // self.early if place < early else self.early_epochs + (place - early) // self.updates


@dataclass(frozen=True)
class Origin:
    """What a schedule counts from: update u of a run is its update u + shift after the begin of epoch first_epoch.

    updates, early_epochs, early: the pace by which epochs became updates; 0 updates = not known. shift: other than 0
    once a resumed run has another pace; the schedule then goes on by epochs.
    """

    first_epoch: int = 0
    updates: int = 0
    shift: int = 0
    early_epochs: int = 0
    early: int = 0

    def pace(self, updates: int) -> Pace:
        """The pace of a run whose later epochs have so many updates."""
        return Pace(updates, self.early_epochs, self.early)

    def continued(self, epoch: int, done: int, updates: int, early_epochs: int = 0, early: int = 0) -> "Origin":
        """Of a run that goes on at an epoch, after so many updates, at this pace."""
        pace = Pace(updates, early_epochs, early)
        if not self.updates:  # rounded up: the last epoch may have ended early (--max-iter)
            return Origin(max(0, epoch - math.ceil(done / updates)), updates, 0, early_epochs, early)
        if self.pace(self.updates) == pace:
            return self
        return Origin(self.first_epoch, updates, pace.before(epoch - self.first_epoch) - done, early_epochs, early)

    def numbers(self) -> tuple[int, ...]:
        """For the checkpoint: (first_epoch, updates, shift), and early_epochs, early where there are any."""
        found = (self.first_epoch, self.updates, self.shift)
        return (*found, self.early_epochs, self.early) if self.early_epochs else found


class Rates(Scheduler):
    """A learning-rate scheduler without a memory: rate(update) times the warm-up."""

    def __init__(self, base_lr: float, rate: Callable[[int], float], warm_up: WarmUp) -> None:
        """base_lr: rate at the start; rate: of update 1, 2, ... without warm-up."""
        super().__init__(base_lr=base_lr)
        self.rate, self.warm_up = rate, warm_up

    def __call__(self, num_update: int) -> float:
        """The rate of update num_update."""
        return self.rate(num_update) * self.warm_up.at(num_update)


def get_lr_scheduler(
    learning_rate: float,
    lr_refactor_step: str | float | Sequence[float | str],
    lr_refactor_ratio: float,
    num_example: int,
    batch_size: int,
    begin_epoch: int = 0,
    warm_up: WarmUp = WarmUp(),  # noqa: B008 - it is immutable
) -> tuple[float, Scheduler | None]:
    """(start rate, scheduler): the rate is multiplied by the ratio at each of these epochs, or updates ("80000i").

    lr_refactor_step: a text like "80, 160" (the whole of "36" is one epoch), a number, or a sequence of them; "" =
    none. Updates are counted from begin_epoch on: steps that lie behind it lower the start rate, which is logged, those
    ahead become relative. A ratio >= 1, or no step left, means a constant rate (scheduler None, unless there is a
    warm-up). batch_size: images of an update. An epoch has ceil(num_example / batch_size) updates, as the iterators
    serve the last images, too. OptionError for a ratio that is not above 0, and for steps of another form. Source:
    apache's example/ssd, train/train_net.py.
    """
    given = {"lr_steps": lr_refactor_step, "lr_factor": lr_refactor_ratio}
    checked = from_mapping(ScheduleOptions, given, "get_lr_scheduler")
    updates = max(1, math.ceil(num_example / batch_size))
    rate, scheduler = _steps(learning_rate, checked.lr_steps, checked.lr_factor, Pace(updates), begin_epoch, warm_up)
    tell_adjusted(learning_rate, rate, begin_epoch)
    return rate, scheduler


def tell_adjusted(wanted: float, rate: float, epoch: int) -> None:
    """Logs the rate with which a run begins or goes on at an epoch, where earlier steps have changed the wanted one."""
    if rate != wanted:
        logger.info("Adjusted learning rate to %g for epoch %d", rate, epoch)


def make_schedule(
    options: ScheduleOptions,
    updates: int,
    origin: Origin = Origin(),  # noqa: B008 - it is immutable
) -> tuple[float, Scheduler | None]:
    """(start rate, scheduler) of a run's options; updates: of an epoch (after the early ones of the origin).

    origin: its first_epoch is 0, unless training began at a later epoch with weights alone, or in a second stage. Steps
    at epochs are those of the run, all else counts from that epoch; the cosine ends with the stage. Where the origin
    has a shift, what --max-iter and steps like 80000i mean stays.
    """
    relative_to, shift, pace = origin.first_epoch, 0 if options.max_iter else origin.shift, origin.pace(updates)
    lr, warm_up = options.lr, warm_up_of(options, pace.first)
    if options.lr_schedule == "steps":
        return _steps(lr, options.lr_steps, options.lr_factor, pace, relative_to, warm_up, shift)
    if options.lr_schedule == "step_epochs":
        return lr, Rates(lr, _each_epochs(options, pace, shift), warm_up)
    final = options.lr_final / lr if lr else 0.0
    whole = options.max_iter or pace.before(options.end_epoch - relative_to)
    if options.lr_schedule == "cosine":
        begin, length = warm_up.updates - shift, max(1, whole - warm_up.updates)
        return lr, Rates(lr, lambda u: lr * cosine_factor(max(0, u - begin), length, final), warm_up)
    epochs = pace.epoch_of(whole) + 1
    return lr, Rates(lr, lambda u: lr * cosine_factor(pace.epoch_of(u + shift), epochs, final), warm_up)


def _each_epochs(options: ScheduleOptions, pace: Pace, shift: int) -> Callable[[int], float]:
    """The rate of an update: multiplied by the factor, below 1, each lr_step_epochs epochs.

    Source: PyTorch's StepLR, called once after each epoch.
    """
    length, factor = options.lr_step_epochs, min(options.lr_factor, 1.0)
    return lambda update: options.lr * factor ** (pace.epoch_of(update + shift) // length)


def updates_per_epoch(options: ScheduleOptions, batch_size: int, num_example: int) -> int:
    """Updates of an epoch of num_example images: batches are accumulated in groups that begin anew in each epoch."""
    batches = max(1, math.ceil(num_example / batch_size))
    return math.ceil(batches / batches_per_update(options, batch_size))


def pace_of(options: ScheduleOptions, batch_size: int, num_example: int) -> Pace:
    """The pace of a stage over so many images: --warmup-accumulate counts in all epochs that its warm-up touches."""
    updates = updates_per_epoch(options, batch_size, num_example)
    groups = options.warmup_accumulate
    if groups in (None, batches_per_update(options, batch_size)) or not warmup_span(options):
        return Pace(updates)
    batches = max(1, math.ceil(num_example / batch_size))
    return Pace(updates, warmup_span(options), math.ceil(batches / groups))


def warm_up_of(options: ScheduleOptions, updates: int) -> WarmUp:
    """The warm-up of a run's options; updates: of its first epoch.

    --warmup-updates is warmup_iters of the YOLOv3-SPP trainer, at most len(data_loader) - 1: with a warmup_factor as
    there, the update after these is the first one at the full rate.
    """
    if options.warmup_updates and options.warmup_epochs:
        raise OptionError(
            f"--warmup-updates {options.warmup_updates} and --warmup-epochs {options.warmup_epochs:g} exclude each "
            "other; set one of them to 0"
        )
    rising = min(options.warmup_updates, updates - 1)
    if rising > 0:
        return WarmUp(rising + (options.warmup_factor > 0), options.warmup_factor)
    return WarmUp(round(options.warmup_epochs * updates), options.warmup_factor)


@dataclass
class WarmUpOfOthers:
    """Sets an optimizer's momentum and the rate of its biases for the update that comes next, during the warm-up.

    momentum, bias_lr: where they begin, None = not changed; they end at final_momentum and at the rate of the others.
    """

    warm_up: WarmUp
    momentum: float | None
    final_momentum: float
    bias_lr: float | None
    _lr_mult: dict[str, float] | None = field(default=None, init=False)

    def __call__(self, optimizer: mx.optimizer.Optimizer) -> None:
        """Called before each update."""
        update = optimizer.num_update + 1
        share = self.warm_up.at(update, 0.0)
        if self.momentum is not None:
            optimizer.momentum = self.momentum + share * (self.final_momentum - self.momentum)
        if self.bias_lr is not None:
            self._set_biases(optimizer, update, share, self.bias_lr)

    def _set_biases(self, optimizer: mx.optimizer.Optimizer, update: int, share: float, start: float) -> None:
        """The optimizer takes a rate per parameter as a factor of the common one."""
        if self._lr_mult is None:
            self._lr_mult = dict(optimizer.lr_mult)
        factor = 1.0
        if share < 1.0:
            rates = optimizer.lr_scheduler
            rate = rates(update)
            factor = (start + share * (rates.rate(update) - start)) / rate if rate else 1.0  # of 0 there is no factor
        biases = [name for name in optimizer.idx2name.values() if name.endswith(BIASES)]
        optimizer.lr_mult = self._lr_mult | {name: factor * self._lr_mult.get(name, 1.0) for name in biases}


def warm_up_of_others(options: ScheduleOptions, updates: int) -> Callable[[mx.optimizer.Optimizer], None]:
    """What to do before each update, of which the first epoch has `updates`.

    OptionError for a momentum where there is none, or without a warm-up.
    """
    momentum, bias_lr = options.warmup_momentum, options.warmup_bias_lr
    if momentum is None and bias_lr is None:
        return no_change
    if not warmup_span(options):
        raise OptionError(
            "--warmup-momentum and --warmup-bias-lr need --warmup-epochs or --warmup-updates; give one of them, or "
            "leave these out"
        )
    if momentum is not None and not (options.optimizer in WITH_MOMENTUM and options.momentum):
        raise OptionError("--warmup-momentum needs --optimizer sgd or nag with a --momentum; leave it out")
    if bias_lr is not None and not options.lr:
        raise OptionError("--warmup-bias-lr needs a --lr above 0; leave it out")
    warm_up = warm_up_of(options, updates)
    return WarmUpOfOthers(warm_up, momentum, options.momentum, bias_lr) if warm_up.updates else no_change


def _steps(
    learning_rate: float,
    steps: Sequence[float | str],
    ratio: float,
    pace: Pace,
    begin_epoch: int,
    warm_up: WarmUp,
    shift: int = 0,
) -> tuple[float, Scheduler | None]:
    """As get_lr_scheduler, at a pace from begin_epoch on; shift: see Origin."""
    places = {_place(step, pace, begin_epoch, shift) for step in steps if ratio < 1}
    ahead = sorted(place for place in places if place > 0)
    rate = learning_rate * ratio ** (len(places) - len(ahead))
    if not ahead and not warm_up.updates:
        return rate, None
    return rate, Rates(rate, lambda u: rate * ratio ** sum(u > place for place in ahead), warm_up)


def _place(step: float | str, pace: Pace, begin_epoch: int, shift: int) -> float:
    """The update, counted from begin_epoch on, that an epoch (80, "80") or an update ("80000i") of the run is."""
    text = str(step)
    if text.endswith("i"):
        return float(text[:-1]) - pace.updates * begin_epoch
    place = round(float(text) * pace.updates) + pace.surplus(float(text) - begin_epoch)
    return place - pace.updates * begin_epoch - shift


def shortened(options: ScheduleOptions, pace: Pace, first_epoch: int, updates: int) -> dict[str, Any]:
    """What changes in a run's options, with an end at end_epoch, where it ends after so many updates of it in place.

    A cosine ends there by itself; steps, counted from first_epoch on, move in proportion, to parts of updates if need
    be, so that each of them stays one of its own.
    """
    part = updates / max(1, pace.before(options.end_epoch - first_epoch))
    if options.lr_schedule == "steps":
        places = [_place(step, pace, first_epoch, 0) for step in options.lr_steps]
    elif options.lr_schedule == "step_epochs":
        epochs = range(options.lr_step_epochs, options.end_epoch - first_epoch, options.lr_step_epochs)
        places = [pace.before(epoch) for epoch in epochs]
    else:
        return {"max_iter": updates}
    begin = pace.updates * first_epoch
    moved = tuple(f"{begin + place * part!r}i" for place in places)
    return {"max_iter": updates, "lr_schedule": "steps", "lr_steps": moved}


BETTER = 1e-4  # relative change of the loss that counts as better


class Plateau(Rates):
    """The rate is multiplied by a factor after more than `patience` validations in a row without a better loss.

    Better is a loss below (1 - BETTER) times the best one so far; one that is not finite is not. Source: PyTorch's
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
        if loss < self.best * (1.0 - BETTER):
            self.best, self.bad = loss, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.current, self.bad = max(self.current * self.factor, min(self.lowest, self.current)), 0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON; no best before the first finite loss."""
        best = {"best": self.best} if math.isfinite(self.best) else {}
        return {"rate": self.current, "bad": self.bad, **best}


def make_plateau(options: ScheduleOptions, updates: int, state: Mapping[str, Any]) -> Plateau:
    """The schedule of a run's options; updates: of its first epoch; state: of its checkpoint."""
    warm_up = warm_up_of(options, updates)
    return Plateau(options.lr, options.lr_factor, options.lr_patience, options.lr_final, warm_up, state)
