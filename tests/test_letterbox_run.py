"""Letterbox and std through the whole chain: training, checkpoint, evaluation, export, Detector."""

import numpy as np
import pytest

from common.errors import OptionError
from dataset.iterator import DetRecordIter
from deploy.main import export
from detect.detector import Detector
from evaluate.evaluate_net import evaluate_net
from evaluate.voc_eval import VOCRule, voc_eval
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from tests.train.tiny import BATCH, CLASSES, NETWORK, write_record
from train.options import train_options
from train.training import run_training

CPU = [mx.cpu()]
IMAGES, SHAPES = 30, ((64, 128), (120, 60), (96, 90))
PIXELS = {"std_r": 255.0, "std_g": 255.0, "std_b": 255.0, "resize_mode": "letterbox", "fill": 114}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(prefix, record) of a run on images of three shapes that learns them by heart."""
    folder = tmp_path_factory.mktemp("letterbox")
    record = write_record(folder / "shapes.rec", IMAGES, 1, shapes=SHAPES)
    options = train_options(
        **NETWORK, **PIXELS, train_path=record, val_path=record, allow_same_record=True, batch_size=BATCH, workers=0,
        prefix=str(folder / "t"), end_epoch=16, save_every=8, lr=0.01, optimizer="adam", augment="none",
    )  # fmt: skip
    run_training(options)
    return options.output.prefix, record


def test_evaluation_is_the_trainings_own_validation(trained):
    prefix, record = trained
    for epoch in (8, 16):
        checkpoint = load_checkpoint(prefix, epoch)
        assert checkpoint.meta.std == (255.0,) * 3
        assert (checkpoint.meta.resize_mode, checkpoint.meta.fill) == ("letterbox", 114)
        result = evaluate_net(checkpoint, record, CPU, workers=0).result
        found = {one.name: one.ap for one in result.classes} | {"mAP": result.mean_ap}
        assert found == checkpoint.meta.scores["validation"]
    assert result.mean_ap > 0.3


def test_the_exported_model_finds_in_image_pixels_what_validation_finds(trained, tmp_path):
    """Detections of the Detector on the original images, measured in their pixels, have the validation's mAP."""
    prefix, record = trained
    manifest = export(prefix, 16, tmp_path / "model")
    assert (manifest.std, manifest.resize_mode, manifest.fill) == ((255.0,) * 3, "letterbox", 114)
    images, truths = originals(record)
    found = Detector(tmp_path / "model", threshold=0.0, ctx=mx.cpu(), batch_size=4).detect(images)
    assert {image.shape[:2] for image in images} == set(SHAPES)
    for image, rows in zip(images, found, strict=True):
        height, width = image.shape[:2]
        assert ((rows[:, 2:] >= 0) & (rows[:, 2:] <= [width, height, width, height])).all()
    detections = np.concatenate([np.insert(rows, 0, k, axis=1) for k, rows in enumerate(found)])
    rule = VOCRule(iou_threshold=0.5, use_07_metric=True, use_difficult=False)
    result = voc_eval(detections, truths, list(CLASSES), rule)
    expected = evaluate_net(load_checkpoint(prefix, 16), record, CPU, workers=0).result.mean_ap
    assert result.mean_ap == pytest.approx(expected, abs=0.03)


def originals(record):
    """Images (h, w, 3) RGB of a record, and their objects (n, 7) in pixels with the image's number in front."""
    images, truths = [], []
    for number, shape in enumerate(SHAPES * (IMAGES // len(SHAPES))):
        iterator = DetRecordIter(record, 1, shape, augment=None, mean_pixels=(0, 0, 0), workers=0, num_parts=IMAGES,
                                 part_index=number)  # fmt: skip
        batch = iterator.next()
        images.append(batch.data[0].asnumpy()[0].transpose(1, 2, 0).astype(np.uint8))
        rows = batch.label[0].asnumpy()[0]
        rows = rows[rows[:, 0] >= 0]
        rows[:, 1:5] *= shape[::-1] * 2
        truths.append(np.insert(rows, 0, number, axis=1))
        iterator.close()
    return images, np.concatenate(truths)


def test_a_yolo_is_validated_and_evaluated_in_rectangular_batches(trained, tmp_path):
    """Two epochs; evaluation takes rectangles and pixels from the checkpoint, or one size where that is asked for."""
    options = train_options(
        **PIXELS, network="yolov3_tiny", width=0.125, data_shape=(96,), train_path=trained[1], val_path=trained[1],
        allow_same_record=True,
        batch_size=BATCH, workers=0, prefix=str(tmp_path / "y"), end_epoch=2, lr=0.01, augment="none", rect_val=True,
        score_threshold=0.001,
    )  # fmt: skip
    run_training(options)
    checkpoint = load_checkpoint(options.output.prefix, 2)
    assert checkpoint.meta.rect == 32
    result = evaluate_net(checkpoint, trained[1], CPU, workers=0).result
    found = {one.name: one.ap for one in result.classes} | {"mAP": result.mean_ap}
    assert found == checkpoint.meta.scores["validation"]
    assert sum(one.num_detections for one in result.classes) > 0
    square = evaluate_net(checkpoint, trained[1], CPU, workers=0, rect=0).result
    assert sum(one.npos for one in square.classes) == sum(one.npos for one in result.classes)


def test_a_network_with_anchors_of_one_size_refuses_rectangular_batches(trained):
    with pytest.raises(OptionError, match="--rect-val: the anchors of mobilenet"):
        evaluate_net(load_checkpoint(trained[0]), trained[1], CPU, workers=0, rect=32)
