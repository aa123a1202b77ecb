"""Options that do nothing because of another one: told, not refused, as presets may set them."""

from collections.abc import Iterable, Iterator
from dataclasses import fields

from config.augment_options import CENTER, TrainAugment
from config.deploy_options import DeployOptions
from config.run import EvaluateOptions, TrainOptions, metric_kinds

Groups = Iterable[tuple[tuple[str, ...], str]]
AUGMENTATION = tuple(field.name for field in fields(TrainAugment))
OTHER_FAMILIES = ("yolov3", "darknet:", "efficientdet")  # what names of networks begin with that are no SSD
_COCO_ALONE = "with --metrics coco, which has its own"
_ONE_SIZE = "without --rect-val"
_MULTIBOX = "with --post-process multibox"
NOT_RESUMED = ("-1", "")


def idle_options(options: TrainOptions) -> list[str]:
    """A sentence for each option of a training run that another one keeps from having an effect."""
    return _sentences(options, _idle(options))


def idle_deploy_options(options: DeployOptions) -> list[str]:
    """The same for deploy.py."""
    int8 = ("calib_mode", "num_calib", "max_loss")
    return _sentences(options, [] if options.dtype == "int8" else [(int8, f"with --dtype {options.dtype}")])


def idle_evaluate_options(options: EvaluateOptions, kinds: tuple[str, ...], rect: int) -> list[str]:
    """The same for evaluate.py; kinds: the metrics, rect: what sides of inputs are multiples of, 0 = one size."""
    groups: list[tuple[tuple[str, ...], str]] = []
    if kinds == ("coco",):
        groups.append((("overlap",), _COCO_ALONE))
    if not rect:
        groups.append((("rect_multiple",), _ONE_SIZE))
    return _sentences(options, groups)


def idle_detection_options(network: str, post_process: str, given: Iterable[str]) -> list[str]:
    """The same for detection options, those whose names are `given`, of a checkpoint; post_process is what will run."""
    idle = _keeps_all(network, post_process) and "keep_topk" in given
    return [f"--keep-topk has no effect {_MULTIBOX}"] if idle else []


def _keeps_all(network: str, post_process: str) -> bool:
    return post_process == "multibox" and not network.startswith(OTHER_FAMILIES)


def _sentences(options: TrainOptions | DeployOptions | EvaluateOptions, groups: Groups) -> list[str]:
    """A sentence for each option of the groups that is not at its default."""
    defaults = {field.name: field.default for field in fields(options)}
    given = {name for name, default in defaults.items() if getattr(options, name) != default}
    return [
        f"--{name.replace('_', '-')} has no effect {reason}"
        for names, reason in groups
        for name in names
        if name in given
    ]


def _idle(options: TrainOptions) -> Iterator[tuple[tuple[str, ...], str]]:
    """Groups of options without effect, and why."""
    yield from _idle_of_schedule(options)
    yield from _idle_of_start(options)
    yield from _idle_of_images(options)
    if _keeps_all(options.network, options.post_process):
        yield ("keep_topk",), _MULTIBOX
    if not options.val_path:
        yield ("eval_every", "val_loss", "metrics", "best_metric", "rect_val"), "without --val-path"
    if metric_kinds(options) == ("coco",):
        yield ("overlap",), _COCO_ALONE
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
        yield ("rect_multiple",), _ONE_SIZE
