"""One pass of an inference Module over an iterator, its detections handed to a metric."""

from collections.abc import Iterable

from evaluate.frames import frames_of
from machine.runtime import mx


def score_detections(
    module: mx.mod.Module,
    data: Iterable[mx.io.DataBatch],
    metric: mx.metric.EvalMetric,
    num_batch: int | None = None,
    losses: mx.metric.EvalMetric | None = None,
) -> int:
    """Resets the metric and updates it with `det` (B, N, 6) and the labels of each batch, without the padding rows.

    A metric with a true attribute uses_frames gets labels [label, frames] (evaluate/frames.py). Batches may have inputs
    of different sizes, if the module's symbol takes them. The metric works on one batch while the next is computed.
    losses: reset, then updated with [] and the outputs before det of each batch, whose labels the module reads.
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
            _update(metric, *waiting)
        waiting = batch, det
        count += 1
    if waiting:
        _update(metric, *waiting)
    return count


def _labels(module: mx.mod.Module, batch: mx.io.DataBatch) -> list[mx.nd.NDArray] | None:
    """The batch's labels of the names that the module was bound with."""
    if not module.label_shapes:
        return None
    arrays = {desc[0]: array for desc, array in zip(batch.provide_label, batch.label, strict=True)}
    return [arrays[desc[0]] for desc in module.label_shapes]


def _update(metric: mx.metric.EvalMetric, batch: mx.io.DataBatch, det: mx.nd.NDArray) -> None:
    rows = det.shape[0] - (batch.pad or 0)
    labels = [batch.label[0].asnumpy()[:rows]]
    if getattr(metric, "uses_frames", False):
        labels.append(frames_of(batch.geometry[:rows], batch.data[0].shape[2:4]))
    metric.update(labels, [det.asnumpy()[:rows]])
