"""int8 from images: the range of every array that is quantised, and the layers that int8 harms most."""

import logging
from collections.abc import Iterator

import numpy as np

from common.sizes import DATA
from graph.number_formats import Fused, Thresholds, to_int8
from graph.symbol_graph import bound, outputs
from machine.runtime import mx
from model.manifest import NAIVE

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
