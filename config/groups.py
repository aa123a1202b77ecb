"""What a run is: groups of options, each read by the part of the program that it names.

A command's option class is made of such groups (train/options.py) or of its own fields; flags and presets are flat.
Which trained model a command reads is in config/model_groups.py.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from common.errors import OptionError
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES
from config.options import CLASSIC, DATA_SHAPE_FORM, option

DATA_ENGINES = ("python", "native")
# Of --engine, which everywhere else says who runs the model.
_ENGINE = "takes python or native here, as --data-engine (MXNet runs the network; demo.py has a choice of engines)"
RECT_MULTIPLES = (32, 64, 128)  # strides of detectors' deepest maps
METRICS = ("voc07", "voc", "coco")
# Why options of the validation have no effect.
COCO_ALONE = "with --metrics coco, which has its own"
ONE_SIZE = "without --rect-val"
SECONDS = {"h": 3600, "m": 60, "s": 1}
SMALLEST_FACTOR = 1e-6  # of a learning rate: a factor of 0 would end all learning
AUTO = "auto"  # the word of --dtype that has it measured
IMAGENET = "imagenet"  # the word of --pretrained
OPTIMIZERS = ("sgd", "nag", "adam", "adamw", "rmsprop", "adadelta")
SCHEDULES = ("steps", "step_epochs", "cosine", "cosine_epochs", "plateau")


def obsolete(default: Any, now: str) -> Any:
    """An option of the classic commands that is accepted; who gives it is told what happens now."""
    return option(default, f"no effect: {now}", CLASSIC, obsolete=now)


@dataclass(frozen=True)
class DataOptions:
    """What a training run reads, and how it becomes batches."""

    train_path: str = option("data/train.rec", "record to train on", "data")
    val_path: str = option("data/val.rec", "record to validate on; '' = no validation", "data")
    batch_size: int = option(32, "images per step, over all devices", "data", minimum=1)
    multi_scale: tuple[float, ...] = option(
        (),
        "smallest and largest input to train on, as factors of --data-shape (0.67,1.5) or as longer sides in pixels "
        "(288,608), or one factor with both limits rounded down (1.5: 320 to 736 at 512): each update has a random "
        "multiple of 32 (EfficientDet: 128) between them",
        "data",
        minimum=0.01,
        maximum=8192,
    )
    rect: bool = option(
        False,
        "train on images of like proportions together, in inputs that are no larger than they need (with letterbox)",
        "data",
    )
    label_width: int = option(
        0, "numbers in the label of an image: 2 and 6 for each object; 0 = as many as needed", "data", minimum=0
    )
    num_class: int | None = option(
        None, "number of classes (default: the record's)", "data", minimum=1, aliases=("num_classes",)
    )
    class_names: tuple[str, ...] = option((), "names of the classes (default: the record's)", "data")
    verify_data: bool = option(
        True, "compare the records with the sha256 in their sidecars first, about a second for each GB", "data"
    )
    allow_same_record: bool = option(
        False, "validate on the training record, which tells nothing of unseen images, instead of refusing", "data"
    )
    workers: int | None = option(
        None, "processes, or native threads, that prepare batches (default: one per usable core)", "data", minimum=0
    )
    data_engine: str = option(
        "python",
        "who prepares batches: worker processes, or native = MXNet's C++ threads",
        "data",
        choices=DATA_ENGINES,
        hidden={"engine": _ENGINE},
    )
    bad_records: str = option(
        "stop",
        "what a record whose image or label cannot be read does: stop = it ends the run; skip:N = up to N of each "
        "record file are left out and listed in log and checkpoints",
        "data",
        pattern=(r"stop|skip:[1-9]\d{0,8}", "stop, or skip:N such as skip:10"),
    )
    augment: str = option(
        "ssd", "training augmentation: ssd = the classic one, none = resize only", "data", choices=("ssd", "none")
    )
    seed: int = option(233, "of everything random: weights, order, augmentation", "data", minimum=0)
    train_list: str = option("", "list (.lst) whose labels replace those of --train-path", "data")
    val_list: str = option("", "list (.lst) whose labels replace those of --val-path", "data")
    num_example: int | None = obsolete(None, "the record says how many images it holds")


@dataclass(frozen=True)
class InputOptions:
    """Input of the network."""

    network: str = option("vgg16_reduced", "network (see docs/networks.md)", "network")
    data_shape: tuple[int, ...] = option(
        (300,), "input side, or height,width", "network", minimum=32, maximum=8192, form=DATA_SHAPE_FORM
    )
    mean_r: float = option(123.0, "mean of red", "network")
    mean_g: float = option(117.0, "mean of green", "network")
    mean_b: float = option(104.0, "mean of blue", "network")
    std_r: float = option(1.0, "by which red is divided after the mean has been subtracted", "network", minimum=1e-3)
    std_g: float = option(1.0, "by which green is divided", "network", minimum=1e-3)
    std_b: float = option(1.0, "by which blue is divided", "network", minimum=1e-3)
    resize_mode: str = option(
        FORCE,
        "force = images are stretched to the input; letterbox = they keep their proportions and get borders",
        "network",
        choices=RESIZE_MODES,
    )
    fill: int = option(DEFAULT_FILL, "grey of the letterbox's borders", "network", minimum=0, maximum=255)


@dataclass(frozen=True)
class StartOptions:
    """Which weights a run begins with."""

    pretrained: str = option(
        "",
        "weights to start from: the prefix of a checkpoint, imagenet (docs/networks.md says for which networks), or a "
        "state_dict FILE.pth; '' = from scratch",
        "start",
    )
    epoch: str = option(
        "1", "epoch of --pretrained PREFIX, or best", "start", pattern=(r"\d+|best", "an epoch or `best`")
    )
    resume: str = option(
        "-1", "continue this prefix from the checkpoint of an epoch, or `auto` = the newest sound one", "start"
    )
    finetune: int = option(
        -1, "train the weights of this epoch of the prefix further with another schedule, data or classes", "start"
    )
    finetune_freeze: str = option(
        "none",
        "what --finetune keeps as it is, in place of --freeze: classic = all that the checkpoint has but predictions",
        "start",
        choices=("none", "classic"),
    )


@dataclass(frozen=True)
class ScheduleOptions:
    """How long is trained, in which stages, and by how much weights change."""

    begin_epoch: int = option(0, "first epoch", "schedule", minimum=0)
    end_epoch: int = option(240, "epoch to stop before", "schedule", minimum=1)
    max_iter: int = option(
        0,
        "updates after which the run ends, in mid-epoch too, in place of --end-epoch; 0 = no limit",
        "schedule",
        minimum=0,
    )
    time_limit: str = option(
        "",
        "time that the run may take, such as 90s, 15m or 1h30m, in place of --end-epoch: its speed is measured first, "
        "and the schedule ends where this time does; '' = no limit",
        "schedule",
        pattern=(r"|(?=.*[1-9])(\d+h)?(\d+m)?(\d+s)?", "a time above 0 such as 90s, 15m, 2h or 1h30m"),
    )
    patience: int = option(
        0, "epochs without a better --best-metric after which the run ends; 0 = it does not", "schedule", minimum=0
    )
    optimizer: str = option("sgd", "optimizer", "schedule", choices=OPTIMIZERS)
    lr: float = option(0.002, "learning rate", "schedule", minimum=0.0, maximum=100.0)
    momentum: float = option(0.9, "momentum of sgd and nag", "schedule", minimum=0.0, maximum=1.0)
    wd: float = option(0.0005, "weight decay of weights; biases have none", "schedule", minimum=0.0, maximum=1.0)
    bn_decay: bool = option(True, "weight decay of batch norms' gamma, too, as MXNet has it", "schedule")
    clip_gradient: float = option(0.0, "limit of each gradient element; 0 = none", "schedule", minimum=0.0)
    clip_gradient_norm: float = option(
        0.0, "limit of the length of an update's whole gradient; 0 = none", "schedule", minimum=0.0
    )
    body_lr: float = option(
        1.0, "factor of the learning rate for the body", "schedule", minimum=SMALLEST_FACTOR, maximum=100.0
    )
    accumulate: int = option(
        1, "batches whose gradients are added up before each update", "schedule", minimum=1, maximum=4096
    )
    warmup_accumulate: int | None = option(
        None,
        "batches of an update in the epochs of the warm-up (default: as later)",
        "schedule",
        minimum=1,
        maximum=4096,
    )
    nominal_batch: int = option(
        0, "images of an update: --accumulate becomes round(nominal / batch size); 0 = off", "schedule", minimum=0
    )
    lr_schedule: str = option(
        "steps",
        "steps = multiply by --lr-factor at --lr-steps; step_epochs = each --lr-step-epochs epochs; cosine = down to "
        "--lr-final with each update; cosine_epochs = the same with each epoch; plateau = multiply by "
        "--lr-factor when the validation loss does not fall (with --val-loss)",
        "schedule",
        choices=SCHEDULES,
    )
    lr_steps: tuple[str, ...] = option(
        ("80", "160"),
        "epochs (80) or updates (80000i) at which the learning rate changes",
        "schedule",
        pattern=(r"\d+i|\d+(\.\d*)?([eE]\d+)?", "epochs like 80 or updates like 80000i"),
    )
    lr_step_epochs: int = option(1, "epochs from one step of step_epochs to the next", "schedule", minimum=1)
    lr_factor: float = option(
        0.1, "factor, above 0, at each of these epochs; >= 1 = constant rate", "schedule", minimum=SMALLEST_FACTOR
    )
    lr_patience: int = option(
        10, "validations in a row without a lower loss that plateau tolerates", "schedule", minimum=0
    )
    lr_final: float = option(
        0.0, "learning rate at the end of the cosine; the lowest one of plateau", "schedule", minimum=0.0
    )
    warmup_epochs: float = option(0.0, "epochs over which the learning rate rises linearly", "schedule", minimum=0.0)
    warmup_updates: int = option(
        0,
        "updates over which the learning rate rises, in place of --warmup-epochs: at most those of the first epoch but "
        "one",
        "schedule",
        minimum=0,
    )
    warmup_factor: float = option(
        0.0, "share of the learning rate at which the warm-up begins", "schedule", minimum=0.0, maximum=1.0
    )
    warmup_momentum: float | None = option(
        None, "momentum at which the warm-up begins (default: --momentum)", "schedule", minimum=0.0, maximum=1.0
    )
    warmup_bias_lr: float | None = option(
        None,
        "learning rate of biases (and of batch norm's beta) at which the warm-up begins (default: as all others)",
        "schedule",
        minimum=0.0,
        maximum=100.0,
    )
    ema: float = option(
        0.0,
        "decay of the moving average of the weights, which is validated and saved, e.g. 0.9999; 0 = none",
        "schedule",
        minimum=0.0,
        maximum=0.999999,
    )
    ema_ramp: float = option(
        2000.0,
        "updates over which the decay of --ema rises: decay * (1 - exp(-updates / ramp)); less for short runs",
        "schedule",
        minimum=1.0,
    )
    freeze_epochs: int = option(
        0,
        "two stages: up to this epoch what --freeze names (default: body) is frozen, then everything is trained, by a "
        "new optimizer with a new schedule; 0 = one stage",
        "schedule",
        minimum=0,
    )
    freeze_batch_size: int | None = option(
        None, "batch size of the frozen stage (default: --batch-size)", "schedule", minimum=1
    )
    freeze_lr: float | None = option(
        None, "learning rate of the frozen stage (default: --lr)", "schedule", minimum=0.0, maximum=100.0
    )


@dataclass(frozen=True)
class ValidationOptions:
    """When a run validates, and by which rule."""

    overlap: float = option(0.5, "IoU above which a detection counts as right", "validation", minimum=0.0, maximum=1.0)
    use_difficult: bool = option(False, "count difficult objects", "validation")
    voc07: bool = option(True, "11-point VOC07 average precision; otherwise the area under the curve", "validation")
    rect_val: bool = option(
        False,
        "validate images of like proportions together in inputs that are no larger than they need (with letterbox)",
        "validation",
    )
    rect_multiple: int = option(
        RECT_MULTIPLES[0],
        "what sides of the inputs of --rect and --rect-val are multiples of",
        "validation",
        choices=RECT_MULTIPLES,
    )
    metrics: tuple[str, ...] = option(
        (),
        "what to measure, in one pass: voc07, voc (area under the curve), coco (12 numbers) (default: as --voc07 says)",
        "validation",
        choices=METRICS,
    )
    best_metric: str = option(
        "", "value of the validation that the best checkpoint is best in (default: mAP; AP without VOC)", "validation"
    )
    eval_every: str = option(
        "1",
        "epochs between validations (the last epoch is always validated), or last = that one alone",
        "validation",
        pattern=(r"[1-9]\d*|last", "a number of epochs or `last`"),
    )
    val_loss: bool = option(False, "compute the training losses on the validation record, too", "validation")


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes."""

    prefix: str = option("output/ssd", "path and first part of the name of everything the run writes", "output")
    overwrite: bool = option(False, "start anew although the prefix has files, which are lost", "output")
    keep: int = option(0, "checkpoints to keep beside the best one; 0 = all", "output", minimum=0)
    frequent: int = option(20, "batches between log lines", "output", minimum=1)
    tensorboard: bool = option(
        False, "write losses, rate, scores and pictures for TensorBoard to PREFIX-tensorboard", "output"
    )
    live: bool = option(
        False, "write PREFIX-live.html, a page with the curves that a browser shows while the run goes on", "output"
    )
    report: bool = option(False, "write PREFIX-report of each validation, as evaluate.py --report does", "output")
    log: str = option("", "log file (default: PREFIX-train.log)", "output")
    save_every: str = option(
        "1",
        "epochs between checkpoints (10), or updates between snapshots PREFIX-iter-NNNN (5000i); the last epoch and "
        "the best are always kept",
        "output",
        pattern=(r"[1-9]\d*i?", "epochs like 10 or updates like 5000i"),
    )
    save_best_only: bool = option(False, "keep the best checkpoint and that of the last epoch alone", "output")
    profile: int = option(
        0,
        "train nothing, but show where N steps of training spend their time, by operator and by kernel of oneDNN: "
        "PREFIX-profile.txt, and PREFIX-profile.json for chrome://tracing",
        "output",
        minimum=0,
    )
    monitor: int = option(0, "batches between statistics of arrays (mx.mon.Monitor); 0 = none", "output", minimum=0)
    pattern: str = option(".*", "regular expression of the arrays that --monitor shows", "output")


