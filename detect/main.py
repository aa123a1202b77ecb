"""The command demo.py: detects in images, videos and cameras; leaves pictures, videos, cut-outs and a JSON file."""

import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from common.errors import DataError, OptionError
from common.files import check_output_file
from config.command_line import boolean_flags, parse_options
from config.groups import DeviceOptions, InputOptions, obsolete
from config.model_groups import ExpectedModel, ModelOptions
from config.options import option, same_option
from dataset.transforms import shape_of
from detect.inputs import (
    InputSource,
    ask_beside,
    ask_for_images,
    distinct_files,
    find_images,
    is_video,
    plan_outputs,
    split_words,
    with_values,
)
from detect.outputs import (
    SAVED,
    STANDARD_OUTPUT,
    ImageFile,
    LabelFolder,
    PictureRecord,
    Records,
    Sink,
    Window,
    check_label_folder,
    make_record,
    summary,
    write_crops,
)
from detect.video import Video, VideoFile, VideoFrame, frame_size
from drawing.boxes import draw, draw_heatmap, score_map
from engines.preprocess import ImageInput, read_image
from machine.command import exit_on_sigterm, log_to_terminal
from machine.cpu import configure_threads
from symbol.network_options import CommonOptions

if TYPE_CHECKING:
    from detect.detector import Detector


EXAMPLE = "python demo.py --model output/ssd photos/ --output output/detections --json output/found.json"
# What --help shows; --help-all has all.
FIRST = (
    *("model", "epoch", "images", "video", "camera", "thresh", "nms", "output", "json", "save", "save_dir", "show"),
    *("crop", "heatmap", "batch_size", "engine", "gpus", "cpu", "benchmark"),
)


@dataclass(frozen=True)
class DemoOptions(ExpectedModel, ModelOptions):
    """What to detect with which model; a word that belongs to no flag is an image, too."""

    images: str = option("", "files (images, videos), folders and globs, separated by commas", "images")
    video: str = option("", "video files, separated by commas, whatever their names end with", "images")
    camera: str = option(
        "", "number of a camera to read, 0 if none is given; Ctrl-C ends", "images", pattern=(r"\d*", "a number")
    )
    frame_resize: str = option(
        "", "size of the frames of videos and cameras: width,height or a factor (default: their own)", "images"
    )
    max_frames: int = option(0, "frames to read of each video or camera; 0 = all", "images", minimum=0)
    dir: str = option("", "folder put before each of the images; alone: its images", "images")
    ext: str = option("", "extension put after each of the images", "images")
    batch_size: int = option(1, "images at a time", "images", minimum=1, maximum=1024)
    resize_mode: str | None = same_option(InputOptions, "resize_mode", "as the model says")
    thresh: float | None = option(None, "lowest score (default: model's, or 0.5)", "detections", minimum=0, maximum=1)
    nms: float | None = same_option(CommonOptions, "nms", "the model's; for a checkpoint only")
    force: bool | None = same_option(CommonOptions, "force", "the model's; for a checkpoint only")
    output: str = option("output/detections", "folder for the pictures and videos with boxes; '' = none", "detections")
    show: bool = option(False, "show the pictures in a window, too; q ends", "detections")
    crop: str = option("", "folder for the cut-out detections, CLASS/IMAGE-NNNN.png; '' = none", "detections")
    heatmap: str = option(
        "",
        "folder for pictures with a heat map of the scores of all boxes, those below --thresh included; '' = none",
        "detections",
    )
    json: str = option(
        "",
        "file for the detections: a list, or, if its name ends in .jsonl, a line for each picture; - = standard output",
        "detections",
    )
    save: str = option(
        "", "write the pictures with what was found as a data set, to be corrected by hand", "detections", choices=SAVED
    )
    save_dir: str = option("output/labels", "folder for --save, new or empty", "detections")
    benchmark: int = option(
        0,
        "measure each step over so many images (100 if no number is given), and write nothing",
        "measuring",
        minimum=0,
    )
    deploy: bool = obsolete(False, "--model says by itself whether it is a model folder or a checkpoint")
    timer: bool = obsolete(True, "the seconds are always logged")


