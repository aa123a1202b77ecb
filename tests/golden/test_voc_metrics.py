"""VOC average precision of py-faster-rcnn, ssd.pytorch and rafaelpadilla's evaluator."""

from typing import Any

import numpy as np
import pytest

from evaluate.voc_eval import ClassResult, VOCRule, voc_eval
from tests.golden.loader import Case, assert_outputs, cases


def table(rows: list[list[Any]], columns: str, wanted: str, numbers: dict[str, dict[str, int]]) -> np.ndarray:
    """Rows of a golden table as float64, the columns in the wanted order, images and classes replaced by numbers."""
    names = columns.split(",")
    places = [names.index(column) for column in wanted.split(",")]
    values = [[numbers.get(names[i], {}).get(row[i], row[i]) for i in places] for row in rows]
    return np.array(values, np.float64).reshape(-1, len(places))


def numbering(names: list[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


@pytest.mark.parametrize("case", cases("voc_eval"), ids=str)
def test_voc_eval(case: Case) -> None:
    numbers = {"image": numbering(case["images"]), "class": numbering(case["classes"])}
    truths = table(case["gt"], case["gt_columns"], "image,class,xmin,ymin,xmax,ymax,difficult", numbers)
    truths[:, 2:6] += case.args["gt_coordinate_offset"]
    detections = table(case["det"], case["det_columns"], "image,class,score,xmin,ymin,xmax,ymax", numbers)
    rule = VOCRule(
        iou_threshold=case.args["ovthresh"],
        use_07_metric=case.args["use_07_metric"],
        inclusive=case.args["match"].startswith("iou >="),
        border=float(case.args["plus_one"]),
    )
    result = voc_eval(detections, truths, case["classes"], rule)
    fields = {one.name: {"ap": one.ap, "recall": one.recall, "precision": one.precision} for one in result.classes}
    assert_outputs(case, {"per_class": fields, "mean_intended": result.mean_ap})
    if "npos" in case:
        assert {one.name: one.npos for one in result.classes} == case["npos"]


@pytest.mark.parametrize("case", cases("padilla_pascal_voc"), ids=str)
def test_padilla(case: Case) -> None:
    """Images are numbered by name, as that evaluator sorts its files."""
    images = sorted({row[0] for row in case["groundtruths"] + case["detections"]})
    classes = sorted({row[1] for row in case["groundtruths"] + case["detections"]})
    numbers = {"image": numbering(images), "class": numbering(classes)}
    truths = table(case["groundtruths"], case["groundtruth_columns"], "image,class,x,y,w,h", numbers)
    detections = table(case["detections"], case["detection_columns"], "image,class,confidence,x,y,w,h", numbers)
    truths[:, 4:6] += truths[:, 2:4]
    detections[:, 5:7] += detections[:, 3:5]
    rule = VOCRule(
        iou_threshold=case.args["iou_threshold"],
        use_07_metric=case.args["method"] == "eleven_point",
        inclusive=case.args["match"].startswith("iou >="),
        border=float(case.args["plus_one"]),
    )
    result = voc_eval(detections, np.pad(truths, ((0, 0), (0, 1))), classes, rule)
    assert_outputs(case, {"expected": {one.name: padilla_fields(one) for one in result.classes}})


def padilla_fields(one: ClassResult) -> dict[str, Any]:
    counts = {"npos": one.npos, "TP": one.true_positives, "FP": one.false_positives}
    return {"AP": one.ap, "precision": one.precision, "recall": one.recall, **counts}
