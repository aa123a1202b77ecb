"""Whether two commits compute the same, to the bit: for changes that must change nothing.

python -m benchmarks.compare_commits OLD [NEW]          (two to four minutes; NEW is HEAD by default)

Both are checked out into a temporary folder, which goes again. In each, with this Python, one thread and the same
seeds: short trainings of each family and one in two stages, the old commit's checkpoints continued, evaluations, model
folders, detections, symbols and detections of networks of the registry (benchmarks/commit_probe.py). Only commands and
doors that stay are used, so that modules may have moved between the two. Exit status 1 if anything differs; fields that
files have gained are told and are no difference.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commit_probe import mxnet
from benchmarks.common import print_table

ROOT = Path(__file__).parent.parent
PROBE = Path(__file__).with_name("commit_probe.py")
OLD, NEW = SIDES = ("old", "new")
EQUAL = "equal bit for bit"
TOLD = 3  # differences of one item that the table names
VALIDATION = "val.rec"  # beside the training record
EPOCHS = 3
SSD = (
    "--network mobilenet --width 0.125 --data-shape 64 --taps conv_6_relu,conv_12_relu --extra-filters= "
    "--anchor-sizes 0.2,0.3;0.4,0.6 --anchor-ratios 1,2,0.5"
)
YOLO = "--network yolov3_tiny --width 0.25 --data-shape 96 --resize-mode letterbox --lr 0.01"
EFFDET = "--network efficientdet_mini --data-shape 128 --bn-momentum 0.9 --lr 0.01"
RUNS = {
    "ssd": f"{SSD} --optimizer adam --lr 0.003 --warmup-epochs 1",
    "ssd-staged": f"{SSD} --optimizer nag --lr 0.01 --freeze-epochs 2 --freeze-batch-size 2",
    "yolo": f"{YOLO} --mosaic-prob 1 --ema 0.9 --accumulate 2 --val-loss --lr-schedule plateau",
    "effdet": f"{EFFDET} --lr-schedule step_epochs --lr-factor 0.9",
}
EXPORTS = {
    "ssd": "",
    "ssd-int8": "--dtype int8 --calib-rec {record} --num-calib 8 --max-loss 1",
    "yolo": "--onnx",
    "effdet": "",
}
# Files of a run that say when, not what; and fields of JSON files that do.
IGNORED = (".log", ".lock", ".png", "-live.json")
VOLATILE = {"seconds", "images_per_second", "versions"}


@dataclass
class Side:
    """One commit's folder, and where its commands write: both sides in the same place, one after the other."""

    source: Path
    environment: dict[str, str]

    def run(self, *words: str) -> None:
        """A command of this commit; RuntimeError with its output if it fails."""
        environment = self.environment | {"PYTHONPATH": str(self.source)}
        command = [sys.executable, *words]
        done = subprocess.run(  # noqa: S603 - the project's own commands
            command, cwd=self.source, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")


@dataclass
class Comparison:
    """What comparing one item has found."""

    largest: float = 0.0  # difference of numbers
    where: str = ""
    faults: list[str] = field(default_factory=list)  # other differences
    gained: list[str] = field(default_factory=list)  # fields that NEW has in addition
    numbers: int = 0  # how many numbers of arrays were compared

    def note(self, name: str, difference: float) -> None:
        """Takes in the difference of an array whose bytes are not the same; NaN counts as infinite."""
        if difference == 0:
            self.faults.append(f"{name} has zeros of other signs")
        elif np.isnan(difference) or difference > self.largest:
            self.largest, self.where = float("inf") if np.isnan(difference) else difference, name

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs; gained fields do not count."""
        return not self.faults and self.largest == 0

    def __str__(self) -> str:
        found = self.faults[:TOLD]
        if len(self.faults) > TOLD:
            found.append(f"{len(self.faults) - TOLD} more")
        if self.largest != 0:
            found.append(f"largest difference {self.largest:.3g} ({self.where})")
        found = found or [EQUAL]
        if self.gained:
            found.append(f"gained {', '.join(self.gained)}")
        return "; ".join(found)


Item = tuple[str, str, Comparison]  # group, name within it, what differs


def main(argv: list[str]) -> int:
    """Runs both commits and prints the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description="Compares what two commits compute.")
    parser.add_argument("old", help="commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="commit (default: HEAD)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="compare-commits-") as name:
        work = Path(name)
        with worktree(options.old, work / "source-old") as old, worktree(options.new, work / "source-new") as new:
            run_both(work, {OLD: old, NEW: new})
        rows = compare_folders(work / OLD, work / NEW)
    print_table(("item", "numbers", "result"), summary(rows))
    different = sum(not comparison.is_equal for _, _, comparison in rows)
    print(f"\n{len(rows)} items, {different} different" if different else f"\n{len(rows)} items, all equal")
    return 1 if different else 0


