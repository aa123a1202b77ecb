"""The stages of a run with what each trains: its options, its symbol, its frozen parameters."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.errors import OptionError
from machine.runtime import mx
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern, get_symbol_train, label_names
from train.options import TrainOptions, network_options, stages

Symbol: TypeAlias = mx.sym.Symbol


@dataclass(frozen=True)
class Stage:
    """A part of a run under options of its own (config/run.py:stages); most runs have one.

    symbol: get_symbol_train's. frozen: names of the parameters that stay. run_end: the run stops before this epoch.
    """

    options: TrainOptions
    classes: tuple[str, ...]
    symbol: Symbol
    frozen: tuple[str, ...]
    run_end: int

    @property
    def losses(self) -> Symbol:
        """The symbol without det."""
        return without_det(self.symbol)

    @property
    def digest(self) -> str:
        """symbol_digest of the symbol."""
        return symbol_digest(self.symbol)


def make_stages(options: TrainOptions, classes: tuple[str, ...]) -> list[Stage]:
    """The stages of a run, in their order; OptionError where one of them cannot be trained."""
    return [_make_stage(part, classes, options.end_epoch) for part in stages(options)]


def _make_stage(options: TrainOptions, classes: tuple[str, ...], run_end: int) -> Stage:
    symbol = get_symbol_train(options.network, options.data_shape, len(classes), **network_options(options))
    return Stage(options, classes, symbol, tuple(frozen_parameters(options, symbol)), run_end)


def stage_at(plan: Sequence[Stage], epoch: int) -> Stage:
    """The stage that trains the epoch of this number, from 0; the last one for epochs beyond the end."""
    return next((stage for stage in plan if epoch < stage.options.end_epoch), plan[-1])


def frozen_parameters(options: TrainOptions, symbol: Symbol) -> list[str]:
    """Names that --freeze matches; OptionError where it matches nothing, or all there is to train."""
    inputs = {"data", *label_names(options.network, **network_options(options))}
    names = [name for name in symbol.list_arguments() if name not in inputs]
    pattern = freeze_pattern(options.network, options.freeze)
    frozen = [name for name in names if matches(pattern, name)]
    if options.freeze and len(frozen) in (0, len(names)):
        amount = "every parameter: nothing is left to train" if frozen else f"no parameter (there is {names[0]})"
        raise OptionError(f"--freeze {options.freeze!r} matches {amount}")
    return frozen


def without_det(symbol: Symbol) -> Symbol:
    """The training outputs of get_symbol_train without the last, det: training does not compute it."""
    return mx.sym.Group([symbol[k] for k in range(len(symbol.list_outputs()) - 1)])


def symbol_digest(symbol: Symbol) -> str:
    """sha256 of the training part of a training symbol: equal for equal networks and losses."""
    return hashlib.sha256(without_det(symbol).tojson().encode()).hexdigest()
