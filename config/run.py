"""What the commands take: one option class each."""

from dataclasses import dataclass
from typing import Any

from common.errors import OptionError
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES
from config.classic_options import ClassicEvaluateOptions
from config.detection_options import DetectionOptions
from config.options import option

ENGINES = ("python", "native")
RECT_MULTIPLES = (32, 64, 128)  # strides of detectors' deepest maps
METRICS = ("voc07", "voc", "coco")


def _metrics() -> Any:
    return option(
        (),
        "what to measure, in one pass: voc07, voc (area under the curve), coco (12 numbers) (default: as --voc07 says)",
        "validation",
        choices=METRICS,
    )


@dataclass(frozen=True)
class InputOptions:
    """Input of the network, common to all commands that run one."""

    network: str = option("vgg16_reduced", "network (see docs/networks.md)", "network")
    data_shape: tuple[int, ...] = option((300,), "input side, or height,width", "network", minimum=32, maximum=8192)
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
class DeviceOptions:
    """Where to run."""

    gpus: str | None = option(
        None, "GPUs, e.g. 0,1; '' = the CPU (default: all usable ones, else the CPU)", "devices", aliases=("gpu",)
    )
    cpu: bool = option(False, "run on the CPU whatever --gpus says", "devices")
    cpus: int = option(1, "CPU contexts, when no GPU is used", "devices", minimum=1, maximum=64)


@dataclass(frozen=True)
class RunOptions(InputOptions):
    """What a training run reads, writes and does, beside the network's own options and the augmentation."""

    train_path: str = option("data/train.rec", "record to train on", "data")
    val_path: str = option("data/val.rec", "record to validate on; '' = no validation", "data")
    batch_size: int = option(32, "images per step, over all devices", "data", minimum=1)
    multi_scale: tuple[float, ...] = option(
        (),
        "smallest and largest input to train on, as factors of --data-shape (0.67,1.5) or as longer sides in pixels "
        "(288,608): each update has a random multiple of 32 (EfficientDet: 128) between them",
        "data",
        minimum=0.01,
        maximum=8192,
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
    workers: int | None = option(
        None, "processes, or native threads, that prepare batches (default: one per usable core)", "data", minimum=0
    )
    engine: str = option(
        "python", "who prepares batches: worker processes, or native = MXNet's C++ threads", "data", choices=ENGINES
    )
    augment: str = option(
        "ssd", "training augmentation: ssd = the classic one, none = resize only", "data", choices=("ssd", "none")
    )
    seed: int = option(233, "of everything random: weights, order, augmentation", "data", minimum=0)

    prefix: str = option("output/ssd", "path and first part of the name of everything the run writes", "output")
    overwrite: bool = option(False, "start anew although the prefix has files, which are lost", "output")
    keep: int = option(0, "checkpoints to keep beside the best one; 0 = all", "output", minimum=0)
    frequent: int = option(20, "batches between log lines", "output", minimum=1)
    tensorboard: bool = option(False, "write TensorBoard scalars to PREFIX-tensorboard", "output")
    log: str = option("", "log file (default: PREFIX-train.log)", "output")

    pretrained: str = option("", "prefix of a checkpoint whose weights are the start; '' = from scratch", "start")
    epoch: int = option(1, "epoch of --pretrained", "start", minimum=0)
    resume: str = option(
        "-1", "continue this prefix from the checkpoint of an epoch, or `auto` = the newest sound one", "start"
    )
    finetune: int = option(
        -1, "train the weights of this epoch of the prefix further with another schedule, data or classes", "start"
    )
    begin_epoch: int = option(0, "first epoch", "schedule", minimum=0)
    end_epoch: int = option(240, "epoch to stop before", "schedule", minimum=1)
    max_iter: int = option(
        0,
        "updates after which the run ends, in mid-epoch too, in place of --end-epoch; 0 = no limit",
        "schedule",
        minimum=0,
    )
    optimizer: str = option("sgd", "optimizer", "schedule", choices=("sgd", "nag", "adam", "rmsprop", "adadelta"))
    lr: float = option(0.002, "learning rate", "schedule", minimum=0.0, maximum=100.0)
    momentum: float = option(0.9, "momentum of sgd and nag", "schedule", minimum=0.0, maximum=1.0)
    wd: float = option(0.0005, "weight decay of weights; biases have none", "schedule", minimum=0.0, maximum=1.0)
    bn_decay: bool = option(True, "weight decay of batch norms' gamma, too, as MXNet has it", "schedule")
    clip_gradient: float = option(0.0, "limit of each gradient element; 0 = none", "schedule", minimum=0.0)

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
        "what sides of the inputs of --rect-val are multiples of",
        "validation",
        choices=RECT_MULTIPLES,
    )
    metrics: tuple[str, ...] = _metrics()
    best_metric: str = option(
        "", "value of the validation that the best checkpoint is best in (default: mAP; AP without VOC)", "validation"
    )


