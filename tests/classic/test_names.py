"""Names, places and arguments of MXNet SSD's train_net.py: what is pasted from it runs."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from config.config import cfg
from dataset.iterator import DetRecordIter
from evaluate.eval_metric import MApMetric, VOC07MApMetric
from machine.runtime import mx
from symbol.symbol_factory import get_symbol, get_symbol_train
from tests.train.tiny import BATCH, CLASSES, VAL, write_record
from train.metric import MultiBoxMetric
from train.schedule import get_lr_scheduler as own_scheduler
from train.train_net import convert_pretrained, get_lr_scheduler

ROOT = Path(__file__).resolve().parents[2]
CLASSIC_OUTPUTS = ["cls_prob_output", "loc_loss_output", "cls_label_output", "det_out_output"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("rec") / "val.rec", VAL, 2)


def test_find_mxnet_makes_mxnet_importable():
    """With the aliases that numpy has removed, and the threads that the commands have."""
    code = "import tools.find_mxnet, mxnet as mx, numpy, os; print(mx.nd.ones(3).sum().asscalar(), numpy.bool is bool, "
    code += "'OMP_NUM_THREADS' in os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["3.0", "True", "True"]


# Symbol


def test_the_classic_call_gives_the_classic_outputs():
    net = get_symbol_train("vgg16_reduced", 300, num_classes=20, nms_thresh=0.45, force_suppress=False, nms_topk=400)
    assert net.list_outputs() == CLASSIC_OUTPUTS
    assert net.tojson() == get_symbol_train("vgg16_reduced", 300, 20, targets="mxnet", nms=0.45).tojson()


@pytest.mark.parametrize("given", [{"nms_thresh": 0.4}, {"force_suppress": False}])
def test_one_classic_name_means_the_classic_targets(given):
    assert get_symbol_train("mobilenet", 300, 3, **given).list_outputs() == CLASSIC_OUTPUTS
    paper = get_symbol_train("mobilenet", 300, 3, targets="paper", **given)
    assert len(paper.list_outputs()) == 3


def test_detection_symbols_and_other_families_have_the_classic_names():
    classic = get_symbol("mobilenet", 300, num_classes=3, nms_thresh=0.3, force_suppress=True)
    assert classic.tojson() == get_symbol("mobilenet", 300, 3, nms=0.3, force=True).tojson()
    yolo = get_symbol_train("yolov3_tiny", 64, 3, nms_thresh=0.3)
    assert yolo.tojson() == get_symbol_train("yolov3_tiny", 64, 3, nms=0.3).tojson()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nms_thresh": 0.4, "nms": 0.4}, "nms_thresh and nms are the same option"),
        ({"nms_tresh": 0.4}, "unknown option 'nms_tresh'"),
        ({"force_suppress": "perhaps"}, "--force takes true or false"),
    ],
)
def test_mistakes_in_classic_names_are_told(options, words):
    with pytest.raises(OptionError, match=words):
        get_symbol_train("mobilenet", 300, 3, **options)


# Iterator and metrics


def test_the_classic_iterator_feeds_the_classic_symbol(record):
    """Its outputs fit both metrics; the pixels that fill the last batch are no images."""
    val_iter = DetRecordIter(
        record, BATCH, (3, 64, 64), mean_pixels=123, label_pad_width=350, path_imglist="", **cfg.valid
    )
    net = get_symbol_train("mobilenet", 64, num_classes=3, nms_thresh=0.45, force_suppress=False, width=0.125)
    mod = mx.mod.Module(net, label_names=("label",))
    mod.bind(val_iter.provide_data, val_iter.provide_label, for_training=False)
    mod.init_params(mx.init.Xavier())
    found = VOC07MApMetric(0.5, False, list(CLASSES), pred_idx=3)
    mod.score(val_iter, found)
    assert found.global_num_inst == VAL
    mod.score(val_iter, MultiBoxMetric())
    val_iter.close()


def test_images_without_objects_count_and_padding_does_not():
    label = np.full((3, 2, 6), -1, np.float32)
    label[2, :, 5] = -2  # padding, as DetRecordIter marks it
    label[0, 0] = [0, 0.1, 0.1, 0.5, 0.5, 0]
    det = np.tile(np.array([[[0, 0.9, 0.1, 0.1, 0.5, 0.5]]], np.float32), (3, 1, 1))
    metric = MApMetric(class_names=["a"], pred_idx=3)
    metric.update([label], [None, None, None, det])
    assert metric.global_num_inst == 2
    assert metric.result().classes[0].num_detections == 2


def reference(batches, eps=1e-8):
    """CrossEntropy and SmoothL1 of the definition, anchor by anchor."""
    entropy = loss = count = 0.0
    for prob, loc, target in batches:
        for image, anchor in zip(*np.nonzero(target >= 0), strict=True):
            entropy -= np.log(prob[image, int(target[image, anchor]), anchor] + eps)
            count += 1
        loss += loc.sum()
    return [entropy / count, loss / count]


def outputs(rng):
    prob = rng.random((2, 4, 5)).astype(np.float32)
    target = rng.integers(-1, 4, (2, 5)).astype(np.float32)
    return prob / prob.sum(axis=1, keepdims=True), rng.random((2, 20)).astype(np.float32), target


def feed(metric, batch):
    det = mx.nd.zeros((2, 5, 6))
    metric.update([mx.nd.zeros((2, 3, 6))], [*map(mx.nd.array, batch), det])


def test_multi_box_metric_is_the_classic_one():
    """Speedometer's windows by get, the epoch by get_global."""
    rng = np.random.default_rng(0)
    first, second, third = (outputs(rng) for _ in range(3))
    metric = MultiBoxMetric()
    assert np.isnan(metric.get()[1]).all()
    feed(metric, first)
    feed(metric, second)
    np.testing.assert_allclose(metric.get()[1], reference([first, second]), rtol=1e-5)
    metric.reset_local()
    feed(metric, third)
    assert metric.get()[0] == ["CrossEntropy", "SmoothL1"]
    np.testing.assert_allclose(metric.get()[1], reference([third]), rtol=1e-5)
    np.testing.assert_allclose(
        [value for _, value in metric.get_global_name_value()], reference([first, second, third]), rtol=1e-5
    )
    metric.reset()
    feed(metric, third)
    np.testing.assert_allclose(metric.get_global()[1], reference([third]), rtol=1e-5)


