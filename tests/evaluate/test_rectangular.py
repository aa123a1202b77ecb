"""Validation in inputs that change from batch to batch: what is found in an image does not depend on the others."""

import numpy as np
import pytest

from dataset.iterator import DetRecordIter
from dataset.labels import pack_label
from dataset.recordio import RecordWriter, pack
from evaluate.eval_metric import COCOMetric, VOC07MApMetric
from evaluate.scoring import score_detections
from machine.opencv import cv2
from machine.runtime import mx
from symbol.symbol_factory import get_symbol
from train.module import DetectionModule

SHAPES = [(60, 90), (90, 60), (96, 96), (40, 120), (50, 100), (120, 50), (64, 60)]
SIDE, BATCH = 96, 2
LETTERBOX = {"augment": None, "num_classes": 1, "workers": 0, "resize_mode": "letterbox", "fill": 0}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Black images with one white rectangle each."""
    path, rng = tmp_path_factory.mktemp("rect") / "a.rec", np.random.default_rng(5)
    with RecordWriter(path) as writer:
        for index, (height, width) in enumerate(SHAPES):
            x0, y0 = rng.integers(0, (width // 2, height // 2))
            x1, y1 = (int(low + rng.integers(20, 30)) for low in (x0, y0))
            image = np.zeros((height, width, 3), np.uint8)
            image[y0:y1, x0:x1] = 255
            box = np.array([[0, x0 / width, y0 / height, x1 / width, y1 / height, 0]], np.float32)
            writer.write(index, pack(pack_label(box), cv2.imencode(".png", image)[1].tobytes(), index))
    return path


@pytest.fixture(params=[0, 32])
def batches(record, request):
    iterator = DetRecordIter(record, BATCH, SIDE, mean_pixels=(0, 0, 0), rect=request.param, **LETTERBOX)
    yield iterator
    iterator.close()


def whites():
    """A symbol that detects the white rectangle in an input of any size, normalised to it."""
    white = mx.sym.max(mx.sym.var("data"), axis=1) > 127  # (B, H, W)
    edges = [edge for axis in (1, 2) for edge in _edges(mx.sym.max(white, axis=axis))]  # (B,) each
    ids = mx.sym.zeros_like(edges[0])
    return mx.sym.reshape(mx.sym.stack(ids, ids + 1, *edges[:1], *edges[2:3], *edges[1:2], *edges[3:], axis=1),
                          shape=(0, 1, 6))  # fmt: skip


def _edges(line):
    """First and last place of 1 in each row (B, n), in units of the row."""
    places = mx.sym.contrib.arange_like(line, axis=1)  # (n,)
    length = mx.sym.max(places) + 1
    beside = (1 - line) * 1e6
    first = mx.sym.min(mx.sym.broadcast_add(beside, mx.sym.reshape(places, shape=(1, -1))), axis=1)
    last = mx.sym.max(mx.sym.broadcast_sub(mx.sym.reshape(places + 1, shape=(1, -1)), beside), axis=1)
    return mx.sym.broadcast_div(first, length), mx.sym.broadcast_div(last, length)


def bound(symbol, iterator):
    module = mx.mod.Module(symbol, label_names=None)
    module.bind(iterator.provide_data, for_training=False)
    mx.random.seed(3)
    module.init_params(mx.init.Xavier())
    return module


def test_the_score_is_right_in_square_and_in_rectangular_batches(batches):
    metric = VOC07MApMetric(ovp_thresh=0.8, class_names=["white"])
    assert score_detections(bound(whites(), batches), batches, metric) == 4
    assert metric.result().mean_ap == 1.0
    assert metric.result().classes[0].npos == len(SHAPES)


def test_coco_sees_the_boxes_in_pixels_of_the_image(batches):
    metric = COCOMetric(["white"])
    score_detections(bound(whites(), batches), batches, metric)
    assert metric.result().stats["AP50"] == pytest.approx(1.0)


def test_the_trainings_own_validation_follows_the_sizes(batches):
    """Over a loss that reads the same input; two epochs, so that shapes change back, too."""
    weight = mx.sym.FullyConnected(mx.sym.Pooling(mx.sym.var("data"), global_pool=True, kernel=(1, 1)), num_hidden=1)
    module = DetectionModule(mx.sym.make_loss(weight), whites(), (), [mx.cpu()])
    module.bind([("data", (BATCH, 3, SIDE, SIDE))])
    module.init_params()
    metric = VOC07MApMetric(ovp_thresh=0.8, class_names=["white"])
    for _ in range(2):
        assert dict(module.score(batches, metric))["mAP"] == 1.0


def detections(record, rect, size_of):
    """{record: det (N, 6)} of a small YOLOv3 with random weights; size_of: the input that the symbol is built for."""
    iterator = DetRecordIter(record, BATCH, SIDE, mean_pixels=(120, 120, 120), std=(60, 60, 60), rect=rect, **LETTERBOX)
    module = bound(get_symbol("yolov3_tiny", size_of(iterator), 2, width=0.125, score_threshold=0.0), iterator)
    found = {}
    for batch in iterator:
        module.forward(mx.io.DataBatch(batch.data), is_train=False)
        rows = module.get_outputs()[0].asnumpy()
        found |= {int(k): (rows[row], batch.data[0].shape[2:]) for row, k in enumerate(batch.index) if k >= 0}
    iterator.close()
    return found


def test_a_yolo_finds_the_same_whatever_was_bound_before(record):
    """Each image alone in an input of its batch's size, against the pass in which one Module is reshaped."""
    together = detections(record, 32, lambda iterator: iterator.smallest_size)
    assert len({size for _, size in together.values()}) == 3
    iterator = DetRecordIter(record, BATCH, SIDE, mean_pixels=(120, 120, 120), std=(60, 60, 60), rect=32, **LETTERBOX)
    for batch in iterator:
        size = batch.data[0].shape[2:]
        module = mx.mod.Module(
            get_symbol("yolov3_tiny", iterator.smallest_size, 2, width=0.125, score_threshold=0.0), label_names=None
        )
        module.bind([("data", (BATCH, 3, *size))], for_training=False)
        mx.random.seed(3)
        module.init_params(mx.init.Xavier())
        module.forward(mx.io.DataBatch(batch.data), is_train=False)
        for row, index in enumerate(batch.index[: BATCH - batch.pad]):
            expected = module.get_outputs()[0].asnumpy()[row]
            np.testing.assert_allclose(together[int(index)][0], expected, rtol=1e-4, atol=1e-5)
            assert (expected[:, 0] >= 0).any()
    iterator.close()