logger = logging.getLogger(__name__)
WARM_BATCHES = 5  # of --benchmark, not counted
MAX_BENCHMARK_FRAMES = 50  # of a video; they are held in memory
UNREADABLE_STATUS, INTERRUPTED_STATUS = 2, 130
_DEFAULTS = {"--camera": "0", "--benchmark": "100"}  # of flags that may stand alone


@dataclass(frozen=True)
class Job:
    """What to read, and the files for what is made of it, None = not wanted.

    Attributes:
        picture, heatmap: of the picture, or video, with boxes and with the heat map.
        crop: its folder and stem are those of the cut-out detections.
    """

    source: InputSource
    picture: Path | None = None
    heatmap: Path | None = None
    crop: Path | None = None


@dataclass(frozen=True)
class Item:
    """A picture (h, w, 3) to detect in, the beginning of its record, its place in time, and where the results go.

    path: its file, None of a frame.
    """

    pixels: np.ndarray
    head: PictureRecord
    seconds: float = 0.0
    picture: Sink | None = None
    heatmap: Sink | None = None
    crop: Path | None = None
    path: Path | None = None


class DetectionRun:
    """Detects in images and videos.

    Attributes:
        problems: sentences on what could not be read.
        records: what was found.
        thresholds: (C,) lowest scores shown and recorded, beside those of the detector; heat maps show all it finds.
        labels: the data set that is made of it, if any.
    """

    def __init__(
        self,
        detector: "Detector",
        threshold: float | None,
        records: Records,
        window: Window | None = None,
        labels: LabelFolder | None = None,
    ) -> None:
        self.labels = labels
        self.detector = detector
        self.records = records
        self.problems: list[str] = []
        self.thresholds = detector.lowest_scores(threshold)
        self._window = window
        self._bit_depth = detector.manifest.bit_depth
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
                return sum(1 for _ in self._detect(_items(video.name, self._mapped(video.name, shown), job, *sinks)))
            except KeyboardInterrupt:
                raise  # a film that the user has ended is kept
            except BaseException:
                for sink in filter(None, sinks):
                    sink.discard()
                raise

    def _mapped(self, name: str, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """The frames in the model's bit depth; DataError where that is a window, as videos have 8 bits."""
        for frame in frames:
            yield replace(frame, pixels=read_image(frame.pixels, f"{name}, frame {frame.number}", self._bit_depth))

    def discard(self) -> None:
        """Leaves an older file as it is, and writes no data set."""
        self.records.discard()
        if self.labels:
            self.labels.discard()

    def close(self) -> None:
        """Completes the records and the data set and closes the window."""
        self.records.close()
        for line in self.labels.close() if self.labels else ():
            logger.info("%s", line)
        if self._window:
            self._window.close()

    def _read_all(self, jobs: Sequence[Job]) -> Iterator[Item]:
        """Those images that can be read; the errors of the others join the problems."""
        for job in jobs:
            try:
                pixels = read_image(job.source.path, str(job.source.path), self._bit_depth)
            except DataError as error:
                self.problems.append(str(error))
                continue
            picture, heatmap = (ImageFile(path) if path else None for path in (job.picture, job.heatmap))
            crop = job.crop and job.crop.with_suffix("")
            yield Item(pixels, {"image": str(job.source.path)}, 0.0, picture, heatmap, crop, job.source.path)

    def _detect(self, items: Iterator[Item], wait: bool = False) -> Iterator[PictureRecord]:
        """Detects in the items and gives their results away; yields their records."""
        while not self._ended and (batch := list(itertools.islice(items, self.detector.batch_size))):
            found = self.detector.detect([item.pixels for item in batch], mapped=True)
            for item, rows in zip(batch, found, strict=True):
                yield self._finish(item, rows, wait)

    def _finish(self, item: Item, rows: np.ndarray, wait: bool) -> PictureRecord:
        names = self.detector.class_names
        detections = rows[rows[:, 1] >= self.thresholds[rows[:, 0].astype(int)]]
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
        if self.labels and item.path:
            self.labels.add(item.path, item.pixels, detections)
        record = make_record(item.head, item.pixels, detections, names)
        self.records.add(record)
        return record


def _items(
    name: str, frames: Iterable[VideoFrame], job: Job, picture: Sink | None, heatmap: Sink | None
) -> Iterator[Item]:
    for frame in frames:
        head = {"image": name, "frame": frame.number, "time": round(frame.seconds, 3)}
        crop = job.crop and job.crop.with_name(f"{job.crop.stem}-{frame.number:06d}")
        yield Item(frame.pixels, head, frame.seconds, picture, heatmap, crop)


def main(argv: list[str]) -> int:
    """Parses the options and detects; status 2 if something could not be read, 130 after Ctrl-C, 143 after SIGTERM."""
    words, flags = split_words(with_values(argv, _DEFAULTS), boolean_flags(DemoOptions))
    description = "Detects objects in images, videos and cameras: python demo.py [FILE ...] --model MODEL."
    options = parse_options(DemoOptions, flags, description, example=EXAMPLE, first=FIRST)
    sources = _sources(words, options)
    jobs = _plan(sources, options)
    if options.json not in ("", STANDARD_OUTPUT) and not options.benchmark:
        check_output_file("--json", options.json, make_folders=True)
    _check_saving(sources, options)
    configure_threads()
    log_to_terminal()
    exit_on_sigterm()
    window = Window() if options.show else None
    detector = _load(options)
    if options.benchmark:
        print(
            "\n".join(benchmark(detector, _pictures(sources, options, detector.manifest.bit_depth), options.benchmark))
        )
        return 0
    _make_folders(jobs[0], options)
    labels = LabelFolder(options.save_dir, options.save, detector.class_names) if options.save else None
    return _detect(DetectionRun(detector, options.thresh, Records(options.json), window, labels), jobs, options)


def _check_saving(sources: Sequence[InputSource], options: DemoOptions) -> None:
    """OptionError where --save could not be done after the work."""
    if not options.save:
        return
    video = next((source.path for source in sources if source.video), None)
    if video is not None:
        raise OptionError(f"--save {options.save}: {video} has frames, which are no files; name pictures alone")
    check_label_folder(options.save_dir)


def _load(options: DemoOptions) -> "Detector":
    """The detector of the options, which is the model that they expect; heat maps need all of its boxes."""
    from detect.detector import Detector
    from model.manifest import check_model

    detection = {name: getattr(options, name) for name in ("nms", "force") if getattr(options, name) is not None}
    detector = Detector(
        options.model,
        options.epoch,
        engine=options.engine,
        ctx=DeviceOptions(gpus=options.gpus, cpu=options.cpu),
        threshold=0.0 if options.heatmap else options.thresh,
        batch_size=options.batch_size,
        resize_mode=options.resize_mode,
        **detection,
    )
    known = detector.manifest
    check_model(
        options,
        options.model,
        network=known.network,
        class_names=known.class_names,
        data_shape=known.size,
        mean_pixels=known.mean,
    )
    return detector


def _sources(words: Sequence[str], options: DemoOptions) -> list[InputSource]:
    """The camera, images and videos that the options name, each file once; a terminal is asked where they name none."""
    if options.frame_resize:
        frame_size(options.frame_resize, (1, 1))
    images = [*words, options.images]
    found = [InputSource(int(options.camera), True)] if options.camera else []
    named = any(images) or bool(options.dir)
    if named or not (found or options.video):
        ask = not named and sys.stdin.isatty()
        question = ask_beside if options.json == STANDARD_OUTPUT else input
        paths = ask_for_images(question, options.ext) if ask else find_images(images, options.dir, options.ext)
        found += [InputSource(path, is_video(path)) for path in paths]
    if options.video:
        found += [InputSource(path, True) for path in find_images([options.video])]
    return list({source.path: source for source in found}.values())


def _plan(sources: Sequence[InputSource], options: DemoOptions) -> list[Job]:
    """The files of each source; OptionError where pictures and heat maps would be the same files."""
    folders = {"--output": options.output, "--heatmap": options.heatmap}
    if all(folders.values()) and Path(options.output).resolve() == Path(options.heatmap).resolve():
        raise OptionError(f"--heatmap {options.heatmap}: the pictures with boxes go there; choose another folder")
    paths, videos = [source.path for source in sources], {source.path for source in sources if source.video}
    nothing: list[Path | None] = [None] * len(paths)
    pictures, heatmaps = (plan_outputs(paths, flag, Path(x), videos) if x else nothing for flag, x in folders.items())
    stems = [path.with_suffix(".png") for path in paths]
    crops = distinct_files(stems, Path(options.crop)) if options.crop else nothing
    return [Job(*parts) for parts in zip(sources, pictures, heatmaps, crops, strict=True)]


def _make_folders(job: Job, options: DemoOptions) -> None:
    records = Path(options.json) if options.json not in ("", STANDARD_OUTPUT) else None
    for file in (records, job.picture, job.heatmap):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)


