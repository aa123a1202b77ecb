"""Everything that can be found wrong with a run before its first batch; nothing is written here."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError, DataError, OptionError
from common.files import check_output_file
from config.augment_options import LETTERBOX
from config.groups import OutputOptions, batches_per_update, validation_kinds
from config.options import from_mapping, replace_options
from dataset.class_names import read_class_names
from dataset.sidecar import Sidecar, read_sidecar, same_images, verify_sidecar
from dataset.transforms import shown_bit_depth
from evaluate.eval_metric import ValidationMetric
from graph.mixed_precision import BFLOAT16, FLOAT16
from graph.number_formats import supports_bfloat16
from machine.runtime import check_batch_size, contexts, mx
from model.checkpoint import list_epochs
from model.weights.fit import expected_shapes
from symbol.registry import family_of
from symbol.symbol_factory import check_any_size, embedded_options
from train.batches import check_stage_batches
from train.callbacks import make_monitor
from train.checks import check_records, idle_options, is_resumed
from train.freezing import settle_freeze
from train.options import TrainOptions, augment_options, network_options, train_options_class
from train.pretrained import with_pixels
from train.ranks import ALONE, Ranks
from train.run_files import MetricsFile, changed_options, check_lock, command_to_continue, resumed_meta
from train.saving import SavePlan, bit_depth_of, record_digests
from train.schedule import warm_up_of, warm_up_of_others
from train.several import check_alike, hear_plan, same_start, tell_plan
from train.stages import Patience, Stage, make_stages, stage_at, without_end
from train.start import Start, find_start
from train.tensorboard import check_tensorboard

# Arrays of the size of a parameter that an optimizer keeps for it.
OPTIMIZER_STATES = {"sgd": 1, "nag": 1, "adam": 2, "adamw": 2, "rmsprop": 1, "adadelta": 2}
BYTES = 4  # of a float32
MEGABYTE = 1 << 20
_OTHER_DEVICE = {
    BFLOAT16: "is a format for CPUs; give --dtype float16, or --cpu",
    FLOAT16: "is a format for GPUs; give --dtype bfloat16, or --gpus",
}
FEW_IMAGES = 1000  # below which weights of other pictures help most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run that has been checked.

    Attributes:
        options: of all its stages, with the texts of files that the checkpoints will hold.
        classes: names in the order of the ids.
        sidecars: of the training record and, if there is one, the validation record; None of a record without.
        stages: with their symbols, in their order.
        devices: where it runs.
        start: where the first stage to train begins, with the weights.
        found_epochs: those of the checkpoints under the prefix when it was checked.
        way_to_continue: what to tell who interrupts it, given whether there is a checkpoint to go on from.
        lines: what was logged before there was a log file.
        begun: when its command began (time.monotonic), from which --time-limit counts.
    """

    options: TrainOptions
    classes: tuple[str, ...]
    sidecars: Sequence[Sidecar | None]
    stages: Sequence[Stage]
    devices: Sequence[mx.Context]
    start: Start
    found_epochs: tuple[int, ...]
    way_to_continue: Callable[[bool], str] = command_to_continue
    lines: Sequence[logging.LogRecord] = ()
    begun: float = field(default_factory=time.monotonic)
    ranks: Ranks = ALONE


def preflight_of(ranks: Ranks, options: TrainOptions) -> Plan:
    """The plan of a worker's run: rank 0 checks it, and the others do what it tells them."""
    if not ranks.writes:
        return _heard(ranks, options)
    plan = replace(preflight(options), ranks=ranks)
    position = plan.start.position
    if position.batch and position.ranks != ranks.count:
        raise OptionError(
            f"{options.output.prefix} was paused in mid-epoch with {position.ranks} workers, not {ranks.count}; resume "
            "with as many, or from an epoch by --resume N"
        )
    more = {"records": record_digests(plan.sidecars), "devices": len(plan.devices), "classes": plan.classes}
    tell_plan(ranks, options, plan.options, more)
    same_start(ranks, plan.start)
    return plan


def _heard(ranks: Ranks, given: TrainOptions) -> Plan:
    """The plan that rank 0 tells; OptionError or DataError where this worker's machine or command cannot follow it."""
    devices = contexts(given.device.gpus, given.device.cpu, given.device.cpus)
    check_dtype(given.device.dtype, devices)
    sidecars = read_sidecars(given)
    told = hear_plan(ranks, given)
    check_alike(ranks, told, sidecars, len(devices))
    start = same_start(ranks, None)
    options, classes = from_mapping(train_options_class(), told["options"]), tuple(told["classes"])
    _check_resumed_dtype(options, start, devices)
    stages = make_stages(without_end(options), classes)
    for stage in stages:
        check_batch_size(stage.options.data.batch_size, devices)
        if start.epoch < stage.options.schedule.end_epoch:
            check_stage_batches(stage, sidecars, start if stage is stage_at(stages, start.epoch) else Start())
    return Plan(options, classes, sidecars, stages, devices, start, (), ranks=ranks)


