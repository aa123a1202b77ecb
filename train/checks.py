"""What can be told of a run's options alone, before mxnet is loaded: what is wrong, and what has no effect."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from common.errors import CheckpointError, DataError, OptionError
from common.files import MAX_PREFIX, check_name, check_prefix, numbered_files
from config.augment_options import CENTER, RunAugment
from config.groups import COCO_ALONE, IMAGENET, is_foreign, validation_kinds, warmup_span
from config.options import without_effect
from dataset.recordio import refuse_other_file
from symbol.registry import family_of
from train.options import BODY, TrainOptions, split_stages

AUGMENTATION = tuple(field.name for field in fields(RunAugment))
# What is drawn -> what limits it.
STRENGTHS = {"blur_prob": "max_blur", "noise_prob": "max_noise", "jpeg_prob": "min_jpeg_quality"}
BEST = "best"  # of --epoch
STEPPED = ("steps", "step_epochs")  # schedules that --time-limit shortens from --end-epoch
WITHOUT_BODY = (BODY, "all-but-heads")  # words of --freeze that leave nothing of the body to train


def is_resumed(options: TrainOptions) -> bool:
    """Whether a run is to continue an earlier one."""
    return options.start.resume not in ("-1", "")


def check_early(options: TrainOptions) -> None:
    """OptionError for an unknown network, stages that cannot be, a prefix without name or with too long a one;
    DataError or CheckpointError naming a file that is not there."""
    family_of(options.input.network)
    split_stages(options)
    check_several(options)
    check_prefix(options.output.prefix)
    check_name(options.output.prefix, "--prefix", MAX_PREFIX)
    check_records(options)
    for flag, path in (("--train-list", options.data.train_list), ("--val-list", options.data.val_list)):
        if path and not Path(path).is_file():
            raise DataError(f"{flag} {path}: no such file; make it with tools/im2rec.py")
    if options.start.pretrained:
        _check_weights(options)


def check_several(options: TrainOptions) -> None:
    """OptionError for an option that several processes cannot have."""
    store = options.device.kv_store
    if not store.startswith("dist"):
        return
    refused = {
        "--data-engine native": (
            options.data.data_engine == "native",
            "its shards do not make the batches of one process; leave it out",
        ),
        "--rect": (options.data.rect, "batches by proportions are not divided; leave it out"),
        "--rect-val": (
            options.validation.rect_val,
            "batches by proportions are not divided; leave it out, and give it to evaluate.py",
        ),
        "--bad-records skip": (
            options.data.bad_records != "stop",
            "a worker does not tell the others what it leaves out; repair the record (tools/check_dataset.py)",
        ),
        "--profile": (options.output.profile > 0, "it looks at one process; give --kv-store local"),
        "--nominal-batch": (
            bool(options.schedule.nominal_batch),
            "it counts the images of one process; give --accumulate",
        ),
    }
    for name, (is_given, reason) in refused.items():
        if is_given:
            raise OptionError(f"{name} and --kv-store {store} exclude each other: {reason}")


def _check_weights(options: TrainOptions) -> None:
    """A UserError where --pretrained names nothing that is there."""
    start = options.start
    if is_foreign(start.pretrained):
        check_weights_file(start.pretrained)
        return
    check_prefix(start.pretrained, "--pretrained")
    if start.epoch != BEST:
        check_epoch(start.pretrained, int(start.epoch))


def check_weights_file(pretrained: str) -> None:
    """CheckpointError where --pretrained names a file of torch that is not there."""
    if pretrained != IMAGENET and not Path(pretrained).is_file():
        raise CheckpointError(f"--pretrained {pretrained}: no such file; check the path")


def check_epoch(prefix: str, epoch: int) -> None:
    """CheckpointError, with the epochs that there are, where a prefix has no weights of this one."""
    path = Path(f"{prefix}-{epoch:04d}.params")
    if not path.is_file():
        there = ", ".join(map(str, numbered_files(prefix, "params")))
        what = f"there are epochs {there}; choose one by --epoch" if there else "check --pretrained and --epoch"
        raise CheckpointError(f"{path}: no such file; {what}")


def check_records(options: TrainOptions) -> None:
    """DataError where a record is missing."""
    for flag, path in (("--train-path", options.data.train_path), ("--val-path", options.data.val_path)):
        refuse_other_file(path, flag)
        if (path or flag == "--train-path") and not Path(path).is_file():
            raise DataError(f"{flag} {path}: no such file; make it with tools/prepare_dataset.py")


def idle_options(options: TrainOptions) -> list[str]:
    """A sentence for each option of a training run that another one keeps from having an effect."""
    return without_effect(options, _idle(options))


def _idle(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    """Groups of options without effect, and why."""
    yield from _idle_of_schedule(options)
    yield from _idle_of_start(options)
    yield from _idle_of_images(options)
    yield from family_of(options.input.network).ineffective_options(options.net)
    if not options.data.val_path:
        yield (
            ("eval_every", "val_loss", "metrics", "best_metric", "rect_val", "patience", "report"),
            "without --val-path",
        )
    elif options.validation.eval_every == "last":
        yield ("patience",), "with --eval-every last"
    if validation_kinds(options.validation) == ("coco",):
        yield ("overlap",), COCO_ALONE
    if options.output.save_best_only and not options.output.save_every.endswith("i"):
        yield ("keep",), "with --save-best-only"
    if not options.output.monitor:
        yield ("pattern",), "without --monitor"


def _idle_of_schedule(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    schedule = f"with --lr-schedule {options.schedule.lr_schedule}"
    readers = {
        ("lr_steps",): ("steps",),
        ("lr_step_epochs",): ("step_epochs",),
        ("lr_factor",): ("steps", "step_epochs", "plateau"),
        ("lr_patience",): ("plateau",),
        ("lr_final",): ("cosine", "cosine_epochs", "plateau"),
    }
    yield from (
        (names, schedule) for names, schedules in readers.items() if options.schedule.lr_schedule not in schedules
    )
    if not warmup_span(options.schedule):
        yield ("warmup_factor", "warmup_accumulate"), "without --warmup-epochs or --warmup-updates"
    if not options.schedule.ema:
        yield ("ema_ramp",), "without --ema"
    if not options.schedule.freeze_epochs:
        yield ("freeze_batch_size", "freeze_lr"), "without --freeze-epochs"
    if options.schedule.max_iter:
        yield ("end_epoch",), "with --max-iter"
    if options.schedule.time_limit and options.schedule.lr_schedule not in STEPPED:
        yield ("end_epoch",), "with --time-limit"
    if options.net.freeze in WITHOUT_BODY and not options.schedule.freeze_epochs:
        yield ("body_lr",), f"with --freeze {options.net.freeze}"
    if options.schedule.optimizer not in ("sgd", "nag"):
        yield ("momentum",), f"with --optimizer {options.schedule.optimizer}"


def _idle_of_start(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    """--resume auto without a checkpoint begins as if it were not given: everything may have an effect then."""
    if is_resumed(options) and options.start.resume != "auto":
        yield ("begin_epoch",), "with --resume"
        return
    if not is_resumed(options) and options.start.finetune < 0:
        yield ("finetune_freeze",), "without --finetune"
    if options.start.finetune > 0:
        yield ("begin_epoch",), "with --finetune"
    if options.start.finetune >= 0:
        yield ("pretrained", "epoch"), "with --finetune"
    elif not options.start.pretrained:
        yield ("epoch",), "without --pretrained"
    elif is_foreign(options.start.pretrained):
        yield ("epoch",), f"with --pretrained {options.start.pretrained}"


def _idle_of_images(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    if options.data.augment == "none":
        yield AUGMENTATION, "with --augment none"
    else:
        yield from _idle_of_augmentation(options.augmentation)
        closed, schedule = options.augmentation.close_mosaic, options.schedule
        if closed >= schedule.end_epoch and not schedule.max_iter and not schedule.time_limit:
            yield ("mosaic_prob", "mixup_prob"), f"with --close-mosaic {closed}, which all epochs are within"
    if options.input.resize_mode == "force" and not options.validation.rect_val:
        yield ("fill",), "with --resize-mode force, which draws no borders"
    if not options.validation.rect_val and not options.data.rect:
        yield ("rect_multiple",), "without --rect or --rect-val"


def _idle_of_augmentation(augment: RunAugment) -> Iterator[tuple[tuple[str, ...], str]]:
    if augment.crop_emit_mode == CENTER:
        yield ("emit_overlap_thresh",), f"with --crop-emit-mode {CENTER}"
    if not augment.mosaic_prob and not augment.mixup_prob:
        yield ("close_mosaic",), "without --mosaic-prob or --mixup-prob"
    for probability, strength in STRENGTHS.items():
        if not getattr(augment, probability):
            yield (strength,), f"without --{probability.replace('_', '-')}"
