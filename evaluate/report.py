"""The report of an evaluation: one page that opens from a disk, and its charts as PNG beside it.

docs/evaluation.md has the definition of each number and its source.
"""

import base64
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from common.errors import DataError, UserError
from common.files import write_atomically
from dataset.defects import thumbnail
from dataset.image_pool import read_image
from dataset.recordio import RecordReader
from drawing.figures import save_figure
from drawing.page import PICTURES, figure_html, page, read_template
from drawing.report_charts import (
    GRID,
    ClassCurves,
    ap_chart,
    calibration_chart,
    confusion_chart,
    error_chart,
    f1_chart,
    precision_recall_chart,
    score_chart,
)
from drawing.set_charts import Chart
from evaluate.detections import Results
from evaluate.error_types import MISSED, TYPES, Judged
from evaluate.findings import Findings, Interval, Intervals, class_rows, numbers_of
from evaluate.label_errors import KINDS, LEAST_SCORE, Suspect, suspect_files, suspects_json
from evaluate.score_curves import BINS, Calibration, ScoreCurve
from evaluate.sets import SetOptions, is_annotated, read_annotated

PAGE, NUMBERS, LABEL_ERRORS = "index.html", "report.json", "label-errors"
DPI = 150
MOST_PICTURES = 200  # on the page, the worst
MOST_SUSPECTS = 60  # on the page
MEGABYTES = 2.4  # of all thumbnails; base64 adds a third
MOST_CONFUSIONS = 20  # of the list
MOST_BOXES = 100  # of a picture on the page, the best
Pictures = Callable[[int], bytes]
logger = logging.getLogger(__name__)


def record_pictures(rec_path: str | Path, results: Results) -> Pictures:
    """What gives the image file of a number in the results from their record; DataError for one that is not there."""
    reader = RecordReader(rec_path)
    positions = {int(key): position for position, key in enumerate(reader.keys)}

    def picture(number: int) -> bytes:
        position = positions.get(results.images[number].id)
        if position is None:
            raise DataError(f"{rec_path}: there is no record {results.images[number].id}; give the set evaluated")
        return reader.record(position).image

    return picture


def set_pictures(options: SetOptions, results: Results) -> Pictures:
    """The same of whatever set is evaluated: a record, or the pictures of a folder or COCO file, by their names."""
    if not is_annotated(options.rec_path):
        return record_pictures(options.rec_path, results)
    try:
        paths = {image.name: image.path for image in read_annotated(options).images}
    except UserError as error:  # a file of detections needs no pictures
        logger.warning("the report has no pictures: %s", error)
        paths = {}

    def picture(number: int) -> bytes:
        name = results.images[number].name
        if name not in paths:
            raise DataError(f"{options.rec_path}: there is no picture {name}")
        return read_image(paths[name])

    return picture


def write_report(
    folder: str | Path,
    title: str,
    results: Results,
    pictures: Pictures,
    *,
    facts: Mapping[str, str] = MappingProxyType({}),
    overlap: float = 0.5,
    use_difficult: bool = False,
    intervals: Intervals = MappingProxyType({}),
    label_errors: str = "",
) -> Path:
    """Writes the report into a folder, which is made, and returns the path of its page.

    title: what was evaluated; facts: more about it, by name. pictures: gives the image file of a number in the results,
    DataError where it cannot; its tile is grey then. overlap, use_difficult: of VOC's rule. intervals: see Findings.
    label_errors: format of dataset.writers.FORMATS in which likely label errors are written, too; "" = none.
    DataError where a file cannot be written.
    """
    folder = Path(folder)
    findings = Findings(_all_counted(results) if use_difficult else results, overlap, intervals)
    logger.info("report: the numbers of %d images", len(results.images))
    files = {NUMBERS: _json(numbers_of(findings))}
    files[f"{LABEL_ERRORS}.json"] = _json(suspects_json(findings.suspects, findings.results))
    if label_errors:
        for name, content in suspect_files(findings.suspects, findings.results, label_errors):
            files[f"{LABEL_ERRORS}/{name}"] = content
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that matplotlib's font lacks; the browser's has them
        charts = list(_charts(findings))
        files[PAGE] = _page(title, facts, findings, charts, pictures)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for chart in charts:
                save_figure(chart.figure, folder / f"{chart.name}.png", DPI)
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, content)
        except OSError as error:
            raise DataError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
    return folder / PAGE


