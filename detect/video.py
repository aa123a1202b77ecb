"""Frames of video files and cameras, and video files of pictures."""

import logging
import math
import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import DataError, OptionError
from dataset.transforms import shape_of
from detect.inputs import VIDEO_SUFFIXES
from machine.opencv import cv2

USUAL_RATE, HIGHEST_RATE = 25.0, 240.0  # frames a second, where a file or camera does not say
SHORT = 0.9  # share of the frames that a file promises; fewer give a warning
MAX_SCALE, MAX_SIDE = 8.0, 8192
# The first one that this OpenCV can write; the second suffix is not that of a film to read in the same folder.
_CODECS = (("mp4v", ".mp4"), ("MJPG", ".mjpg.avi"))
logger = logging.getLogger(__name__)


class Capture(Protocol):
    """What is used of cv2.VideoCapture."""

    def isOpened(self) -> bool: ...  # noqa: N802, D102 - OpenCV's names

    def read(self) -> tuple[bool, np.ndarray | None]: ...  # noqa: D102

    def get(self, number: int) -> float: ...  # noqa: D102

    def set(self, number: int, value: float) -> bool: ...  # noqa: D102

    def release(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class VideoFrame:
    """Pixels (h, w, 3) uint8 RGB, the number of the frame from 0, and its time in seconds from the beginning."""

    pixels: np.ndarray
    number: int
    seconds: float


class Video:
    """A video file, or a camera: its frames can be read once."""

    def __init__(self, source: Path | int, resize: str = "") -> None:
        """Opens a file, or the camera with a number; resize: of the frames, as frame_size() reads it.

        DataError names what cannot be opened.
        """
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self.live = isinstance(source, int)
        self._resize = resize
        self._capture = open_capture(source)
        if not self._capture.isOpened():
            self._capture.release()
            raise DataError(f"{self.name}: {_reason_closed(source)}")
        if self.live:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one from a queue
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= HIGHEST_RATE else USUAL_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not self.live and math.isfinite(count) and count > 0 else None

    def frames(self, limit: int = 0) -> Generator[VideoFrame, None, None]:
        """The frames, at most `limit` of them unless it is 0; DataError where there is none at all."""
        started, number = time.monotonic(), 0
        try:
            while not limit or number < limit:
                good, pixels = self._capture.read()
                if not good or pixels is None:
                    self._check_end(number)
                    return
                now = time.monotonic() - started if self.live else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield VideoFrame(self._prepared(pixels), number, now)
                number += 1
        finally:
            self._capture.release()

    def _prepared(self, pixels: np.ndarray) -> np.ndarray:
        if self._resize:
            height, width = frame_size(self._resize, shape_of(pixels))
            shrinks = height * width < pixels.shape[0] * pixels.shape[1]
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    def _check_end(self, number: int) -> None:
        if not number:
            raise DataError(f"{self.name}: no picture can be read from it; is it a whole video?")
        if self.live:
            logger.warning("%s: gives no more pictures", self.name)
        elif self.count and number < self.count * SHORT:
            logger.warning("%s: ends after %d of %d frames; it is damaged or cut off", self.name, number, self.count)


def open_capture(source: Path | int) -> Capture:
    """OpenCV's reader; a path is never taken for an address or a pattern of names."""
    return cv2.VideoCapture(source if isinstance(source, int) else os.path.abspath(source))


def frame_size(text: str, size: tuple[int, int]) -> tuple[int, int]:
    """`width,height` or a factor, for frames of a size (h, w) -> (height, width); OptionError for anything else."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 2 and all(number.is_integer() and 1 <= number <= MAX_SIDE for number in numbers):
        return int(numbers[1]), int(numbers[0])
    if len(numbers) == 1 and 0 < numbers[0] <= MAX_SCALE:
        return max(1, round(size[0] * numbers[0])), max(1, round(size[1] * numbers[0]))
    raise OptionError(f"--frame-resize {text}: expected width,height in pixels, or a factor up to {MAX_SCALE:g}")


class VideoFile:
    """A video of pictures; it gets its name when it is closed, and before that it is hidden beside it.

    It has one speed. With `live` pictures are repeated or left out so that the film takes as long as what it shows.
    """

    def __init__(self, path: Path, rate: float, live: bool = False) -> None:
        """A file that is begun with the first picture; .mp4, or .mjpg.avi where OpenCV has no encoder for it."""
        self.path = path
        self._rate, self._live = rate, live
        self._writer: Any = None
        self._written = 0

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Adds a picture (h, w, 3) uint8 RGB; others than the first are brought to its size (MPEG: an even one)."""
        if self._writer is None:
            self._open(shape_of(pixels))
        if shape_of(pixels) != self._size:
            pixels = cv2.resize(pixels, self._size[::-1])
        due = int(seconds * self._rate) + 1 - self._written if self._live else 1
        for _ in range(max(0, due)):
            self._writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            self._written += 1

    def _open(self, size: tuple[int, int]) -> None:
        self._size = size
        asked = self.path
        for codec, suffix in _CODECS:
            self.path = asked.with_suffix(suffix)
            self._temporary = asked.with_name(f".{asked.stem}.{os.getpid()}{suffix}")
            code = cv2.VideoWriter.fourcc(*codec)
            self._writer = cv2.VideoWriter(str(self._temporary), code, self._rate, size[::-1])
            if self._writer.isOpened():
                return
            self._temporary.unlink(missing_ok=True)
        self._writer = None
        raise OptionError(f"{asked}: OpenCV cannot write a video there; choose another --output, or '' for none")

    def discard(self) -> None:
        """Ends the file and removes it, so that an older one of its name stays; close() then does nothing."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the file and gives it its name; DataError where there was no room for it."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if not self._temporary.is_file() or not self._temporary.stat().st_size:
            self._temporary.unlink(missing_ok=True)
            raise DataError(f"{self.path}: could not be written; is the disk full?")
        os.replace(self._temporary, self.path)


def _reason_closed(source: Path | int) -> str:
    if isinstance(source, int):
        return f"cannot be opened; is it there, and may this user read /dev/video{source}?"
    return f"not a video that OpenCV can read; give a whole {', '.join(sorted(VIDEO_SUFFIXES))}"