def _detect(run: DetectionRun, jobs: Sequence[Job], options: DemoOptions) -> int:
    """Runs the jobs, images first, and returns the exit status; what is finished is kept when Ctrl-C ends it."""
    started, interrupted = time.monotonic(), False
    try:
        run.detect_images([job for job in jobs if not job.source.video])
        for job in jobs:
            if job.source.video:
                run.detect_video(job, options.frame_resize, options.max_frames)
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        run.discard()
        raise
    finally:
        run.close()
    _report(run, options, time.monotonic() - started)
    if interrupted:
        logger.error("interrupted")
        return INTERRUPTED_STATUS
    return UNREADABLE_STATUS if run.problems else 0


def _report(run: DetectionRun, options: DemoOptions, seconds: float) -> None:
    """Logs what was written, the totals and, last, what could not be read."""
    pictures, found = run.records.pictures, run.records.detections
    if options.json not in ("", STANDARD_OUTPUT):
        logger.info("detections: %s", options.json)
    if options.save and pictures:
        logger.info("%s data set: %s", options.save, options.save_dir)
    if options.crop and pictures and not found:
        logger.info("cut-outs: none, as nothing has a score of %g or more (--thresh)", run.thresholds.min())
    crops = options.crop if found else ""
    for name, folder in (("pictures", options.output), ("heat maps", options.heatmap), ("cut-outs", crops)):
        if folder and pictures:
            logger.info("%s: %s", name, folder)
    logger.info("%d images, %d detections, %.2f s, engine %s", pictures, found, seconds, run.detector.engine)
    for problem in run.problems:
        logger.error("error: %s", problem)


