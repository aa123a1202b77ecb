"""Options of evaluate.py, and what is wrong with them before any work is done."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import OptionError
from common.files import check_output_file
from config.groups import (
    COCO_ALONE,
    DATA_ENGINES,
    ONE_SIZE,
    RECT_MULTIPLES,
    DataOptions,
    DeviceOptions,
    ValidationOptions,
    obsolete,
)
from config.model_groups import CheckpointOptions, ExpectedModel, ModelOptions
from config.options import joined_options, option, same_option, without_effect
from evaluate.certainty import CertaintyOptions
from evaluate.sets import SetOptions
from symbol.registry import detection_options_class

EXAMPLE = "python evaluate.py --rec-path data/val.rec --prefix output/ssd --epoch best"
# What --help shows; --help-all has all.
FIRST = (
    *("rec_path", "prefix", "epoch", "model", "engine", "detections", "batch_size", "metrics", "nms"),
    *("score_threshold", "json", "curves", "report", "coco_json", "decision", "thresh", "ious", "compare"),
    *("require", "all_engines", "gpus", "cpu"),
)
_OF_CHECKPOINTS = ("data_engine", "bad_records", "rect_val", "rect_multiple", "cpus")
# Of a network that runs; they do nothing for detections from a file.
_OF_NETWORKS = ("batch_size", "num_batch", "workers", *_OF_CHECKPOINTS, "gpus", "cpu")
_CERTAINTY = ("bootstrap", "group_by", "compare", "require")
_OF_ONE = ("engine", "coco_json", "coco_truth", "curves", "decision", "ious", "report", *_CERTAINTY)  # of a run alone
_OF_FOLDERS = ("dataset", "set", "year", "images", "pixel_origin")
LABEL_FORMATS = ("voc", "coco", "yolo", "csv", "labelme")  # of dataset.writers


@dataclass(frozen=True)
class EvaluateOptions(SetOptions, CertaintyOptions, ExpectedModel, DeviceOptions, CheckpointOptions):
    """Options of evaluate.py; what is not given comes from the checkpoint.

    evaluate_options_class adds the detection settings of all families.
    """

    model: str = option("", "model folder (of deploy.py) to evaluate in place of a checkpoint", "model")
    engine: str = same_option(ModelOptions, "engine", None)
    detections: str = option(
        "", "file of detections to evaluate in place of a model: of --coco-json, or of demo.py --json", "model"
    )
    all_engines: bool = option(False, "evaluate --model with every engine that is installed, in one table", "model")
    max_loss: float = option(
        0.01, "of --all-engines: what an engine may lose of the first one's mAP; status 1 where it loses more", "model",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    decision: bool = option(
        False, "also rates of missed and falsely raised images, counts, FROC (docs/evaluation.md)", "decision"
    )
    thresh: float = option(0.5, "of --decision: the lowest score that counts", "decision", minimum=0.0, maximum=1.0)
    ious: tuple[float, ...] = option((), "also VOC's AP at each of these IoUs, such as 0.3,0.5,0.75", "decision")
    list_path: str = option("", "list (.lst) whose labels replace those of --rec-path", "data")
    batch_size: int | None = same_option(DataOptions, "batch_size", "as in training; of a model folder 1")
    num_batch: int | None = option(None, "batches to evaluate (default: all)", "data", minimum=1)
    workers: int | None = same_option(DataOptions, "workers", "one per usable core")
    data_engine: str = option(
        "python", "who prepares batches: worker processes, or native = MXNet's C++ threads", "data",
        choices=DATA_ENGINES,
    )  # fmt: skip
    bad_records: str = same_option(DataOptions, "bad_records", None)
    rect_val: bool | None = same_option(ValidationOptions, "rect_val")
    rect_multiple: int | None = same_option(
        ValidationOptions, "rect_multiple", f"as in training, or {RECT_MULTIPLES[0]}"
    )
    overlap: float | None = same_option(ValidationOptions, "overlap")
    use_difficult: bool | None = same_option(ValidationOptions, "use_difficult")
    voc07: bool | None = same_option(ValidationOptions, "voc07")
    metrics: tuple[str, ...] = same_option(ValidationOptions, "metrics")
    json: str = option("", "file for the result: AP per class, mAP, images, seconds", "output")
    coco_json: str = option("", "file for the detections in COCO's results format", "output")
    coco_truth: str = option("", "file for the set's objects as a COCO annotation file, with the same ids", "output")
    coco_annotations: str = option(
        "",
        "COCO annotation file whose ids --coco-json and --detections take (default: the record's image ids, classes "
        "from 1; those of --rec-path where it is such a file)",
        "data",
    )
    curves: str = option("", "picture (PNG) of the precision-recall curves", "output")
    report: str = option(
        "", "folder for a page of curves, confusions, errors, the worst pictures and likely label errors", "output"
    )
    label_errors: str = option(
        "",
        "with --report: format in which likely label errors are written there, too",
        "output",
        choices=("", *LABEL_FORMATS),
    )
    frequent: int | None = obsolete(None, "the result is printed once, at the end")
    deploy: bool = obsolete(False, "the network of the checkpoint is built without its losses in any case")

    @property
    def path(self) -> str:
        """The model folder, or the prefix of the checkpoint."""
        return self.model or self.prefix


def evaluate_options_class() -> type[EvaluateOptions]:
    """EvaluateOptions with the detection settings of the families that are registered now."""
    return joined_options("EvaluateOptions", EvaluateOptions, detection_options_class())


def check_options(options: EvaluateOptions) -> None:
    """OptionError for options that exclude each other, and for files that could not be written after the work."""
    if options.model and options.prefix != EvaluateOptions.prefix:
        raise OptionError(f"--model {options.model} and --prefix {options.prefix} exclude each other; give one of them")
    if options.detections and (options.model or options.all_engines or options.prefix != EvaluateOptions.prefix):
        raise OptionError(f"--detections {options.detections} takes the place of a model; leave the model out")
    if options.detections and not Path(options.detections).is_file():
        raise OptionError(f"--detections {options.detections}: no such file; check the path")
    wrong = next((value for value in options.ious if not 0 < value < 1), None)
    if wrong is not None:
        raise OptionError(f"--ious {wrong:g}: an IoU lies between 0 and 1")
    for name in ("json", "curves", "coco_json", "coco_truth"):
        flag, path = f"--{name.replace('_', '-')}", getattr(options, name)
        if path:
            check_output_file(flag, path)
    if options.report:
        check_output_file("--report", str(Path(options.report, "index.html")), make_folders=True)
    if options.curves and not options.curves.endswith(".png"):
        raise OptionError(f"--curves {options.curves}: the name of a picture ends with .png")
    if options.coco_annotations and not Path(options.coco_annotations).is_file():
        raise OptionError(f"--coco-annotations {options.coco_annotations}: no such file")


def idle_options(
    options: EvaluateOptions, kinds: tuple[str, ...], rect: int, folder: bool, annotated: bool
) -> list[str]:
    """A sentence for each option that another one keeps from having an effect.

    kinds: the metrics; rect: what sides of inputs are multiples of, 0 = one size; folder: a model folder is evaluated;
    annotated: on a folder or file of annotations.
    """
    groups: list[tuple[tuple[str, ...], str]] = []
    if kinds == ("coco",):
        groups.append((("overlap",), COCO_ALONE))
    if options.detections:
        groups.append(((*_OF_NETWORKS, "engine", "epoch"), "with --detections, which are in a file"))
    elif folder:
        groups.append((_OF_CHECKPOINTS, "with a model folder"))
    elif not rect:
        groups.append((("rect_multiple",), ONE_SIZE))
    if not annotated:
        groups.append((_OF_FOLDERS, "for a record"))
    if not options.compare:
        groups.append((("compare_epoch",), "without --compare"))
    if not options.decision:
        groups.append((("thresh",), "without --decision"))
    if options.all_engines:
        groups.append((_OF_ONE, "with --all-engines"))
    else:
        groups.append((("max_loss",), "without --all-engines"))
    return without_effect(options, groups)
