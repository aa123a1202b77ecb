"""The command evaluate.py."""

import json
from pathlib import Path
from typing import Any

from config import threads
from config.errors import OptionError
from config.options import parse_options
from config.run import RECT_MULTIPLE, EvaluateOptions

DETECTION = ("post_process", "nms", "nms_topk", "keep_topk", "score_threshold", "force")


def main(argv: list[str]) -> int:
    """Parses the options, evaluates, prints the table and writes what was asked for."""
    options = parse_options(EvaluateOptions, argv, "Evaluate a trained detector on a record.")
    _check_outputs(options)
    threads.configure(options.cpus)
    from evaluate.evaluate_net import evaluate_net
    from evaluate.report import format_table, save_pr_curves
    from train.checkpoint import load_checkpoint
    from train.devices import contexts
    from train.expected_model import check_model

    checkpoint = load_checkpoint(options.prefix, options.epoch)
    known = {name: checkpoint.meta[name] for name in ("network", "class_names", "data_shape", "mean_pixels")}
    check_model(options, f"{options.prefix}, epoch {checkpoint.epoch},", **known)
    evaluation = evaluate_net(
        checkpoint,
        options.rec_path,
        contexts(options),
        batch_size=options.batch_size,
        workers=options.workers,
        engine=options.engine,
        num_batch=options.num_batch,
        list_path=options.list_path,
        rect=_rect(options, checkpoint.meta["rect"]),
        overlap=options.overlap,
        use_difficult=options.use_difficult,
        voc07=options.voc07,
        **{name: getattr(options, name) for name in DETECTION if getattr(options, name) is not None},
    )
    print(f"{options.prefix}, epoch {checkpoint.epoch}, on {options.rec_path}")
    print(format_table(evaluation.result))
    print(f"{evaluation.images} images in {evaluation.seconds:.1f} s")
    if options.json:
        _write_json(options, checkpoint.epoch, evaluation)
    if options.curves:
        save_pr_curves(evaluation.result, options.curves)
    return 0


def _rect(options: EvaluateOptions, trained: int) -> int:
    """What sides of inputs are multiples of, 0 = one size; `trained` is what the training's validation had."""
    wanted = bool(trained) if options.rect_val is None else options.rect_val
    return (options.rect_multiple or trained or RECT_MULTIPLE) if wanted else 0


def _check_outputs(options: EvaluateOptions) -> None:
    """Refuses, before the work is done, files that could not be written after it."""
    for flag, path in (("--json", options.json), ("--curves", options.curves)):
        if path and not Path(path).parent.is_dir():
            raise OptionError(f"{flag} {path}: there is no folder {Path(path).parent}; make it first")
    if options.curves and not options.curves.endswith(".png"):
        raise OptionError(f"--curves {options.curves}: the name of a picture ends with .png")


def _write_json(options: EvaluateOptions, epoch: int, evaluation: Any) -> None:
    """The result as JSON; a class without ground truth has AP null."""
    from dataset.files import write_atomically

    content = {
        "prefix": options.prefix,
        "epoch": epoch,
        "rec_path": options.rec_path,
        "iou_threshold": options.overlap,
        "voc07": options.voc07,
        "AP": {one.name: _number(one.ap) for one in evaluation.result.classes},
        "mAP": _number(evaluation.result.mean_ap),
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 3),
    }
    write_atomically(Path(options.json), (json.dumps(content, indent=1) + "\n").encode())


def _number(value: float) -> float | None:
    return None if value != value else float(value)
