"""One pass over an iterator by a Module that computes a symbol without gradients; its detections go to a metric."""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from evaluate.detections import frames_of
from graph.onednn import has_squeeze_excitation, suit_onednn
from graph.symbol_graph import Params
from machine.runtime import mx

LOGGER = logging.getLogger(__name__)


def is_rewritten(symbol: mx.sym.Symbol, devices: Sequence[mx.Context]) -> bool:
    """Whether inference_module runs another graph that gives the same (graph/onednn.py), and so weights of its own."""
    return all(device.device_type == "cpu" for device in devices) and has_squeeze_excitation(symbol)


def inference_module(
    symbol: mx.sym.Symbol,
    arg_params: Params,
    aux_params: Params,
    devices: Sequence[mx.Context],
    data: Sequence[mx.io.DataDesc],
    labels: Sequence[mx.io.DataDesc] = (),
    logger: logging.Logger | logging.LoggerAdapter = LOGGER,
) -> mx.mod.Module:
    """A Module that gives the symbol's outputs for batches of `data` (and `labels`, if it reads any) on the devices.

    Batches may have other heights and widths, if the symbol takes them and is not rewritten. An EfficientDet is, for
    the size of `data`, as it then takes a third of the time on CPUs; its outputs differ by rounding.
    """
    if is_rewritten(symbol, devices):
        symbol, arg_params, aux_params = suit_onednn(symbol, arg_params, aux_params, data[0].shape)
    module = mx.mod.Module(
        symbol,
        data_names=[desc.name for desc in data],
        label_names=[desc.name for desc in labels] or None,
        context=list(devices),
        logger=logger,
    )
    module.bind(list(data), list(labels) or None, for_training=False)
    module.set_params(arg_params, aux_params)
    return module


def score_detections(
    module: mx.mod.Module,
    data: Iterable[mx.io.DataBatch],
    metric: mx.metric.EvalMetric,
    num_batch: int | None = None,
    losses: mx.metric.EvalMetric | None = None,
    first: Callable[[mx.io.DataBatch, np.ndarray, np.ndarray], None] | None = None,
) -> int:
    """Resets the metric and updates it with `det` (B, N, 6) and the labels of each batch, without the padding rows.

    A metric with a true attribute uses_frames gets labels [label, frames] (evaluate/eval_metric.py). Batches may have
    inputs of different sizes, if the module's symbol takes them. The metric works on one batch while the next is
    computed.
    losses: reset, then updated with [] and the outputs before det of each batch, whose labels the module reads.
    first: called with the first batch, its labels and its detections, both without the padding rows.
    Returns the number of batches. The caller resets `data`.
    """
    metric.reset()
    if losses:
        losses.reset()
    waiting: tuple[mx.io.DataBatch, mx.nd.NDArray] | None = None
    count = 0
    for batch in data:
        if count == num_batch:
            break
        # With the labels that the module knows alone: it reshapes itself for another size.
        module.forward(mx.io.DataBatch(batch.data, _labels(module, batch)), is_train=False)
        outputs = module.get_outputs()
        # A copy: the executor's output is overwritten by the next forward.
        det = outputs[-1].copy()
        if losses:
            losses.update([], outputs[:-1])
        if waiting:
            _update(metric, *waiting, first if count == 1 else None)
        waiting = batch, det
        count += 1
    if waiting:
        _update(metric, *waiting, first if count == 1 else None)
    return count


def _labels(module: mx.mod.Module, batch: mx.io.DataBatch) -> list[mx.nd.NDArray] | None:
    """The batch's labels of the names that the module was bound with."""
    if not module.label_shapes:
        return None
    arrays = {desc[0]: array for desc, array in zip(batch.provide_label, batch.label, strict=True)}
    return [arrays[desc[0]] for desc in module.label_shapes]


def _update(
    metric: mx.metric.EvalMetric,
    batch: mx.io.DataBatch,
    det: mx.nd.NDArray,
    watch: Callable[[mx.io.DataBatch, np.ndarray, np.ndarray], None] | None,
) -> None:
    rows = det.shape[0] - (batch.pad or 0)
    labels = [batch.label[0].asnumpy()[:rows]]
    if getattr(metric, "uses_frames", False):
        labels.append(frames_of(batch.geometry[:rows], batch.data[0].shape[2:4]))
    detections = det.asnumpy()[:rows]
    metric.update(labels, [detections])
    if watch:
        watch(batch, labels[0], detections)
