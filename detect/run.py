"""A run of demo.py: images and frames go through the detector, and what was found goes where it is wanted."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from common.errors import DataError
from dataset.transforms import shape_of
from detect.inputs import Source
from detect.records import Record, Records, make_record, summary
from detect.sinks import ImageFile, Sink, Window, write_crops
from detect.video import Frame, Video, VideoFile
from drawing.boxes import draw
from drawing.heatmap import draw_heatmap, score_map
from engines.preprocess import read_image

if TYPE_CHECKING:
    from detect.detector import Detector

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to read, and the files for what is made of it, None = not wanted.

    Attributes:
        picture, heatmap: of the picture, or video, with boxes and with the heat map.
        crop: its folder and stem are those of the cut-out detections.
    """

    source: Source
    picture: Path | None = None
    heatmap: Path | None = None
    crop: Path | None = None


@dataclass(frozen=True)
class Item:
    """A picture (h, w, 3) to detect in, the beginning of its record, its place in time, and where the results go."""

    pixels: np.ndarray
    head: Record
    seconds: float = 0.0
    picture: Sink | None = None
    heatmap: Sink | None = None
    crop: Path | None = None


class Run:
    """Detects in images and videos.

    Attributes:
        problems: sentences on what could not be read.
        records: what was found.
    """

    def __init__(self, detector: "Detector", threshold: float, records: Records, window: Window | None = None) -> None:
        """threshold: lowest score shown and recorded, beside that of the detector; heat maps show all that it finds."""
        self.detector = detector
        self.records = records
        self.problems: list[str] = []
        self._threshold = threshold
        self._window = window
        self._ended = False  # by the user, in the window

    def detect_images(self, jobs: Sequence[Job]) -> None:
        """Detects in image files, a batch at a time; logs each image."""
        for record in self._detect(self._read_all(jobs), wait=True):
            done = self.records.pictures + len(self.problems)
            logger.info("[%d/%d] %s: %s", done, len(jobs), record["image"], summary(record))

    def detect_video(self, job: Job, frame_resize: str = "", limit: int = 0) -> None:
        """Detects in the frames of a video or camera, at most `limit` unless it is 0; completes its files."""
        try:
            video = Video(job.source.origin, frame_resize)
            count = self._detect_frames(job, video, limit)
            logger.info("%s: %d frames", video.name, count)
        except DataError as error:
            self.problems.append(str(error))

    def _detect_frames(self, job: Job, video: Video, limit: int) -> int:
        sinks = [VideoFile(path, video.rate, video.live) if path else None for path in (job.picture, job.heatmap)]
        total = min(limit or video.count, video.count) if video.count else limit or None
        frames = video.frames(limit)
        with ExitStack() as stack:  # closes everything, whatever fails
            for sink in filter(None, sinks):
                stack.callback(sink.close)
            stack.callback(frames.close)
            shown = tqdm(frames, video.name, total, disable=None, unit=" frames", leave=False)
            try:
                return sum(1 for _ in self._detect(_items(video.name, shown, job, *sinks)))
            except KeyboardInterrupt:
                raise  # a film that the user has ended is kept
            except BaseException:
                for sink in filter(None, sinks):
                    sink.discard()
                raise

    def close(self) -> None:
        """Completes the records and closes the window."""
        self.records.close()
        if self._window:
            self._window.close()

    def _read_all(self, jobs: Sequence[Job]) -> Iterator[Item]:
        """Those images that can be read; the errors of the others join the problems."""
        for job in jobs:
            try:
                pixels = read_image(job.source.path, str(job.source.path))
            except DataError as error:
                self.problems.append(str(error))
                continue
            picture, heatmap = (ImageFile(path) if path else None for path in (job.picture, job.heatmap))
            crop = job.crop and job.crop.with_suffix("")
            yield Item(pixels, {"image": str(job.source.path)}, 0.0, picture, heatmap, crop)

    def _detect(self, items: Iterator[Item], wait: bool = False) -> Iterator[Record]:
        """Detects in the items and gives their results away; yields their records."""
        while not self._ended and (batch := list(itertools.islice(items, self.detector.batch_size))):
            found = self.detector.detect([item.pixels for item in batch])
            for item, rows in zip(batch, found, strict=True):
                yield self._finish(item, rows, wait)

    def _finish(self, item: Item, rows: np.ndarray, wait: bool) -> Record:
        names = self.detector.class_names
        detections = rows[rows[:, 1] >= self._threshold]
        if item.picture or self._window:
            drawn = draw(item.pixels, detections, names)
            if item.picture:
                item.picture.write(drawn, item.seconds)
            if self._window and not self._ended:
                self._ended = not self._window.show(drawn, wait)
        if item.heatmap:
            item.heatmap.write(draw_heatmap(item.pixels, score_map(rows, shape_of(item.pixels))), item.seconds)
        if item.crop:
            write_crops(item.pixels, detections, names, item.crop)
        record = make_record(item.head, item.pixels, detections, names)
        self.records.add(record)
        return record


def _items(name: str, frames: Iterable[Frame], job: Job, picture: Sink | None, heatmap: Sink | None) -> Iterator[Item]:
    for frame in frames:
        head = {"image": name, "frame": frame.number, "time": round(frame.seconds, 3)}
        crop = job.crop and job.crop.with_name(f"{job.crop.stem}-{frame.number:06d}")
        yield Item(frame.pixels, head, frame.seconds, picture, heatmap, crop)
