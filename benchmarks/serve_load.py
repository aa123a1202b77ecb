"""The HTTP service under load on loopback, beside a loop over the same image files in one process.

python -m benchmarks.serve_load --model output/mine-model --images 'photos/*.jpg'
"""

import asyncio
import glob
import itertools
import json
import os
import re
import subprocess  # noqa: S404 - this very interpreter, no shell
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import machine, print_table
from common.errors import DataError
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.cpu import configure_threads

HOST = "127.0.0.1"
WARM_UP = 10  # images
STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
READY = re.compile(r"serving on http://.*:(\d+)$")


@dataclass(frozen=True)
class LoadOptions:
    """What to serve, and how many clients ask for it."""

    model: str = option("output/ssd", "model folder, or prefix of a checkpoint")
    images: str = option("", "glob of the image files")
    engine: str = option("auto", "engine of the detectors")
    batch_size: int = option(8, "--batch-size of the service", minimum=1)
    clients: tuple[int, ...] = option(
        (1, 4, 16), "clients, each of which sends an image when it has its answer", minimum=1
    )
    seconds: float = option(5.0, "length of one measurement", minimum=0.1)
    rounds: int = option(3, "measurements of each, in turns; the table has medians of them", minimum=1)


@dataclass(frozen=True)
class Measurement:
    """Answers of a measurement: how long each took, and all of them together."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Images in a second."""
        return len(self.latencies) / self.seconds


def main(argv: list[str]) -> None:
    """Prints a table: a row for the loop and for each number of clients."""
    options = parse_options(LoadOptions, argv, "Measures the HTTP service on loopback.")
    photos = [Path(path).read_bytes() for path in sorted(glob.glob(options.images, recursive=True))]
    if not photos:
        raise DataError(f"--images {options.images!r}: no such files; give a glob of image files")
    configure_threads()
    found: dict[int, list[Measurement]] = {clients: [] for clients in (0, *options.clients)}
    with service(options) as (port, log):
        loop = detector_loop(options, photos)
        for _ in range(options.rounds):
            found[0].append(loop(options.seconds))
            for clients in options.clients:
                found[clients].append(asyncio.run(load(port, photos, clients, options.seconds)))
    print("\n".join([*log, f"{len(photos)} image files; {machine()}", ""]))
    print_table(
        ["", "images/s", "p50 ms", "p99 ms", "relative to the loop"], [row(*item, found[0]) for item in found.items()]
    )


def row(clients: int, measured: Sequence[Measurement], loop: Sequence[Measurement]) -> list[str]:
    """A row of the table: medians over the rounds; the ratio is taken within a round."""
    name = f"{clients} client{'s' if clients > 1 else ''}" if clients else "Detector in a loop"
    p50, p99 = np.median([np.percentile(one.latencies, [50, 99]) for one in measured], axis=0) * 1e3
    ratio = np.median([one.rate / base.rate for one, base in zip(measured, loop, strict=True)])
    return [name, f"{np.median([one.rate for one in measured]):.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{ratio:.2f}"]


def detector_loop(options: LoadOptions, photos: Sequence[bytes]) -> Callable[[float], Measurement]:
    """A function of seconds that detects in one image file after the other."""
    from detect.detector import Detector

    detector = Detector(options.model, engine=options.engine)
    endless = itertools.cycle(photos)

    def measure(seconds: float) -> Measurement:
        for _ in range(WARM_UP):
            detector.detect(next(endless))
        latencies, begin = [], time.perf_counter()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            detector.detect(next(endless))
            latencies.append(time.perf_counter() - start)
        return Measurement(latencies, time.perf_counter() - begin)

    return measure


@contextmanager
def service(options: LoadOptions) -> Iterator[tuple[int, list[str]]]:
    """The service as a process of its own: its port, and what its log says of the model."""
    command = [sys.executable, "-m", "tools.serve", "--port", "0", "--model", options.model, "--engine", options.engine]
    command += ["--batch-size", str(options.batch_size), "--queue", str(2 * max(options.clients))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)  # noqa: S603
    assert process.stderr
    try:
        log: list[str] = []
        for line in process.stderr:
            if ready := READY.match(line):
                yield int(ready[1]), log
                return
            log.append(line.strip())
        raise RuntimeError("\n".join(["the service ended:", *log]))
    finally:
        process.terminate()
        process.communicate()


async def load(port: int, photos: Sequence[bytes], clients: int, seconds: float) -> Measurement:
    """Clients that send images for so many seconds, each over one connection."""
    endless = itertools.cycle(photos)
    await client(port, endless, time.perf_counter() + min(seconds, 0.5))
    begin = time.perf_counter()
    found = await asyncio.gather(*(client(port, endless, begin + seconds) for _ in range(clients)))
    return Measurement(list(itertools.chain(*found)), time.perf_counter() - begin)


async def client(port: int, photos: Iterator[bytes], end: float) -> list[float]:
    """Seconds of each answer until `end`; RuntimeError for one that is not 200."""
    reader, writer = await asyncio.open_connection(HOST, port)
    latencies = []
    while (start := time.perf_counter()) < end:
        photo = next(photos)
        head = (
            f"POST /detect HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
        )
        writer.write(head.encode() + photo)
        json.loads(await answer(reader))
        latencies.append(time.perf_counter() - start)
    writer.close()
    await writer.wait_closed()
    return latencies


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of a response."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = STATUS.match(head), LENGTH.search(head)
    body = await reader.readexactly(int(length[1]) if length else 0)
    if status is None or status[1] != b"200":
        raise RuntimeError(f"the service answered {head!r} {body!r}")
    return body


if __name__ == "__main__":
    run_command(main)
