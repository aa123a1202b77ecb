"""Accuracy of a checkpoint on a record, as training's own validation computes it."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.errors import out_of_memory_hint
from dataset.batch_spec import BatchSpec
from dataset.image_list import listed_paths
from dataset.iterator import RecordIter, open_batches
from dataset.recordio import RecordReader
from evaluate.detections import Evaluation, ImageResult, Results, split_rows
from evaluate.eval_metric import DetectionMetric, ValidationMetric
from evaluate.scoring import inference_module, score_detections
from evaluate.sets import check_record
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
    overlap: float | None = None,
    use_difficult: bool | None = None,
    metrics: Sequence[str] = (),
    keep_rows: bool = False,
    **detection_options: Any,
) -> Evaluation:
    """Evaluates a checkpoint on a record, or its first num_batch batches.

    Labels of the list list_path (.lst) replace the record's. rect: see BatchSpec; metrics: kinds out of
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
    )
    iterator = open_batches(spec, data_engine)
    kinds = tuple(metrics or meta.metrics)
    overlap = meta.overlap if overlap is None else overlap
    use_difficult = meta.use_difficult if use_difficult is None else use_difficult
    metric = ValidationMetric(kinds, meta.class_names, overlap, use_difficult)
    served: list[tuple[np.ndarray, np.ndarray]] = []
    try:
        with out_of_memory_hint("lower --batch-size"):
            module = _inference_module(checkpoint, devices, iterator, detection_options)
            started = time.monotonic()
            score_detections(module, _noted(iterator, served), metric, num_batch)
        first = metric.parts[kinds[0]]
        found = _found(first, served, rec_path, list_path) if keep_rows else None
        return Evaluation(metric.results(), overlap, first.global_num_inst, time.monotonic() - started, found)
    finally:
        iterator.close()


def _found(
    metric: DetectionMetric, served: list[tuple[np.ndarray, np.ndarray]], rec_path: str, list_path: str
) -> Results:
    """What a metric has seen, by images in the order of the record."""
    count, names = metric.global_num_inst, listed_paths(rec_path, list_path)
    records = np.concatenate([index for index, _ in served])[:count].tolist()
    sizes = np.concatenate([geometry[:, :2] for _, geometry in served])[:count].astype(int).tolist()
    detections, truths = (split_rows(rows.astype(np.float64), count) for rows in metric.rows())
    images = {
        key: ImageResult(names.get(key, str(key)), (size[0], size[1]), truth, found, key)
        for key, size, truth, found in zip(records, sizes, truths, detections, strict=True)
    }
    keys = RecordReader(rec_path).keys.tolist()
    return Results(tuple(metric.class_names or ()), tuple(images[key] for key in keys if key in images))


def _noted(batches: mx.io.DataIter, served: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[mx.io.DataBatch]:
    """The batches; record ids and geometry of their samples are noted."""
    for batch in batches:
        rows = len(batch.index) - batch.pad
        served.append((batch.index[:rows], batch.geometry[:rows]))
        yield batch


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
