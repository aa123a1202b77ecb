"""Trains what preflight has checked: hands over to mx.mod.Module.fit, stage by stage."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import OptionError, out_of_memory_hint
from common.sizes import input_size
from config.groups import pixel_options
from config.options import obsolete_options
from dataset.image_list import image_names
from dataset.iterator import RecordIter, open_batches
from dataset.letterbox import Resize
from dataset.record_source import open_source, usual_boxes
from evaluate.eval_metric import ValidationMetric
from machine.command import SignalRequests, requested_by_signals
from machine.runtime import mx
from model.checkpoint import list_epochs
from train.batches import batch_specs, first_epoch
from train.building import (
    make_module,
    make_recipe,
    optimizer_params,
    schedule_origin,
    stage_pace,
    store_of_devices,
    validated_size,
)
from train.callbacks import FiniteGuard, make_monitor
from train.checks import check_several
from train.curves import BatchPicture
from train.epoch_end import EpochEnd, RunEnds, seed_epoch
from train.followers import FollowerEnd
from train.measuring import LESS_MEMORY, with_dtype, with_time_limit
from train.metric import loss_rule, make_metric
from train.options import TrainOptions
from train.preflight import Plan, preflight, preflight_of, validation_metric
from train.progress import MeasuredIter, Progress
from train.ranks import Ranks, open_ranks
from train.run_files import command_to_continue, lock_prefix, log_to_file, remembered_log, write_run_file
from train.saving import CheckpointWriter, SavePlan, left_out_of
from train.schedule import Plateau
from train.several import check_shards, exchange_groups, make_requests, same_start, shard_of
from train.stages import Patience, Stage, limit_updates, stage_at
from train.start import Start, after_stage

logger = logging.getLogger(__name__)
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
        train_iter, val_iter = _open(stage, plan, start, requests, stack)
        for name, one in left_out_of(train_iter, val_iter).items():
            one.resume(start.left_out.get(name, {}))
        stage = with_dtype(stage, plan, start, train_iter)
        stage = with_time_limit(stage, plan, start, train_iter, val_iter)
        within = start.within(train_iter)
        stage, batches = limit_updates(stage, start.num_update, start.epoch, train_iter, first_epoch(start), within)
        if stage.options.augmentation.close_mosaic:
            train_iter.end_mosaic(stage.run_end - stage.options.augmentation.close_mosaic)
        if plan.ranks.writes:
            write_run_file(plan.options.output.prefix, plan.options, plan.way_to_continue, stage.time_limit)
        _announce(stage, train_iter, start.epoch, plan.ranks)
        train_iter.skip(start.position.batch)
        _fit(stage, plan, start, train_iter, batches, val_iter, requests)


def _open(
    stage: Stage, plan: Plan, start: Start, requests: SignalRequests, stack: ExitStack
) -> tuple[RecordIter, RecordIter | None]:
    """What this process trains on and validates on, with several workers its shards; the stack closes them."""
    ranks, engine = plan.ranks, stage.options.data.data_engine
    train_spec, val_spec = batch_specs(stage, plan.sidecars, start)
    train_iter = open_batches(shard_of(ranks, train_spec), engine)
    stack.callback(train_iter.close)
    check_shards(ranks, train_iter)
    exchange_groups(ranks, train_iter, "train", requests)
    if not val_spec:
        return train_iter, None
    val_iter = open_batches(shard_of(ranks, val_spec), engine)
    stack.callback(val_iter.close)
    check_shards(ranks, val_iter)
    if val_spec.assigner:
        exchange_groups(ranks, val_iter, "validation")
    return train_iter, val_iter


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
    options, ranks, pace = stage.options, plan.ranks, stage_pace(stage, start, train_iter.places)
    validates = validated_epochs(options)
    origin = schedule_origin(start, pace)
    arguments = optimizer_params(options, start, origin, pace, len(plan.devices) * ranks.count)
    _tell_jump(options, start, arguments)
    recipe = make_recipe(options, start, pace.first, validates, ranks)
    module = make_module(stage, plan, start, validated_size(stage, val_iter), recipe)
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
    scheduler = arguments["lr_scheduler"]
    plateau = scheduler if isinstance(scheduler, Plateau) else None
    is_last = options.schedule.end_epoch == stage.run_end  # of two stages
    patience = Patience(options.schedule.patience if is_last else 0, start.patience)
    left_out = left_out_of(train_iter, val_iter)
    writer = CheckpointWriter(stage, module, plateau, origin, start.begun, plan.sidecars, patience, left_out)
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
            kvstore=store_of_devices(options, ranks),
            optimizer=options.schedule.optimizer,
            optimizer_params=arguments,
            initializer=mx.init.Xavier(),
            arg_params=start.arg_params,
            aux_params=start.aux_params,
            allow_missing=True,
            begin_epoch=start.epoch,
            num_epoch=options.schedule.end_epoch,
            monitor=make_monitor(options.output.monitor, options.output.pattern),
        )
    epoch_end.log_summary()


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


def _make_validation(
    stage: Stage, start: Start, train_iter: RecordIter, val_iter: RecordIter | None
) -> ValidationMetric:
    """The metrics; in a run's first validation the usual boxes of the training record are measured beside the
    network's, but where inputs have different proportions."""
    metric, spec = validation_metric(stage.options, stage.classes), train_iter.spec
    if val_iter and not start.epoch and not stage.options.validation.rect_val:
        source = open_source(spec.path_imgrec, len(stage.classes), None, spec.path_imglist, spec.left_out > 0)
        resize = Resize(spec.resize_mode, spec.fill)
        size = input_size(stage.options.input.data_shape)
        metric.compare_with(usual_boxes(source.reader, len(stage.classes), size, resize, spec.left_out > 0))
    return metric


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


def _tell_jump(options: TrainOptions, start: Start, arguments: dict[str, Any]) -> None:
    """A line where the rate of a resumed run is not the one that its last update had."""
    before, done = start.learning_rate, arguments["begin_num_update"]
    schedule, scheduler = options.schedule, arguments["lr_scheduler"]
    if before is None or schedule.lr_schedule == "plateau":  # which may have changed it since
        return
    now = scheduler(done) if scheduler else arguments["learning_rate"]
    if abs(now - before) > NO_JUMP * max(now, before):
        logger.warning(
            "the learning rate jumps from %.4g to %.4g: --lr-schedule %s with its options as they are now, to epoch "
            "%d, is another curve than that of the run so far", before, now, schedule.lr_schedule, schedule.end_epoch,
        )  # fmt: skip