def preflight(options: TrainOptions) -> Plan:
    """Checks a run: options, devices, records, network, recipe, disk, prefix and the weights that it starts from.

    Every mistake raises a UserError; what may be meant, but perhaps is not, is logged as a warning.
    """
    devices = contexts(options.device.gpus, options.device.cpu, options.device.cpus)
    check_dtype(options.device.dtype, devices)
    options = with_pixels(with_embedded_files(options))
    sidecars = read_sidecars(options)
    classes = class_names(options, sidecars[0])
    stages = make_stages(without_end(options), classes)
    settled = settle_freeze(options, classes)
    if settled != options:
        options, stages = settled, make_stages(without_end(settled), classes)
    for stage in stages:
        check_recipe(stage.options)
        check_batch_size(stage.options.data.batch_size, devices)
    _check_rectangular(options)
    make_monitor(options.output.monitor, options.output.pattern)
    validation_metric(options, classes)
    for line in idle_options(options):
        logger.warning(line)
    check_outputs(options.output)
    check_disk_space(options, len(classes))
    found_epochs = tuple(list_epochs(options.output.prefix))
    start = find_start(stages)
    _check_resumed_dtype(options, start, devices)
    damage = MetricsFile(options.output.prefix, start.kept_epochs).damage
    if damage:
        logger.warning(damage)
    _check_limit(options, start)
    for stage in stages:
        if start.epoch < stage.options.schedule.end_epoch:
            check_stage_batches(stage, sidecars, start if stage is stage_at(stages, start.epoch) else Start())
    told = (
        *changed_options(options.output.prefix, options),
        *changed_files(options),
        *changed_records(options, sidecars),
    )
    for line in (*told, *objects_missing(options, classes, sidecars[0]), *_few_images(options, sidecars[0], start)):
        logger.warning(line)
    return Plan(options, classes, sidecars, stages, devices, start, found_epochs)


def check_dtype(dtype: str, devices: Sequence[mx.Context]) -> None:
    """OptionError where --dtype is none that these devices compute in."""
    on_cpu = all(device.device_type == "cpu" for device in devices)
    if dtype == (FLOAT16 if on_cpu else BFLOAT16):
        raise OptionError(f"--dtype {dtype} {_OTHER_DEVICE[dtype]}")
    if dtype == BFLOAT16 and not supports_bfloat16():
        raise OptionError("--dtype bfloat16: this CPU has no AVX-512, which oneDNN's bfloat16 needs; leave it out")


def _check_resumed_dtype(options: TrainOptions, start: Start, devices: Sequence[mx.Context]) -> None:
    """OptionError where --dtype auto found, on another machine, a format that these devices do not compute in."""
    try:
        check_dtype(start.precision.get("dtype", options.device.dtype), devices)
    except OptionError as error:
        prefix = options.output.prefix
        saved = list_epochs(prefix)
        weights = f" and --pretrained {prefix} --epoch {saved[-1]}" if saved else ""
        raise OptionError(
            f"{prefix} was trained in {start.precision['dtype']}, which the devices here do not have; resume it where "
            f"they do, or start anew with another --prefix{weights}"
        ) from error


def _few_images(options: TrainOptions, sidecar: Sidecar | None, start: Start) -> list[str]:
    """A line for a run that begins with random weights on few images."""
    if start.arg_params or not sidecar or sidecar.num_images >= FEW_IMAGES:
        return []
    return [
        f"{options.data.train_path}: {sidecar.num_images} images are few to start from random weights; ImageNet's "
        "mostly get further in less time: --config few_images --pretrained imagenet (docs/networks.md names the "
        "networks that have some)"
    ]


def with_embedded_files(options: TrainOptions) -> TrainOptions:
    """The options with the texts of their files, which the checkpoints of a resumed run have; others as they are.

    A run without a checkpoint, or whose checkpoints are of another network, reads the files.
    """
    given = {name: text for name in _embedded(options) if (text := getattr(options.net, name))}
    own = _embedded_before(options) | given
    return replace_options(options, **{**own, **embedded_options(options.input.network, own)})


def changed_files(options: TrainOptions) -> list[str]:
    """A line for the file of a resumed run that is no longer the text which the run goes on with."""
    if not (_embedded(options) and is_resumed(options)):
        return []
    try:
        now = embedded_options(options.input.network, {})
    except DataError:  # the file has gone
        return []
    path = options.input.network.removeprefix(family_of(options.input.network).prefix)
    is_other = any(getattr(options.net, name) != text for name, text in now.items())
    return [f"{path} has changed; the run goes on with the text that its checkpoints keep"] if is_other else []


