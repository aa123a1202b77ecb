"""Trains a detector: checks everything first, then hands over to mx.mod.Module.fit."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError, OptionError, out_of_memory_hint
from common.sizes import input_size
from config.augment_options import LETTERBOX
from config.options import obsolete_options
from config.recipe_options import batches_per_update
from config.run import metric_kinds, pixel_options, rect_multiple
from dataset.batch_spec import BatchSpec
from dataset.class_names import read_class_names
from dataset.input_sizes import multi_scale_sizes
from dataset.iterator import RecordIter, open_batches
from dataset.labels import HEADER_WIDTH, OBJECT_WIDTH
from dataset.sidecar import Sidecar, read_sidecar, verify_sidecar
from evaluate.eval_metric import ValidationMetric
from machine.runtime import check_batch_size, contexts, mx
from symbol.symbol_factory import (
    check_any_size,
    get_assigner,
    get_symbol,
    get_symbol_train,
    label_names,
    mean_losses,
    size_multiple,
)
from train.callbacks import FiniteGuard, Progress
from train.carried_options import changed_files, with_carried
from train.disk_space import check_disk_space
from train.early_checks import check_records
from train.epoch_end import EpochEnd, seed_epoch
from train.idle_options import idle_options
from train.limit import limit_updates, without_end
from train.metric import make_metric
from train.module import DetectionModule
from train.monitor import make_monitor
from train.options import TrainOptions, augment_options, network_options
from train.plateau import Plateau, make_plateau
from train.recipe import Recipe
from train.run_files import changed_options, command_to_continue, lock_prefix, log_to_file, write_run_file
from train.run_recipe import check_recipe, make_recipe, validated_epochs
from train.saving import CheckpointWriter, SavePlan, Snapshots
from train.schedule import Origin, make_schedule, updates_per_epoch
from train.stages import Stage, make_stages
from train.start import Start, after_stage, find_start

logger = logging.getLogger(__name__)


def run_training(options: TrainOptions) -> None:
    """Trains, validates each epoch and leaves checkpoints, metrics and pictures under options.prefix.

    Mistakes raise a UserError before the first batch. On one CPU context a resumed run ends with the same bits as an
    uninterrupted one (same threads, batch size and CPU type), unless the engine is native (dataset/native_iterator.py).
    """
    if options.gpus:
        contexts(options.gpus, options.cpu, options.cpus)  # a GPU that cannot be used is told before anything is read
    options = with_carried(options)
    sidecars = _read_sidecars(options)
    classes = class_names(options, sidecars[0])
    plan = make_stages(without_end(options), classes)
    if options.rect_val:
        _check_rectangular(options)
    make_monitor(options.monitor, options.pattern)
    for stage in plan:
        check_recipe(stage.options)
    validation_metric(options, classes)
    with ExitStack() as stack:
        stack.enter_context(lock_prefix(options.prefix))
        log = Path(options.log or f"{options.prefix}-train.log")
        stack.enter_context(log_to_file(log, obsolete_options(options)))
        for line in idle_options(options):
            logger.warning(line)
        devices = contexts(options.gpus, options.cpu, options.cpus)
        for stage in plan:
            check_batch_size(stage.options.batch_size, devices)
        check_disk_space(options, len(classes))
        start = find_start(plan)
        told = (*changed_options(options.prefix, options), *changed_files(options))
        for line in (*told, *objects_missing(options, classes, sidecars[0])):
            logger.warning(line)
        for stage in plan:
            if start.epoch < stage.options.end_epoch:
                _train_stage(stage, options, devices, sidecars, start)
                if stage is not plan[-1]:
                    start = after_stage(stage)


def _check_rectangular(options: TrainOptions) -> None:
    """OptionError where --rect-val cannot be: with stretched images, or a network of inputs of one size."""
    if options.resize_mode != LETTERBOX:
        raise OptionError(f"--rect-val needs --resize-mode {LETTERBOX}; give it, or leave --rect-val out")
    check_any_size(options.network, options.data_shape, "--rect-val")


def _train_stage(
    stage: Stage, run: TrainOptions, devices: Sequence[mx.Context], sidecars: Sequence[Sidecar | None], start: Start
) -> None:
    """Trains one stage from a start in it to its end; run: the options of all stages."""
    with ExitStack() as stack:
        train_iter, val_iter = _iterators(stage.options, len(stage.classes), sidecars, start.epoch)
        for iterator in filter(None, (train_iter, val_iter)):
            stack.callback(iterator.close)
        write_run_file(run.prefix, run)
        stage, batches = limit_updates(stage, start, train_iter)
        _announce(stage, train_iter, start.epoch)
        _fit(stage, devices, start, train_iter, batches, val_iter)


def _fit(
    stage: Stage,
    devices: Sequence[mx.Context],
    start: Start,
    train_iter: RecordIter,
    batches: mx.io.DataIter,
    val_iter: RecordIter | None,
) -> None:
    """Everything that mx.mod.Module.fit needs, then fit on batches, which train_iter serves."""
    options = stage.options
    validates = validated_epochs(options)
    origin = _origin(options, start, train_iter)
    optimizer_params = _optimizer_params(options, start, origin, train_iter.num_examples, len(devices))
    recipe = make_recipe(options, start, train_iter.num_examples, validates)
    validated = val_iter.smallest_size if val_iter else input_size(options.data_shape)
    module = _make_module(stage, devices, start, validated, recipe)
    metric = make_metric(stage.losses, len(devices))
    progress = Progress(options.batch_size, options.frequent, train_iter.num_batches, stage.run_end)
    scheduler = optimizer_params["lr_scheduler"]
    plateau = scheduler if isinstance(scheduler, Plateau) else None
    writer = CheckpointWriter(stage, module, plateau, origin, start.begun)
    plan = SavePlan(options, start.num_update)
    epoch_end = EpochEnd(writer, plan, metric, start.kept_epochs, progress, validates)
    snapshots = Snapshots(writer, metric, start.num_update)
    seed_epoch(options.seed, start.epoch)
    with _told_end(epoch_end, start):
        module.fit(
            batches,
            eval_data=val_iter,
            eval_metric=metric,
            validation_metric=validation_metric(options, stage.classes),
            batch_end_callback=[FiniteGuard(), progress, snapshots, epoch_end.curves],
            epoch_end_callback=epoch_end.without_validation,
            eval_end_callback=epoch_end.with_validation,
            kvstore=options.kv_store,
            optimizer=options.optimizer,
            optimizer_params=optimizer_params,
            initializer=mx.init.Xavier(),
            arg_params=start.arg_params,
            aux_params=start.aux_params,
            allow_missing=True,
            begin_epoch=start.epoch,
            num_epoch=options.end_epoch,
            monitor=make_monitor(options.monitor, options.pattern),
        )
    epoch_end.say_what_is_there()


@contextmanager
def _told_end(epoch_end: EpochEnd, start: Start) -> Iterator[None]:
    """Says how to continue where training is interrupted, and what to change where its memory is exhausted."""
    try:
        with out_of_memory_hint(
            "lower --batch-size (--accumulate keeps the images of an update) or --data-shape; checkpoints are kept"
        ):
            yield
    except (KeyboardInterrupt, SystemExit):
        command = command_to_continue(epoch_end.is_saved or start.follows_stage)
        logger.warning("interrupted; continue with: %s", command)
        raise


def _make_module(
    stage: Stage, devices: Sequence[mx.Context], start: Start, validated: tuple[int, int], recipe: Recipe
) -> DetectionModule:
    """validated: (H, W) of the smallest input of the validation."""
    network, settings = stage.options.network, network_options(stage.options)
    make_validated = get_symbol_train if stage.options.val_loss else get_symbol
    return DetectionModule(
        stage.losses,
        make_validated(network, validated, len(stage.classes), **settings),
        label_names(network, **settings),
        devices,
        fixed_param_names=stage.frozen,
        optimizer_state=start.optimizer_state,
        logger=logger,
        recipe=recipe,
        validation_losses=make_metric(stage.losses) if stage.options.val_loss else None,
    )


def _announce(stage: Stage, train_iter: RecordIter, epoch: int) -> None:
    """Says what will be trained on what, and where it goes."""
    options, classes = stage.options, stage.classes
    height, width = input_size(options.data_shape)
    logger.info(
        "%s at %dx%d (height x width), %d classes: %s", options.network, height, width, len(classes), ", ".join(classes)
    )
    if options.freeze_epochs:
        logger.info(
            "%s stage: batch size %d, learning rate %g, %d frozen parameters",
            "second" if options.end_epoch == stage.run_end else "first", options.batch_size, options.lr,
            len(stage.frozen),
        )  # fmt: skip
    logger.info(
        "%d images in %d batches an epoch, epochs %d to %d; all that is written begins with %s",
        train_iter.num_examples, train_iter.num_batches, epoch, options.end_epoch - 1, options.prefix,
    )  # fmt: skip


def class_names(options: TrainOptions, sidecar: Sidecar | None) -> tuple[str, ...]:
    """Classes of the run: those given, else the record's; OptionError where the two disagree or neither is there."""
    names = read_class_names(options.class_names) or (sidecar.class_names if sidecar else ())
    if not names:
        names = tuple(f"class{k}" for k in range(options.num_class or 0))
    if not names:
        raise OptionError(
            f"{options.train_path} has no sidecar that names its classes; give --class-names or --num-class"
        )
    if options.num_class not in (None, len(names)):
        raise OptionError(
            f"--num-class {options.num_class}, but there are {len(names)} class names ({', '.join(names)})"
        )
    if sidecar and names != sidecar.class_names:
        raise OptionError(
            f"--class-names {','.join(names)}, but the classes of {options.train_path} are "
            f"{','.join(sidecar.class_names)}; leave the option out or pack the record with these names"
        )
    return names