def _all_counted(results: Results) -> Results:
    """The same without difficult objects: all count."""
    return Results(
        results.class_names, tuple(replace(one, truth=one.truth * (1, 1, 1, 1, 1, 0)) for one in results.images)
    )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _charts(findings: Findings) -> Iterator[Chart]:
    names, ap = findings.results.class_names, np.array([one.ap for one in findings.voc.classes])
    curves = [_drawn(curve, one.ap, one.recall, one.precision) for curve, one in _zipped(findings)]
    what = f"AP (area under the curve, IoU {findings.overlap:g})"
    ranges = {name: ends for name in names if (ends := findings.interval("voc", name))}
    yield ap_chart(names, ap, what, ranges)
    yield precision_recall_chart(curves, what)
    yield f1_chart(curves)
    yield score_chart(curves)
    confusions = confusion_chart(findings.confusions, names)
    if confusions:
        yield confusions._replace(text=_confusion_text())
    yield error_chart(findings.costs.lost, findings.costs.ap)
    all_scores, shown = findings.calibrations
    yield calibration_chart(all_scores.counts, all_scores.score, all_scores.right, _calibration_text(all_scores, shown))


def _zipped(findings: Findings) -> Iterator[tuple[ScoreCurve, Any]]:
    return zip(findings.curves, findings.voc.classes, strict=True)


def _drawn(curve: ScoreCurve, ap: float, recall: np.ndarray, precision: np.ndarray) -> ClassCurves:
    score, _, _, f1 = curve.best
    return ClassCurves(curve.name, ap, recall, precision, *curve.at(GRID), (score, f1))


def _confusion_text() -> str:
    return (
        "Detections at the score of the best F1 and above; each takes, by falling score, the free object of any class "
        "that it overlaps most (IoU of 0.5 or more). Colours: shares of the row, in the last one of the column; blue "
        "is right."
    )


def _calibration_text(all_scores: Calibration, shown: Calibration) -> str:
    return (
        f"Of {all_scores.counts.sum():,} detections the score is off by {all_scores.error:.3f} on average (expected "
        f"calibration error, {BINS} bins); of the {shown.counts.sum():,} at the score of the best F1 and above by "
        f"{shown.error:.3f}."
    )


def _page(
    title: str, facts: Mapping[str, str], findings: Findings, charts: Sequence[Chart], pictures: Pictures
) -> bytes:
    data, thumbnails = page_data(findings, pictures)
    shown = sum(not image["extra"] for image in data["images"])
    notes = [f"{name} <b>{escape(value)}</b>" for name, value in facts.items()]
    parts = {
        "title": escape(title),
        "facts": " &middot; ".join(notes),
        "cards": _cards(findings),
        "notes": "",
        "table": _table(findings),
        "worst": _worst_text(shown, len(findings.results.images)),
        "doubts": _doubts_text(len(data["suspects"]), len(findings.suspects)),
        "confusions": _confusion_list(findings),
        "charts": "".join(figure_html(chart.figure, chart.title, chart.text) for chart in charts),
    }
    template = read_template("report", PICTURES)
    return page(title, template, {"data": data, "thumbnails": thumbnails}, parts)


def _worst_text(shown: int, all_: int) -> str:
    some = f"The {shown:,} worst of {all_:,} pictures. " if shown < all_ else ""
    return (
        f"{some}Of each picture, detections at the score of the best F1 of their class and above. The worst have the "
        "most: an object that is not found counts 1, a wrong detection its score."
    )


