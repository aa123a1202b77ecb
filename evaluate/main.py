"""The command evaluate.py."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import DataError, OptionError
from common.files import write_atomically
from config.command_line import parse_options
from dataset.sidecar import read_sidecar
from evaluate.certainty import Certainty, Rule, certainty_of, group_pattern, requirements_of
from evaluate.options import EXAMPLE, FIRST, EvaluateOptions, check_options, evaluate_options_class
from evaluate.sets import is_annotated
from machine.cpu import configure_threads


def main(argv: list[str]) -> int:
    """Parses the options, evaluates, prints the table and writes what was asked for."""
    options = parse_options(
        evaluate_options_class(),
        argv,
        "Measures a trained detector, or detections from a file, on a packed data set or annotated pictures; a "
        "checkpoint by default as the validation of its training did.",
        example=EXAMPLE,
        first=FIRST,
    )
    check_options(options)
    _check_certainty(options)
    configure_threads(options.cpus)
    from evaluate.runs import engine_runs, evaluated

    if options.all_engines:
        return _compare(options, engine_runs(options))
    run = evaluated(options, keep=True)
    certainty = _certainty(options, run)
    print(run.title)
    _print_tables(run.evaluation.results)
    more = _decision(options, run) | certainty.content
    print(f"{run.evaluation.images} images in {run.evaluation.seconds:.1f} s", *certainty.lines, sep="\n")
    if options.json:
        _write_json(options.json, {**_content(run), **more})
    _write_coco(options, run)
    if options.curves:
        from evaluate.reports import save_pr_curves

        save_pr_curves(run.evaluation.result, options.curves)
    if options.report:
        _write_report(options, run, certainty)
    return 0 if certainty.kept else 1


def _check_certainty(options: EvaluateOptions) -> None:
    """Refuses what --group-by, --require and --compare cannot mean before the work is done, as far as it is known."""
    group_pattern(options.group_by)
    if options.compare:
        _kind_of(options.compare)
    known = options.require and Path(options.rec_path).is_file() and not is_annotated(options.rec_path)
    sidecar = read_sidecar(options.rec_path) if known else None
    requirements_of(options, sidecar.class_names if sidecar else None)


def _certainty(options: EvaluateOptions, run: Any) -> Certainty:
    """Intervals, the comparison and thresholds of a run."""
    from evaluate.runs import evaluated

    rule = Rule(tuple(run.evaluation.results), run.evaluation.overlap, run.use_difficult)
    if not options.compare:
        return certainty_of(options, run.evaluation.found, rule)
    other = evaluated(_beside(options, rule), keep=True)
    own, beside = (one.title.removesuffix(f", on {options.rec_path}") for one in (run, other))
    return certainty_of(options, run.evaluation.found, rule, own, other.evaluation.found, beside)


def _kind_of(other: str) -> str:
    """The option that takes what --compare names; OptionError where that is nothing."""
    from model.manifest import is_model_folder

    if is_model_folder(other):
        return "model"
    if not Path(other).is_file() and not Path(f"{other}-symbol.json").is_file():
        raise OptionError(f"--compare {other}: there is no such checkpoint, model folder or file of detections")
    return "detections" if Path(other).is_file() else "prefix"


def _beside(options: EvaluateOptions, rule: Rule) -> EvaluateOptions:
    """The options that measure --compare on the same set by the same rule."""
    other = options.compare
    nothing: dict[str, Any] = {"model": "", "detections": "", "prefix": EvaluateOptions.prefix}
    nothing |= {"coco_json": "", "coco_truth": ""}
    measured: dict[str, Any] = {"metrics": tuple(rule.kinds), "voc07": None, "overlap": rule.overlap}
    measured |= {"use_difficult": rule.use_difficult, "epoch": options.compare_epoch, "curves": ""}
    return replace(options, **{**nothing, **measured, _kind_of(other): other})


def _write_report(options: EvaluateOptions, run: Any, certainty: Certainty) -> None:
    """--report."""
    from evaluate.report import set_pictures, write_report

    known = certainty.content.get("intervals", {})
    intervals = {
        kind: {name: (one["low"], one["high"]) for name, one in some.items() if one["low"] is not None}
        for kind, some in known.items()
    }
    path = write_report(
        options.report,
        run.title,
        run.evaluation.found,
        set_pictures(options, run.evaluation.found),
        overlap=run.evaluation.overlap,
        use_difficult=run.use_difficult,
        intervals=intervals,
        label_errors=options.label_errors,
    )
    print(f"{path} written")


def _compare(options: EvaluateOptions, runs: list[Any]) -> int:
    """Prints and writes the table of --all-engines; 1 where an engine loses too much, else 0."""
    rows = [_row(run) for run in runs]
    print(f"{options.path} on {options.rec_path}, {runs[0].evaluation.images} images")
    print(f"{'engine':<12}  {'format':<8}  {'mAP':>6}  {'AP':>6}  {'ms an image':>11}  {'loss':>7}")
    name = "AP" if rows[0]["mAP"] is None else "mAP"
    first = rows[0][name]
    if first is None:
        raise DataError(f"--rec-path {options.rec_path}: without objects there is nothing to lose; give a labelled set")
    for row in rows:
        row["loss"] = first - row[name] if row[name] is not None else math.inf
        cells = [f"{row[key]:6.4f}" if row[key] is not None else f"{'-':>6}" for key in ("mAP", "AP")]
        shown = f"{row['seconds_per_image'] * 1e3:>11.2f}  {row['loss']:>7.4f}"
        print(f"{row['engine']:<12}  {row['format']:<8}  {'  '.join(cells)}  {shown}")
    if options.json:
        head = {"model": options.path, "rec_path": options.rec_path, "max_loss": options.max_loss}
        _write_json(options.json, {**head, "engines": rows})
    lossy = [row["engine"] for row in rows if row["loss"] > options.max_loss]
    if lossy:
        print(f"more than --max-loss {options.max_loss:g} of {name} is lost by {', '.join(lossy)}")
    return int(bool(lossy))


def _row(run: Any) -> dict[str, Any]:
    """The line of an engine: mAP of the first VOC metric, None without one, and COCO's AP."""
    results = run.evaluation.results
    voc = next((result for kind, result in results.items() if kind != "coco"), None)
    return {
        "engine": run.head["engine"],
        "format": run.head["format"],
        "mAP": None if voc is None else _number(voc.mean_ap),
        "AP": _number(results["coco"].stats["AP"]),
        "seconds_per_image": run.latency,
    }