def _embedded(options: TrainOptions) -> list[str]:
    family = family_of(options.input.network)
    return [name for name in family.embedded if name not in family.unused_options(options.input.network)]


def _embedded_before(options: TrainOptions) -> dict[str, Any]:
    """The texts in the checkpoint that the run goes on from, {} without one or if it is of another network."""
    meta = resumed_meta(options)
    if not meta or meta.network != options.input.network:
        return {}
    found = {name: meta.options.get(name) for name in _embedded(options)}
    return {name: text for name, text in found.items() if text and isinstance(text, str)}


def read_sidecars(options: TrainOptions) -> list[Sidecar | None]:
    """Sidecars of the training record and, if there is one, the validation record.

    DataError where a record is missing, their classes or bit depths differ, or one has changed since it was packed.
    """
    check_records(options)
    paths = [path for path in (options.data.train_path, options.data.val_path) if path]
    sidecars = [read_sidecar(path) for path in paths]
    train, val = sidecars[0], sidecars[-1]
    if train and val and train.class_names != val.class_names:
        raise DataError(
            f"{options.data.train_path} and {options.data.val_path} hold different classes "
            f"({', '.join(train.class_names)}; {', '.join(val.class_names)}); pack both with the same --class-names"
        )
    if train and val and train.bit_depth != val.bit_depth:
        raise DataError(
            f"{options.data.train_path} and {options.data.val_path} were packed with different bit depths "
            f"({shown_bit_depth(train.bit_depth)}; {shown_bit_depth(val.bit_depth)}); pack both with one --bit-depth"
        )
    for path, sidecar in zip(paths, sidecars, strict=True):
        if sidecar and options.data.verify_data:
            verify_sidecar(path, sidecar, hash=True)
    if len(paths) == 2:
        _check_apart(paths, train, val, options.data.allow_same_record)
    return sidecars


def _check_apart(paths: Sequence[str], train: Sidecar | None, val: Sidecar | None, allowed: bool) -> None:
    """OptionError where training and validation are one record, unless that is allowed; a warning for common images."""
    same = train and val and train.sha256 == val.sha256
    if not allowed and (same or Path(paths[0]).samefile(paths[1])):
        raise OptionError(
            f"--val-path {paths[1]} is the training record, and would tell nothing of unseen images; name another, '' "
            "for none, or give --allow-same-record"
        )
    count = 0 if same or not train or not val else same_images(train, val)
    if count and val:
        logger.warning(
            "%d of the %d images of %s are in %s, too: the validation promises more than unseen images will keep; "
            "tools/check_dataset.py names them; leave one of each out (a folder that --split divides may have both)",
            count, val.num_images, paths[1], paths[0],
        )  # fmt: skip


def changed_records(options: TrainOptions, sidecars: Sequence[Sidecar | None]) -> list[str]:
    """A line for each record of a resumed run that is not the one of the checkpoint that it goes on from, and one for
    another bit depth."""
    meta = resumed_meta(options)
    before = meta.records if meta else {}
    paths = {"train": options.data.train_path, "validation": options.data.val_path}
    now = bit_depth_of(sidecars)
    depth = (
        f"{paths['train']}: packed with the bit depth {shown_bit_depth(now)}, the run so far had "
        f"{shown_bit_depth(meta.bit_depth)}; it goes on with the new one"
        if meta and any(sidecars) and meta.bit_depth != now
        else ""
    )
    lines = [
        f"{paths[name]}: not the {name} record of the run so far (sha256); it goes on with it"
        for name, digest in record_digests(sidecars).items()
        if before.get(name, digest) != digest
    ]
    return [*lines, depth] if depth else lines


def class_names(options: TrainOptions, sidecar: Sidecar | None) -> tuple[str, ...]:
    """Classes of the run: those given, else the record's; OptionError where the two disagree or neither is there."""
    names = read_class_names(options.data.class_names) or (sidecar.class_names if sidecar else ())
    if not names:
        names = tuple(f"class{k}" for k in range(options.data.num_class or 0))
    if not names:
        raise OptionError(
            f"{options.data.train_path} has no sidecar that names its classes; give --class-names or --num-class"
        )
    if options.data.num_class not in (None, len(names)):
        raise OptionError(
            f"--num-class {options.data.num_class}, but there are {len(names)} class names ({', '.join(names)})"
        )
    if sidecar and names != sidecar.class_names:
        raise OptionError(
            f"--class-names {','.join(names)}, but the classes of {options.data.train_path} are "
            f"{','.join(sidecar.class_names)}; leave the option out or pack the record with these names"
        )
    return names