def summary(rows: Sequence[Item]) -> list[tuple[str, str, str]]:
    """The lines of the table: equal items of a group share one, which says how many they are."""
    lines = []
    for group in dict.fromkeys(group for group, _, _ in rows):
        members = [(item, comparison) for name, item, comparison in rows if name == group]
        plain = [comparison for _, comparison in members if str(comparison) == EQUAL]
        if plain:
            numbers = sum(comparison.numbers for comparison in plain)
            lines.append((f"{group} ({len(plain)} of {len(members)})", str(numbers), EQUAL))
        told = [(item, comparison) for item, comparison in members if str(comparison) != EQUAL]
        lines += [(f"{group}: {item}", str(comparison.numbers), str(comparison)) for item, comparison in told]
    return lines


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's files in a folder, for as long as the block runs."""
    git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def git(*words: str) -> None:
    """A git command in this repository."""
    subprocess.run(["git", *words], cwd=ROOT, check=True)  # noqa: S603, S607 - git by its name


def run_both(work: Path, sources: Mapping[str, Path]) -> None:
    """Writes the folders old/ and new/ of what each commit has computed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "XDG_CACHE_HOME": str(work / "cache")}
    sides = {name: Side(source, environment | fixed) for name, source in sources.items()}
    record, images = make_record(sides[OLD], work / "data")
    now = work / "now"  # the same paths in the files of both
    for name, side in sides.items():
        say(f"{name}: trainings")
        now.mkdir()
        for run, words in RUNS.items():
            train(side, now / run / "run", record, words, EPOCHS)
        keep(now, work / name)
    for name, side in sides.items():
        shutil.copytree(work / OLD, now, ignore=shutil.ignore_patterns("exported", "continued"))
        say(f"{name}: the old commit's checkpoints evaluated, exported, continued")
        for run in RUNS:
            use(side, now, run, record)
        export_all(side, now, record)
        models = [str(now / run / "run") for run in RUNS] + [str(now / "exported" / model) for model in EXPORTS]
        side.run("-P", str(PROBE), "detect", str(now), str(images), *models)
        say(f"{name}: networks")
        side.run("-P", str(PROBE), "networks", str(now))
        keep_new(now, work / name)


def make_record(side: Side, folder: Path) -> tuple[Path, Path]:
    """A record of ten images, with one of as many others beside it (VALIDATION), and the folder of the images."""
    shapes, target = folder / "shapes", folder / "train.lst"
    sizes = ["--train", "10", "--test", "10", "--size", "96"]
    side.run("tools/make_shapes.py", "--output", str(shapes), *sizes)
    for name, path in (("trainval", target), ("test", target.with_name(VALIDATION).with_suffix(".lst"))):
        side.run("tools/prepare_dataset.py", "--root", str(shapes), "--set", name, "--target", str(path))
    return target.with_suffix(".rec"), shapes / "JPEGImages"


def train(side: Side, prefix: Path, record: Path, words: str, epochs: int, *more: str) -> None:
    """A short run of train.py."""
    val = str(record.with_name(VALIDATION))
    data = ["--train-path", str(record), "--val-path", val, "--batch-size", "4", "--workers", "1", "--cpu"]
    last = ["--prefix", str(prefix), "--end-epoch", str(epochs)]
    side.run("train.py", *data, *words.split(), *last, *more)


def use(side: Side, now: Path, run: str, record: Path) -> None:
    """Evaluates a run of `now`, and continues it from each of its epochs but the last one in now/continued."""
    prefix, result = now / run / "run", now / "evaluated" / f"{run}.json"
    result.parent.mkdir(exist_ok=True)
    words = ["--prefix", str(prefix), "--rec-path", str(record), "--workers", "0", "--cpu", "--json", str(result)]
    side.run("evaluate.py", *words, "--metrics", "voc07,coco")
    for epoch in range(1, EPOCHS):
        folder = now / "continued" / f"{run}-from-{epoch}"
        shutil.copytree(now / run, folder)
        train(side, folder / "run", record, RUNS[run], EPOCHS, "--resume", str(epoch))


def export_all(side: Side, now: Path, record: Path) -> None:
    """The model folders of EXPORTS in now/exported."""
    for model, words in EXPORTS.items():
        prefix, output = now / model.partition("-")[0] / "run", now / "exported" / model
        side.run("deploy.py", "--prefix", str(prefix), "--output", str(output), *words.format(record=record).split())


def keep(now: Path, folder: Path) -> None:
    """Moves what one side has written to its own folder."""
    shutil.move(now, folder)


def keep_new(now: Path, folder: Path) -> None:
    """Moves what a side has added to `now` into its folder; the runs that were copied there go."""
    for path in now.iterdir():
        if path.name not in RUNS:
            shutil.move(path, folder / path.name)
    shutil.rmtree(now)


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def compare_folders(old: Path, new: Path) -> list[Item]:
    """Every file that a side has, but IGNORED, in groups by folder; of an .npz each array is an item."""
    paths = sorted({path.relative_to(side) for side in (old, new) for path in side.rglob("*") if path.is_file()})
    found: list[Item] = []
    for path in paths:
        if str(path).endswith(IGNORED):
            continue
        if not (old / path).is_file():
            found.append((str(path.parent), path.name, Comparison(gained=["the file"])))
        elif not (new / path).is_file():
            found.append((str(path.parent), path.name, Comparison(faults=["the file is missing"])))
        elif path.suffix == ".npz":
            found += compare_npz(old / path, new / path)
        else:
            found.append((str(path.parent), path.name, compare_files(old / path, new / path)))
    return found


def compare_npz(old: Path, new: Path) -> list[Item]:
    """Each array of two .npz files; the group is the file's name and what the array's name has before a `|`."""
    with np.load(old) as first, np.load(new) as second:
        arrays = dict(first), dict(second)
    found = []
    for name in dict.fromkeys([*arrays[0], *arrays[1]]):
        group, _, item = name.rpartition("|")
        comparison = compare_arrays(*({item: side[name]} if name in side else {} for side in arrays))
        found.append((f"{old.stem} {group}".rstrip(), item, comparison))
    return found


def compare_files(old: Path, new: Path) -> Comparison:
    """Two files of one name: arrays, JSON by its fields, anything else by its bytes."""
    if old.suffix == ".params":
        return compare_arrays(load(old), load(new))
    reader = _reader(old.name)
    if reader is None:
        equal = old.read_bytes() == new.read_bytes()
        return Comparison(faults=[] if equal else [f"{old.stat().st_size} and {new.stat().st_size} bytes differ"])
    comparison = Comparison()
    compare_json(reader(old.read_text()), reader(new.read_text()), "", comparison)
    return comparison


def _reader(name: str) -> Callable[[str], Any] | None:
    if name.endswith(".jsonl"):
        return lambda text: [json.loads(line) for line in text.splitlines()]
    return json.loads if name.endswith(".json") and not name.endswith("symbol.json") else None


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file; an empty file of MXNet is a list."""
    arrays = mxnet().nd.load(str(path))
    return {name: array.asnumpy() for name, array in arrays.items()} if isinstance(arrays, dict) else {}