def _doubts_text(shown: int, all_: int) -> str:
    some = f"The {shown:,} surest of {all_:,}. " if shown < all_ else ""
    return (
        f"{some}Look at them: a detector's own mistakes look the same. Missing label: a detection with a score of "
        f"{LEAST_SCORE:g} or more, and that of the best F1, beside all objects. Other class, box off: one that is "
        "right but for that. Doubtful box: nothing finds it at any score. The list is label-errors.json."
    )


def _cards(findings: Findings) -> str:
    stats = findings.coco.stats
    values = [("mAP", "voc", "mAP", findings.voc.mean_ap), ("mAP VOC07", "voc07", "mAP", findings.voc07.mean_ap)]
    values += [(f"COCO {name}", "coco", name, stats[name]) for name in ("AP", "AP50", "AP75")]
    cards = [_card(title, _cell(value), _range(findings.interval(kind, name))) for title, kind, name, value in values]
    best = [curve.best for curve in findings.curves if not math.isnan(curve.best[3])]
    f1 = float(np.mean([one[3] for one in best])) if best else math.nan
    cards.append(_card("best F1, mean", _cell(f1), _score_range([one[0] for one in best])))
    counts = {"images": len(findings.results.images), "objects": sum(one.npos for one in findings.voc.classes)}
    cards += [_card(name, f"{count:,}", "") for name, count in counts.items()]
    return "".join(cards)


def _card(name: str, value: str, more: str) -> str:
    return f'<div class="card"><span>{escape(name)}</span><b>{value}</b><span class="soft">{more}</span></div>'


