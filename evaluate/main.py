"""The command evaluate.py."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import OptionError
from common.files import check_output_file
from config.command_line import parse_options
from config.groups import (
    COCO_ALONE,
    ONE_SIZE,
    RECT_MULTIPLES,
    CheckpointOptions,
    DataOptions,
    DeviceOptions,
    ExpectedModel,
    ValidationOptions,
    metric_kinds,
    obsolete,
)
from config.options import joined_options, option, same_option, without_effect
from evaluate.certainty import (
    Certainty,
    CertaintyOptions,
    Rule,
    certainty_of,
    check_same_classes,
    group_pattern,
    requirements_of,
)
from machine.cpu import configure_threads
from symbol.registry import detection_options_class, given_detection

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


EXAMPLE = "python evaluate.py --rec-path data/val.rec --prefix output/ssd --epoch best"
# What --help shows; --help-all has all.
FIRST = (
    *("rec_path", "prefix", "epoch", "batch_size", "metrics", "nms", "score_threshold", "json", "curves", "coco_json"),
    *("bootstrap", "compare", "require"),
    *("gpus", "cpu"),
)


@dataclass(frozen=True)
class EvaluateOptions(CertaintyOptions, ExpectedModel, DeviceOptions, CheckpointOptions):
    """Options of evaluate.py; what is not given comes from the checkpoint.

    evaluate_options_class adds the detection settings of all families.
    """

    rec_path: str = option("data/val.rec", "record to evaluate on", "data")
    list_path: str = option("", "list (.lst) whose labels replace those of --rec-path", "data")
    batch_size: int | None = same_option(DataOptions, "batch_size")
    num_batch: int | None = option(None, "batches to evaluate (default: all)", "data", minimum=1)
    workers: int | None = same_option(DataOptions, "workers", "one per usable core")
    data_engine: str = same_option(DataOptions, "data_engine", None)
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
    coco_truth: str = option("", "file for the record's objects as a COCO annotation file, with the same ids", "output")
    coco_annotations: str = option(
        "",
        "COCO annotation file whose ids --coco-json takes (default: the record's image ids, classes from 1)",
        "data",
    )
    curves: str = option("", "picture (PNG) of the precision-recall curves", "output")
    frequent: int | None = obsolete(None, "the result is printed once, at the end")
    deploy: bool = obsolete(False, "the network of the checkpoint is built without its losses in any case")


def evaluate_options_class() -> type[EvaluateOptions]:
    """EvaluateOptions with the detection settings of the families that are registered now."""
    return joined_options("EvaluateOptions", EvaluateOptions, detection_options_class())


def main(argv: list[str]) -> int:
    """Parses the options, evaluates, prints the table and writes what was asked for."""
    options = parse_options(
        evaluate_options_class(),
        argv,
        "Measures a trained detector on a packed data set, by default as the validation of its training did.",
        example=EXAMPLE,
        first=FIRST,
    )
    _check_outputs(options)
    configure_threads(options.cpus)
    from dataset.recordio import RecordReader
    from evaluate.reports import save_pr_curves
    from model.manifest import check_checkpoint

    checkpoint = _checkpoint(options)
    check_checkpoint(options, checkpoint)
    class_names = checkpoint.meta.class_names
    kinds = metric_kinds(options.metrics, options.voc07, checkpoint.meta.metrics)
    if options.curves and kinds == ("coco",):
        raise OptionError("--curves draws the curves of VOC's rule: add voc07 or voc to --metrics")
    rect = _rect(options, checkpoint.meta.rect)
    for line in idle_evaluate_options(options, kinds, rect):
        logger.warning(line)
    if options.coco_annotations:  # report what does not fit before the pass
        _coco_ids(options, RecordReader(options.rec_path).keys, class_names)
    group_pattern(options.group_by)
    requirements_of(options, class_names)
    evaluation = _measure(options, checkpoint, kinds, rect)
    meta = checkpoint.meta
    use_difficult = meta.use_difficult if options.use_difficult is None else options.use_difficult
    other = _other(options, class_names, kinds, evaluation.overlap, use_difficult)
    rule = Rule(kinds, evaluation.overlap, use_difficult)
    certainty = certainty_of(options, evaluation.found, rule, options.prefix, other)
    print(f"{options.prefix}, epoch {checkpoint.epoch}, on {options.rec_path}")
    _print_tables(evaluation.results)
    print(f"{evaluation.images} images in {evaluation.seconds:.1f} s", *certainty.lines, sep="\n")
    if options.json:
        _write_json(options, checkpoint.epoch, evaluation, certainty)
    if options.coco_json or options.coco_truth:
        _write_coco(options, evaluation.found, use_difficult)
    if options.curves:
        save_pr_curves(evaluation.result, options.curves)
    return 0 if certainty.kept else 1


def _measure(options: EvaluateOptions, checkpoint: "Checkpoint", kinds: tuple[str, ...], rect: int) -> Any:
    """The Evaluation of a checkpoint with these options."""
    from evaluate.evaluate_net import evaluate_net
    from machine.runtime import contexts

    return evaluate_net(
        checkpoint,
        options.rec_path,
        contexts(options.gpus, options.cpu, options.cpus),
        batch_size=options.batch_size,
        workers=options.workers,
        data_engine=options.data_engine,
        num_batch=options.num_batch,
        list_path=options.list_path,
        rect=rect,
        overlap=options.overlap,
        use_difficult=options.use_difficult,
        metrics=kinds,
        keep_rows=True,
        **given_detection(options),
    )


def _other(
    options: EvaluateOptions, class_names: Sequence[str], kinds: tuple[str, ...], overlap: float, use_difficult: bool
) -> Any:
    """What --compare finds in the same images, by the same rule; None without it."""
    if not options.compare:
        return None
    beside = replace(
        options, prefix=options.compare, epoch=options.compare_epoch, overlap=overlap, use_difficult=use_difficult
    )
    checkpoint = _checkpoint(beside)
    check_same_classes(options.compare, class_names, checkpoint.meta.class_names)
    return _measure(beside, checkpoint, kinds, _rect(beside, checkpoint.meta.rect)).found


def _checkpoint(options: EvaluateOptions) -> "Checkpoint":
    """The checkpoint that is named, with or without our .json."""
    from dataset.sidecar import read_sidecar
    from model.checkpoint import load_checkpoint, plain_epoch
    from model.weights.plain import load_plain

    plain = plain_epoch(options.prefix, options.epoch)
    if plain is None:
        return load_checkpoint(options.prefix, options.epoch)
    sidecar = read_sidecar(options.rec_path) if Path(options.rec_path).is_file() else None
    checkpoint = load_plain(options.prefix, plain, options, sidecar.class_names if sidecar else ())
    return replace(checkpoint, meta=replace(checkpoint.meta, bit_depth=sidecar.bit_depth if sidecar else ""))


def idle_evaluate_options(options: EvaluateOptions, kinds: tuple[str, ...], rect: int) -> list[str]:
    """A sentence for each option that another one keeps from having an effect.

    kinds: the metrics; rect: what sides of inputs are multiples of, 0 = one size.
    """
    groups: list[tuple[tuple[str, ...], str]] = []
    if kinds == ("coco",):
        groups.append((("overlap",), COCO_ALONE))
    if not rect:
        groups.append((("rect_multiple",), ONE_SIZE))
    return without_effect(options, groups)


def _rect(options: EvaluateOptions, trained: int) -> int:
    """What sides of inputs are multiples of, 0 = one size; `trained` is what the training's validation had."""
    wanted = bool(trained) if options.rect_val is None else options.rect_val
    return (options.rect_multiple or trained or RECT_MULTIPLES[0]) if wanted else 0


