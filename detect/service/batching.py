"""The model of the service: images of concurrent requests run together where that is faster than one by one."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.version import __version__
from config.groups import DeviceOptions
from config.model_groups import ModelOptions
from config.options import option
from detect.detector import Detector, StepStatistics

Rows = np.ndarray
WARM_UPS, TRIALS = 2, 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """Which model is served where, and what a request may cost."""

    thresh: float | None = option(
        None,
        "lowest score of an answer, unless a request says another (default: the model's own thresholds, or 0.5)",
        "model",
        minimum=0,
        maximum=1,
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = all of this machine's", "server")
    port: int = option(
        8000, "port to listen on; 0 = a free one, which the log tells", "server", minimum=0, maximum=65535
    )
    workers: int = option(
        2, "processes that decode images, and threads that draw pictures", "server", minimum=1, maximum=64
    )
    grace: float = option(
        20.0,
        "seconds after SIGTERM or Ctrl-C for the requests at hand; then the service ends whatever runs",
        "server",
        minimum=0.001,
        maximum=86_400,
    )
    api_key_file: str = option(
        "", "file with the keys of those who are served, one on each line; '' = everybody is", "access"
    )
    public_metrics: bool = option(False, "/metrics needs no key, as /health never does", "access")
    batch_size: int = option(
        8, "most images that the network runs at a time; 1 = no batches", "batches", minimum=1, maximum=256
    )
    max_wait_ms: float = option(
        5.0,
        "milliseconds that an image waits for others which are being decoded, to share a batch with them",
        "batches",
        minimum=0,
        maximum=10_000,
    )
    queue: int = option(
        64,
        "images in progress at a time, whose bodies are there; further ones get 503 and a time to try again",
        "limits",
        minimum=1,
    )
    max_size: float = option(16.0, "largest body of a request, MB", "limits", minimum=0.001, maximum=1024)
    max_images: int = option(16, "most images of a form, and never more than --queue", "limits", minimum=1)
    max_pixels: float = option(25.0, "largest image, millions of pixels", "limits", minimum=0.001, maximum=64)
    timeout: float = option(
        30.0, "seconds for a body to arrive, and again until its answer is ready", "limits", minimum=0.001
    )
    decode_timeout: float = option(
        10.0, "seconds for decoding an image; then its decoder is killed", "limits", minimum=0.1, maximum=3600
    )
    max_uploads: int = option(
        64,
        "bodies received at a time; one more takes the place of a slow one, or gets 503",
        "connections",
        minimum=1,
    )
    min_rate: float = option(
        10.0,
        "kB a second at which a body has to come and an answer to be taken, after --slow-start",
        "connections",
        minimum=0.001,
    )
    slow_start: float = option(5.0, "seconds in which a body may come at any rate", "connections", minimum=0.001)
    header_timeout: float = option(
        10.0, "seconds for the header of a request, from the connection or its first byte", "connections", minimum=0.1
    )
    keep_alive: int = option(
        5, "seconds that a connection without a request stays open after an answer", "connections", minimum=1
    )
    max_connections: int = option(
        0, "most connections; 0 = 1024, or as many as the limit of open files has room for", "connections", minimum=0
    )
    max_client_connections: int = option(
        0, "most connections from one address; 0 = half of all", "connections", minimum=0
    )


class Detects(Protocol):
    """What is used of a Detector."""

    batch_size: int

    def stream(self, images: Iterable[np.ndarray], mapped: bool) -> Iterator[Rows]:
        """Detections (n, 6) of one image after the other."""
        ...

    def statistics(self) -> dict[str, StepStatistics]:
        """The figures of each step."""
        ...


class Runner:
    """Runs images in batches where these are worth it.

    A detector fills its batches up, so that a single image costs as much as a whole batch. There is therefore one for
    single images beside the one for batches, and their times, measured at the start, say which is faster for k images.

    Attributes:
        single_seconds, batch_seconds: time of an image alone, and of a batch however full.
        least: fewest images for which a batch is faster.
        several_size: size of a batch.
        batch_size: most images at a time: several_size, or 1 where batches are not faster.
    """

    def __init__(self, single: Detects, several: Detects | None, picture: np.ndarray) -> None:
        """single: of batch size 1; several: of a larger one, or None; picture: (h, w, 3), to measure them with."""
        self._single, self._several = single, several
        self.single_seconds = seconds_of(single, [picture])
        self.batch_seconds = seconds_of(several, [picture] * several.batch_size) if several else self.single_seconds
        self.least = fewest_for_batch(self.single_seconds, self.batch_seconds)
        self.several_size = self.batch_size = several.batch_size if several else 1
        if self.least > self.batch_size:
            self._several, self.batch_size = None, 1

    def detect(self, images: Sequence[np.ndarray]) -> list[Rows]:
        """Detections (n, 6) of each of at most batch_size images, which read_image gave by the model's bit depth."""
        detector = self._several if self._several and len(images) >= self.least else self._single
        return list(detector.stream(images, mapped=True))

    def statistics(self) -> dict[int, dict[str, StepStatistics]]:
        """{size of the detector's batches: figures of its steps}."""
        detectors = [self._single, self._several] if self._several else [self._single]
        return {detector.batch_size: detector.statistics() for detector in detectors}


def seconds_of(detector: Detects, images: Sequence[np.ndarray]) -> float:
    """The shortest of some runs, after some that warm up."""
    seconds = []
    for _ in range(WARM_UPS + TRIALS):
        begin = time.perf_counter()
        list(detector.stream(images, mapped=True))
        seconds.append(time.perf_counter() - begin)
    return min(seconds[WARM_UPS:])