def _print_tables(results: dict[str, Any]) -> None:
    from evaluate.reports import format_coco, format_table

    for kind, result in results.items():
        if len(results) > 1:
            print(f"{kind}:")
        print(format_coco(result) if kind == "coco" else format_table(result))


def _decision(options: EvaluateOptions, run: Any) -> dict[str, Any]:
    """Prints what --decision and --ious ask for; the same for JSON."""
    from evaluate.decision import RATES, ap_at, decisions
    from evaluate.reports import format_decisions, format_ious

    evaluation, content = run.evaluation, dict[str, Any]()
    if options.ious:
        kind = next((kind for kind in evaluation.results if kind != "coco"), "voc07")
        at = ap_at(evaluation.found, options.ious, kind == "voc07", run.use_difficult)
        print(format_ious(at))
        content["AP_at_iou"] = {f"{overlap:g}": _values(result) for overlap, result in at.items()}
    if options.decision:
        numbers = decisions(evaluation.found, options.thresh, evaluation.overlap, run.use_difficult)
        print(f"with a score of {options.thresh:g} or more, IoU above {evaluation.overlap:g}:")
        print(format_decisions(numbers))
        told = {name: _decision_values(one, RATES) for name, one in numbers.items()}
        content["decision"] = {
            "threshold": options.thresh,
            "iou": evaluation.overlap,
            "all": told.pop(""),
            "classes": told,
        }
    return content


def _decision_values(one: Any, rates: Sequence[float]) -> dict[str, Any]:
    """What the JSON file tells of one class."""
    sensitivity = {f"{rate:g}": _number(value) for rate, value in zip(rates, one.sensitivity, strict=True)}
    return {
        "images_with_objects": one.with_objects,
        "escaped": one.escaped,
        "incomplete": one.incomplete,
        "images_without_objects": one.without,
        "rejected": one.rejected,
        "escape_rate": _number(one.escape_rate),
        "incomplete_rate": _number(one.incomplete_rate),
        "false_reject_rate": _number(one.false_reject_rate),
        "count_bias": _number(one.bias),
        "limits_of_agreement": [_number(value) for value in one.limits],
        "froc": {"score": _number(one.froc), "sensitivity": sensitivity},
    }


def _write_coco(options: EvaluateOptions, run: Any) -> None:
    """--coco-json and --coco-truth."""
    from evaluate.detection_files import write_results, write_truth

    if options.coco_json:
        write_results(options.coco_json, run.evaluation.found, run.ids)
    if options.coco_truth:
        write_truth(options.coco_truth, run.evaluation.found, run.ids, run.use_difficult)


def _content(run: Any) -> dict[str, Any]:
    """The result for JSON; a class without ground truth has AP null. AP and mAP are those of the first metric listed
    that has them."""
    evaluation = run.evaluation
    by_kind = {kind: _values(result) for kind, result in evaluation.results.items()}
    first = next((values for values in by_kind.values() if "mAP" in values), {})
    return {
        **run.head,
        "iou_threshold": evaluation.overlap,
        "voc07": next((kind for kind in by_kind if kind != "coco"), "") == "voc07",
        **first,
        "metrics": by_kind,
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 3),
    }


def _write_json(path: str, content: dict[str, Any]) -> None:
    write_atomically(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def _values(result: Any) -> dict[str, Any]:
    """What the JSON file tells of one metric."""
    if hasattr(result, "stats"):
        by_class = {name: _number(value) for name, value in result.class_ap.items()}
        return {"class_AP": by_class, **{name: _number(value) for name, value in result.stats.items()}}
    by_class = {one.name: _number(one.ap) for one in result.classes}
    return {"AP": by_class, "mAP": _number(result.mean_ap)}


def _number(value: float) -> float | None:
    return None if value != value else float(value)