@dataclass(frozen=True)
class DeviceOptions:
    """Where to run."""

    gpus: str | None = option(
        None, "GPUs, e.g. 0,1; '' = the CPU (default: all usable ones, else the CPU)", "devices", aliases=("gpu",)
    )
    cpu: bool = option(False, "run on the CPU whatever --gpus says", "devices")
    cpus: int = option(1, "CPU contexts, when no GPU is used", "devices", minimum=1, maximum=64)


@dataclass(frozen=True)
class TrainDeviceOptions(DeviceOptions):
    """Where to train, and where gradients of several devices are added up."""

    rewrite_graph: bool = option(True, "on CPUs, train the graph rewritten for oneDNN, which is faster", "devices")
    dtype: str = option(
        "float32",
        "number format in which the training graph computes; weights and losses stay float32: bfloat16 = on CPUs with "
        "AVX-512, float16 = on GPUs, auto = the faster one of it and float32, measured when the run begins",
        "devices",
        choices=("float32", "bfloat16", "float16", AUTO),
    )
    kv_store: str = option(
        "local",
        "where gradients are added up: local = on the CPU, device = on the GPUs; dist_sync, dist_device_sync = so, and "
        "over the processes of tools/launch.py",
        "devices",
        pattern=(
            r"local|device|dist_sync|dist_device_sync",
            "local, device, dist_sync or dist_device_sync (dist_async updates in an order that no checkpoint keeps, so "
            "that no run could be resumed exactly)",
        ),
    )
    gradient_compression: str = option(
        "none",
        "how gradients travel between processes: none = as they are",
        "devices",
        pattern=(
            "none",
            "none (2bit keeps what it has not sent in each worker, where no checkpoint has it, so that no run could be "
            "resumed exactly)",
        ),
    )


