"""Where detections and pictures go beside video files: a JSON file, image files, a window, cut-out detections."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from common.errors import OptionError
from common.files import write_atomically
from engines.preprocess import encode_image
from machine.opencv import cv2

LINES = ".jsonl"
PictureRecord = dict[str, Any]
TITLE = "detections (q ends)"
_END_KEYS = (ord("q"), 27)  # 27: Escape


class Records:
    """Takes records; `pictures` and `detections` count them. A list is written by close(), with what is there then."""

    def __init__(self, path: str = "") -> None:
        """The file, or '' for none; JSON lines if its name ends in LINES."""
        self.pictures = self.detections = 0
        self._path, self._by_lines = path, path.lower().endswith(LINES)
        self._lines: TextIO | None = None
        self._list: list[PictureRecord] = []

    def add(self, record: PictureRecord) -> None:
        """Adds one picture's record."""
        self.pictures += 1
        self.detections += len(record["detections"])
        if self._by_lines:
            self._lines = self._lines or open(self._path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - close()
            self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        elif self._path:
            self._list.append(record)

    def discard(self) -> None:
        """Leaves an older list as it is; lines that are written already stay."""
        self._path = ""

    def close(self) -> None:
        """Completes the file."""
        if self._lines:
            self._lines.close()
        elif self._path:
            text = "" if self._by_lines else json.dumps(self._list, indent=1, ensure_ascii=False) + "\n"
            write_atomically(Path(self._path), text.encode("utf-8"))


def make_record(
    head: PictureRecord, picture: np.ndarray, detections: np.ndarray, names: Sequence[str]
) -> PictureRecord:
    """`head`, the size of the picture (h, w, 3), and detections (n, 6) in its pixels, with names of classes."""
    return {
        **head,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "detections": [
            {
                "class": names[int(row[0])],
                "id": int(row[0]),
                "score": round(float(row[1]), 6),
                "box": [round(float(value), 3) for value in row[2:]],
            }
            for row in detections
        ],
    }


def summary(record: PictureRecord) -> str:
    """What a record holds, for the log."""
    counts = Counter(detection["class"] for detection in record["detections"])
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


class Sink(Protocol):
    """Takes pictures (h, w, 3) uint8 RGB with their time in seconds."""

    path: Path

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Takes one picture."""

    def close(self) -> None:
        """There are no more pictures."""


class ImageFile:
    """An image file for one picture."""

    def __init__(self, path: Path) -> None:
        """A path with a suffix of SUFFIXES."""
        self.path = path

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(self.path, encode_image(pixels, self.path.suffix.lower()))

    def close(self) -> None:
        """The file is complete already."""


class Window:
    """A window that shows pictures; its user ends the run by q or Escape."""

    def __init__(self) -> None:
        """OptionError where there is no display, or an OpenCV without windows."""
        problem = display_problem()
        if problem:
            raise OptionError(f"--show: {problem}; leave it out and look at the files in --output")

    def show(self, pixels: np.ndarray, wait: bool) -> bool:
        """Shows a picture, until a key is pressed if `wait`; returns whether to go on."""
        cv2.imshow(TITLE, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(0 if wait else 1) & 0xFF not in _END_KEYS

    def close(self) -> None:
        """Closes the window."""
        cv2.destroyAllWindows()


def display_problem() -> str | None:
    """Why no window can be opened, or None."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        return "this OpenCV has no windows (opencv-python-headless; opencv-python has)"
    return None


def write_crops(picture: np.ndarray, detections: np.ndarray, names: Sequence[str], stem: Path) -> int:
    """Cuts detections (n, 6), boxes in pixels, out of a picture (h, w, 3): PARENT/CLASS/STEM-0001.png and so on.

    `stem` is PARENT/STEM; returns how many there were. Boxes are rounded outwards to whole pixels.
    """
    height, width = picture.shape[:2]
    low = np.clip(np.floor(detections[:, 2:4]), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(detections[:, 4:6]), low + 1, [width, height]).astype(int)
    for number, (x0, y0), (x1, y1), row in zip(range(1, 1 + len(low)), low, high, detections, strict=True):
        path = stem.parent / folder_name(names[int(row[0])]) / f"{stem.name}-{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(picture[y0:y1, x0:x1], ".png"))  # many and small: not synced one by one
    return len(low)


def folder_name(name: str) -> str:
    """The name of a class as that of a folder: characters that a file system or shell may not accept become `_`."""
    return re.sub(r"[^\w.-]|^\.+", "_", name)[:100]
