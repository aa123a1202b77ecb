"""Where detections and pictures go beside video files: JSON, annotations, image files, a window, cut-out detections."""

import itertools
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from common.errors import DataError, OptionError
from common.files import sync_folder, write_atomically
from dataset.image_check import IMAGE_SUFFIXES, OTHER_SUFFIXES
from dataset.imdb import AnnotatedImage
from dataset.transforms import shape_of
from dataset.writers import FORMATS, check_class_names, flat_names, losses, safe_name
from engines.preprocess import encode_image
from machine.opencv import cv2

LINES = ".jsonl"
STANDARD_OUTPUT = "-"
SAVED = ("voc", "yolo", "coco", "csv")  # of FORMATS
_SIGNATURE_BYTES = 16  # tell the format of a picture
PictureRecord = dict[str, Any]
TITLE = "detections (q ends)"
_END_KEYS = (ord("q"), 27)  # 27: Escape


class Records:
    """Takes records; `pictures` and `detections` count them. A list is written by close(), with what is there then."""

    def __init__(self, path: str = "") -> None:
        """The file, '' for none, STANDARD_OUTPUT for that; JSON lines if its name ends in LINES."""
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
            if self._path == STANDARD_OUTPUT:
                sys.stdout.write(text)
            else:
                write_atomically(Path(self._path), text.encode("utf-8"))


class LabelFolder:
    """Takes pictures with what was found in them; close() makes a data set of them, which a person then corrects.

    The folder holds copies of the pictures and annotations of one of SAVED, as tools/convert_dataset.py writes them.
    """

    def __init__(self, folder: str, kind: str, class_names: Sequence[str]) -> None:
        """OptionError unless the folder is new or empty; DataError for class names that annotations cannot hold."""
        self._folder, self._kind, self._names = Path(folder), kind, class_names
        self._images: list[AnnotatedImage] = []
        check_label_folder(folder)
        check_class_names(class_names, coco=kind == "coco")

    def add(self, path: Path, pixels: np.ndarray, detections: np.ndarray) -> None:
        """Adds a picture (h, w, 3), its file, and detections (n, 6) in its pixels."""
        objects = np.column_stack([detections[:, [0, 2, 3, 4, 5]], np.zeros(len(detections))]).astype(np.float64)
        scores = detections[:, 1].astype(np.float64)
        self._images.append(AnnotatedImage(path.as_posix(), path, objects, shape_of(pixels), scores=scores))

    def discard(self) -> None:
        """Nothing will be written."""
        self._images = []

    def close(self) -> list[str]:
        """Writes the folder, whole or not at all; sentences about what the format does not keep. None without pictures.

        DataError where a file cannot be written.
        """
        if not self._images:
            return []
        folder = self._folder.absolute()
        staged = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            staged.mkdir(parents=True)
            lines = self._write(staged)
            os.rename(staged, folder)  # over an empty folder, too
            sync_folder(folder.parent)
        except OSError as error:
            raise DataError(f"--save-dir {self._folder}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return lines

    def _write(self, folder: Path) -> list[str]:
        form, names = FORMATS[self._kind], _picture_names([image.path for image in self._images])
        images = [replace(image, name=name) for image, name in zip(self._images, names, strict=True)]
        pictures = folder / form.pictures("")
        pictures.mkdir(parents=True, exist_ok=True)
        for image in images:
            shutil.copyfile(image.path, pictures / image.name)
        for path, content in form.annotations({"": images}, self._names, 1):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return losses(self._kind, {"": images}, self._names)


def check_label_folder(folder: str) -> None:
    """OptionError unless the folder of --save-dir is new or empty."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OptionError(f"--save-dir {folder}: is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise OptionError(f"--save-dir {folder}: holds files, and none is replaced; name a new folder")


def _picture_names(paths: Sequence[Path]) -> list[str]:
    """Names for one folder, none of which a reader trips over; no two have one stem, whatever the case of letters."""
    taken: set[str] = set()
    names = []
    for path, flat in zip(paths, flat_names([path.as_posix() for path in paths]), strict=True):
        stem, suffix = safe_name(flat, _first_bytes(path))
        free = itertools.chain([stem], (f"{stem}_{k}" for k in itertools.count(2)))
        stem = next(one for one in free if one.casefold() not in taken)
        taken.add(stem.casefold())
        names.append(stem + suffix)
    return names


def _first_bytes(path: Path) -> bytes:
    """What tells the format of a file whose name does not; else nothing."""
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES):
        return b""
    with open(path, "rb") as file:
        return file.read(_SIGNATURE_BYTES)


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
