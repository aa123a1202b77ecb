"""The number format of an exported model: what is written of it, what it costs in accuracy on a record."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import DataError
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from deploy.calibrate import calibrate, rank_layers
from engines.mxnet_engine import bind, fused_model
from evaluate.eval_metric import VOC07MApMetric, frames_of
from evaluate.evaluate_net import check_classes
from machine.runtime import mx
from model.folder import Model
from model.manifest import FLOAT32, INT8, UINT8_NHWC, Accuracy, Calibration, Manifest

METRIC = "VOC07 mAP"
RunBatch = Callable[[mx.nd.NDArray], np.ndarray]  # data in the model's input format -> det
_OVERLAP = 0.5
logger = logging.getLogger(__name__)
_BATCH = 4  # images of a batch here; a network sees each image by itself


def input_batches(record: str, manifest: Manifest, batch: int) -> Iterator[tuple[mx.nd.NDArray, mx.io.DataBatch]]:
    """Every image of a record as validation sees it: data in the model's input format, and the batch it comes from.

    DataError for a record that cannot be read, OptionError for one with other classes.
    """
    check_classes(record, manifest.class_names, manifest.source.prefix, "record")
    pixels = manifest.input_format == UINT8_NHWC
    spec = BatchSpec(
        record,
        batch,
        manifest.size,
        augment=None,
        mean_pixels=(0.0, 0.0, 0.0) if pixels else manifest.mean,
        std=(1.0, 1.0, 1.0) if pixels else manifest.std,
        resize_mode=manifest.resize_mode,
        fill=manifest.fill,
        num_classes=len(manifest.class_names),
    )
    iterator = open_batches(spec)
    try:
        for one in iterator:
            data = one.data[0]
            yield (data.transpose((0, 2, 3, 1)).astype("uint8") if pixels else data), one
    finally:
        iterator.close()


def mean_ap(run: RunBatch, manifest: Manifest, record: str, batch: int) -> float:
    """The VOC07 mAP on a record of what finds det (B, N, 6) in `batch` images; nan if the record has no objects."""
    metric = VOC07MApMetric(_OVERLAP, False, manifest.class_names)
    for data, one in input_batches(record, manifest, batch):
        det = run(data)
        rows = len(det) - (one.pad or 0)
        frames = frames_of(np.asarray(one.geometry)[:rows], manifest.size)
        metric.update([one.label[0].asnumpy()[:rows], frames], [det[:rows]])
    return metric.result().mean_ap


@dataclass(frozen=True)
class Int8Options:
    """How to quantise: images to calibrate with, `naive` or `entropy`, and the mAP that may be lost (1 = all)."""

    record: str
    mode: str
    images: int
    max_loss: float


def with_dtype(model: Model, dtype: str, eval_record: str = "", int8: Int8Options | None = None) -> Model:
    """The float32 model as one of dtype, its accuracy measured on eval_record if there is one.

    int8 is for the dtype int8 alone: layers are taken out of it until no more than max_loss of the mAP is lost on
    eval_record.
    """
    if dtype == INT8 and int8:
        return _quantised(model, eval_record or int8.record, int8)
    changed = _changed(model, dtype=dtype)
    if not eval_record:
        return changed
    float32 = _measured(model, eval_record, FLOAT32)
    this = float32 if dtype == FLOAT32 else _measured(changed, eval_record, dtype)
    return _changed(changed, accuracy=Accuracy(eval_record, METRIC, float32, this))


def _quantised(model: Model, eval_record: str, options: Int8Options) -> Model:
    fused = fused_model(model, _BATCH)
    batches = _calibration_batches(model, options)
    thresholds = calibrate(fused, batches, options.mode)
    calibration = Calibration(options.record, options.mode, sum(map(len, batches)), thresholds)
    float32 = _measured(model, eval_record, FLOAT32)

    def attempt(excluded: tuple[str, ...]) -> Model:
        changed = _changed(model, dtype=INT8, calibration=dataclasses.replace(calibration, excluded=excluded))
        what = f"int8 with {len(excluded)} of {len(fused.layers)} layers in float32"
        accuracy = Accuracy(eval_record, METRIC, float32, _measured(changed, eval_record, what))
        return _changed(changed, accuracy=accuracy)

    found = attempt(())
    if _loss(found) <= options.max_loss:
        return found
    logger.info("mAP loss %.4f is above %.4f: looking for the layers that cause it", _loss(found), options.max_loss)
    ranked = [layer for _, layer in rank_layers(fused, thresholds, batches[0])]
    return _with_fewest_float32_layers(attempt, ranked, options.max_loss)


def _with_fewest_float32_layers(
    attempt: Callable[[tuple[str, ...]], Model], ranked: list[str], max_loss: float
) -> Model:
    """The model with as few layers in float32 as suffice: of the ranked ones a stretch, its end found, then its start.

    Ranks say how much a layer changes predictions; which of these changes matter for the mAP is seen by trying. All of
    them, and a warning, where even these do not suffice.
    """
    tried: dict[tuple[int, int], Model] = {}

    def suffices(start: int, end: int) -> bool:
        tried[start, end] = attempt(tuple(ranked[start:end]))
        return _loss(tried[start, end]) <= max_loss

    few, many = 0, 1
    while not suffices(0, many):
        if many >= len(ranked):
            loss = _loss(tried[0, many])
            logger.warning("mAP loss %.4f is above --max-loss %.4f with all layers in float32, too", loss, max_loss)
            return tried[0, many]
        few, many = many, min(2 * many, len(ranked))
    end = _first(lambda count: suffices(0, count), few, many)
    start = end - _first(lambda count: suffices(end - count, end), 0, end)
    return tried[start, end]


def _first(suffices: Callable[[int], bool], few: int, many: int) -> int:
    """The smallest of few + 1 ... many that suffices, if all above it do; `many` is known to."""
    while many - few > 1:
        middle = (few + many) // 2
        if suffices(middle):
            many = middle
        else:
            few = middle
    return many


def _calibration_batches(model: Model, options: Int8Options) -> list[mx.nd.NDArray]:
    """The first images of the record in the model's input format; the last batch may be smaller."""
    batches, missing = [], options.images
    for data, one in input_batches(options.record, model.manifest, _BATCH):
        images = min(len(data) - (one.pad or 0), missing)
        batches.append(data[:images].copy())
        missing -= images
        if not missing:
            break
    return batches


def _measured(model: Model, record: str, what: str) -> float:
    value = mean_ap(bind(model, mx.cpu(), _BATCH).run, model.manifest, record, _BATCH)
    if math.isnan(value):
        raise DataError(f"{record}: without objects there is no accuracy; give a labelled record by --eval-rec")
    logger.info("%s: %s %.4f on %s", what, METRIC, value, record)
    return value


def _loss(model: Model) -> float:
    accuracy = model.manifest.accuracy
    return accuracy.float32 - accuracy.this if accuracy else math.inf


def _changed(model: Model, **changes: Any) -> Model:
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, **changes))