def objects_missing(options: TrainOptions, classes: Sequence[str], sidecar: Sidecar | None) -> list[str]:
    """A sentence about classes of which the record holds nothing to learn from, if its sidecar's labels are used."""
    if sidecar is None or options.train_list:
        return []
    missing = [name for name, count in zip(classes, sidecar.objects_per_class, strict=True) if not count]
    if not missing:
        return []
    which = "any class" if len(missing) == len(classes) else ", ".join(missing)
    return [f"{options.train_path}: holds no object of {which}, which the network therefore cannot learn"]


def _read_sidecars(options: TrainOptions) -> list[Sidecar | None]:
    """Sidecars of the training record and, if there is one, the validation record.

    DataError where a record is missing, their classes differ, or one has changed since it was packed.
    """
    check_records(options)
    paths = [path for path in (options.train_path, options.val_path) if path]
    sidecars = [read_sidecar(path) for path in paths]
    train, val = sidecars[0], sidecars[-1]
    if train and val and train.class_names != val.class_names:
        raise DataError(
            f"{options.train_path} and {options.val_path} hold different classes ({', '.join(train.class_names)}; "
            f"{', '.join(val.class_names)}); pack both with the same --class-names"
        )
    for path, sidecar in zip(paths, sidecars, strict=True):
        if sidecar and options.verify_data:
            verify_sidecar(path, sidecar, hash=True)
    return sidecars


