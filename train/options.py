"""Options of train.py: those of a run, and those of all families of networks."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from common.errors import OptionError
from config.augment_options import TrainAugment
from config.classic_options import ClassicTrainOptions
from config.options import joined_options
from config.recipe_options import RecipeOptions
from config.run import DeviceOptions, RunOptions
from config.stage_options import StageOptions
from symbol.network_options import CommonOptions
from symbol.registry import network_options_class

BODY = "body"  # the word of --freeze for the backbone, in every family


@dataclass(frozen=True)
class TrainOptions(
    ClassicTrainOptions, TrainAugment, CommonOptions, DeviceOptions, StageOptions, RecipeOptions, RunOptions
):
    """Options of train.py but for those of single families, which train_options_class adds.

    --help shows the groups in the order of these classes, the last one first.
    """


def train_options_class() -> type[TrainOptions]:
    """TrainOptions with the options of the families that are registered now."""
    return joined_options("TrainOptions", TrainOptions, network_options_class())


def train_options(**values: Any) -> TrainOptions:
    """Options of a run with these values, the others at their defaults; values are taken as they are."""
    return train_options_class()(**values)


def stages(options: TrainOptions) -> tuple[TrainOptions, ...]:
    """The options of each stage of a run: freeze, batch_size, lr and end_epoch are the stage's own.

    OptionError where the options of the first stage have no stage, or leave none for the second.
    """
    frozen_until = options.freeze_epochs
    if not frozen_until:
        if options.freeze_batch_size is not None or options.freeze_lr is not None:
            raise OptionError("--freeze-batch-size and --freeze-lr need --freeze-epochs; give it or leave them out")
        return (options,)
    if options.max_iter:
        raise OptionError("--freeze-epochs and --max-iter exclude each other; end the run by --end-epoch")
    if frozen_until >= options.end_epoch:
        raise OptionError(
            f"--freeze-epochs {frozen_until} leaves no epoch before --end-epoch {options.end_epoch} to train all; "
            f"lower it, or give --freeze {options.freeze or BODY} alone"
        )
    first = replace(
        options,
        freeze=options.freeze or BODY,
        batch_size=options.freeze_batch_size or options.batch_size,
        lr=options.lr if options.freeze_lr is None else options.freeze_lr,
        end_epoch=frozen_until,
    )
    return first, replace(options, freeze="")


def network_options(options: Any) -> dict[str, Any]:
    """The network's own options out of a command's: what get_symbol and get_symbol_train take."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(network_options_class())}


def augment_options(options: TrainOptions) -> TrainAugment | None:
    """The augmentation of a training run; None = resize only."""
    if options.augment == "none":
        return None
    return TrainAugment(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainAugment)})
