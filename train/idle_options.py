"""Options of a training run that do nothing because of another one: told, not refused, as presets may set them."""

from collections.abc import Iterator
from dataclasses import fields

from config.augment_options import CENTER, TrainAugment
from config.idle_options import COCO_ALONE, ONE_SIZE, sentences
from config.run import metric_kinds
from symbol.registry import family_of
from train.options import TrainOptions

AUGMENTATION = tuple(field.name for field in fields(TrainAugment))
NOT_RESUMED = ("-1", "")


def idle_options(options: TrainOptions) -> list[str]:
    """A sentence for each option of a training run that another one keeps from having an effect."""
    return sentences(options, _idle(options))


def _idle(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    """Groups of options without effect, and why."""
    yield from _idle_of_schedule(options)
    yield from _idle_of_start(options)
    yield from _idle_of_images(options)
    yield from family_of(options.network).ineffective_options(options)
    if not options.val_path:
        yield ("eval_every", "val_loss", "metrics", "best_metric", "rect_val"), "without --val-path"
    if metric_kinds(options) == ("coco",):
        yield ("overlap",), COCO_ALONE
    if options.save_best_only and not options.save_every.endswith("i"):
        yield ("keep",), "with --save-best-only"
    if not options.monitor:
        yield ("pattern",), "without --monitor"


def _idle_of_schedule(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    schedule = f"with --lr-schedule {options.lr_schedule}"
    readers = {
        ("lr_steps",): ("steps",),
        ("lr_step_epochs",): ("step_epochs",),
        ("lr_factor",): ("steps", "step_epochs", "plateau"),
        ("lr_patience",): ("plateau",),
        ("lr_final",): ("cosine", "cosine_epochs", "plateau"),
    }
    yield from ((names, schedule) for names, schedules in readers.items() if options.lr_schedule not in schedules)
    if not options.warmup_epochs:
        yield ("warmup_factor",), "without --warmup-epochs"
    if not options.ema:
        yield ("ema_ramp",), "without --ema"
    if not options.freeze_epochs:
        yield ("freeze_batch_size", "freeze_lr"), "without --freeze-epochs"
    if options.max_iter:
        yield ("end_epoch",), "with --max-iter"
    if options.optimizer not in ("sgd", "nag"):
        yield ("momentum",), f"with --optimizer {options.optimizer}"


def _idle_of_start(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    """--resume auto without a checkpoint begins as if it were not given: everything may have an effect then."""
    if options.resume not in (*NOT_RESUMED, "auto"):
        yield ("begin_epoch",), "with --resume"
        return
    if options.finetune > 0:
        yield ("begin_epoch",), "with --finetune"
    if options.finetune >= 0:
        yield ("pretrained", "epoch"), "with --finetune"
    elif not options.pretrained:
        yield ("epoch",), "without --pretrained"


def _idle_of_images(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    if options.augment == "none":
        yield AUGMENTATION, "with --augment none"
    elif options.crop_emit_mode == CENTER:
        yield ("emit_overlap_thresh",), f"with --crop-emit-mode {CENTER}"
    if options.resize_mode == "force" and not options.rect_val:
        yield ("fill",), "with --resize-mode force, which draws no borders"
    if not options.rect_val:
        yield ("rect_multiple",), ONE_SIZE
