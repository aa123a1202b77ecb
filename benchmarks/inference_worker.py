"""One candidate of benchmarks.inference in a process of its own: answers each line of standard input with one of JSON.

The first answer says that it is ready; `N` runs N times and answers with the seconds of each; `end` with the largest
memory of the process in MiB and, of a Detector, the median seconds of its steps. Each thread is bound to the first
cores of the affinity once everything has run for the first time.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference_engines import FLOAT32, Candidate, open_end_to_end, open_network
from engines.preprocess import InputWriter, read_image
from model.manifest import read_manifest

WARM_UP = 2


def main(argv: Sequence[str]) -> None:
    """Serves one candidate, given as JSON: library, precision, folder, images, batch, cores, end_to_end."""
    given = json.loads(argv[0])
    candidate = Candidate(given["library"], given["precision"])
    folder = Path(given["folder"])
    images = [path.read_bytes() for path in sorted(Path(given["images"]).iterdir())]
    images = [images[number % len(images)] for number in range(given["batch"])]
    steps: Callable[[], dict[str, Any]] = dict
    engine = candidate.library
    if given["end_to_end"]:
        detect, engine, steps = open_end_to_end(candidate, folder, given["batch"])
        run = partial(detect, images)
    else:
        run = partial(open_network(candidate, folder, given["batch"]), network_input(folder, images))
    run()
    bind_threads(given["cores"])
    for _ in range(WARM_UP):
        run()
    print(json.dumps({"engine": engine, "seconds": seconds_of(run)}), flush=True)
    serve(run, steps)


def serve(run: Callable[[], Any], steps: Callable[[], dict[str, Any]]) -> None:
    """Answers until the end."""
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"memory": peak_memory(), "steps": steps()}), flush=True)
            return
        print(json.dumps([seconds_of(run) for _ in range(int(line))]), flush=True)


def network_input(folder: Path, images: Sequence[bytes]) -> np.ndarray:
    """Encoded images as the networks read them."""
    writer = InputWriter(read_manifest(folder / FLOAT32))
    data = writer.batch(len(images), len(images))
    for number, (image, row) in enumerate(zip(images, data, strict=True)):
        writer.write(read_image(image, f"image {number}"), row)
    return data


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall-clock time of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def bind_threads(cores: int) -> None:
    """Binds all threads of this process to the first cores that it may use."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), allowed)


def peak_memory() -> float:
    """MiB that this process held at most (VmHWM of proc(5))."""
    status = Path("/proc/self/status").read_text("utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
