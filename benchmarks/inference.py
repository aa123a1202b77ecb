"""Inference of our engine beside ONNX Runtime, OpenVINO and PyTorch: one run, the same weights.

python -m benchmarks.inference --images data/BCCD/JPEGImages        (needs the extras onnx, openvino and bench)
python -m benchmarks.inference --networks ssd_vgg16 --batches 1 --cores 2 --candidates mxnet,openvino
python -m benchmarks.inference --report        (prints the results that the JSON file holds, and measures nothing)

Networks have random weights with trained ones' statistics, and 200 boxes an image above the score threshold before
suppression (benchmarks/inference_models.py); what each library reads, and how int8 was calibrated, is said in
benchmarks/inference_files.py.

- network: a batch of float32 input in memory to det: network, decoding of boxes and suppression, with all copies. With
  PyTorch the network alone: neither decoding nor suppression, which flatters it.
- end to end: bytes of JPEG files to boxes in pixels by Detector with each engine; what Detector has no engine for, by
  the same pre- and post-processing around it.

Each candidate is a process of its own, made ready beside the others, but with `auto`, which measures, before them. They
run in turns, every other round in reverse; ratios are medians over the rounds of the ratio within a round. Results are
written to --json after each setting; those of an earlier call stay unless they are measured again.
"""

import json
import os
import shutil
import subprocess  # noqa: S404 - this very interpreter, no shell
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inference_report
from benchmarks.inference_engines import END_TO_END_CANDIDATES, NETWORK_CANDIDATES, TORCH_PARAMS, Candidate
from benchmarks.inference_report import END_TO_END, NETWORK, Cell, Setting
from common.errors import OptionError
from common.files import write_atomically
from common.version import installed_version
from config.command_line import parse_options
from config.options import option
from engines.engine import AUTO
from machine.command import run_command
from machine.cpu import cpu_model
from machine.opencv import cv2
from tools.make_shapes import draw_image

NETWORK_NAMES = ("ssd_vgg16", "ssd_mobilenet", "yolov3_spp", "efficientdet_d0", "ssd_lite0", "efficientdet_lite0")
LIBRARIES = ("mxnet", "onnxruntime", "openvino", "torch", "nncf")
IMAGES = 16  # to calibrate and to run with
DRAWN_SIDE = 480
SETTLE_SECONDS = 0.02  # for the threads of the one before to fall asleep
SHORT = 0.2  # seconds; runs that are shorter warm the caches again before they count


@dataclass(frozen=True)
class InferenceBenchmarkOptions:
    """What to measure."""

    images: str = option("", "folder of JPEG images (default: drawings of shapes)")
    networks: tuple[str, ...] = option(NETWORK_NAMES, "networks", choices=NETWORK_NAMES)
    batches: tuple[int, ...] = option((1, 8), "images at a time", minimum=1)
    cores: tuple[int, ...] = option((1, 2), "cores", minimum=1)
    candidates: tuple[str, ...] = option((), "only those whose name begins so: mxnet, 'openvino int8', Detector, ...")
    kinds: tuple[str, ...] = option((NETWORK, END_TO_END), "what to measure", choices=(NETWORK, END_TO_END))
    rounds: int = option(3, "turns of each candidate", minimum=1)
    seconds: float = option(0.5, "of a turn, at least one run", minimum=0.0)
    files: str = option("output/inference", "folder for the networks' files, which later calls use again")
    fresh: bool = option(False, "write the networks' files anew")
    json: str = option("output/inference.json", "file of all results")
    report: bool = option(False, "print the results in --json, measure nothing")


class Worker:
    """The process of one candidate; `error` says why it has ended early."""

    def __init__(self, candidate: Candidate, setting: Setting, files: Path) -> None:
        """Starts it; it becomes ready while others do, but alone if it measures which engine is the fastest."""
        self.candidate, self.error = candidate, ""
        self.ready: dict[str, Any] = {}
        given = {
            **asdict(candidate),
            "folder": str(files / setting.network),
            "images": str(files / "images"),
            "batch": setting.batch,
            "cores": setting.cores,
            "end_to_end": setting.kind == END_TO_END,
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.inference_worker", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(setting.cores),
        )
        if AUTO in candidate.name.split():
            self.wait()

    def wait(self) -> None:
        """Returns when it is ready or has failed."""
        if not self.ready and not self.error:
            self.ready = self._answer() or {}

    def run(self, times: int) -> list[float]:
        """Seconds of each of so many runs; none if it has failed."""
        return self._ask(str(times)) or []

    def end(self) -> dict[str, Any]:
        """Ends it; its largest memory and the steps of Detector."""
        found = self._ask("end") or {}
        self._process.communicate()
        self._log.close()
        return found

    def _ask(self, line: str) -> Any:
        if self.error:
            return None
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            if line[0] in "[{":  # libraries may print, too
                return json.loads(line)
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        self.error = f"status {self._process.wait()}: {lines[-1] if lines else 'without a message'}"
        return None


