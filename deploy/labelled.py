"""Records as batches of a model's input, and a model's accuracy on them."""

from collections.abc import Iterator

import numpy as np

from config.runtime import mx
from dataset.iterator import DetRecordIter
from deploy.bind import bind
from deploy.manifest import UINT8_NHWC, Manifest
from deploy.model_folder import Model
from evaluate.eval_metric import VOC07MApMetric
from evaluate.evaluate_net import check_classes
from evaluate.frames import frames_of

METRIC = "VOC07 mAP"
_OVERLAP = 0.5


def input_batches(record: str, manifest: Manifest, batch: int) -> Iterator[tuple[mx.nd.NDArray, mx.io.DataBatch]]:
    """Every image of a record as validation sees it: data in the model's input format, and the batch it comes from.

    DataError for a record that cannot be read, OptionError for one with other classes.
    """
    check_classes(record, manifest.class_names, manifest.source.prefix, "record")
    pixels = manifest.input_format == UINT8_NHWC
    iterator = DetRecordIter(
        record,
        batch,
        (3, *manifest.size),
        augment=None,
        mean_pixels=(0.0, 0.0, 0.0) if pixels else manifest.mean,
        std=(1.0, 1.0, 1.0) if pixels else manifest.std,
        resize_mode=manifest.resize_mode,
        fill=manifest.fill,
        num_classes=len(manifest.class_names),
    )
    try:
        for one in iterator:
            data = one.data[0]
            yield (data.transpose((0, 2, 3, 1)).astype("uint8") if pixels else data), one
    finally:
        iterator.close()


def mean_ap(model: Model, record: str, batch: int) -> float:
    """The model's VOC07 mAP on a record; nan if that has no objects."""
    bound = bind(model, mx.cpu(), batch)
    metric = VOC07MApMetric(_OVERLAP, False, model.manifest.class_names)
    for data, one in input_batches(record, model.manifest, batch):
        det = bound.run(data)
        rows = len(det) - (one.pad or 0)
        frames = frames_of(np.asarray(one.geometry)[:rows], model.manifest.size)
        metric.update([one.label[0].asnumpy()[:rows], frames], [det[:rows]])
    return metric.result().mean_ap
