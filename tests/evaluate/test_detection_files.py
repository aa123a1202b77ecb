"""COCO files of a record: where their ids and names come from, and ids that are another set's."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from dataset.recordio import RecordReader, RecordWriter
from evaluate.detection_files import COCOIds, foreign_ids, read_detections, record_ids
from evaluate.detections import ImageResult, Results
from evaluate.main import main
from tests.train.tiny import CLASSES, objects_of, write_record

IMAGES = 40


def test_names_of_images_may_hold_unicodes_line_separators(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\u0085d.png", "e f.png"]
    lines = [f"{k}\t2\t6\t{name}\n" for k, name in enumerate(names)]
    (tmp_path / "shapes.lst").write_text("".join(lines), "utf-8")
    assert record_ids(np.arange(3), 2, str(tmp_path / "shapes.rec")).names == names


def truths(count: int = IMAGES) -> Results:
    """Images of 200 x 300 pixels with their objects, and nothing found."""
    rng = np.random.default_rng(0)
    images = []
    for k in range(count):
        rows = objects_of(rng, len(CLASSES)).astype(np.float64)
        rows[:, 1:5] *= (300, 200, 300, 200)
        images.append(ImageResult(f"{k}.png", (200, 300), rows, np.empty((0, 6)), k))
    return Results(CLASSES, tuple(images))


def found_at(results: Results, *, shift: int = 0, noise: float = 0.0) -> Results:
    """The objects of each image found in the one that stands `shift` later, corners off by some pixels."""
    rng, count = np.random.default_rng(1), len(results.images)
    images = []
    for k, image in enumerate(results.images):
        rows = results.images[(k - shift) % count].truth
        boxes = rows[:, 1:5] + rng.normal(0, noise, (len(rows), 4))
        images.append(replace(image, found=np.column_stack([rows[:, 0], rng.uniform(0.1, 1, len(rows)), boxes])))
    return Results(results.class_names, tuple(images))


def test_detections_that_fit_other_images_as_well_are_told() -> None:
    truth = truths()
    assert foreign_ids(found_at(truth)) == ""
    assert foreign_ids(found_at(truth, noise=15)) == ""  # a weak model, but of this set
    for shift in (1, 7):
        sentence = foreign_ids(found_at(truth, shift=shift))
        assert f"of {IMAGES} images" in sentence
        assert "the ids of the file may be those of another set" in sentence
    assert foreign_ids(found_at(truths(5), shift=1)) == ""  # too few to tell
    assert foreign_ids(truth) == ""  # nothing found


def test_images_that_look_all_the_same_are_no_doubt() -> None:
    one = truths(1).images[0]
    same = Results(CLASSES, tuple(replace(one, name=str(k)) for k in range(IMAGES)))
    assert foreign_ids(found_at(same, shift=1)) == ""


def test_ids_that_the_set_has_not_are_told_with_their_share(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    entries = [{"image_id": k, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5} for k in (3, 3, 100, 101)]
    path.write_text(json.dumps(entries))
    results = truths(4)
    with pytest.raises(DataError, match="no image with this id, and 1 of the 3 ids that the file has"):
        read_detections(path, results, COCOIds(range(4), range(1, 4), ["a"] * 4))


def test_evaluate_warns_of_the_ids_of_another_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same pictures in another order: ids 0, 1, 2... of both."""
    reader = RecordReader(write_record(tmp_path / "a.rec", 30, 4, names=None))
    order = np.random.default_rng(3).permutation(30)
    with RecordWriter(tmp_path / "b.rec") as writer:
        for k, position in enumerate(order.tolist()):
            writer.write(k, reader.read(position))
    objects = truth_of(tmp_path / "a.rec")
    (tmp_path / "found.json").write_text(json.dumps([{**one, "score": 0.9} for one in objects]))
    for name, is_told in (("a", False), ("b", True)):
        caplog.clear()
        words = ["--rec-path", f"{tmp_path}/{name}.rec", "--class-names", ",".join(CLASSES)]
        with caplog.at_level(logging.WARNING):
            assert main([*words, "--detections", f"{tmp_path}/found.json"]) == 0
        assert ("may be those of another set" in caplog.text) == is_told


def truth_of(record: Path) -> list[dict]:
    """The record's objects as COCO's results."""
    reader, entries = RecordReader(record), []
    for k in range(len(reader)):
        for number, xmin, ymin, xmax, ymax, _ in reader.record(k).label[2:].reshape(-1, 6).tolist():
            box = [96 * value for value in (xmin, ymin, xmax - xmin, ymax - ymin)]
            entries.append({"image_id": k, "category_id": int(number) + 1, "bbox": box})
    return entries
