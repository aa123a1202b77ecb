"""The runs whose files are in data/, and what both make_data.py and the tests do with such files.

Nothing here knows where the project's modules are, but for the doors that stay: the commands, mxnet, Detector.
"""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent / "data"
RECORD = "tests/compat/data/record/shapes.rec"  # from ROOT, as run.json and logs name it
CLASSES = ("circle", "square", "star", "triangle")
PICTURES = ("first", "second")
SIDE = 96  # of the pictures
THRESHOLD = 0.05  # lowest score of an expected detection
SAMPLES = 12  # values of each array in a digest

COMMON = f"--train-path {RECORD} --val-path {RECORD} --batch-size 4 --workers 1 --cpu --allow-same-record"
SSD = (
    "--network mobilenet --width 0.125 --data-shape 64 --taps conv_6_relu,conv_8_relu --extra-filters= "
    "--anchor-sizes 0.15,0.25;0.35,0.55 --anchor-ratios 1"
)
YOLO = "--network darknet:tests/compat/data/own.cfg --data-shape 96 --resize-mode letterbox"
EFFDET = "--network efficientdet_mini --data-shape 128 --augment none --bn-momentum 0.8"


@dataclass(frozen=True)
class Run:
    """A run in data/: its options, those of the resumed run included, and the epoch of its last checkpoint."""

    options: str
    epoch: int

    @property
    def words(self) -> list[str]:
        return [*COMMON.split(), *self.options.split()]


# The rates do not depend on the last epoch, so that a run may end sooner or later.
RUNS = {
    "ssd": Run(
        f"{SSD} --augment none --optimizer adam --lr 0.01 --wd 0.0001 --lr-schedule step_epochs --lr-factor 0.98", 60
    ),
    "yolo": Run(
        f"{YOLO} --augment none --lr 0.03 --ema 0.95 --ema-ramp 10 --accumulate 2 --val-loss --lr-schedule plateau "
        "--lr-patience 2 --lr-factor 0.5",
        80,
    ),
    "effdet": Run(f"{EFFDET} --freeze body_[789]_ --lr 0.002 --warmup-epochs 1 --lr-steps 999", 2),
    "staged": Run(f"{SSD} --optimizer nag --lr 0.002 --freeze-epochs 8 --freeze-batch-size 2 --freeze-lr 0.005", 8),
}


def command(*words: str) -> str:
    """Standard output and error of a command of the project; RuntimeError with them if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def resume(name: str, prefix: str, epoch: int, end_epoch: int) -> str:
    """Continues a run of RUNS from the checkpoint of an epoch; returns what the command said."""
    words = ["--prefix", prefix, "--resume", str(epoch), "--end-epoch", str(end_epoch)]
    return command("train.py", *RUNS[name].words, *words)


def mxnet() -> ModuleType:
    """mxnet through the project's own door, today's or the later one."""
    for name in ("machine.runtime", "config.runtime"):
        try:
            return importlib.import_module(name).mx
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ModuleNotFoundError("neither machine.runtime nor config.runtime is there")


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file."""
    return {name: array.asnumpy() for name, array in mxnet().nd.load(str(path)).items()}


def detections(path: str | Path, engine: str = "mxnet", epoch: int | str = "auto") -> dict[str, np.ndarray]:
    """{picture: rows (n, 6) of Detector}, of a checkpoint or a model folder."""
    from detect.detector import Detector

    detector = Detector(path, epoch, engine=engine, threshold=THRESHOLD)
    return {name: detector.detect(DATA / "pictures" / f"{name}.png") for name in PICTURES}


def digest(prefix: str, epoch: int) -> dict[str, dict[str, np.ndarray]]:
    """SAMPLES values (fewer of a small array), evenly spread, of each array that an epoch has changed.

    `params`: what it has changed of each weight; `optim.params`: the state of the optimizer, and the weights that the
    average of --ema is of. Moving averages of batch norms are left out: no optimizer makes them.
    """
    before, after = (load(f"{prefix}-{number:04d}.params") for number in (epoch - 1, epoch))
    changes = {name: array - before[name] for name, array in after.items() if name.startswith("arg:")}
    return {"params": _samples(changes), "optim.params": _samples(load(f"{prefix}-{epoch:04d}.optim.params"))}


def _samples(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    places = {name: np.linspace(0, array.size - 1, SAMPLES, dtype=int) for name, array in arrays.items()}
    return {name: array.ravel()[places[name]] for name, array in arrays.items() if "_moving_" not in name}


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """How far the arrays of a digest are from the wanted ones: 0 = equal, 1 = nothing in common.

    Of each array it takes the length of the difference in lengths of the wanted one, so that small numbers (Adam's
    squares of gradients) and large ones weigh alike, and of these the median: some gradients are zero but for rounding.
    Infinite where other arrays are there.
    """
    if found.keys() != wanted.keys():
        return float("inf")
    return float(np.median([_relative(found[name], wanted[name]) for name in wanted]))


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    apart, length = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
    return float(apart / length) if length else float(apart > 0)
