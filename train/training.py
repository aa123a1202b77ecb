"""Trains what preflight has checked: hands over to mx.mod.Module.fit, stage by stage."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import OptionError, out_of_memory_hint
from common.sizes import input_size
from config.groups import pixel_options, seconds_of
from config.options import obsolete_options
from dataset.image_list import image_names
from dataset.iterator import RecordIter, open_batches
from dataset.letterbox import Resize
from dataset.record_source import open_source, usual_boxes
from evaluate.eval_metric import ValidationMetric
from machine.command import SignalRequests, requested_by_signals
from machine.runtime import mx
from model.checkpoint import list_epochs
from symbol.symbol_factory import freeze_pattern, get_symbol, get_symbol_train, label_names, mean_losses
from train.batches import batch_specs, continues_early_version, first_epoch
from train.callbacks import FiniteGuard, FitLog, make_monitor
from train.checks import check_several
from train.curves import BatchPicture
from train.epoch_end import EpochEnd, RunEnds, seed_epoch
from train.followers import FollowerEnd
from train.metric import loss_rule, make_metric
from train.module import DetectionModule
from train.options import BODY, TrainOptions, network_options
from train.preflight import Plan, preflight, preflight_of, validation_metric
from train.progress import MeasuredIter, Progress, seconds_a_batch, seconds_of_validation
from train.ranks import ALONE, Ranks, open_ranks
from train.recipe import Recipe, every_epoch
from train.run_files import command_to_continue, lock_prefix, log_to_file, remembered_log, write_run_file
from train.saving import CheckpointWriter, SavePlan
from train.schedule import (
    Origin,
    Pace,
    Plateau,
    make_plateau,
    make_schedule,
    tell_adjusted,
    warm_up_of,
    warm_up_of_others,
)
from train.several import check_shards, exchange_groups, make_requests, same_start, shard_of
from train.stages import SPARE, Costs, Patience, Stage, end_after, limit_updates, stage_at, updates_within
from train.start import Start, after_stage

logger = logging.getLogger(__name__)
MEASURED_SHARE = 0.02  # of --time-limit, over which the speed of training is measured,
MEASURED_SECONDS = 120.0  # but not longer than that
LESS_MEMORY = "lower --batch-size (--accumulate keeps the images of an update) or --data-shape; checkpoints are kept"
NO_JUMP = 0.01  # relative change of the learning rate that is none


def run_training(options: TrainOptions, way_to_continue: Callable[[bool], str] = command_to_continue) -> None:
    """Trains, validates each epoch and leaves checkpoints, metrics and pictures under options.output.prefix.

    way_to_continue: what to tell of it, given whether there is a checkpoint to go on from.

    Mistakes raise a UserError before anything is written. On one CPU context a resumed run ends with the same bits as
    an uninterrupted one (same threads, batch size and CPU type), unless the data engine is native
    (dataset/native_iterator.py).
    """
    begun = time.monotonic()
    check_several(options)
    with open_ranks(options.device.kv_store) as ranks:
        with remembered_log() as lines:
            plan = preflight_of(ranks, options)
        fit(replace(plan, way_to_continue=way_to_continue, lines=tuple(lines), begun=begun))


def draw_batches(options: TrainOptions) -> Path:
    """Leaves PREFIX-batches.png as a run with these options would, and trains nothing; returns its path."""
    plan = preflight(options)
    stage = stage_at(plan.stages, plan.start.epoch)
    picture = BatchPicture(options.output.prefix, plan.classes, pixel_options(stage.options.input))
    specs = batch_specs(stage, plan.sidecars, plan.start)
    for spec, epoch in zip(specs, (plan.start.epoch, None), strict=True):
        if spec:
            with closing(open_batches(spec, stage.options.data.data_engine)) as batches:
                picture.draw(batches, epoch)
    return picture.path


def fit(plan: Plan) -> None:
    """Trains the stages of a plan that are not done yet.

    OptionError where another run trains under the prefix, or has done so since the plan was made.
    """
    start = plan.start
    with ExitStack() as stack:
        if plan.ranks.writes:
            _hold_prefix(plan, stack)
        try:
            for stage in plan.stages:
                if start.epoch < stage.options.schedule.end_epoch:
                    _train_stage(stage, plan, start)
                    if stage is not plan.stages[-1]:
                        start = same_start(plan.ranks, after_stage(stage) if plan.ranks.writes else None)
        except (KeyboardInterrupt, SystemExit) as end:
            if getattr(end, "told", False):
                raise
            way = _tell_interrupt(plan, start.follows_stage)  # before the first batch of a stage, or after its last
            raise (KeyboardInterrupt(way) if isinstance(end, KeyboardInterrupt) else SystemExit(end.code)) from end


def _hold_prefix(plan: Plan, stack: ExitStack) -> None:
    """Keeps other runs from the prefix, and writes the log there."""
    output = plan.options.output
    stack.enter_context(lock_prefix(output.prefix))
    if tuple(list_epochs(output.prefix)) != plan.found_epochs:
        raise OptionError(f"--prefix {output.prefix}: another run has written there since this one was checked")
    log = Path(output.log or f"{output.prefix}-train.log")
    stack.enter_context(log_to_file(log, obsolete_options(plan.options), plan.lines))


def _tell_interrupt(plan: Plan, is_saved: bool) -> str:
    way = plan.way_to_continue(is_saved)
    if plan.ranks.writes:
        logger.warning("interrupted; continue with: %s", way)
    return way


def _train_stage(stage: Stage, plan: Plan, start: Start) -> None:
    """Trains one stage from a start in it to its end."""
    with ExitStack() as stack:
        requests = make_requests(plan.ranks)
        train_iter, val_iter = _open(stage, plan, start, requests)
        for iterator in filter(None, (train_iter, val_iter)):
            stack.callback(iterator.close)
        stage = _with_time_limit(stage, plan, start, train_iter, val_iter)
        within = start.within(train_iter)
        stage, batches = limit_updates(stage, start.num_update, start.epoch, train_iter, first_epoch(start), within)
        if stage.options.augmentation.close_mosaic:
            train_iter.end_mosaic(stage.run_end - stage.options.augmentation.close_mosaic)
        if plan.ranks.writes:
            write_run_file(plan.options.output.prefix, plan.options, plan.way_to_continue, stage.time_limit)
        _announce(stage, train_iter, start.epoch, plan.ranks)
        train_iter.skip(start.position.batch)
        _fit(stage, plan, start, train_iter, batches, val_iter, requests)


def _open(stage: Stage, plan: Plan, start: Start, requests: SignalRequests) -> tuple[RecordIter, RecordIter | None]:
    """What this process trains on and validates on: with several workers its shards."""
    ranks, engine = plan.ranks, stage.options.data.data_engine
    found = []
    for key, spec in zip(("train", "validation"), batch_specs(stage, plan.sidecars, start), strict=True):
        batches = open_batches(shard_of(ranks, spec), engine) if spec else None
        if batches:
            check_shards(ranks, batches)
            if batches.spec.assigner or key == "train":
                exchange_groups(ranks, batches, key, requests if key == "train" else None)
        found.append(batches)
    return found[0], found[1]  # type: ignore[return-value]  # there is a training record


def _with_time_limit(
    stage: Stage, plan: Plan, start: Start, train_iter: RecordIter, val_iter: RecordIter | None
) -> Stage:
    """The stage with the end that --time-limit means: found now, or before the checkpoint that it is resumed from."""
    time_limit, validation = stage.options.schedule.time_limit, stage.options.validation
    if not time_limit:
        return stage
    pace, begin, limit = _pace(stage, start, train_iter.places), first_epoch(start), start.time_limit
    if not limit:
        seconds = seconds_of(time_limit)
        with out_of_memory_hint(LESS_MEMORY):
            costs = _measured(stage, plan, start, train_iter, val_iter, seconds)
        train_iter.set_epoch(start.epoch)
        left = seconds * (1 - SPARE) - (time.monotonic() - plan.begun)
        every = 0 if validation.eval_every == "last" else int(validation.eval_every)
        more = updates_within(left, costs, pace, train_iter.num_batches, every, start.epoch - begin)
        end_epoch = plan.options.schedule.end_epoch
        limit = plan.ranks.told({"seconds": seconds, "updates": start.num_update + more, "end_epoch": end_epoch})
        logger.info(
            "--time-limit %s: a batch takes %.3f s, a validation %.1f s, a checkpoint %.1f s; the run ends with update "
            "%d", time_limit, costs.batch, costs.validation, costs.checkpoint, limit["updates"],
        )  # fmt: skip
        if limit["updates"] <= warm_up_of(stage.options.schedule, pace.first).updates:
            logger.warning(
                "--time-limit %s ends the run within its warm-up; shorten that, or give more time", time_limit
            )
    return end_after(stage, limit, pace, begin)


def _measured(
    stage: Stage, plan: Plan, start: Start, train_iter: RecordIter, val_iter: RecordIter | None, seconds: float
) -> Costs:
    """What the parts of a run take. The module that tells is dropped: the run begins as if nothing had been trained."""
    options, pace = stage.options, _pace(stage, start, train_iter.places)
    origin = _origin(start, pace)
    recipe = make_recipe(options, start, pace.first, every_epoch, plan.ranks)
    module = _make_module(stage, plan, start, _validated_size(stage, val_iter), recipe)
    module.bind(train_iter.provide_data, train_iter.provide_label)
    module.init_params(mx.init.Xavier(), start.arg_params, start.aux_params, allow_missing=True)
    parameters = _optimizer_params(options, start, origin, pace, len(plan.devices) * plan.ranks.count)
    module.init_optimizer(_store_of_devices(options, plan.ranks), options.schedule.optimizer, parameters)
    losses = make_metric(stage.losses, len(plan.devices), plan.ranks)

    def train(batch: mx.io.DataBatch) -> None:
        module.forward_backward(batch)
        module.update()
        module.update_metric(losses, batch.label)

    def validate(count: int) -> None:
        module.score(val_iter, validation_metric(options, stage.classes), count)

    batch = seconds_a_batch(train, train_iter, min(MEASURED_SHARE * seconds, MEASURED_SECONDS), plan.ranks.told)
    validation = seconds_of_validation(validate, val_iter.num_batches) if val_iter else 0.0
    writer = CheckpointWriter(stage, module, None, origin, 0, plan.sidecars, Patience(0, {}))
    begun = time.monotonic()
    if not plan.ranks.writes:
        return Costs(batch, validation, 0.0)
    with TemporaryDirectory(prefix=".measured-", dir=Path(options.output.prefix).parent) as folder:
        rate = module.learning_rate
        writer.save(f"{folder}/t", 1, {"num_update": 1, "learning_rate": rate, "train": {}, "validation": {}})
    return Costs(batch, validation, time.monotonic() - begun)


def _fit(
    stage: Stage,
    plan: Plan,
    start: Start,
    train_iter: RecordIter,
    batches: mx.io.DataIter,
    val_iter: RecordIter | None,
    requests: SignalRequests,
) -> None:
    """Everything that mx.mod.Module.fit needs, then fit on batches, which train_iter serves."""
    options, ranks, pace = stage.options, plan.ranks, _pace(stage, start, train_iter.places)
    validates = validated_epochs(options)
    origin = _origin(start, pace)
    optimizer_params = _optimizer_params(options, start, origin, pace, len(plan.devices) * ranks.count)
    _tell_jump(options, start, optimizer_params)
    recipe = make_recipe(options, start, pace.first, validates, ranks)
    module = _make_module(stage, plan, start, _validated_size(stage, val_iter), recipe)
    metric = make_metric(stage.losses, len(plan.devices), ranks)
    metric.restore(start.position.losses)
    source = MeasuredIter(batches)
    progress = Progress(
        options.data.batch_size * ranks.count,
        options.output.frequent,
        train_iter.num_batches,
        stage.run_end,
        stage.last_batches,
        source,
        plan.devices,
    )
    scheduler = optimizer_params["lr_scheduler"]
    plateau = scheduler if isinstance(scheduler, Plateau) else None
    is_last = options.schedule.end_epoch == stage.run_end  # of two stages
    patience = Patience(options.schedule.patience if is_last else 0, start.patience)
    writer = CheckpointWriter(stage, module, plateau, origin, start.begun, plan.sidecars, patience)
    epoch_end: EpochEnd | FollowerEnd
    if ranks.writes:
        saves = SavePlan(options, start.num_update)
        epoch_end = EpochEnd(writer, saves, metric, start.kept_epochs, progress, validates, requests)
    else:
        epoch_end = FollowerEnd(writer, metric, validates, requests, stage.run_end)
    seed_epoch(options.data.seed, start.epoch)
    with _hints_at_the_end(epoch_end, start, plan), requested_by_signals(requests), suppress(RunEnds):
        module.fit(
            source,
            eval_data=val_iter,
            eval_metric=metric,
            validation_metric=_make_validation(stage, start, train_iter, val_iter),
            batch_end_callback=_watchers(epoch_end, start),
            epoch_end_callback=epoch_end.without_validation,
            eval_end_callback=epoch_end.with_validation,
            kvstore=_store_of_devices(options, ranks),
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


def _store_of_devices(options: TrainOptions, ranks: Ranks) -> str | None:
    """Where mxnet adds up the gradients of this process's devices; with several workers `ranks` does, with theirs."""
    return options.device.kv_store if ranks.count == 1 else None