def is_foreign(pretrained: str) -> bool:
    """Whether --pretrained names `imagenet` or a file of torch, no prefix of a checkpoint."""
    return pretrained == IMAGENET or pretrained.endswith((".pth", ".pt"))


def pixel_options(options: InputOptions) -> dict[str, Any]:
    """How an image becomes the network's input: arguments of the iterators and fields of a checkpoint's .json."""
    return {
        "mean_pixels": (options.mean_r, options.mean_g, options.mean_b),
        "std": (options.std_r, options.std_g, options.std_b),
        "resize_mode": options.resize_mode,
        "fill": options.fill,
    }


def rect_multiple(options: ValidationOptions) -> int:
    """What the sides of rectangular validation batches are multiples of; 0 = all batches have the same size."""
    return options.rect_multiple if options.rect_val else 0


def seconds_of(time: str) -> int:
    """Seconds of a time such as 90s, 15m or 1h30m; 0 of ''."""
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([hms])", time))


def warmup_span(options: ScheduleOptions) -> int:
    """Epochs that the warm-up of a stage touches, from its first one on; 0 = there is none."""
    return 1 if options.warmup_updates else math.ceil(options.warmup_epochs)


def metric_kinds(metrics: tuple[str, ...], voc07: bool | None, trained: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The metrics of a command by --metrics and --voc07, each once, out of METRICS.

    trained: those of the training's validation, for evaluate.py where it is told neither. OptionError where --no-voc07
    contradicts --metrics.
    """
    if "voc07" in metrics and voc07 is False:
        raise OptionError("--no-voc07 contradicts --metrics voc07: leave one of them out")
    given = tuple(dict.fromkeys(metrics))
    return given or (trained if voc07 is None else ("voc07" if voc07 else "voc",))


def validation_kinds(options: ValidationOptions) -> tuple[str, ...]:
    """metric_kinds of a training run."""
    return metric_kinds(options.metrics, options.voc07)


def best_metric(options: ValidationOptions) -> str:
    """The value of the validation by which checkpoints are compared."""
    return options.best_metric or ("AP" if validation_kinds(options) == ("coco",) else "mAP")


def batches_per_update(options: ScheduleOptions, batch_size: int) -> int:
    """--accumulate, or what --nominal-batch makes of it; OptionError where both are given."""
    if options.nominal_batch and options.accumulate > 1:
        raise OptionError("--accumulate and --nominal-batch exclude each other; give one of them")
    return max(round(options.nominal_batch / batch_size), 1) if options.nominal_batch else options.accumulate
