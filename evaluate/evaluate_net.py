"""Accuracy of a checkpoint on a record, as training's own validation computes it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import DataError, OptionError
from config.runtime import mx
from dataset.native_iterator import iterator_class
from dataset.sidecar import read_sidecar
from evaluate.eval_metric import MApMetric, VOC07MApMetric
from evaluate.scoring import score_detections
from evaluate.voc_eval import VOCResult
from symbol.symbol_factory import check_any_size, get_symbol
from train.checkpoint import PIXEL_FIELDS, Checkpoint
from train.devices import check_batch_size


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluate_net: the VOC curves, the number of images and the seconds of the pass."""

    result: VOCResult
    images: int
    seconds: float


def evaluate_net(
    checkpoint: Checkpoint,
    rec_path: str,
    devices: Sequence[mx.Context],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "python",
    num_batch: int | None = None,
    list_path: str = "",
    rect: int | None = None,
    overlap: float = 0.5,
    use_difficult: bool = False,
    voc07: bool = True,
    **detection_options: Any,
) -> Evaluation:
    """Evaluates a checkpoint on a record, or its first num_batch batches.

    Labels of the list list_path (.lst) replace the record's. rect: see RecordIter; None = as the training's validation.
    detection_options replace the checkpoint's own (nms, nms_topk, score_threshold, force). With the training's batch
    size the values are those of the training's validation to the last digit, on the same machine. OptionError where
    the record's classes are not the checkpoint's.
    """
    meta = checkpoint.meta
    _check_classes(rec_path, meta["class_names"], checkpoint.prefix)
    batch_size = batch_size or meta["batch_size"]
    check_batch_size(batch_size, devices)
    rect = meta["rect"] if rect is None else rect
    if rect:
        check_any_size(meta["network"], tuple(meta["data_shape"]), "--rect-val")
    iterator = iterator_class(engine)(
        rec_path,
        batch_size,
        (3, *meta["data_shape"]),
        augment=None,
        **{name: meta[name] for name in PIXEL_FIELDS},
        num_classes=len(meta["class_names"]),
        workers=workers,
        path_imglist=list_path,
        rect=rect,
    )
    kind = VOC07MApMetric if voc07 else MApMetric
    metric = kind(ovp_thresh=overlap, use_difficult=use_difficult, class_names=meta["class_names"])
    try:
        module = _inference_module(checkpoint, devices, iterator.provide_data, detection_options)
        started = time.monotonic()
        batches = score_detections(module, iterator, metric, num_batch)
        images = min(iterator.num_examples, batches * batch_size)
        return Evaluation(metric.result(), images, time.monotonic() - started)
    finally:
        iterator.close()


def _inference_module(
    checkpoint: Checkpoint, devices: Sequence[mx.Context], data_shapes: Any, detection_options: dict[str, Any]
) -> mx.mod.Module:
    meta = checkpoint.meta
    options = {**meta["options"], **detection_options}
    symbol = get_symbol(meta["network"], tuple(meta["data_shape"]), len(meta["class_names"]), **options)
    module = mx.mod.Module(symbol, data_names=("data",), label_names=None, context=list(devices))
    module.bind(data_shapes, for_training=False)
    module.set_params(checkpoint.arg_params, checkpoint.aux_params)
    return module


def _check_classes(rec_path: str, names: Sequence[str], prefix: str) -> None:
    if not Path(rec_path).is_file():
        raise DataError(f"--rec-path {rec_path}: no such file; make it with tools/prepare_dataset.py")
    sidecar = read_sidecar(rec_path)
    if sidecar and list(sidecar.class_names) != list(names):
        raise OptionError(
            f"{rec_path} holds the classes {', '.join(sidecar.class_names)}, but {prefix} was trained on "
            f"{', '.join(names)}; pack the record with --class-names of the training"
        )