def _watchers(epoch_end: EpochEnd | FollowerEnd, start: Start) -> list[Callable[[Any], None]]:
    """The batch-end callbacks of fit, in their order."""
    data = epoch_end.options.data
    guard = FiniteGuard(partial(image_names, data.train_path, data.train_list))
    found: list[Callable[[Any], None]] = [guard, *epoch_end.callbacks(start.num_update)]
    return [_counted_on(watcher, start) for watcher in found]


def _counted_on(watcher: Callable[[Any], None], start: Start) -> Callable[[Any], None]:
    """The watcher, told the numbers that batches have in an epoch that was begun before."""

    def called(param: Any) -> None:
        here = param.epoch == start.epoch
        watcher(param._replace(nbatch=param.nbatch + start.position.batch) if here else param)

    return called if start.position.batch else watcher


@contextmanager
def _hints_at_the_end(epoch_end: EpochEnd | FollowerEnd, start: Start, plan: Plan) -> Iterator[None]:
    """Says how to continue where training is interrupted, and what to change where its memory is exhausted."""
    try:
        with out_of_memory_hint(LESS_MEMORY):
            yield
    except (KeyboardInterrupt, SystemExit) as end:
        epoch_end.close()
        way = _tell_interrupt(plan, epoch_end.is_saved or start.follows_stage)
        # The text of a KeyboardInterrupt says that it has been told.
        told = KeyboardInterrupt(way) if isinstance(end, KeyboardInterrupt) else SystemExit(end.code)
        told.told = True  # type: ignore[union-attr]
        raise told from end
    finally:
        epoch_end.close()