@dataclass(frozen=True)
class EvaluateOptions(ClassicEvaluateOptions, DetectionOptions, DeviceOptions):
    """Options of evaluate.py; what is not given comes from the checkpoint."""

    rec_path: str = option("data/val.rec", "record to evaluate on", "data")
    prefix: str = option("output/ssd", "prefix of the checkpoint", "model")
    epoch: str = option("auto", "epoch of the checkpoint; auto = the newest, best = the best one", "model")
    batch_size: int | None = option(None, "images per batch (default: as in training)", "data", minimum=1)
    num_batch: int | None = option(None, "batches to evaluate (default: all)", "data", minimum=1)
    workers: int | None = option(
        None, "processes, or native threads, that prepare batches (default: one per usable core)", "data", minimum=0
    )
    engine: str = option(
        "python", "who prepares batches: worker processes, or native = MXNet's C++ threads", "data", choices=ENGINES
    )
    rect_val: bool | None = option(
        None, "images of like proportions together in inputs no larger than they need (default: as in training)", "data"
    )
    rect_multiple: int | None = option(
        None,
        f"what sides of these inputs are multiples of (default: as in training, or {RECT_MULTIPLES[0]})",
        "data",
        choices=RECT_MULTIPLES,
    )
    overlap: float | None = option(
        None,
        "IoU above which a detection counts as right (default: as in training)",
        "validation",
        minimum=0.0,
        maximum=1.0,
    )
    use_difficult: bool | None = option(None, "count difficult objects (default: as in training)", "validation")
    voc07: bool | None = option(
        None,
        "11-point VOC07 average precision; otherwise the area under the curve (default: as in training)",
        "validation",
    )
    metrics: tuple[str, ...] = _metrics()
    json: str = option("", "file for the result: AP per class, mAP, images, seconds", "output")
    coco_json: str = option("", "file for the detections in COCO's results format", "output")
    coco_truth: str = option("", "file for the record's objects as a COCO annotation file, with the same ids", "output")
    coco_annotations: str = option(
        "",
        "COCO annotation file whose ids --coco-json takes (default: the record's image ids, classes from 1)",
        "data",
    )
    curves: str = option("", "picture (PNG) of the precision-recall curves", "output")


def pixel_options(options: InputOptions) -> dict[str, Any]:
    """How an image becomes the network's input: arguments of the iterators and fields of a checkpoint's .json."""
    return {
        "mean_pixels": (options.mean_r, options.mean_g, options.mean_b),
        "std": (options.std_r, options.std_g, options.std_b),
        "resize_mode": options.resize_mode,
        "fill": options.fill,
    }


def rect_multiple(options: RunOptions) -> int:
    """What the sides of rectangular validation batches are multiples of; 0 = all batches have the same size."""
    return options.rect_multiple if options.rect_val else 0


def metric_kinds(options: RunOptions | EvaluateOptions, trained: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The metrics of a command, each once, out of METRICS; OptionError where --no-voc07 contradicts --metrics.

    trained: those of the training's validation, for evaluate.py where it is told neither.
    """
    if "voc07" in options.metrics and options.voc07 is False:
        raise OptionError("--no-voc07 contradicts --metrics voc07: leave one of them out")
    given = tuple(dict.fromkeys(options.metrics))
    return given or (trained if options.voc07 is None else ("voc07" if options.voc07 else "voc",))


def best_metric(options: RunOptions) -> str:
    """The value of the validation by which checkpoints are compared."""
    return options.best_metric or ("AP" if metric_kinds(options) == ("coco",) else "mAP")