def fewest_for_batch(single_seconds: float, batch_seconds: float) -> int:
    """The smallest number k >= 2 of images that take longer one after the other than as a batch."""
    return max(2, int(batch_seconds / single_seconds) + 1)


@dataclass(eq=False)
class _Job:
    image: np.ndarray
    answer: asyncio.Future[Rows]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Waiting images, and the one thread that runs them in the order of their arrival.

    Attributes:
        waited: called with the seconds that an image has waited.
    """

    def __init__(
        self,
        run: Callable[[Sequence[np.ndarray]], Sequence[Rows]],
        batch_size: int,
        *,
        least: int = 2,
        max_wait: float = 0.0,
        more_are_coming: Callable[[], bool] = lambda: False,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Collects nothing before start().

        Args:
            run: detections of each of the images; called in the thread.
            batch_size: most images of a call.
            least: fewest images of a call for more than one: fewer are run one by one.
            max_wait: seconds that an image waits for others, while more_are_coming() and the batch is not full.
            more_are_coming: asked at each arrival and each nudge().
        """
        self._run, self._batch_size, self._least, self._max_wait = run, batch_size, least, max_wait
        self._more_are_coming, self.waited = more_are_coming, waited
        self._waiting: deque[_Job] = deque()
        self._woken = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether images that come are run."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begins to run what comes; called within the event loop."""
        self._task = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Ends the thread. Who waits for an answer is cancelled: let the requests end before."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for job in self._waiting:
            job.answer.cancel()
        self._thread.shutdown()

    async def detect(self, image: np.ndarray) -> Rows:
        """Detections (n, 6) of an image (h, w, 3); raises what the network raises for this image.

        Who is cancelled while it waits takes its image with it.
        """
        job = _Job(image, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._woken.set()
        try:
            return await job.answer
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    def nudge(self) -> None:
        """Who waits asks more_are_coming() again; for when it may have become false."""
        self._woken.set()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            jobs = self._take()
            for job in jobs:
                self.waited(time.monotonic() - job.since)
            answers = await loop.run_in_executor(self._thread, self._answers, [job.image for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():  # cancelled: nobody waits for it
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    async def _gather(self) -> None:
        """Returns when there are images, and either enough of them or no reason to wait for others."""
        while not self._waiting:
            await self._next_wake()
        end = self._waiting[0].since + self._max_wait
        while 0 < len(self._waiting) < self._batch_size and self._more_are_coming():
            left = end - time.monotonic()
            if left <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._next_wake()

    async def _next_wake(self) -> None:
        """Returns at the next arrival or nudge."""
        self._woken.clear()
        await self._woken.wait()

    def _take(self) -> list[_Job]:
        """The images of the next call: the first one, or as many as make a batch."""
        count = min(len(self._waiting), self._batch_size)
        if count < self._least:
            count = min(count, 1)
        return [self._waiting.popleft() for _ in range(count)]

    def _answers(self, images: Sequence[np.ndarray]) -> list[Rows | Exception]:
        """The detections of each image; where a batch fails, each image is run alone and has an error of its own."""
        if not images:
            return []
        try:
            return list(self._run(images))
        except Exception as error:
            return [error] if len(images) == 1 else [self._answers([image])[0] for image in images]


def load_runner(options: ServeOptions) -> tuple[Runner, Detector]:
    """The model's detectors for single images and for batches, which keep every score; the one for single images."""
    single = _load(options, options.engine, 1)
    # The same engine for both: with another one, detections would depend on how many images come together.
    several = _load(options, single.engine, options.batch_size) if options.batch_size > 1 else None
    noise = np.random.default_rng(0).integers(0, 256, (*single.manifest.size, 3), np.uint8)
    runner = Runner(single, several, noise)
    for detector in filter(None, (single, several)):
        detector.reset_statistics()
    logger.info("%s: an image takes %.1f ms%s", options.model, 1e3 * runner.single_seconds, _batch_summary(runner))
    return runner, single


def describe(options: ServeOptions, detector: Detector, runner: Runner) -> dict[str, Any]:
    """The public facts about a model, for /health; of its path only the name."""
    return {
        "model": Path(options.model).name,
        "network": detector.manifest.network,
        "dtype": detector.manifest.dtype,
        "engine": detector.engine,
        "input": detector.manifest.size,
        "bit_depth": detector.manifest.bit_depth,
        "version": __version__,
        "batches": {
            "most_images": runner.batch_size,
            "fewest_images": runner.least if runner.batch_size > 1 else 1,
            "image_ms": round(1e3 * runner.single_seconds, 2),
            "batch_ms": round(1e3 * runner.batch_seconds, 2),
        },
    }


def _load(options: ServeOptions, engine: str, batch_size: int) -> Detector:
    device = DeviceOptions(gpus=options.gpus, cpu=options.cpu)
    return Detector(options.model, options.epoch, engine=engine, ctx=device, threshold=0.0, batch_size=batch_size)


def _batch_summary(runner: Runner) -> str:
    """What was decided about batches, and why; "" without them."""
    if runner.several_size == 1:
        return ""
    batch = f", {runner.several_size} together {1e3 * runner.batch_seconds:.1f} ms: "
    if runner.batch_size == 1:
        return batch + "images are run one by one"
    return batch + f"fewer than {runner.least} are run one by one"