def objects_missing(options: TrainOptions, classes: Sequence[str], sidecar: Sidecar | None) -> list[str]:
    """A sentence about classes of which the record holds nothing to learn from, if its sidecar's labels are used."""
    if sidecar is None or options.data.train_list:
        return []
    missing = [name for name, count in zip(classes, sidecar.objects_per_class, strict=True) if not count]
    if not missing:
        return []
    which = "any class" if len(missing) == len(classes) else ", ".join(missing)
    return [f"{options.data.train_path}: holds no object of {which}, which the network therefore cannot learn"]


def check_outputs(output: OutputOptions) -> None:
    """OptionError where another run writes under the prefix, or something that this run writes cannot be written."""
    check_lock(output.prefix)
    check_output_file("--log" if output.log else "--prefix", output.log or f"{output.prefix}-train.log", True)
    if output.tensorboard:
        check_tensorboard()


def _check_limit(options: TrainOptions, start: Start) -> None:
    """OptionError where a run has made all the updates of --max-iter or --time-limit, or --patience has ended it."""
    prefix, schedule, done = options.output.prefix, options.schedule, start.num_update
    if schedule.max_iter and done >= schedule.max_iter:
        raise OptionError(f"{prefix} has made {done} updates; raise --max-iter to train further ({done + 1} or more)")
    if start.time_limit and done >= start.time_limit["updates"]:
        raise OptionError(
            f"{prefix} has made the {done} updates that --time-limit {schedule.time_limit} was found to mean; give "
            f"--max-iter {done + 1} or more in its place to train further"
        )
    patience = Patience(schedule.patience, start.patience)
    if patience.is_over:
        raise OptionError(
            f"{prefix} has ended: --best-metric has not become better for {patience.waited} epochs; raise --patience "
            f"to {patience.waited + 1} or more to train further"
        )


def check_recipe(options: TrainOptions) -> None:
    """OptionError where options of the recipe do not fit together."""
    schedule, validation = options.schedule, options.validation
    batches_per_update(schedule, options.data.batch_size)
    warm_up_of(schedule, updates=1)
    warm_up_of_others(schedule, updates=1)
    SavePlan(options, 0)
    if validation.val_loss and not options.data.val_path:
        raise OptionError("--val-loss needs a validation; give --val-path or leave the option out")
    if schedule.lr_schedule == "plateau" and not validation.val_loss:
        raise OptionError("--lr-schedule plateau follows the validation loss; give --val-loss, too")


def _check_rectangular(options: TrainOptions) -> None:
    """OptionError where --rect or --rect-val cannot be: with stretched images, or a network of inputs of one size;
    --rect with mosaics or several input sizes, too."""
    for flag, is_given in (("--rect", options.data.rect), ("--rect-val", options.validation.rect_val)):
        if not is_given:
            continue
        if options.input.resize_mode != LETTERBOX:
            raise OptionError(f"{flag} needs --resize-mode {LETTERBOX}; give it, or leave {flag} out")
        check_any_size(options.input.network, options.input.data_shape, flag)
    if not options.data.rect:
        return
    if options.data.multi_scale:
        raise OptionError("--rect and --multi-scale exclude each other: both choose the inputs; leave one of them out")
    augmentation = augment_options(options)
    if augmentation and augmentation.mosaic_prob:
        raise OptionError(
            "--rect and --mosaic-prob exclude each other: a mosaic fills its input; give --mosaic-prob 0, or leave "
            "--rect out"
        )


def validation_metric(options: TrainOptions, classes: Sequence[str]) -> ValidationMetric:
    """The metrics of each epoch's validation; OptionError where --best-metric is none of their values."""
    metric = ValidationMetric(
        validation_kinds(options.validation), classes, options.validation.overlap, options.validation.use_difficult
    )
    names = metric.get()[0]
    if options.validation.best_metric not in ("", *names):
        raise OptionError(f"--best-metric {options.validation.best_metric}: the validation gives {', '.join(names)}")
    return metric


def check_disk_space(options: TrainOptions, num_classes: int) -> None:
    """CheckpointError where the disk of --prefix has less room than one checkpoint takes."""
    arg, aux = expected_shapes(options.input.network, options.input.data_shape, num_classes, **network_options(options))
    values = sum(int(np.prod(shape)) for shape in (*arg.values(), *aux.values()))
    needed = BYTES * values * (1 + OPTIMIZER_STATES[options.schedule.optimizer] + (options.schedule.ema > 0))
    folder = Path(options.output.prefix).parent
    usage = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists()))
    if usage.free < needed and usage.total:  # /proc and the like have no sizes
        raise CheckpointError(
            f"--prefix {options.output.prefix}: a checkpoint takes {needed / MEGABYTE:.0f} MB, but {folder} has "
            f"{usage.free / MEGABYTE:.0f} MB left; free space or choose another --prefix"
        )
