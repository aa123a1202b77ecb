"""The command demo.py: detects in images, videos and cameras; leaves pictures, videos, cut-outs and a JSON file."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import OptionError
from common.files import check_output_file
from config.command_line import boolean_flags, parse_options
from config.demo_options import DemoOptions
from config.groups import DeviceOptions
from detect.benchmark import benchmark
from detect.inputs import Source, distinct_files, find_images, is_video, plan_outputs, split_words, with_values
from detect.records import Records
from detect.run import Job, Run
from detect.sinks import Window
from detect.video import Video, frame_size
from engines.preprocess import ImageInput, read_image
from machine.cpu import configure_threads
from machine.signals import exit_on_sigterm
from machine.terminal import log_to_terminal

if TYPE_CHECKING:
    from detect.detector import Detector

logger = logging.getLogger(__name__)
MAX_BENCHMARK_FRAMES = 50  # of a video; they are held in memory
UNREADABLE_STATUS, INTERRUPTED_STATUS = 2, 130
_DEFAULTS = {"--camera": "0", "--benchmark": "100"}  # of flags that may stand alone


def main(argv: list[str]) -> int:
    """Parses the options and detects; status 2 if something could not be read, 130 after Ctrl-C, 143 after SIGTERM."""
    words, flags = split_words(with_values(argv, _DEFAULTS), boolean_flags(DemoOptions))
    description = "Detect objects in images, videos and cameras; python demo.py [FILE ...] --model MODEL."
    options = parse_options(DemoOptions, flags, description)
    sources = _sources(words, options)
    jobs = _plan(sources, options)
    if options.json and not options.benchmark:
        check_output_file("--json", options.json, make_folders=True)
    configure_threads()
    log_to_terminal()
    exit_on_sigterm()
    window = Window() if options.show else None
    detector = _load(options)
    if options.benchmark:
        print("\n".join(benchmark(detector, _pictures(sources, options), options.benchmark)))
        return 0
    _make_folders(jobs[0], options)
    return _detect(Run(detector, options.thresh, Records(options.json), window), jobs, options)


def _load(options: DemoOptions) -> "Detector":
    """The detector of the options, which is the model that they expect; heat maps need all of its boxes."""
    from detect.detector import Detector
    from model.expected_model import check_model

    detection = {name: getattr(options, name) for name in ("nms", "force") if getattr(options, name) is not None}
    detector = Detector(
        options.model,
        options.epoch,
        engine=options.engine,
        ctx=DeviceOptions(gpus=options.gpus, cpu=options.cpu),
        threshold=0.0 if options.heatmap else options.thresh,
        batch_size=options.batch_size,
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


def _sources(words: Sequence[str], options: DemoOptions) -> list[Source]:
    """The camera, images and videos that the options name, each file once."""
    if options.frame_resize:
        frame_size(options.frame_resize, (1, 1))
    images = [*words, options.images]
    found = [Source(int(options.camera), True)] if options.camera else []
    if any(images) or options.dir or not (found or options.video):
        found += [Source(path, is_video(path)) for path in find_images(images, options.dir, options.ext)]
    if options.video:
        found += [Source(path, True) for path in find_images([options.video])]
    return list({source.path: source for source in found}.values())


def _plan(sources: Sequence[Source], options: DemoOptions) -> list[Job]:
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
    for file in (options.json and Path(options.json), job.picture, job.heatmap):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)


def _detect(run: Run, jobs: Sequence[Job], options: DemoOptions) -> int:
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
        run.records.discard()
        raise
    finally:
        run.close()
    _report(run, options, time.monotonic() - started)
    if interrupted:
        logger.error("interrupted")
        return INTERRUPTED_STATUS
    return UNREADABLE_STATUS if run.problems else 0


def _report(run: Run, options: DemoOptions, seconds: float) -> None:
    """Logs what was written, the totals and, last, what could not be read."""
    pictures, found = run.records.pictures, run.records.detections
    if options.json:
        logger.info("detections: %s", options.json)
    for name, folder in (("pictures", options.output), ("heat maps", options.heatmap), ("cut-outs", options.crop)):
        if folder and pictures:
            logger.info("%s: %s", name, folder)
    logger.info("%d images, %d detections, %.2f s, engine %s", pictures, found, seconds, run.detector.engine)
    for problem in run.problems:
        logger.error("error: %s", problem)


def _pictures(sources: Sequence[Source], options: DemoOptions) -> list[ImageInput]:
    """What --benchmark detects in: the bytes of image files, the first frames of videos; errors as when detecting."""
    pictures: list[ImageInput] = []
    for source in sources[: options.benchmark]:
        if source.video:
            limit = min(options.max_frames or MAX_BENCHMARK_FRAMES, options.benchmark)
            pictures += [frame.pixels for frame in Video(source.origin, options.frame_resize).frames(limit)]
        else:
            read_image(source.path, str(source.path))
            pictures.append(source.path.read_bytes())
    return pictures
