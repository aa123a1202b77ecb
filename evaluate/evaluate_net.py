"""Accuracy of a checkpoint on a record, as training's own validation computes it."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from common.errors import out_of_memory_hint
from dataset.batch_spec import BatchSpec
from dataset.iterator import RecordIter, open_batches
from evaluate.detections import Evaluation
from evaluate.eval_metric import ValidationMetric
from evaluate.scoring import Served, inference_module, note_served, score_detections, served_rows
from evaluate.sets import check_record, record_results
from machine.runtime import check_batch_size, mx
from model.checkpoint import Checkpoint
from symbol.symbol_factory import check_any_size, get_symbol, ineffective_options, rebuilding_options

logger = logging.getLogger(__name__)


def evaluate_net(
    checkpoint: Checkpoint,
    rec_path: str,
    devices: Sequence[mx.Context],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    data_engine: str = "python",
    num_batch: int | None = None,
    list_path: str = "",
    rect: int | None = None,
    left_out: int = 0,
    overlap: float | None = None,
    use_difficult: bool | None = None,
    metrics: Sequence[str] = (),
    keep_rows: bool = False,
    **detection_options: Any,
) -> Evaluation:
    """Evaluates a checkpoint on a record, or its first num_batch batches.

    Labels of the list list_path (.lst) replace the record's. rect, left_out: see BatchSpec; metrics: kinds out of
    config.groups.METRICS. Whichever of batch_size, rect, overlap, use_difficult and metrics is not given is as in the
    training's validation: the values then are its own to the last digit, on the same machine. keep_rows keeps
    detections and objects, too, by images in the order of the record. detection_options replace the checkpoint's own
    (nms, nms_topk, score_threshold, force).
    OptionError where the record's classes are not the checkpoint's.
    """
    meta = checkpoint.meta
    check_record(rec_path, meta, checkpoint.prefix)
    batch_size = batch_size or meta.batch_size
    check_batch_size(batch_size, devices)
    rect = meta.rect if rect is None else rect
    if rect:
        check_any_size(meta.network, meta.data_shape, "--rect-val")
    spec = BatchSpec(
        rec_path,
        batch_size,
        meta.data_shape,
        augment=None,
        **meta.pixels,
        num_classes=len(meta.class_names),
        workers=workers,
        path_imglist=list_path,
        rect=rect,
        left_out=left_out,
    )
    iterator = open_batches(spec, data_engine)
    kinds = tuple(metrics or meta.metrics)
    overlap = meta.overlap if overlap is None else overlap
    use_difficult = meta.use_difficult if use_difficult is None else use_difficult
    metric = ValidationMetric(kinds, meta.class_names, overlap, use_difficult)
    served: Served = []
    try:
        with out_of_memory_hint("lower --batch-size"):
            module = _inference_module(checkpoint, devices, iterator, detection_options)
            started = time.monotonic()
            score_detections(module, note_served(iterator, served), metric, num_batch)
        first = metric.parts[kinds[0]]
        found = record_results(rec_path, list_path, *served_rows(first, served)) if keep_rows else None
        return Evaluation(metric.results(), overlap, first.global_num_inst, time.monotonic() - started, found)
    finally:
        iterator.close()


def _inference_module(
    checkpoint: Checkpoint, devices: Sequence[mx.Context], iterator: RecordIter, detection_options: dict[str, Any]
) -> mx.mod.Module:
    meta = checkpoint.meta
    origin = f"{checkpoint.prefix}, epoch {checkpoint.epoch}"
    options = rebuilding_options(meta.network, meta.options, origin) | detection_options
    for line in ineffective_options(meta.network, options, detection_options):
        logger.warning(line)
    symbol = get_symbol(meta.network, iterator.smallest_size, len(meta.class_names), **options)
    return inference_module(symbol, checkpoint.arg_params, checkpoint.aux_params, devices, iterator.provide_data)