def _iterators(
    options: TrainOptions, num_classes: int, sidecars: Sequence[Sidecar | None], epoch: int
) -> tuple[RecordIter, RecordIter | None]:
    """The training iterator at its epoch and the validation iterator."""
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "data_shape": options.data_shape,
        **pixel_options(options),
        "max_objects": _label_rows(options, sidecars),
        "num_classes": num_classes,
        "workers": options.workers,
    }
    sizes = multi_scale_sizes(input_size(options.data_shape), options.multi_scale, size_multiple(options.network))
    assigner = get_assigner(options.network, options.data_shape, num_classes, sizes=sizes, **network_options(options))
    train_spec = BatchSpec(
        options.train_path,
        path_imglist=options.train_list,
        augment=augment_options(options),
        assigner=assigner,
        shuffle=True,
        seed=options.seed,
        epoch=epoch,
        accumulate=batches_per_update(options, options.batch_size),
        sizes=sizes,
        **common,
    )
    train_iter = open_batches(train_spec, options.engine)
    if not options.val_path:
        return train_iter, None
    if options.val_loss:
        common["assigner"] = get_assigner(options.network, options.data_shape, num_classes, **network_options(options))
    rect = rect_multiple(options)
    val_spec = BatchSpec(options.val_path, path_imglist=options.val_list, augment=None, rect=rect, **common)
    return train_iter, open_batches(val_spec, options.engine)


