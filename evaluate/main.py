"""The command evaluate.py."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import OptionError
from common.files import check_output_file
from config.detection_options import given_detection
from config.idle_options import idle_evaluate_options
from config.options import parse_options
from config.run import RECT_MULTIPLES, EvaluateOptions, metric_kinds
from machine.cpu import configure_threads

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Parses the options, evaluates, prints the table and writes what was asked for."""
    options = parse_options(EvaluateOptions, argv, "Evaluate a trained detector on a record.")
    _check_outputs(options)
    configure_threads(options.cpus)
    from dataset.recordio import RecordReader
    from evaluate.evaluate_net import evaluate_net
    from evaluate.report import save_pr_curves
    from machine.runtime import contexts
    from model.checkpoint import load_checkpoint
    from model.expected_model import check_checkpoint

    checkpoint = load_checkpoint(options.prefix, options.epoch)
    check_checkpoint(options, checkpoint)
    class_names = checkpoint.meta.class_names
    kinds = metric_kinds(options, checkpoint.meta.metrics)
    if options.curves and kinds == ("coco",):
        raise OptionError("--curves draws the curves of VOC's rule: add voc07 or voc to --metrics")
    rect = _rect(options, checkpoint.meta.rect)
    for line in idle_evaluate_options(options, kinds, rect):
        logger.warning(line)
    if options.coco_annotations:  # what does not fit is told before the pass
        _coco_ids(options, RecordReader(options.rec_path).keys, class_names)
    evaluation = evaluate_net(
        checkpoint,
        options.rec_path,
        contexts(options.gpus, options.cpu, options.cpus),
        batch_size=options.batch_size,
        workers=options.workers,
        engine=options.engine,
        num_batch=options.num_batch,
        list_path=options.list_path,
        rect=rect,
        overlap=options.overlap,
        use_difficult=options.use_difficult,
        metrics=kinds,
        keep_rows=bool(options.coco_json or options.coco_truth),
        **given_detection(options),
    )
    print(f"{options.prefix}, epoch {checkpoint.epoch}, on {options.rec_path}")
    _print_tables(evaluation.results)
    print(f"{evaluation.images} images in {evaluation.seconds:.1f} s")
    if options.json:
        _write_json(options, checkpoint.epoch, evaluation)
    if evaluation.rows:
        _write_coco(options, evaluation.rows, class_names)
    if options.curves:
        save_pr_curves(evaluation.result, options.curves)
    return 0


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
    from evaluate.report import format_coco, format_table

    for kind, result in results.items():
        if len(results) > 1:
            print(f"{kind}:")
        print(format_coco(result) if kind == "coco" else format_table(result))


def _write_coco(options: EvaluateOptions, rows: Any, class_names: Sequence[str]) -> None:
    """--coco-json and --coco-truth."""
    from evaluate.coco_results import write_results, write_truth

    ids = _coco_ids(options, rows.records, class_names)
    if options.coco_json:
        write_results(options.coco_json, rows.detections, ids)
    if options.coco_truth:
        write_truth(options.coco_truth, rows.truths, ids, rows.sizes, class_names)


def _coco_ids(options: EvaluateOptions, records: Any, class_names: Sequence[str]) -> Any:
    """The ids of these records and of the classes in the COCO files."""
    from evaluate.coco_results import annotation_ids, record_ids

    if options.coco_annotations:
        return annotation_ids(records, class_names, options.rec_path, options.coco_annotations)
    return record_ids(records, len(class_names), options.rec_path)


def _write_json(options: EvaluateOptions, epoch: int, evaluation: Any) -> None:
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
