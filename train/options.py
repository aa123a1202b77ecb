"""Options of train.py: groups of config/groups.py, and the options of all families of networks."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.errors import OptionError
from config.augment_options import RunAugment
from config.groups import (
    DataOptions,
    InputOptions,
    OutputOptions,
    ScheduleOptions,
    StartOptions,
    TrainDeviceOptions,
    ValidationOptions,
)
from config.options import build, group, replace_options
from symbol.network_options import CommonOptions
from symbol.registry import network_options_class

BODY = "body"  # the word of --freeze for the backbone, in every family


@dataclass(frozen=True)
class TrainOptions:
    """Options of train.py; --help-all shows them in the order of these groups.

    net: the options of all families, in the class that train_options_class makes.
    """

    data: DataOptions = group(DataOptions)
    output: OutputOptions = group(OutputOptions)
    start: StartOptions = group(StartOptions)
    schedule: ScheduleOptions = group(ScheduleOptions)
    validation: ValidationOptions = group(ValidationOptions)
    device: TrainDeviceOptions = group(TrainDeviceOptions)
    input: InputOptions = group(InputOptions)
    net: CommonOptions = group(CommonOptions)
    augmentation: RunAugment = group(RunAugment)


def train_options_class() -> type[TrainOptions]:
    """TrainOptions with the options of the families that are registered now."""
    net = network_options_class()
    found = dataclasses.make_dataclass("TrainOptions", [("net", net, group(net))], bases=(TrainOptions,), frozen=True)
    found.__module__, found.__doc__ = TrainOptions.__module__, TrainOptions.__doc__
    return found


def train_options(**values: Any) -> TrainOptions:
    """Options of a run with these flat values, the others at their defaults; values are taken as they are."""
    return build(train_options_class(), values)


def network_options(options: TrainOptions) -> dict[str, Any]:
    """The network's own options: what get_symbol and get_symbol_train take beside name, shape and classes."""
    return {field.name: getattr(options.net, field.name) for field in dataclasses.fields(options.net)}


def augment_options(options: TrainOptions) -> RunAugment | None:
    """The augmentation of a training run; None = resize only."""
    return None if options.data.augment == "none" else options.augmentation


def split_stages(options: TrainOptions) -> tuple[TrainOptions, ...]:
    """The options of each stage of a run: freeze, batch_size, lr and end_epoch are the stage's own.

    OptionError where the options of the first stage have no stage, or leave none for the second.
    """
    schedule, freeze = options.schedule, options.net.freeze
    if schedule.time_limit and schedule.max_iter:
        raise OptionError("--time-limit and --max-iter exclude each other; give one of them")
    if not schedule.freeze_epochs:
        if schedule.freeze_batch_size is not None or schedule.freeze_lr is not None:
            raise OptionError("--freeze-batch-size and --freeze-lr need --freeze-epochs; give it or leave them out")
        return (options,)
    for flag, is_given in (("--max-iter", schedule.max_iter), ("--time-limit", schedule.time_limit)):
        if is_given:
            raise OptionError(f"--freeze-epochs and {flag} exclude each other; end the run by --end-epoch")
    if schedule.freeze_epochs >= schedule.end_epoch:
        raise OptionError(
            f"--freeze-epochs {schedule.freeze_epochs} leaves no epoch before --end-epoch {schedule.end_epoch} to "
            f"train all; lower it, or give --freeze {freeze or BODY} alone"
        )
    first = replace_options(
        options,
        freeze=freeze or BODY,
        batch_size=schedule.freeze_batch_size or options.data.batch_size,
        lr=schedule.lr if schedule.freeze_lr is None else schedule.freeze_lr,
        end_epoch=schedule.freeze_epochs,
    )
    return first, replace_options(options, freeze="")
