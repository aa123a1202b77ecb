"""The recipe of a run, out of its options."""

from collections.abc import Callable

from common.errors import OptionError
from config.recipe_options import batches_per_update
from symbol.symbol_factory import mean_losses
from train.options import TrainOptions, network_options
from train.recipe import Recipe
from train.saving import SavePlan
from train.schedule import warm_up_of_others
from train.start import Start


def check_recipe(options: TrainOptions) -> None:
    """OptionError where options of the recipe do not fit together."""
    batches_per_update(options, options.batch_size)
    warm_up_of_others(options, num_example=options.batch_size)
    SavePlan(options, 0)
    if options.val_loss and not options.val_path:
        raise OptionError("--val-loss needs a validation; give --val-path or leave the option out")
    if options.lr_schedule == "plateau" and not options.val_loss:
        raise OptionError("--lr-schedule plateau follows the validation loss; give --val-loss, too")


def make_recipe(options: TrainOptions, start: Start, num_example: int, validates: Callable[[int], bool]) -> Recipe:
    """num_example: images of an epoch; validates: whether the epoch of this number is validated."""
    return Recipe(
        means=mean_losses(options.network, **network_options(options)),
        ema=options.ema,
        ema_ramp=options.ema_ramp,
        averages=start.averages,
        before_update=warm_up_of_others(options, num_example),
        validates=validates,
        earlier_updates=start.earlier_updates,
        bn_decay=options.bn_decay,
    )


def validated_epochs(options: TrainOptions) -> Callable[[int], bool]:
    """Whether the epoch of a number, from 0, is validated: each --eval-every-th and the last, none without --val-path.

    The options are those of the run as it will be, with the end that --max-iter means.
    """
    if not options.val_path:
        return lambda epoch: False
    every = 0 if options.eval_every == "last" else int(options.eval_every)
    return lambda epoch: epoch + 1 >= options.end_epoch or (every > 0 and (epoch + 1) % every == 0)