def _range(ends: Interval | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _score_range(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    low, high = min(scores), max(scores)
    return f"at score {low:.2f}" + (f" to {high:.2f}" if high - low >= 0.005 else "")


def _cell(value: float) -> str:
    return "&ndash;" if value != value else f"{value:.3f}"


def _table(findings: Findings) -> str:
    rows = list(class_rows(findings))
    heads = "".join(f"<th>{escape(name if name != 'name' else 'class')}</th>" for name in rows[0]) if rows else ""
    lines = []
    for row in rows:
        name, objects, detections, *values = row.values()
        cells = [_cell(value) for value in values]
        for k, kind in enumerate(("voc", "voc07", "coco")):
            ends = _range(findings.interval(kind, name))
            cells[k] += f' <span class="soft">{ends}</span>' if ends else ""
        shown = [escape(name), f"{objects:,}", f"{detections:,}", *cells]
        lines.append("".join(f"<td>{one}</td>" for one in shown))
    return f"<table><tr>{heads}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _confusion_list(findings: Findings) -> str:
    """The most frequent confusions of classes as a table; "" where there is none."""
    matrix, names = findings.confusions, findings.results.class_names
    between = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(int(k) // len(names), int(k) % len(names)) for k in order if between.flat[k]] if len(names) else []
    if not pairs:
        return ""
    lines = []
    for row, column in pairs:
        count, total = int(between[row, column]), int(matrix[row].sum())
        cells = (escape(names[row]), escape(names[column]), f"{count:,}", f"{count / total:.1%}")
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "<tr><th>annotated as</th><th>found as</th><th>times</th><th>of its objects</th></tr>"
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h3>Classes that are confused most</h3><div class="wide tall"><table>{head}{body}</table></div>'


def page_data(findings: Findings, pictures: Pictures) -> tuple[dict[str, Any], list[str]]:
    """(what the page's script reads, thumbnails in base64): the worst pictures, then those of suspects alone."""
    suspects = findings.suspects[:MOST_SUSPECTS]
    weights = picture_weights(findings.shown, len(findings.results.images))
    worst = worst_pictures(weights)
    more = [one.image for one in suspects if one.image not in set(worst)]
    chosen = [*worst, *dict.fromkeys(more)]
    place = {number: k for k, number in enumerate(chosen)}
    limit = int(MEGABYTES * 1e6 / max(1, len(chosen)))
    logger.info("report: %d pictures", len(chosen))
    images, thumbnails = [], []
    found, objects = (_of_images(rows, len(weights)) for rows in (findings.shown.detections, findings.shown.truths))
    for number in chosen:
        coded, reason = _thumbnail(pictures, number, findings.results.images[number].size, limit)
        images.append(_image(findings, number, found[number], objects[number], weights[number], reason))
        images[-1]["extra"] = int(place[number] >= len(worst))
        thumbnails.append(base64.b64encode(coded).decode())
    return {
        "classes": list(findings.results.class_names),
        "types": TYPES,
        "kinds": KINDS,
        "images": images,
        "suspects": [_suspect(one, place) for one in suspects],
    }, thumbnails


def picture_weights(judged: Judged, images: int) -> np.ndarray:
    """(images, types) how bad each picture is: a wrong detection counts its score, an object that is not found 1."""
    weights = np.zeros((images, len(TYPES)))
    wrong = judged.kind >= 0
    np.add.at(weights, (judged.detections[wrong, 0].astype(int), judged.kind[wrong]), judged.scores[wrong])
    np.add.at(weights[:, MISSED], judged.truths[judged.missed, 0].astype(int), 1)
    return weights


def worst_pictures(weights: np.ndarray) -> list[int]:
    """At most MOST_PICTURES numbers of pictures: the worst by all errors and by each type, in turn."""
    columns = [weights.sum(axis=1), *weights.T]
    orders = [np.argsort(-column, kind="stable")[:MOST_PICTURES] for column in columns]
    turns = np.stack(orders, axis=1).ravel().tolist()
    return list(dict.fromkeys(turns))[:MOST_PICTURES]


def _of_images(rows: np.ndarray, images: int) -> list[np.ndarray]:
    """The numbers of the rows of each image; rows are sorted by it."""
    bounds = np.searchsorted(rows[:, 0], np.arange(images + 1))
    return [np.arange(begin, end) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def _thumbnail(pictures: Pictures, number: int, size: tuple[int, int], limit: int) -> tuple[bytes, str]:
    """(a JPEG, "") or (b"", why there is none)."""
    try:
        coded = thumbnail(pictures(number), size, limit)
    except (DataError, OSError) as error:
        return b"", str(error)
    return coded, "" if coded else "the picture cannot be decoded"


def _image(
    findings: Findings, number: int, found: np.ndarray, objects: np.ndarray, weights: np.ndarray, reason: str
) -> dict[str, Any]:
    """What the page's script reads of an image; boxes as report.html says."""
    shown, one = findings.shown, findings.results.images[number]
    boxes = np.round(shown.detections[found[:MOST_BOXES], 3:7], 1).tolist()
    truths = np.round(shown.truths[objects, 2:6], 1).tolist()
    about = zip(
        shown.ids[found].tolist(), boxes, shown.kind[found].tolist(), shown.scores[found].tolist(), strict=False
    )
    known = shown.found[objects] | _named(shown)[objects]
    kept = zip(
        shown.truth_ids[objects].tolist(), truths, shown.truths[objects, 6].tolist(), known.tolist(), strict=True
    )
    return {
        "name": one.name,
        "width": one.size[1],
        "height": one.size[0],
        "found": [[id_, *box, kind, round(score, 4)] for id_, box, kind, score in about],
        "objects": [[id_, *box, int(hard > 0), int(is_found)] for id_, box, hard, is_found in kept],
        "weights": np.round(weights, 4).tolist(),
        "reason": reason,
    }


def _named(judged: Judged) -> np.ndarray:
    """(g,) bool: objects that an error of class or place is about, which are not missed."""
    return ~judged.found & ~judged.missed & (judged.truths[:, 6] == 0)


def _suspect(one: Suspect, place: Mapping[int, int]) -> dict[str, Any]:
    return {
        "image": place[one.image],
        "kind": one.kind,
        "doubt": round(one.doubt, 4),
        "id": one.id,
        "box": np.round(one.box, 1).tolist(),
        "annotated_id": one.annotated_id,
        "annotated_box": np.round(one.annotated_box, 1).tolist() or None,
    }
