"""One pass of an inference Module over an iterator, its detections handed to a metric."""

from config.runtime import mx


def score_detections(
    module: mx.mod.Module, data: mx.io.DataIter, metric: mx.metric.EvalMetric, num_batch: int | None = None
) -> int:
    """Resets the metric and updates it with `det` (B, N, 6) and the labels of each batch, without the padding rows.

    Batches may have inputs of different sizes, if the module's symbol takes them. The metric works on one batch while
    the next is computed. Returns the number of batches. The caller resets `data`.
    """
    metric.reset()
    waiting: tuple[mx.io.DataBatch, mx.nd.NDArray] | None = None
    count = 0
    for batch in data:
        if count == num_batch:
            break
        # Without labels, which the module does not know: it reshapes itself for another size.
        module.forward(mx.io.DataBatch(batch.data), is_train=False)
        # A copy: the executor's output is overwritten by the next forward.
        det = module.get_outputs()[0].copy()
        if waiting:
            _update(metric, *waiting)
        waiting = batch, det
        count += 1
    if waiting:
        _update(metric, *waiting)
    return count


def _update(metric: mx.metric.EvalMetric, batch: mx.io.DataBatch, det: mx.nd.NDArray) -> None:
    rows = det.shape[0] - (batch.pad or 0)
    metric.update([batch.label[0].asnumpy()[:rows]], [det.asnumpy()[:rows]])
