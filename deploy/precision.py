"""The number format of an exported model: what is written of it, what it costs in accuracy on a record.

int8 is calibrated on images of a record.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import DataError
from common.sizes import DATA
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from engines.mxnet_engine import bind, fused_model
from evaluate.detections import frames_of
from evaluate.eval_metric import VOC07MApMetric
from evaluate.sets import check_classes
from graph.number_formats import Fused, Thresholds, to_int8
from graph.symbol_graph import bound, outputs
from machine.runtime import mx
from model.folder import Model
from model.manifest import FLOAT32, INT8, NAIVE, UINT8_NHWC, Accuracy, Calibration, Manifest

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
    return measured_by(run, manifest, record, batch).result().mean_ap


def measured_by(run: RunBatch, manifest: Manifest, record: str, batch: int) -> VOC07MApMetric:
    """The metric of what finds det (B, N, 6) in `batch` images, after all images of a record."""
    metric = VOC07MApMetric(_OVERLAP, False, manifest.class_names)
    for data, one in input_batches(record, manifest, batch):
        det = run(data)
        rows = len(det) - (one.pad or 0)
        frames = frames_of(np.asarray(one.geometry)[:rows], manifest.size)
        metric.update([one.label[0].asnumpy()[:rows], frames], [det[:rows]])
    return metric


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


logger = logging.getLogger(__name__)
_BINS = 8001  # of a histogram from -limit to limit, as in mxnet.contrib.quantization
_LEVELS = 255
_EVERY = 10  # batches between lines of the log
_EVERY_LAYERS = 10  # layers between lines of the log


def calibrate(fused: Fused, images: list[mx.nd.NDArray], mode: str) -> Thresholds:
    """{array: (lowest, highest)} over images, each a batch of data in the model's input format; sizes may differ.

    naive: the extremes. entropy: the range whose 8 bits keep the distribution best, by its Kullback-Leibler divergence
    (Migacz 2017, 8-bit inference with TensorRT, https://on-demand.gputechconf.com/gtc/2017/presentation/
    s7310-8-bit-inference-with-tensorrt.pdf); arrays without negative values start at 0.
    """
    reader = _ArrayReader(fused, images[0])
    found: Thresholds = {}
    for arrays in _progress(reader, images, "ranges"):
        for name, array in arrays:
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found if mode == NAIVE else _entropy_thresholds(reader, images, found)


class _ArrayReader:
    """Runs the float32 symbol and gives all arrays that need thresholds."""

    def __init__(self, fused: Fused, first: mx.nd.NDArray) -> None:
        self._fused, self._names = fused, fused.arrays
        internals = fused.symbol.get_internals()
        self._symbol = mx.sym.Group([internals[output] for output in self._names.values()])
        self._executor = self._bound(first)

    def _bound(self, data: mx.nd.NDArray) -> mx.executor.Executor:
        """An executor for batches of the shape of data."""
        return bound(self._symbol, self._fused.arg_params, self._fused.aux_params, data.shape, data.dtype)

    def __call__(self, data: mx.nd.NDArray) -> Iterator[tuple[str, np.ndarray]]:
        if data.shape != self._executor.arg_dict[DATA].shape:  # the last batch is smaller
            self._executor = self._bound(data)
        self._executor.arg_dict[DATA][:] = data
        for name, array in zip(self._names, self._executor.forward(is_train=False), strict=True):
            yield name, array.asnumpy()  # one at a time: all of them take much memory


def _progress(
    reader: _ArrayReader, images: list[mx.nd.NDArray], what: str
) -> Iterator[Iterator[tuple[str, np.ndarray]]]:
    for number, data in enumerate(images, start=1):
        yield reader(data)
        if number % _EVERY == 0 or number == len(images):
            logger.info("calibration, %s: batch %d of %d", what, number, len(images))


def _entropy_thresholds(reader: _ArrayReader, images: list[mx.nd.NDArray], ranges: Thresholds) -> Thresholds:
    limits = {name: max(-low, high) or 1.0 for name, (low, high) in ranges.items()}
    counts = {name: np.zeros(_BINS) for name in ranges}
    for arrays in _progress(reader, images, "histograms"):
        for name, array in arrays:
            counts[name] += np.histogram(array, _BINS, (-limits[name], limits[name]))[0]
    found: Thresholds = {}
    for number, (name, (low, _)) in enumerate(ranges.items(), start=1):
        high = _best_limit(counts[name], limits[name], _LEVELS if low < 0 else 2 * _LEVELS + 1)
        found[name] = (-high if low < 0 else 0.0), high
        if number % (5 * _EVERY) == 0 or number == len(ranges):
            logger.info("calibration, entropy: array %d of %d", number, len(ranges))
    return found


def _best_limit(counts: np.ndarray, limit: float, levels: int) -> float:
    edges = mx.nd.array(np.linspace(-limit, limit, _BINS + 1))
    threshold, _ = mx.nd.contrib.calibrate_entropy(mx.nd.array(counts), edges, num_quantized_bins=levels)
    return float(threshold.asscalar())


def rank_layers(fused: Fused, thresholds: Thresholds, data: mx.nd.NDArray) -> list[tuple[float, str]]:
    """(error, layer) of every layer, the most harmful first.

    data: a batch in the model's input format. Error: with that layer alone in int8, the squared difference from the
    float32 predictions over their square, averaged over the maps of predictions.
    """
    heads = _predictions(fused)
    reference = outputs(heads.symbol, heads.arg_params, heads.aux_params, data)
    errors = []
    for number, layer in enumerate(heads.layers, start=1):
        others = tuple(name for name in heads.layers if name != layer)
        symbol, arg_params = to_int8(heads, thresholds, others)
        errors.append((_error(outputs(symbol, arg_params, heads.aux_params, data), reference), layer))
        if number % _EVERY_LAYERS == 0 or number == len(heads.layers):
            logger.info("sensitivity: layer %d of %d", number, len(heads.layers))
    return sorted(errors, reverse=True)


def _predictions(fused: Fused) -> Fused:
    """The part of the symbol that ends with the predicting layers."""
    internals = fused.symbol.get_internals()
    predictions = [internals[f"{fused.layers[name]}_output"] for name in fused.predictions]
    return Fused(mx.sym.Group(predictions), fused.arg_params, fused.aux_params)


def _error(found: list[np.ndarray], reference: list[np.ndarray]) -> float:
    pairs = zip(found, reference, strict=True)
    return float(np.mean([np.square(a - b).sum() / max(np.square(b).sum(), 1e-12) for a, b in pairs]))
