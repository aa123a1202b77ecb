"""What mx.mod.Module.fit is given: the Module, what surrounds its steps, the optimizer's arguments and its schedule."""

import logging
from collections.abc import Callable
from typing import Any

from common.sizes import input_size
from dataset.iterator import RecordIter
from symbol.symbol_factory import freeze_pattern, get_symbol, get_symbol_train, label_names, mean_losses
from train.batches import continues_early_version
from train.callbacks import FitLog
from train.metric import make_metric
from train.module import DetectionModule
from train.options import BODY, TrainOptions, network_options
from train.preflight import Plan
from train.ranks import ALONE, Ranks
from train.recipe import Recipe, make_scaler
from train.schedule import Origin, Pace, make_plateau, make_schedule, tell_adjusted, warm_up_of_others
from train.stages import Stage
from train.start import Start

logger = logging.getLogger(__name__)


def validated_size(stage: Stage, val_iter: RecordIter | None) -> tuple[int, int]:
    """(H, W) of the smallest input of the validation."""
    return val_iter.smallest_size if val_iter else input_size(stage.options.input.data_shape)


def make_module(stage: Stage, plan: Plan, start: Start, validated: tuple[int, int], recipe: Recipe) -> DetectionModule:
    """The Module of a stage; validated: (H, W) of the smallest input of the validation."""
    network, settings = stage.options.input.network, network_options(stage.options)
    with_losses = stage.options.validation.val_loss
    make_validated = get_symbol_train if with_losses else get_symbol
    return DetectionModule(
        stage.losses,
        make_validated(network, validated, len(stage.classes), **settings),
        label_names(network, **settings),
        plan.devices,
        fixed_param_names=stage.frozen,
        optimizer_state=start.optimizer_state,
        logger=FitLog(logger),
        recipe=recipe,
        validation_losses=make_metric(stage.losses, ranks=plan.ranks) if with_losses else None,
        rewrite_graph=stage.options.device.rewrite_graph,
        seed=stage.options.data.seed,
        dtype=stage.options.device.dtype,
        scaler=make_scaler(stage.options.device.dtype, start.precision),
        gradient_ways=stage.gradient_ways,
    )


def store_of_devices(options: TrainOptions, ranks: Ranks) -> str | None:
    """Where mxnet adds up the gradients of this process's devices; with several workers `ranks` does, with theirs."""
    if ranks.count > 1:
        return None
    return "device" if "device" in options.device.kv_store else "local"


def make_recipe(
    options: TrainOptions, start: Start, updates: int, validates: Callable[[int], bool], ranks: Ranks = ALONE
) -> Recipe:
    """updates: of the first epoch; validates: whether the epoch of this number is validated."""
    schedule = options.schedule
    return Recipe(
        means=mean_losses(options.input.network, **network_options(options)),
        ema=schedule.ema,
        ema_ramp=schedule.ema_ramp,
        averages=start.averages,
        before_update=warm_up_of_others(schedule, updates),
        validates=validates,
        earlier_updates=start.earlier_updates,
        bn_decay=schedule.bn_decay,
        clip_norm=schedule.clip_gradient_norm,
        body=freeze_pattern(options.input.network, BODY),
        body_lr=schedule.body_lr,
        ranks=ranks,
    )


def stage_pace(stage: Stage, start: Start, num_example: int) -> Pace:
    """Updates of the stage's epochs."""
    pace = stage.pace(num_example)
    return Pace(pace.updates) if continues_early_version(start) else pace


def schedule_origin(start: Start, pace: Pace) -> Origin:
    """Where the schedule counts from. A resumed run counts from where its first part did: same schedule."""
    updates = pace.updates
    done = start.num_update - start.earlier_updates
    origin = start.origin.continued(start.epoch, done, updates, pace.early_epochs, pace.early)
    if start.origin.updates not in (0, updates):
        logger.warning(
            "an epoch has %d updates now, before it had %d: the schedule goes on by epochs",
            updates,
            start.origin.updates,
        )
    return origin


def optimizer_params(
    options: TrainOptions, start: Start, origin: Origin, pace: Pace, num_contexts: int
) -> dict[str, Any]:
    """Arguments of the optimizer."""
    schedule = options.schedule
    rate, scheduler = (
        (schedule.lr, make_plateau(schedule, pace.first, start.plateau))
        if schedule.lr_schedule == "plateau"
        else make_schedule(schedule, pace.updates, origin)
    )
    done = start.num_update - start.earlier_updates
    if schedule.lr_schedule == "steps":  # without its warm-up
        tell_adjusted(schedule.lr, scheduler.rate(done + 1) if scheduler else rate, start.epoch)
    # The paper's losses are divided by the positives of the global batch: gradients of the contexts add up. The classic
    # outputs are normalised in each context.
    params: dict[str, Any] = {
        "learning_rate": rate,
        "wd": options.schedule.wd,
        "lr_scheduler": scheduler,
        "rescale_grad": 1.0 / num_contexts if mean_losses(options.input.network, **network_options(options)) else 1.0,
        "begin_num_update": done,
    }
    if options.schedule.optimizer in ("sgd", "nag"):
        params["momentum"] = options.schedule.momentum
    if options.schedule.clip_gradient:
        params["clip_gradient"] = options.schedule.clip_gradient
    return params