def _check_outputs(options: EvaluateOptions) -> None:
    """Refuses, before the work is done, files that could not be written after it."""
    for name in ("json", "curves", "coco_json", "coco_truth"):
        flag, path = f"--{name.replace('_', '-')}", getattr(options, name)
        if path:
            check_output_file(flag, path)
    if options.curves and not options.curves.endswith(".png"):
        raise OptionError(f"--curves {options.curves}: the name of a picture ends with .png")
    if options.coco_annotations and not Path(options.coco_annotations).is_file():
        raise OptionError(f"--coco-annotations {options.coco_annotations}: no such file")


def _print_tables(results: dict[str, Any]) -> None:
    from evaluate.reports import format_coco, format_table

    for kind, result in results.items():
        if len(results) > 1:
            print(f"{kind}:")
        print(format_coco(result) if kind == "coco" else format_table(result))


def _write_coco(options: EvaluateOptions, results: Any, use_difficult: bool) -> None:
    """--coco-json and --coco-truth."""
    from evaluate.reports import write_results, write_truth

    ids = _coco_ids(options, [image.id for image in results.images], results.class_names)
    if options.coco_json:
        write_results(options.coco_json, results, ids)
    if options.coco_truth:
        write_truth(options.coco_truth, results, ids, use_difficult)


def _coco_ids(options: EvaluateOptions, records: Any, class_names: Sequence[str]) -> Any:
    """The ids of these records (n,) and of the classes in the COCO files."""
    from evaluate.reports import annotation_ids, record_ids

    if options.coco_annotations:
        return annotation_ids(records, class_names, options.rec_path, options.coco_annotations)
    return record_ids(records, len(class_names), options.rec_path)


def _write_json(options: EvaluateOptions, epoch: int, evaluation: Any, certainty: Certainty) -> None:
    """The result as JSON; a class without ground truth has AP null. AP and mAP are those of the first metric listed
    that has them."""
    from common.files import write_atomically

    by_kind = {kind: _values(result) for kind, result in evaluation.results.items()}
    first = next((values for values in by_kind.values() if "mAP" in values), {})
    content = {
        "prefix": options.prefix,
        "epoch": epoch,
        "rec_path": options.rec_path,
        "iou_threshold": evaluation.overlap,
        "voc07": next((kind for kind in by_kind if kind != "coco"), "") == "voc07",
        **first,
        "metrics": by_kind,
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 3),
        **certainty.content,
    }
    write_atomically(Path(options.json), (json.dumps(content, indent=1) + "\n").encode())


def _values(result: Any) -> dict[str, Any]:
    """What the JSON file tells of one metric."""
    if hasattr(result, "stats"):
        by_class = {name: _number(value) for name, value in result.class_ap.items()}
        return {"class_AP": by_class, **{name: _number(value) for name, value in result.stats.items()}}
    by_class = {one.name: _number(one.ap) for one in result.classes}
    return {"AP": by_class, "mAP": _number(result.mean_ap)}


def _number(value: float) -> float | None:
    return None if value != value else float(value)