def test_multi_box_metric_refuses_the_losses_of_another_rule():
    with pytest.raises(OptionError, match='targets="mxnet"'):
        MultiBoxMetric().update([], [mx.nd.ones(2), mx.nd.ones(2), mx.nd.ones((2, 5, 6))])


# Schedule and weights


def test_there_is_one_scheduler():
    assert get_lr_scheduler is own_scheduler


@pytest.mark.parametrize(
    ("steps", "epochs"),
    [("36", [36]), ("80,160", [80, 160]), ("3, 6 ,9,", [3, 6, 9]), ("", []), (36, [36]), ((3, 6), [3, 6])],
)
def test_steps_are_a_text_of_epochs(steps, epochs):
    rate, scheduler = get_lr_scheduler(0.1, steps, 0.5, 95, 10, 0)
    rates = [scheduler(update) if scheduler else rate for update in range(1, 2000)]
    falls = [update for update in range(1, 1999) if rates[update] < rates[update - 1]]
    assert falls == [10 * epoch for epoch in epochs]  # 95 images in batches of 10: an epoch has 10 of them


def test_a_late_start_is_told(caplog):
    caplog.set_level(logging.INFO)
    assert get_lr_scheduler(0.1, "2, 4", 0.1, 95, 10, 3)[0] == pytest.approx(0.01)
    assert caplog.messages == ["Adjusted learning rate to 0.01 for epoch 3"]
    caplog.clear()
    assert get_lr_scheduler(0.1, "2, 4", 1.0, 95, 10, 3) == (0.1, None)
    assert get_lr_scheduler(0.1, "4", 0.1, 95, 10, 3)[0] == 0.1
    assert not caplog.messages


@pytest.mark.parametrize(
    ("steps", "ratio", "words"),
    [
        ("2", 0, "--lr-factor in get_lr_scheduler is at least"),
        ("2", -0.1, "--lr-factor in get_lr_scheduler is at least"),
        ("2;3", 0.1, "--lr-steps in get_lr_scheduler takes epochs like 80"),
        ("soon", 0.1, "--lr-steps in get_lr_scheduler takes epochs like 80"),
    ],
)
def test_steps_and_ratios_that_are_none_are_refused(steps, ratio, words):
    with pytest.raises(OptionError, match=words):
        get_lr_scheduler(0.1, steps, ratio, 95, 10, 0)


def test_pretrained_weights_stay_as_they_are():
    args = {"conv1_1_weight": mx.nd.ones(1)}
    assert convert_pretrained("model/vgg16_reduced", args) is args