def _validated_size(stage: Stage, val_iter: RecordIter | None) -> tuple[int, int]:
    """(H, W) of the smallest input of the validation."""
    return val_iter.smallest_size if val_iter else input_size(stage.options.input.data_shape)


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
        logger=FitLog(logger),
        recipe=recipe,
        validation_losses=make_metric(stage.losses, ranks=plan.ranks) if with_losses else None,
        rewrite_graph=stage.options.device.rewrite_graph,
        seed=stage.options.data.seed,
    )


def _make_validation(
    stage: Stage, start: Start, train_iter: RecordIter, val_iter: RecordIter | None
) -> ValidationMetric:
    """The metrics; in a run's first validation the usual boxes of the training record are measured beside the
    network's, but where inputs have different proportions."""
    metric, spec = validation_metric(stage.options, stage.classes), train_iter.spec
    if val_iter and not start.epoch and not stage.options.validation.rect_val:
        source = open_source(spec.path_imgrec, len(stage.classes), None, spec.path_imglist)
        resize = Resize(spec.resize_mode, spec.fill)
        size = input_size(stage.options.input.data_shape)
        metric.compare_with(usual_boxes(source.reader, len(stage.classes), size, resize))
    return metric


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


def validated_epochs(options: TrainOptions) -> Callable[[int], bool]:
    """Whether the epoch of a number, from 0, is validated: each --eval-every-th and the last, none without --val-path.

    The options are those of the run as it will be, with the end that --max-iter means.
    """
    if not options.data.val_path:
        return lambda epoch: False
    every = 0 if options.validation.eval_every == "last" else int(options.validation.eval_every)
    return lambda epoch: epoch + 1 >= options.schedule.end_epoch or (every > 0 and (epoch + 1) % every == 0)


