"""Trains what preflight has checked: hands over to mx.mod.Module.fit, stage by stage."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import OptionError, out_of_memory_hint
from common.sizes import input_size
from config.groups import DataOptions, batches_per_update, pixel_options, rect_multiple
from config.options import obsolete_options
from dataset.batch_spec import BatchSpec
from dataset.input_sizes import multi_scale_sizes
from dataset.iterator import RecordIter, open_batches
from dataset.labels import HEADER_WIDTH, OBJECT_WIDTH
from dataset.sidecar import Sidecar
from machine.runtime import mx
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names, mean_losses, size_multiple
from train.callbacks import FiniteGuard, Progress, make_monitor
from train.epoch_end import EpochEnd, seed_epoch
from train.metric import loss_rule, make_metric
from train.module import DetectionModule
from train.options import TrainOptions, augment_options, network_options
from train.preflight import Plan, preflight, validation_metric
from train.recipe import Recipe
from train.run_files import command_to_continue, lock_prefix, log_to_file, remembered_log, write_run_file
from train.saving import CheckpointWriter, SavePlan, Snapshots
from train.schedule import Origin, Plateau, make_plateau, make_schedule, tell_adjusted, warm_up_of_others
from train.stages import Stage, limit_updates
from train.start import Start, after_stage

logger = logging.getLogger(__name__)


def run_training(options: TrainOptions, way_to_continue: Callable[[bool], str] = command_to_continue) -> None:
    """Trains, validates each epoch and leaves checkpoints, metrics and pictures under options.output.prefix.

    way_to_continue: what to tell of it, given whether there is a checkpoint to go on from.

    Mistakes raise a UserError before anything is written. On one CPU context a resumed run ends with the same bits as
    an uninterrupted one (same threads, batch size and CPU type), unless the data engine is native
    (dataset/native_iterator.py).
    """
    with remembered_log() as lines:
        plan = replace(preflight(options), way_to_continue=way_to_continue)
    fit(plan, lines)


def fit(plan: Plan, lines: list[logging.LogRecord]) -> None:
    """Trains the stages of a plan that are not done yet; lines: what was logged before there was a log file."""
    output, start = plan.options.output, plan.start
    with ExitStack() as stack:
        stack.enter_context(lock_prefix(output.prefix))
        log = Path(output.log or f"{output.prefix}-train.log")
        stack.enter_context(log_to_file(log, obsolete_options(plan.options), lines))
        for stage in plan.stages:
            if start.epoch < stage.options.schedule.end_epoch:
                _train_stage(stage, plan, start)
                if stage is not plan.stages[-1]:
                    start = after_stage(stage)


def _train_stage(stage: Stage, plan: Plan, start: Start) -> None:
    """Trains one stage from a start in it to its end."""
    with ExitStack() as stack:
        train_iter, val_iter = _iterators(stage, plan, start.epoch)
        for iterator in filter(None, (train_iter, val_iter)):
            stack.callback(iterator.close)
        write_run_file(plan.options.output.prefix, plan.options, plan.way_to_continue)
        stage, batches = limit_updates(stage, start.num_update, start.epoch, train_iter)
        _announce(stage, train_iter, start.epoch)
        _fit(stage, plan, start, train_iter, batches, val_iter)


def _fit(
    stage: Stage,
    plan: Plan,
    start: Start,
    train_iter: RecordIter,
    batches: mx.io.DataIter,
    val_iter: RecordIter | None,
) -> None:
    """Everything that mx.mod.Module.fit needs, then fit on batches, which train_iter serves."""
    options, updates = stage.options, stage.updates_per_epoch(train_iter.num_examples)
    validates = validated_epochs(options)
    origin = _origin(start, updates)
    optimizer_params = _optimizer_params(options, start, origin, updates, len(plan.devices))
    recipe = make_recipe(options, start, updates, validates)
    validated = val_iter.smallest_size if val_iter else input_size(options.input.data_shape)
    module = _make_module(stage, plan, start, validated, recipe)
    metric = make_metric(stage.losses, len(plan.devices))
    progress = Progress(options.data.batch_size, options.output.frequent, train_iter.num_batches, stage.run_end)
    scheduler = optimizer_params["lr_scheduler"]
    plateau = scheduler if isinstance(scheduler, Plateau) else None
    writer = CheckpointWriter(stage, module, plateau, origin, start.begun)
    saves = SavePlan(options, start.num_update)
    epoch_end = EpochEnd(writer, saves, metric, start.kept_epochs, progress, validates)
    snapshots = Snapshots(writer, metric, start.num_update)
    seed_epoch(options.data.seed, start.epoch)
    with _hints_at_the_end(epoch_end, start, plan.way_to_continue):
        module.fit(
            batches,
            eval_data=val_iter,
            eval_metric=metric,
            validation_metric=validation_metric(options, stage.classes),
            batch_end_callback=[FiniteGuard(), progress, snapshots, epoch_end.curves],
            epoch_end_callback=epoch_end.without_validation,
            eval_end_callback=epoch_end.with_validation,
            kvstore=options.device.kv_store,
            optimizer=options.schedule.optimizer,
            optimizer_params=optimizer_params,
            initializer=mx.init.Xavier(),
            arg_params=start.arg_params,
            aux_params=start.aux_params,
            allow_missing=True,
            begin_epoch=start.epoch,
            num_epoch=options.schedule.end_epoch,
            monitor=make_monitor(options.output.monitor, options.output.pattern),
        )
    epoch_end.log_summary()


@contextmanager
def _hints_at_the_end(epoch_end: EpochEnd, start: Start, way_to_continue: Callable[[bool], str]) -> Iterator[None]:
    """Says how to continue where training is interrupted, and what to change where its memory is exhausted."""
    try:
        with out_of_memory_hint(
            "lower --batch-size (--accumulate keeps the images of an update) or --data-shape; checkpoints are kept"
        ):
            yield
    except (KeyboardInterrupt, SystemExit):
        way = way_to_continue(epoch_end.is_saved or start.follows_stage)
        logger.warning("interrupted; continue with: %s", way)
        raise


def _make_module(stage: Stage, plan: Plan, start: Start, validated: tuple[int, int], recipe: Recipe) -> DetectionModule:
    """validated: (H, W) of the smallest input of the validation."""
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
        logger=logger,
        recipe=recipe,
        validation_losses=make_metric(stage.losses) if with_losses else None,
    )


def make_recipe(options: TrainOptions, start: Start, updates: int, validates: Callable[[int], bool]) -> Recipe:
    """updates: of an epoch; validates: whether the epoch of this number is validated."""
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
    )


def validated_epochs(options: TrainOptions) -> Callable[[int], bool]:
    """Whether the epoch of a number, from 0, is validated: each --eval-every-th and the last, none without --val-path.

    The options are those of the run as it will be, with the end that --max-iter means.
    """
    if not options.data.val_path:
        return lambda epoch: False
    every = 0 if options.validation.eval_every == "last" else int(options.validation.eval_every)
    return lambda epoch: epoch + 1 >= options.schedule.end_epoch or (every > 0 and (epoch + 1) % every == 0)


def _announce(stage: Stage, train_iter: RecordIter, epoch: int) -> None:
    """Says what will be trained on what, and where it goes."""
    data, schedule, classes = stage.options.data, stage.options.schedule, stage.classes
    height, width = input_size(stage.options.input.data_shape)
    network, names = stage.options.input.network, ", ".join(classes)
    logger.info("%s at %dx%d (height x width), %d classes: %s", network, height, width, len(classes), names)
    if schedule.freeze_epochs:
        which = "second" if schedule.end_epoch == stage.run_end else "first"
        text = "%s stage: batch size %d, learning rate %g, %d frozen parameters"
        logger.info(text, which, data.batch_size, schedule.lr, len(stage.frozen))
    logger.info("frozen: %s", _frozen(stage))
    if loss_rule(stage.losses):
        logger.info(loss_rule(stage.losses))
    logger.info(
        "%d images in %d batches an epoch, epochs %d to %d; all that is written begins with %s",
        train_iter.num_examples, train_iter.num_batches, epoch, schedule.end_epoch - 1, stage.options.output.prefix,
    )  # fmt: skip


def _frozen(stage: Stage) -> str:
    """What stays as it is: `nothing`, or how many parameters and their names."""
    return f"{len(stage.frozen)} parameters: {' '.join(stage.frozen)}" if stage.frozen else "nothing"


def _origin(start: Start, updates: int) -> Origin:
    """Where the schedule counts from. A resumed run counts from where its first part did: same schedule."""
    origin = start.origin.continued(start.epoch, start.num_update - start.earlier_updates, updates)
    if start.origin.updates not in (0, updates):
        logger.warning(
            "an epoch has %d updates now, before it had %d: the schedule goes on by epochs",
            updates,
            start.origin.updates,
        )
    return origin


def _optimizer_params(
    options: TrainOptions, start: Start, origin: Origin, updates: int, num_contexts: int
) -> dict[str, Any]:
    """Arguments of the optimizer; updates: of an epoch."""
    schedule = options.schedule
    rate, scheduler = (
        (schedule.lr, make_plateau(schedule, updates, start.plateau))
        if schedule.lr_schedule == "plateau"
        else make_schedule(schedule, updates, origin)
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


def _iterators(stage: Stage, plan: Plan, epoch: int) -> tuple[RecordIter, RecordIter | None]:
    """The training iterator at its epoch and the validation iterator."""
    options, data, num_classes = stage.options, stage.options.data, len(stage.classes)
    network, size, settings = options.input.network, input_size(options.input.data_shape), network_options(options)
    common: dict[str, Any] = {
        "batch_size": data.batch_size,
        "data_shape": size,
        **pixel_options(options.input),
        "max_objects": _label_rows(data, plan.sidecars),
        "num_classes": num_classes,
        "workers": data.workers,
    }
    sizes = multi_scale_sizes(size, data.multi_scale, size_multiple(network))
    train_spec = BatchSpec(
        data.train_path,
        path_imglist=data.train_list,
        augment=augment_options(options),
        assigner=get_assigner(network, size, num_classes, sizes=sizes, **settings),
        shuffle=True,
        seed=data.seed,
        epoch=epoch,
        accumulate=batches_per_update(options.schedule, data.batch_size),
        sizes=sizes,
        **common,
    )
    train_iter = open_batches(train_spec, data.data_engine)
    if not data.val_path:
        return train_iter, None
    if options.validation.val_loss:
        common["assigner"] = get_assigner(network, size, num_classes, **settings)
    rect = rect_multiple(options.validation)
    val_spec = BatchSpec(data.val_path, path_imglist=data.val_list, augment=None, rect=rect, **common)
    return train_iter, open_batches(val_spec, data.data_engine)


def _label_rows(data: DataOptions, sidecars: Sequence[Sidecar | None]) -> int | None:
    """Rows of the labels: as many as both records need unless given; None where a record without sidecar must be
    searched for it, or a list."""
    needed = max((sidecar.max_objects for sidecar in sidecars if sidecar), default=0)
    rows = (data.label_width - HEADER_WIDTH) // OBJECT_WIDTH
    if data.train_list or data.val_list:
        return rows if data.label_width else None
    if data.label_width and rows < max(1, needed):
        raise OptionError(
            f"--label-width {data.label_width} has room for {max(0, rows)} objects, but an image of the records has "
            f"{needed}; give {HEADER_WIDTH + OBJECT_WIDTH * max(1, needed)} or leave the option out"
        )
    return rows if data.label_width else (needed if all(sidecars) else None)
