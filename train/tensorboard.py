"""TensorBoard of a run: losses, rate and scores, the first batch with its boxes, detections beside ground truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import OptionError
from drawing.boxes import batch_sheet, draw, draw_objects, input_images, sheet
from machine.runtime import mx
from train.curves import first_pixels
from train.metric import LossMetric, RecentMeans
from train.module import DetectionModule

BAR = "\\|"  # in a cell of a table
MOST_IMAGES = 16  # of a picture
SHOWN_SCORE = 0.25  # least score of a detection in a picture


def check_tensorboard() -> None:
    """OptionError where tensorboardX is not installed."""
    _summary_writer()


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise OptionError("--tensorboard needs tensorboardX: pip install 'tensorboardX>=2.6.5'") from error
    return SummaryWriter


class TensorBoard:
    """Batch-end callback and writer of PREFIX-tensorboard; what it shows is on the host already, or is read once.

    Values of batches (`batch/...`, every `frequent` and at the end of an epoch) stand at the number of batches done,
    those of epochs at the number of epochs.
    """

    def __init__(
        self,
        prefix: str,
        metric: LossMetric,
        module: DetectionModule,
        batches: int,
        frequent: int,
        class_names: Sequence[str],
        pixels: Mapping[str, Any],
    ) -> None:
        """batches: of an epoch; pixels: mean_pixels and std of the input. OptionError where tensorboardX is not
        installed."""
        writer = _summary_writer()
        self._writer = writer(f"{prefix}-tensorboard")
        self._module, self._recent = module, RecentMeans(metric)
        self._batches, self._frequent, self._class_names = batches, frequent, class_names
        self._mean, self._std = (np.array(pixels[name], np.float32) for name in ("mean_pixels", "std"))
        self._has_first = False
        self._epoch = 0

    def __call__(self, param: Any) -> None:
        """param: BatchEndParam of fit."""
        if param.nbatch == 0:
            self._recent.reset()
        if not self._has_first:
            self._has_first = True
            self._first_batch(param.locals["data_batch"])
        self._epoch = param.epoch + 1
        done = param.nbatch + 1
        if done % self._frequent == 0 or done == self._batches:
            self._scalars("batch", self._recent.take(), param.epoch * self._batches + done)

    def options(self, values: Mapping[str, Any]) -> None:
        """Writes the options of the run as a table."""
        rows = [f"| {name} | {str(value).replace('|', BAR)} |" for name, value in values.items()]
        self._writer.add_text("options", "\n".join(["| option | value |", "|---|---|", *rows]))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the losses, scores and learning rate of an epoch, a line of metrics.jsonl."""
        number = record["epoch"]
        for part in ("train", "validation", "validation_loss"):
            for name, value in with_total(record.get(part, {}), part != "validation").items():
                self._writer.add_scalar(f"{part}/{name}", value, number)
        self._writer.add_scalar("learning_rate", record["learning_rate"], number)
        self._writer.flush()

    def validation(self, batch: mx.io.DataBatch, objects: np.ndarray, detections: np.ndarray) -> None:
        """Draws a batch of the validation: objects (n, M, 6) on the left, detections (n, N, 6) on the right.

        Boxes are parts of the input, as in labels and `det`; rows with an id below 0 are none.
        """
        pictures = []
        images = input_images(first_pixels(batch, MOST_IMAGES), self._mean, self._std)
        for image, own, found in zip(images, objects, detections, strict=False):
            height, width = image.shape[:2]
            boxes = found[found[:, 0] >= 0] * np.array([1, 1, width, height, width, height], np.float32)
            truth = draw_objects(image, own, self._class_names)
            pictures += [truth, draw(image, boxes, self._class_names, SHOWN_SCORE)]
        if pictures:
            self._picture("validation/truth_and_detections", sheet(pictures), self._epoch)

    def _first_batch(self, batch: mx.io.DataBatch) -> None:
        """The first training batch of this process, as the network sees it."""
        pixels = first_pixels(batch, MOST_IMAGES)
        objects = batch.label[0].asnumpy()[: len(pixels)]
        picture = batch_sheet(pixels, objects, self._mean, self._std, self._class_names)
        self._picture("train/first_batch", picture, 0)

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def _scalars(self, part: str, losses: Mapping[str, float], step: int) -> None:
        for name, value in with_total(losses, True).items():
            self._writer.add_scalar(f"{part}/{name}", value, step)
        if losses:
            self._writer.add_scalar(f"{part}/learning_rate", self._module.learning_rate, step)


def with_total(values: Mapping[str, float], is_loss: bool) -> dict[str, float]:
    """The values, and where they are parts of a loss their sum as `loss`."""
    return {**values, "loss": sum(values.values())} if is_loss and values else dict(values)