def _announce(stage: Stage, train_iter: RecordIter, epoch: int, ranks: Ranks) -> None:
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
    if ranks.count > 1:
        text = "%d workers, each with every %d-th image: an update has up to %d images"
        logger.info(text, ranks.count, ranks.count, ranks.count * data.batch_size * train_iter.group_size)
    logger.info(
        "%d images in %d batches an epoch, epochs %d to %d; all that is written begins with %s",
        train_iter.num_examples, train_iter.num_batches, epoch + 1, schedule.end_epoch, stage.options.output.prefix,
    )  # fmt: skip


def _frozen(stage: Stage) -> str:
    """What stays as it is: `nothing`, or how many parameters and their names."""
    return f"{len(stage.frozen)} parameters: {' '.join(stage.frozen)}" if stage.frozen else "nothing"


def _pace(stage: Stage, start: Start, num_example: int) -> Pace:
    """Updates of the stage's epochs."""
    pace = stage.pace(num_example)
    return Pace(pace.updates) if continues_early_version(start) else pace


def _origin(start: Start, pace: Pace) -> Origin:
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


def _tell_jump(options: TrainOptions, start: Start, optimizer_params: dict[str, Any]) -> None:
    """A line where the rate of a resumed run is not the one that its last update had."""
    before, done = start.learning_rate, optimizer_params["begin_num_update"]
    schedule, scheduler = options.schedule, optimizer_params["lr_scheduler"]
    if before is None or schedule.lr_schedule == "plateau":  # which may have changed it since
        return
    now = scheduler(done) if scheduler else optimizer_params["learning_rate"]
    if abs(now - before) > NO_JUMP * max(now, before):
        logger.warning(
            "the learning rate jumps from %.4g to %.4g: --lr-schedule %s with its options as they are now, to epoch "
            "%d, is another curve than that of the run so far", before, now, schedule.lr_schedule, schedule.end_epoch,
        )  # fmt: skip


def _optimizer_params(
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