def compare_arrays(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> Comparison:
    """Named arrays: which are missing, whose shape or type differs, and by how much values differ."""
    comparison = Comparison(gained=[name for name in new if name not in old])
    for name, before in old.items():
        after = new.get(name)
        comparison.numbers += before.size
        if after is None:
            comparison.faults.append(f"{name} is missing")
        elif (before.shape, before.dtype) != (after.shape, after.dtype):
            comparison.faults.append(f"{name} is {after.dtype}{after.shape}, was {before.dtype}{before.shape}")
        elif before.tobytes() != after.tobytes():
            comparison.note(name, float(np.abs(after.astype(np.float64) - before.astype(np.float64)).max()))
    return comparison


def compare_json(old: Any, new: Any, path: str, comparison: Comparison) -> None:
    """Adds what differs between two values of JSON; VOLATILE fields are there or not, and no more."""
    if isinstance(old, dict) and isinstance(new, dict):
        comparison.gained += [f"{path}{name}" for name in new if name not in old]
        comparison.faults += [f"{path}{name} is missing" for name in old if name not in new]
        for name in [name for name in old if name in new and name not in VOLATILE]:
            compare_json(old[name], new[name], f"{path}{name}.", comparison)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            compare_json(before, after, f"{path}{number}.", comparison)
    elif old != new and str(old) != str(new):
        comparison.faults.append(f"{path.rstrip('.')} is {new!r:.60}, was {old!r:.60}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
