"""Images in, boxes out: Detector("model folder or prefix").detect("image.jpg")."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config.errors import CheckpointError, OptionError
from config.run import DeviceOptions
from config.runtime import mx
from dataset.letterbox import Resize
from dataset.transforms import to_image
from deploy.export import load_model
from detect.preprocess import ImageInput, read_image, write_input
from train.devices import contexts

DEFAULT_THRESHOLD = 0.5


class Detector:
    """Runs an exported model folder or a checkpoint.

    Pictures are RGB (uint8, height x width x 3) wherever they are arrays. Any number of threads may call detect();
    the network itself runs for one of them at a time (a lock), decoding and resizing run in parallel.

    Attributes:
        manifest: what is known of the model.
        class_names: names in the order of the ids.
        batch_size: images that the network runs at a time; fewer are filled up.
    """

    def __init__(
        self,
        path: str | Path,
        epoch: int | str = "auto",
        *,
        ctx: mx.Context | None = None,
        threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        **detection_options: Any,
    ) -> None:
        """Loads the model and reserves its memory.

        Args:
            path: a model folder, or the prefix of a checkpoint.
            epoch: of a checkpoint: a number, `auto` = the newest, `best`.
            ctx: where to run; None = the first usable GPU, else the CPU.
            threshold: lowest score of a detection, or {class name: lowest score} (others have DEFAULT_THRESHOLD). The
                model itself drops what is below its own score threshold (manifest.postprocessing).
            batch_size: images at a time.
            detection_options: nms, nms_topk, score_threshold, force in place of a checkpoint's own; a model folder must
                have been exported with them.

        CheckpointError where there is no model or it is damaged, OptionError for a threshold of no class.
        """
        if batch_size < 1:
            raise OptionError(f"batch size {batch_size}: expected at least 1")
        model = load_model(path, epoch, **detection_options)
        self.manifest = model.manifest
        self.class_names = model.manifest.class_names
        self.batch_size = batch_size
        self._thresholds = class_thresholds(threshold, self.class_names)
        self._mean, self._std = (np.array(x, np.float32) for x in (model.manifest.mean, model.manifest.std))
        self._resize = Resize(model.manifest.resize_mode, model.manifest.fill)
        self._shape = (batch_size, 3, *model.manifest.size)
        self._lock = threading.Lock()
        ctx = ctx or contexts(DeviceOptions())[0]
        self._executor = model.symbol.simple_bind(ctx, grad_req="null", data=self._shape)
        self._executor.copy_params_from(model.arg_params, model.aux_params)

    def detect(self, images: ImageInput | Iterable[ImageInput]) -> np.ndarray | list[np.ndarray]:
        """Detections of an image, or the list of those of several images.

        An image is a path, the bytes of an image file, or an array (h, w, 3) uint8 RGB. Several are anything iterable,
        an array (n, h, w, 3) included.

        Returns:
            For each image a float32 array (n, 6), rows [id, score, xmin, ymin, xmax, ymax] by falling score, in pixels
            of the image (edges, from 0 to its width and height); (0, 6) if nothing is found. DataError names an image
            that cannot be read.
        """
        if isinstance(images, (str, Path, bytes, bytearray, memoryview)):
            return next(self.stream([images]))
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageInput]) -> Iterator[np.ndarray]:
        """The detections of one image after the other, as detect() gives them; holds batch_size images at a time."""
        numbered = enumerate(images)
        while chunk := list(itertools.islice(numbered, self.batch_size)):
            pictures = [read_image(image, f"image {number}") for number, image in chunk]
            data = np.zeros(self._shape, np.float32)
            views = [
                write_input(picture, self._mean, self._std, row, self._resize)
                for picture, row in zip(pictures, data, strict=False)
            ]
            for view, rows in zip(views, self._forward(data), strict=False):
                yield select(rows, self._thresholds, view, self.manifest.size)

    def _forward(self, data: np.ndarray) -> np.ndarray:
        """det (B, N, 6) of a batch (B, 3, H, W)."""
        with self._lock:
            self._executor.arg_dict["data"][:] = data
            return self._executor.forward(is_train=False)[0].asnumpy()


def select(rows: np.ndarray, thresholds: np.ndarray, view: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows (N, 6) of det with id >= 0 and the score of their class's threshold (C,), by falling score, in pixels.

    view: the image's geometry (6,) in the input `size` (H, W); boxes are clipped to the image, and those beside it, in
    the border of a letterbox, left out. CheckpointError for an id that has no threshold.
    """
    rows = rows[rows[:, 0] >= 0]
    if len(rows) and rows[:, 0].max() >= len(thresholds):
        raise CheckpointError(f"the model finds more classes than the {len(thresholds)} that its manifest names")
    rows = rows[rows[:, 1] >= thresholds[rows[:, 0].astype(int)]]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    rows[:, 2:] = to_image(rows[:, 2:] * (size[::-1] * 2), view)
    return rows[(rows[:, 4:] > rows[:, 2:4]).all(axis=1)]


def class_thresholds(threshold: float | Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
    """The threshold of each class (C,); OptionError for an unknown class or a threshold outside [0, 1]."""
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    for name, value in by_name.items():
        if name not in class_names:
            raise OptionError(f"threshold of {name!r}: no such class (there are {', '.join(class_names)})")
        if not 0 <= value <= 1:
            raise OptionError(f"threshold {value} of {name}: expected 0 to 1")
    return np.array([by_name.get(name, DEFAULT_THRESHOLD) for name in class_names], np.float32)
