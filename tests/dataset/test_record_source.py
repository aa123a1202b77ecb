"""Labels of a record read without decoding its images."""

import numpy as np
import pytest

from dataset.letterbox import Resize
from dataset.record_source import mean_boxes
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


def test_mean_boxes_of_each_class(reader):
    objects = all_objects(reader)
    found = mean_boxes(reader, 9, SIZE, Resize(), 100)
    present = np.unique(objects[:, 0])
    np.testing.assert_array_equal(found[:, 0], present)
    np.testing.assert_array_equal(found[:, 1], 1)
    for row in found:
        np.testing.assert_allclose(row[2:], objects[objects[:, 0] == row[0], 1:5].mean(0), rtol=1e-5)


def test_mean_boxes_lie_in_the_input(reader):
    boxes = mean_boxes(reader, 3, SIZE, Resize("letterbox"), 100)[:, 2:]
    assert (boxes[:, 0] >= 0.25).all()  # the image is half as wide as the input
    assert (boxes[:, 2] <= 0.75).all()


def test_mean_boxes_of_some_records(reader):
    rows = mean_boxes(reader, 3, SIZE, Resize(), 1)
    assert set(rows[:, 0]) <= set(all_objects(reader)[:, 0])
    assert mean_boxes(reader, 0, SIZE, Resize(), 1).shape == (0, 6)


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
