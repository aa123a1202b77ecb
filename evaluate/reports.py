"""What an evaluation leaves: tables of AP, precision-recall curves, and detections and objects as COCO files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.errors import OptionError
from common.files import write_atomically
from dataset.coco_file import read_annotations
from dataset.image_list import read_list
from drawing.figures import save_figure
from evaluate.coco_metric import COCOResult
from evaluate.detections import Results, coco_rows
from evaluate.voc_eval import ClassResult, VOCResult

LABELLED_CURVES = 20  # with more classes the legend would hide the curves
PICTURE_INCHES = (7.0, 5.5)
PICTURE_DPI = 120


def format_table(result: VOCResult) -> str:
    """Text table with a line per class and the mean; '-' where a class has no objects to find."""
    width = max([len("class"), *(len(one.name) for one in result.classes)])
    lines = [f"{'class':<{width}}  {'AP':>6}  {'objects':>8}  {'detections':>10}  {'recall':>6}"]
    lines += [
        f"{one.name:<{width}}  {_cell(one.ap)}  {one.npos:>8}  {one.num_detections:>10}  {_cell(_final_recall(one))}"
        for one in result.classes
    ]
    return "\n".join([*lines, f"{'mAP':<{width}}  {_cell(result.mean_ap)}"])


def format_coco(result: COCOResult) -> str:
    """Text table of COCO's AP per class and the twelve numbers; '-' where there is nothing to find."""
    width = max([len("class"), *(len(name) for name in result.class_names)])
    lines = [f"{'class':<{width}}  {'COCO AP':>7}"]
    lines += [f"{name:<{width}}  {_cell(value):>7}" for name, value in result.class_ap.items()]
    cells = [f"{name:<5} {_cell(value)}" for name, value in result.stats.items()]
    return "\n".join([*lines, *("   ".join(cells[k : k + 3]) for k in range(0, len(cells), 3))])


def save_pr_curves(result: VOCResult, path: str | Path) -> None:
    """Draws the precision-recall curve of every class that has objects as a PNG."""
    figure = Figure(figsize=PICTURE_INCHES)
    axes = figure.add_subplot(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=f"mAP {_cell(result.mean_ap).strip()}"
    )
    shown = [one for one in result.classes if one.npos]
    for one in shown:
        axes.plot(one.recall, one.precision, label=f"{one.name} {one.ap:.3f}")
    axes.grid(alpha=0.3)
    if 0 < len(shown) <= LABELLED_CURVES:
        axes.legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    save_figure(figure, Path(path), PICTURE_DPI)


def _final_recall(one: ClassResult) -> float:
    return one.true_positives / one.npos if one.npos else float("nan")


def _cell(value: float) -> str:
    return f"{'-':>6}" if np.isnan(value) else f"{value:6.4f}"


@dataclass(frozen=True)
class COCOIds:
    """Ids in the files: images (n,) by number of the image, categories by class id, names of the image files."""

    images: Sequence[int]
    categories: Sequence[int]
    names: Sequence[str]


def record_ids(records: Sequence[int], classes: int, rec_path: str) -> COCOIds:
    """The record's own ids and classes from 1; image files are named as in the .lst beside the record, if there."""
    names = _names(rec_path)
    ids = [int(key) for key in records]
    return COCOIds(ids, range(1, classes + 1), [names.get(key, str(key)) for key in ids])


def annotation_ids(records: Sequence[int], class_names: Sequence[str], rec_path: str, path: str) -> COCOIds:
    """The ids that a COCO annotation file has for the images of a record, by file name, and for its classes, by name.

    DataError for a damaged file; OptionError where there is no .lst beside the record, or an image or a class is not in
    the annotation file.
    """
    annotations = read_annotations(Path(path))
    categories = {category.name: category.id for category in annotations.categories}
    images = {image.file_name: image.id for image in annotations.images}
    missing = [name for name in class_names if name not in categories]
    if missing:
        raise OptionError(f"--coco-annotations {path}: there is no category {missing[0]!r}; leave the option out")
    names = _names(rec_path)
    found = [_find(names.get(key), images, f"{rec_path}, record {key}", path) for key in records]
    return COCOIds([images[name] for name in found], [categories[name] for name in class_names], found)


def write_results(path: str, results: Results, ids: COCOIds) -> None:
    """Writes the detections in COCO's results format."""
    detections, _ = coco_rows(results.detections, results.truths)
    content = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(*_columns(detections, ids), detections[:, 2].tolist(), strict=True)
    ]
    _write(path, content)


def write_truth(path: str, results: Results, ids: COCOIds, use_difficult: bool = False) -> None:
    """Writes the objects as an annotation file; difficult ones are crowds unless use_difficult."""
    _, truths = coco_rows(results.detections, results.truths, use_difficult)
    images, categories, boxes = _columns(truths, ids, box=2)
    rows = zip(images, categories, boxes, truths[:, 6].tolist(), truths[:, 7].astype(int).tolist(), strict=True)
    sides = zip(ids.images, ids.names, results.sizes.tolist(), strict=True)
    content = {
        "images": [{"id": key, "file_name": name, "height": size[0], "width": size[1]} for key, name, size in sides],
        "categories": [
            {"id": key, "name": name} for key, name in zip(ids.categories, results.class_names, strict=True)
        ],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for k, (image, category, box, area, crowd) in enumerate(rows, 1)
        ],
    }
    _write(path, content)


def _columns(rows: np.ndarray, ids: COCOIds, box: int = 3) -> tuple[list[int], list[int], list[list[float]]]:
    """Image ids, category ids and boxes of rows whose boxes begin in column `box`."""
    images = np.array(ids.images, np.int64)[rows[:, 0].astype(np.int64)]
    categories = np.array(ids.categories, np.int64)[rows[:, 1].astype(np.int64)]
    return images.tolist(), categories.tolist(), rows[:, box : box + 4].tolist()


def _write(path: str, content: Any) -> None:
    write_atomically(Path(path), json.dumps(content).encode())


def _names(rec_path: str) -> dict[int, str]:
    """The image files of a record by its ids, from the .lst beside it; nothing without one."""
    path = Path(rec_path).with_suffix(".lst")
    if not path.is_file():
        return {}
    return {entry.index: entry.path for entry in read_list(path)}


def _find(name: str | None, images: dict[str, int], where: str, path: str) -> str:
    """The file name that an annotation file has for an image of a list, whose path may begin with folders."""
    if name is None:
        raise OptionError(f"{where}: the .lst beside the record does not name its image; --coco-annotations needs it")
    parts = name.split("/")
    endings = ["/".join(parts[k:]) for k in range(len(parts))]
    found = next((ending for ending in endings if ending in images), None)
    if found is None:
        raise OptionError(f"{where}: {name} is not in --coco-annotations {path}; give the file it was packed from")
    return found