def environment(cores: int) -> dict[str, str]:
    """This process's, with so many threads for whatever reads OMP_NUM_THREADS."""
    return os.environ | {"OMP_NUM_THREADS": str(cores)}


def measure(setting: Setting, candidates: Sequence[Candidate], options: InferenceBenchmarkOptions) -> list[Cell]:
    """All candidates of a setting, in turns."""
    workers = [Worker(candidate, setting, Path(options.files)) for candidate in candidates]
    for worker in workers:
        worker.wait()
    rounds: dict[str, list[list[float]]] = {worker.candidate.name: [] for worker in workers}
    started, load = time.time(), f"load average {os.getloadavg()[0]:.1f}"
    for number in range(options.rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            seconds = turn(worker, options.seconds)
            if seconds:
                rounds[worker.candidate.name].append(seconds)
    return [finish(worker, setting, rounds[worker.candidate.name], started, load) for worker in workers]


def turn(worker: Worker, wanted: float) -> list[float]:
    """The runs of one turn."""
    time.sleep(SETTLE_SECONDS)
    expected = worker.ready.get("seconds", 1.0)
    if expected < SHORT:
        expected = (worker.run(1) or [expected])[0]
    seconds = worker.run(max(1, round(wanted / expected)))
    if seconds:
        worker.ready["seconds"] = min(seconds)
    return seconds


def finish(worker: Worker, setting: Setting, rounds: list[list[float]], started: float, load: str) -> Cell:
    """Ends a worker and says what it has shown."""
    last = worker.end()
    return Cell(
        setting=setting,
        candidate=worker.candidate.name,
        engine=worker.ready.get("engine", ""),
        rounds=[[round(value, 7) for value in seconds] for seconds in rounds],
        memory=last.get("memory", 0.0),
        steps=last.get("steps", {}),
        error=worker.error,
        run=started,
        load=load,
    )


def settings(options: InferenceBenchmarkOptions) -> Iterator[Setting]:
    """The settings in their order; end to end has one image at a time and all the cores."""
    for network, batch, cores in product(options.networks, options.batches, options.cores):
        if NETWORK in options.kinds:
            yield Setting(NETWORK, network, batch, cores)
    for network in options.networks:
        if END_TO_END in options.kinds:
            yield Setting(END_TO_END, network, 1, max(options.cores))


def chosen(setting: Setting, names: Sequence[str]) -> list[Candidate]:
    """The candidates of a setting whose names begin as given; all if none are."""
    offered = NETWORK_CANDIDATES if setting.kind == NETWORK else END_TO_END_CANDIDATES
    if not names:
        return list(offered)
    return [candidate for candidate in offered if candidate.name.startswith(tuple(names))]


def write_files(options: InferenceBenchmarkOptions) -> None:
    """The networks' files and the images, where they are not there already."""
    folder = Path(options.files)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    images = folder / "images"
    if not images.is_dir():
        write_images(images, options.images)
    for network in options.networks:
        if not (folder / network / TORCH_PARAMS).is_file() or not (folder / network / "complete").is_file():
            print(f"{network}: writing its files", file=sys.stderr, flush=True)
            (folder / network).mkdir(exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.inference_files", network, str(folder / network), str(images)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
            (folder / network / "complete").touch()


def write_images(folder: Path, source: str) -> None:
    """Copies of the first images of `source`, or drawings."""
    found = (
        sorted(path for path in Path(source).iterdir() if path.suffix.lower() in (".jpg", ".jpeg")) if source else []
    )
    if source and len(found) < IMAGES:
        raise OptionError(f"--images {source}: {len(found)} JPEG images, {IMAGES} are needed; give another folder")
    folder.mkdir(parents=True)
    for number in range(IMAGES):
        target = folder / f"{number:02}.jpg"
        if source:
            shutil.copyfile(found[number], target)
            continue
        drawn, _ = draw_image(np.random.default_rng(number), DRAWN_SIDE)
        target.write_bytes(cv2.imencode(".jpg", drawn)[1].tobytes())


def main(argv: list[str]) -> None:
    """Measures what was chosen and prints all results."""
    options = parse_options(InferenceBenchmarkOptions, argv, "Inference beside ONNX Runtime, OpenVINO and PyTorch")
    path = Path(options.json)
    results = inference_report.read(path)
    if not options.report:
        write_files(options)
        about = {"cpu": cpu_model(), "versions": {name: installed_version(name) for name in LIBRARIES}}
        for setting in settings(options):
            candidates = chosen(setting, options.candidates)
            begin = time.monotonic()
            results = inference_report.merged(results, measure(setting, candidates, options))
            write_atomically(path, inference_report.to_json(results, about).encode("utf-8"))
            print(f"{setting}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    inference_report.print_all(results, path)


if __name__ == "__main__":
    run_command(main)
