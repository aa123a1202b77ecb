"""Records as batches of a model's input, and a model's accuracy on them."""

from collections.abc import Callable, Iterator

import numpy as np

from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from evaluate.eval_metric import VOC07MApMetric
from evaluate.evaluate_net import check_classes
from evaluate.frames import frames_of
from machine.runtime import mx
from model.manifest import UINT8_NHWC, Manifest

METRIC = "VOC07 mAP"
Run = Callable[[mx.nd.NDArray], np.ndarray]  # data in the model's input format -> det
_OVERLAP = 0.5


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


def mean_ap(run: Run, manifest: Manifest, record: str, batch: int) -> float:
    """The VOC07 mAP on a record of what finds det (B, N, 6) in `batch` images; nan if the record has no objects."""
    metric = VOC07MApMetric(_OVERLAP, False, manifest.class_names)
    for data, one in input_batches(record, manifest, batch):
        det = run(data)
        rows = len(det) - (one.pad or 0)
        frames = frames_of(np.asarray(one.geometry)[:rows], manifest.size)
        metric.update([one.label[0].asnumpy()[:rows], frames], [det[:rows]])
    return metric.result().mean_ap