def _label_rows(options: TrainOptions, sidecars: Sequence[Sidecar | None]) -> int | None:
    """Rows of the labels: as many as both records need unless given; None where a record without sidecar must be
    searched for it, or a list."""
    needed = max((sidecar.max_objects for sidecar in sidecars if sidecar), default=0)
    rows = (options.label_width - HEADER_WIDTH) // OBJECT_WIDTH
    if options.train_list or options.val_list:
        return rows if options.label_width else None
    if options.label_width and rows < max(1, needed):
        raise OptionError(
            f"--label-width {options.label_width} has room for {max(0, rows)} objects, but an image of the records has "
            f"{needed}; give {HEADER_WIDTH + OBJECT_WIDTH * max(1, needed)} or leave the option out"
        )
    return rows if options.label_width else (needed if all(sidecars) else None)


def validation_metric(options: TrainOptions, classes: Sequence[str]) -> ValidationMetric:
    """The metrics of each epoch's validation; OptionError where --best-metric is none of their values."""
    metric = ValidationMetric(metric_kinds(options), classes, options.overlap, options.use_difficult)
    names = metric.get()[0]
    if options.best_metric not in ("", *names):
        raise OptionError(f"--best-metric {options.best_metric}: the validation gives {', '.join(names)}")
    return metric


def _origin(options: TrainOptions, start: Start, train_iter: RecordIter) -> Origin:
    """Where the schedule counts from. A resumed run counts from where its first part did: same schedule."""
    updates = updates_per_epoch(options, train_iter.num_examples)
    origin = start.origin.continued(start.epoch, start.num_update - start.earlier_updates, updates)
    if start.origin.updates not in (0, updates):
        logger.warning(
            "an epoch has %d updates now, before it had %d: the schedule goes on by epochs",
            updates,
            start.origin.updates,
        )
    return origin


def _optimizer_params(
    options: TrainOptions, start: Start, origin: Origin, num_example: int, num_contexts: int
) -> dict[str, Any]:
    """Arguments of the optimizer."""
    rate, scheduler = (
        (options.lr, make_plateau(options, num_example, start.plateau))
        if options.lr_schedule == "plateau"
        else make_schedule(options, num_example, origin)
    )
    # The paper's losses are divided by the positives of the global batch: gradients of the contexts add up. The classic
    # outputs are normalised in each context.
    params: dict[str, Any] = {
        "learning_rate": rate,
        "wd": options.wd,
        "lr_scheduler": scheduler,
        "rescale_grad": 1.0 / num_contexts if mean_losses(options.network, **network_options(options)) else 1.0,
        "begin_num_update": start.num_update - start.earlier_updates,
    }
    if options.optimizer in ("sgd", "nag"):
        params["momentum"] = options.momentum
    if options.clip_gradient:
        params["clip_gradient"] = options.clip_gradient
    return params
