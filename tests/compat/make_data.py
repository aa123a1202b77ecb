"""Writes data/: the files of earlier versions that later ones must read.

    python -m tests.compat.make_data

Run at commit 0d2970b, from the project's folder, and committed; it took a minute on 2 cores. It drives the commands
of that commit and is not expected to run with later ones, whose files would prove nothing. What it makes in between
stays in output/compat.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.compat.runs import (
    COMMON,
    DATA,
    EFFDET,
    PICTURES,
    RECORD,
    ROOT,
    RUNS,
    SIDE,
    command,
    detections,
    digest,
    resume,
)

WORK = Path("output/compat")  # relative: the paths stand in PREFIX-run.json
FOLDERS = {
    "float32": "--prefix {data}/ssd/run",
    "int8": f"--prefix {{data}}/ssd/run --dtype int8 --calib-rec {RECORD} --num-calib 10 --max-loss 0.5",
    "onnx": "--prefix {data}/yolo/run --onnx",
}
LEFT_OUT = ("batches.png", "curves.png", "live.json", "train.log")  # of the files of a run: no later command reads them
PATIENCE = 120.0  # seconds


def main() -> None:
    for folder in (DATA / "record", DATA / "pictures", DATA / "expected"):
        folder.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    make_images()
    train("ssd", "--save-every 60 --eval-every last")
    train("yolo", "--save-every 80 --eval-every 20 --keep 1")
    train_effdet()
    train_staged()
    for name, words in FOLDERS.items():
        shutil.rmtree(DATA / "folders" / name, ignore_errors=True)
        where = DATA.relative_to(ROOT)
        command("deploy.py", *words.format(data=where).split(), "--output", str(where / "folders" / name))
    for name in RUNS:
        expect_next_epoch(name)
        write_rows(name, DATA / name / "run")
    for name in FOLDERS:
        write_rows(name, DATA / "folders" / name)
    command("deploy.py", "--prefix", str(DATA / "effdet" / "run"), "--output", str(WORK / "effdet-model"))
    write_rows("effdet-model", WORK / "effdet-model")


def make_images() -> None:
    """The record, and two of its pictures, of which the networks are sure, as PNG, which every decoder reads alike."""
    import cv2  # noqa: TID251

    shapes, record = str(WORK / "shapes"), Path(RECORD)
    command(
        "tools/make_shapes.py", "--output", shapes, "--train", "10", "--test", "1", "--size", str(SIDE), "--seed", "1"
    )
    packed = WORK / "packed" / record.name
    command(
        "tools/prepare_dataset.py", "--root", shapes, "--set", "trainval", "--target", str(packed.with_suffix(".lst"))
    )
    for suffix in (".rec", ".idx", ".json"):
        shutil.copy(packed.with_suffix(suffix), record.with_suffix(suffix))
    for number, name in enumerate(PICTURES):
        picture = cv2.imread(f"{shapes}/JPEGImages/trainval_{number:05d}.jpg")
        cv2.imwrite(str(DATA / "pictures" / f"{name}.png"), picture)


def train(name: str, words: str) -> None:
    run, prefix = RUNS[name], WORK / name / "run"
    last = ["--end-epoch", str(run.epoch), "--prefix", str(prefix), "--overwrite"]
    command("train.py", *run.words, *words.split(), *last)
    keep(name, prefix)


def train_effdet() -> None:
    """A run of two epochs by sgd, whose state is half as large, on weights that adam has trained; most are frozen."""
    warm = str(WORK / "warm" / "run")
    words = "--optimizer adam --lr 0.004 --wd 0 --drop-connect 0 --lr-schedule cosine --end-epoch 60 --save-every 60"
    once = "--eval-every last --overwrite --prefix"
    command("train.py", *COMMON.split(), *EFFDET.split(), *words.split(), *once.split(), warm)
    train("effdet", f"--save-every 2 --eval-every last --pretrained {warm} --epoch 60")


def train_staged() -> None:
    """A run that a signal ends when it has the checkpoint of its first stage and has noted that it is the best."""
    run, prefix = RUNS["staged"], WORK / "staged" / "run"
    last = ["--end-epoch", "4000", "--save-every", str(run.epoch), "--eval-every", "8", "--prefix", str(prefix)]
    shutil.rmtree(prefix.parent, ignore_errors=True)
    process = subprocess.Popen([sys.executable, "train.py", *run.words, *last], cwd=ROOT)
    end = time.monotonic() + PATIENCE
    while not Path(f"{prefix}-best.json").is_file() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError(f"the run in two stages ended with status {process.returncode}")
    keep("staged", prefix)


def keep(name: str, prefix: Path) -> None:
    """Copies what a run has left into data/, but LEFT_OUT and the empty lock."""
    shutil.rmtree(DATA / name, ignore_errors=True)
    (DATA / name).mkdir()
    for path in sorted(prefix.parent.glob("run-*")):
        if path.name.removeprefix("run-") not in LEFT_OUT:
            shutil.copy(path, DATA / name)


def expect_next_epoch(name: str) -> None:
    """expected/NAME-next.npz: the digests of the weights and the optimizer's state one epoch after the checkpoint."""
    folder, epoch = WORK / "next" / name, RUNS[name].epoch
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DATA / name, folder)
    resume(name, str(folder / "run"), epoch, epoch + 1)
    found = {}
    for kind, values in digest(str(folder / "run"), epoch + 1).items():
        found[f"{kind} names"] = np.array(list(values))
        found[f"{kind} values"] = np.array(list(values.values()), np.float32)
    np.savez_compressed(DATA / "expected" / f"{name}-next.npz", **found)


def write_rows(name: str, model: Path) -> None:
    """expected/NAME.npz: the detections in the pictures."""
    rows = detections(model)
    print(name, {key: len(value) for key, value in rows.items()})
    np.savez_compressed(DATA / "expected" / f"{name}.npz", **rows)


if __name__ == "__main__":
    main()