def _pictures(sources: Sequence[InputSource], options: DemoOptions, bit_depth: str) -> list[ImageInput]:
    """What --benchmark detects in: the bytes of image files, the first frames of videos; errors as when detecting."""
    pictures: list[ImageInput] = []
    for source in sources[: options.benchmark]:
        if source.video:
            limit = min(options.max_frames or MAX_BENCHMARK_FRAMES, options.benchmark)
            pictures += [frame.pixels for frame in Video(source.origin, options.frame_resize).frames(limit)]
        else:
            read_image(source.path, str(source.path), bit_depth)
            pictures.append(source.path.read_bytes())
    return pictures


def benchmark(detector: "Detector", images: Sequence[ImageInput], count: int) -> list[str]:
    """Lines of a table: median and p99 of each step over `count` detections, and images a second of all together.

    The images are taken in turn, as often as need be. The first WARM_BATCHES batches are not counted.
    """
    endless = itertools.cycle(images)
    for _ in detector.stream(itertools.islice(endless, WARM_BATCHES * detector.batch_size)):
        pass
    detector.reset_statistics()
    started = time.perf_counter()
    for _ in detector.stream(itertools.islice(endless, count)):
        pass
    seconds = time.perf_counter() - started
    size = detector.batch_size
    lines = [f"engine {detector.engine}, {count} images in batches of {size}", f"{'':18}{'median':>12}{'p99':>12}"]
    for step, figures in detector.statistics().items():
        label = f"{step} ({size})" if step == "network" and size > 1 else step
        lines.append(f"{label:18}{figures.median * 1e3:9.2f} ms{figures.p99 * 1e3:9.2f} ms")
    return [*lines, f"{count / seconds:.1f} images/s from encoded image to boxes"]
