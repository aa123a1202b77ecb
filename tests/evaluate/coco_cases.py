"""COCO sets for the tests: random ones, and pycocotools' numbers for them."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest


def random_set(seed: int, images: int = 6, classes: int = 3, most: int = 8, detections: int = 30) -> tuple[Any, Any]:
    """(detections (n, 7), truths (g, 8)) with coarse scores and coordinates, so that ties abound."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, images * most + 1))
    side = rng.choice([8, 16, 40, 120], (count, 2))
    truths = np.column_stack(
        [
            rng.integers(0, images, count),
            rng.integers(0, classes, count),
            rng.integers(0, 20, (count, 2)) * 10,
            side,
            side.prod(axis=1) * rng.choice([0.4, 1.0], count),
            rng.random(count) < 0.2,
        ]
    ).astype(np.float64)
    near = np.repeat(truths, rng.integers(0, 4, count), axis=0)
    near[:, 2:6] += rng.integers(-3, 4, (len(near), 4))
    found = np.column_stack([near[:, :2], near[:, 2:6]])
    more = int(rng.integers(0, images * detections + 1))
    far = np.column_stack(
        [
            rng.integers(0, images, more),
            rng.integers(0, classes, more),
            rng.integers(0, 20, (more, 2)) * 10,
            rng.choice([8, 16, 40, 120], (more, 2)),
        ]
    )
    found = rng.permutation(np.concatenate([found, far]))
    scores = rng.integers(0, 10, len(found)) / 10
    return np.column_stack([found[:, :2], scores, found[:, 2:6]]).astype(np.float64), truths


def annotation_file(truths: np.ndarray, images: int, classes: int) -> dict[str, Any]:
    """truths as the content of a COCO annotation file."""
    return {
        "images": [{"id": k, "width": 640, "height": 480, "file_name": f"{k}.png"} for k in range(images)],
        "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "bbox": row[2:6].tolist(),
                "area": float(row[6]),
                "iscrowd": int(row[7]),
            }
            for number, row in enumerate(truths, 1)
        ],
    }


def results(detections: np.ndarray) -> list[dict[str, Any]]:
    """detections in COCO's results format."""
    return [
        {"image_id": int(row[0]), "category_id": int(row[1]), "score": float(row[2]), "bbox": row[3:7].tolist()}
        for row in detections
    ]


def pycocotools_stats(annotations: dict[str, Any], found: list[dict[str, Any]], use_classes: bool = True) -> np.ndarray:
    """The twelve numbers of pycocotools, nan for its -1."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found) if found else _nothing(truth), "bbox")
        evaluation.params.useCats = int(use_classes)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


def _nothing(truth: Any) -> Any:
    """A result without detections, which loadRes does not take."""
    empty = type(truth)()
    empty.dataset = truth.dataset | {"annotations": []}
    empty.createIndex()
    return empty
