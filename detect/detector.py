"""Images in, boxes out: Detector("model folder or prefix").detect("image.jpg"); and how long its steps take."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import CheckpointError, OptionError
from config.augment_options import RESIZE_MODES
from config.groups import DeviceOptions
from dataset.transforms import to_image
from engines.engine import AUTO, EngineRequest, open_engine
from engines.preprocess import ImageInput, InputWriter, read_image

if TYPE_CHECKING:
    from machine.runtime import mx

WINDOW = 1024  # latest values of a step that its figures are of
DECODING, PRE, NETWORK, POST = STEPS = ("decoding", "pre-processing", "network", "post-processing")
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class StepStatistics:
    """How often a step ran, and the seconds that it took in the latest WINDOW of these times; NaN if it never ran."""

    count: int
    mean: float
    median: float
    p99: float


class Timings:
    """A ring buffer of the latest seconds of each step; any number of threads may add to it."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._seconds = {step: np.zeros(WINDOW) for step in STEPS}
            self._counts = dict.fromkeys(STEPS, 0)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Adds the time that a `with` block takes, unless it raises."""
        begin = time.perf_counter()
        yield
        self.add(step, time.perf_counter() - begin)

    def add(self, step: str, seconds: float) -> None:
        """Adds one run of a step of STEPS."""
        with self._lock:
            self._seconds[step][self._counts[step] % WINDOW] = seconds
            self._counts[step] += 1

    def summary(self) -> dict[str, StepStatistics]:
        """The figures of each step of STEPS."""
        with self._lock:
            latest = {step: (n, self._seconds[step][: min(n, WINDOW)].copy()) for step, n in self._counts.items()}
        return {step: _statistics(count, seconds) for step, (count, seconds) in latest.items()}


def _statistics(count: int, seconds: np.ndarray) -> StepStatistics:
    if not count:
        return StepStatistics(0, *[float("nan")] * 3)
    median, p99 = np.percentile(seconds, [50, 99])
    return StepStatistics(count, float(seconds.mean()), float(median), float(p99))


class Detector:
    """Runs an exported model folder or a checkpoint.

    Pictures are RGB (uint8, height x width x 3) wherever they are arrays. Any number of threads may call detect():
    decoding, resizing and the selection of detections run in parallel, and so does the network in onnxruntime and
    openvino; in mxnet it runs for one thread at a time (a lock).

    Attributes:
        manifest: what is known of the model.
        class_names: names in the order of the ids.
        batch_size: images that the network runs at a time; fewer are filled up.
        engine: name of what runs the network: mxnet, onnxruntime or openvino.
    """

    def __init__(
        self,
        path: str | Path,
        epoch: int | str = "auto",
        *,
        engine: str = AUTO,
        ctx: mx.Context | DeviceOptions | None = None,
        threshold: float | Mapping[str, float] | None = None,
        batch_size: int = 1,
        resize_mode: str | None = None,
        **detection_options: Any,
    ) -> None:
        """Loads the model and reserves its memory.

        Args:
            path: a model folder, or the prefix of a checkpoint.
            epoch: of a checkpoint: a number, `auto` = the newest, `best`.
            engine: mxnet; onnxruntime or openvino for a model folder with model.onnx; `auto` = mxnet for checkpoints
                and GPUs, else the fastest that is installed, measured once for a model, batch size and machine and
                then remembered (in ~/.cache or XDG_CACHE_HOME).
            ctx: where to run: a context of mxnet, or options that name one; None = the first usable GPU, else the CPU.
            threshold: lowest score of a detection, or {class name: lowest score}; None, and classes that are not named:
                manifest.thresholds, or DEFAULT_THRESHOLD. The model itself drops what is below its own score threshold
                (manifest.postprocessing).
            batch_size: images at a time.
            resize_mode: how images fill the input, force or letterbox; None = as the model says.
            detection_options: nms, nms_topk, score_threshold, force in place of a checkpoint's own; a model folder must
                have been exported with them.

        CheckpointError where there is no model or it is damaged, OptionError for a threshold of no class or an engine
        that cannot run this model, InstallError for one that is not installed.
        """
        if batch_size < 1:
            raise OptionError(f"batch size {batch_size}: expected at least 1")
        self._engine = open_engine(engine, EngineRequest(path, epoch, ctx, batch_size, detection_options))
        self.engine = self._engine.name
        self.manifest = self._engine.manifest
        if resize_mode is not None and resize_mode not in RESIZE_MODES:
            raise OptionError(f"resize mode {resize_mode!r}: expected {' or '.join(RESIZE_MODES)}")
        if resize_mode is not None:
            self.manifest = replace(self.manifest, resize_mode=resize_mode)
        self.class_names = self.manifest.class_names
        self.batch_size = batch_size
        self._thresholds = self.lowest_scores(threshold)
        self._writer = InputWriter(self.manifest)
        self._timings = Timings()

    def detect(self, images: ImageInput | Iterable[ImageInput], mapped: bool = False) -> np.ndarray | list[np.ndarray]:
        """Detections of an image, or the list of those of several images.

        An image is a path, the bytes of an image file, or an array (h, w, 3) uint8 RGB. Several are anything iterable,
        an array (n, h, w, 3) included. A model with a bit depth (manifest.bit_depth) takes files and arrays of more
        bits, and makes them 8 itself; engines.preprocess.read_image does it alone, for instance to draw on them.

        mapped: arrays are what read_image gave by the model's bit depth. Otherwise a window refuses 8 bits.

        Returns:
            For each image a float32 array (n, 6), rows [id, score, xmin, ymin, xmax, ymax] by falling score, in pixels
            of the image (edges, from 0 to its width and height); (0, 6) if nothing is found. DataError names an image
            that cannot be read.
        """
        if isinstance(images, (str, Path, bytes, bytearray, memoryview)):
            return next(self.stream([images]))
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return next(self.stream([images], mapped))
        return list(self.stream(images, mapped))

    def stream(self, images: Iterable[ImageInput], mapped: bool = False) -> Iterator[np.ndarray]:
        """The detections of one image after the other, as detect() gives them; holds batch_size images at a time."""
        numbered = enumerate(images)
        while chunk := list(itertools.islice(numbered, self.batch_size)):
            yield from self._detect_batch([self._read(image, number, mapped) for number, image in chunk])

    def lowest_scores(self, threshold: float | Mapping[str, float] | None) -> np.ndarray:
        """The lowest score of each class (C,) that a threshold means, as for a new Detector."""
        return class_thresholds(threshold, self.class_names, self.manifest.thresholds)

    def statistics(self) -> dict[str, StepStatistics]:
        """How often each step ran and its seconds: decoding, pre-processing and post-processing of an image, and the
        network's of a batch."""
        return self._timings.summary()

    def reset_statistics(self) -> None:
        """Starts the statistics anew, for instance after the first images."""
        self._timings.clear()

    def _read(self, image: ImageInput, number: int, mapped: bool) -> np.ndarray:
        rule = "" if mapped and isinstance(image, np.ndarray) else self.manifest.bit_depth
        with self._timings.measure(DECODING):
            return read_image(image, f"image {number}", rule)

    def _detect_batch(self, pictures: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The detections of up to batch_size pictures."""
        data, views = self._writer.batch(len(pictures), self.batch_size), []
        for picture, row in zip(pictures, data, strict=False):
            with self._timings.measure(PRE):
                views.append(self._writer.write(picture, row))
        with self._timings.measure(NETWORK):
            det = self._engine.run(data)
        for view, rows in zip(views, det, strict=False):
            with self._timings.measure(POST):
                found = select(rows, self._thresholds, view, self.manifest.size)
            yield found


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


def class_thresholds(
    threshold: float | Mapping[str, float] | None,
    class_names: Sequence[str],
    own: Mapping[str, float] = MappingProxyType({}),
) -> np.ndarray:
    """The threshold of each class (C,); OptionError for an unknown class or a threshold outside [0, 1].

    own: those of the model, for classes that `threshold` does not name; without these, too, DEFAULT_THRESHOLD.
    """
    if threshold is None:
        threshold = {}
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    for name, value in by_name.items():
        if name not in class_names:
            raise OptionError(f"threshold of {name!r}: no such class (there are {', '.join(class_names)})")
        if not 0 <= value <= 1:
            raise OptionError(f"threshold {value} of {name}: expected 0 to 1")
    found = [by_name.get(name, own.get(name, DEFAULT_THRESHOLD)) for name in class_names]
    return np.array(found, np.float32)
