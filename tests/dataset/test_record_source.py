"""Labels of a record read without decoding its images."""

import numpy as np
import pytest

from boxes.geometry import iou
from dataset.letterbox import Resize
from dataset.record_source import open_source, usual_boxes
from dataset.recordio import RecordReader
from evaluate.eval_metric import ValidationMetric
from tests.train.tiny import CLASSES, write_record

SIZE = (64, 64)


@pytest.fixture
def reader(tmp_path):
    return RecordReader(write_record(tmp_path / "a.rec", 6, 3, shapes=((96, 48),)))


def all_objects(reader):
    from dataset.labels import parse_label

    return np.concatenate([parse_label(reader.record(k).label, "") for k in range(len(reader))])


def test_the_usual_box_of_each_class_overlaps_most(reader):
    objects = all_objects(reader)
    found = usual_boxes(reader, 9, SIZE, Resize())
    np.testing.assert_array_equal(found[:, 0], np.unique(objects[:, 0]))
    np.testing.assert_array_equal(found[:, 1], 1)
    for row in found:
        boxes = objects[objects[:, 0] == row[0], 1:5]
        counts = (iou(boxes, boxes) >= 0.5).sum(1)
        assert (iou(row[None, 2:], boxes) >= 0.5).sum() == counts.max()


def test_usual_boxes_lie_in_the_input(reader):
    boxes = usual_boxes(reader, 3, SIZE, Resize("letterbox"))[:, 2:]
    assert (boxes[:, 0] >= 0.25).all()  # the image is half as wide as the input
    assert (boxes[:, 2] <= 0.75).all()


def test_no_classes_have_no_usual_boxes(reader):
    assert usual_boxes(reader, 0, SIZE, Resize()).shape == (0, 6)


def test_a_constant_is_measured_beside_the_detections():
    label = np.array([[[0, 0.1, 0.1, 0.5, 0.5, 0]], [[1, 0.2, 0.2, 0.9, 0.9, 0]]], np.float32)
    constant = np.array([[0, 1, 0.1, 0.1, 0.5, 0.5], [1, 1, 0.2, 0.2, 0.9, 0.9]], np.float32)
    nothing = np.full((2, 1, 6), -1, np.float32)
    metric = ValidationMetric(["voc"], CLASSES[:2])
    assert metric.take_compared() == {}
    metric.compare_with(constant)
    metric.reset()
    metric.update([label], [nothing])
    # Both boxes are on both images, so that every second one is wrong: the first of each class by a stable order.
    compared = metric.take_compared()
    expected = ValidationMetric(["voc"], CLASSES[:2])
    expected.update([label], [np.stack([constant, constant])])
    assert compared == dict(zip(*expected.get_global(), strict=True))
    assert compared["mAP"] > 0.4
    assert dict(zip(*metric.get_global(), strict=True))["mAP"] == 0
    assert metric.take_compared() == {}


def test_an_index_with_other_ids_than_the_records_is_told_once(reader, caplog):
    path = reader.path.with_suffix(".idx")
    open_source(reader.path, None, None)
    assert not caplog.records
    lines = path.read_text().splitlines()
    swapped = [lines[0], f"2\t{lines[1].split()[1]}", f"1\t{lines[2].split()[1]}", *lines[3:]]
    path.write_text("\n".join(swapped) + "\n")
    for _ in range(2):
        open_source(reader.path, None, None)
    (warning,) = [one.getMessage() for one in caplog.records]
    assert warning.startswith(f"{reader.path}: the .idx calls record 1 2, its own header 1; ")
