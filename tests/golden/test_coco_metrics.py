"""The twelve numbers of COCO, and AP per IoU threshold and class, of pycocotools."""

import numpy as np
import pytest

from evaluate.coco_metric import COCORule, coco_eval
from tests.golden.loader import Case, assert_outputs, cases

EXACT = 1e-9


@pytest.mark.parametrize("case", cases("coco_eval"), ids=str)
def test_coco_eval(case: Case) -> None:
    ids = {category: k for k, category in enumerate(case["category_ids"])}
    truths = [
        [one["image_id"], ids[one["category_id"]], *one["bbox"], one["area"], one["iscrowd"]]
        for one in case["gt"]["annotations"]
        if not (case.args["drop_crowd_annotations"] and one["iscrowd"])
    ]
    found = [[one["image_id"], ids[one["category_id"]], one["score"], *one["bbox"]] for one in case["dt"]]
    rule = COCORule(
        iou_thresholds=case.args["iou_thresholds"],
        recall_points=np.linspace(0, 1, case.args["recall_points"]),
        max_detections=case.args["max_dets"],
        area_ranges=[case.args["area_ranges"][name] for name in ("all", "small", "medium", "large")],
        use_classes=case.args["use_cats"],
    )
    result = coco_eval(np.array(found), np.array(truths), [str(k) for k in ids], rule)
    stats = np.nan_to_num(list(result.stats.values()), nan=case.args["no_gt_value"])
    per_class = np.nan_to_num(result.precision[0].mean(axis=-1), nan=case.args["no_gt_value"])
    assert_outputs(case, {"stats": stats, "ap_per_iou_per_category": per_class})
    np.testing.assert_allclose(stats, case["stats"], rtol=0, atol=EXACT)
