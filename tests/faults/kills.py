"""Kills (signal 9) in each phase of a command's work, and what is there afterwards.

The commands run in processes that are forked from one which has loaded mxnet and used nothing of it: a kill then takes
a second, not five. A phase is the time between two places of the code; a kill falls on a random moment of it.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dataset.sidecar import read_sidecar, verify_sidecar
from model.checkpoint import list_epochs, load_checkpoint, optimizer_path, params_path
from model.folder import read_model_folder
from tests.faults.artefacts import EPOCHS, annotated_folder, deploy_words, run_options, train_words
from tests.faults.table import Row
from tests.train.tiny import metrics
from train.options import TrainOptions

BEGUN, ENDED = b"<", b">"
PATIENCE = 120.0  # seconds that a command may take
ATTEMPTS = 4  # of each kill, until one falls into the phase


@dataclass(frozen=True)
class Command:
    """A command as a child runs it: module with main(), words, and the phase that is to be hit.

    place: `module:name` of the function whose call number `occurrence` is the phase; until_next: what comes up to its
    next call belongs to it, too; to_the_end: all after it does.
    """

    module: str
    words: list[str]
    place: str = ""
    occurrence: int = 1
    until_next: bool = False
    to_the_end: bool = False


def in_child(work: Callable[[int], Any]) -> tuple[int, int]:
    """(process, end of a pipe to read from) of a forked process that does work(end to write to) and exits with 0, with
    1 after an exception, whose traceback it writes."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        os.close(reading)
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        work(writing)
        status = 0
    except BaseException:
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(status)


def ended(process: int, reading: int) -> tuple[int, str]:
    """(status, what it has written) of a child, which is waited for."""
    with os.fdopen(reading, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    return os.waitpid(process, 0)[1], text


def answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that a child runs, through JSON; AssertionError with its traceback if it fails."""
    process, reading = in_child(lambda writing: os.write(writing, json.dumps(function(*arguments)).encode()))
    status, text = ended(process, reading)
    assert status == 0, text
    return json.loads(text)


def perform(command: Command, writing: int) -> None:
    """Runs a command in a child; the begin and the end of the phase go into the pipe."""
    if command.place:
        _mark(command, writing)
    import_module(command.module).main(command.words)


def _mark(command: Command, writing: int) -> None:
    module, _, path = command.place.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), [0]

    def marked(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if command.until_next and calls[0] == command.occurrence + 1:
            os.write(writing, ENDED)
        if calls[0] != command.occurrence:
            return real(*arguments, **options)
        os.write(writing, BEGUN)
        try:
            return real(*arguments, **options)
        finally:
            if not (command.until_next or command.to_the_end):
                os.write(writing, ENDED)

    setattr(owner, name, marked)


def run(command: Command) -> None:
    """Runs a command to its end; AssertionError if it fails."""
    process, reading = in_child(lambda writing: perform(command, writing))
    status, text = ended(process, reading)
    assert status == 0, text


def duration(command: Command) -> float:
    """Seconds that the phase takes when nothing happens."""
    process, reading = in_child(lambda writing: perform(command, writing))
    assert os.read(reading, 1) == BEGUN, ended(process, reading)[1]
    begin = time.monotonic()
    os.read(reading, 1)  # its end, or that of the process
    seconds = time.monotonic() - begin
    ended(process, reading)
    return seconds


def killed(command: Command, moment: float) -> bool:
    """Kills a command so many seconds after the begin of the phase; whether it was in it still."""
    process, reading = in_child(lambda writing: perform(command, writing))
    first = os.read(reading, 1)
    assert first == BEGUN, (first, ended(process, reading))
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    status, text = ended(process, reading)
    assert os.WIFSIGNALED(status) or status == 0, text
    return os.WIFSIGNALED(status) and ENDED.decode() not in text


class Phase:
    """A phase of a command that is killed, and what must be true afterwards."""

    name = ""

    def __init__(self, folder: Path, options: TrainOptions) -> None:
        """folder: where the phase works; options: those of a finished run."""
        self.folder, self.options = folder, options

    def command(self, rng: random.Random) -> Command:
        """The command of the next kill."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Before each kill."""

    def check(self, command: Command) -> str:
        """After a kill: "" or what is lost or wrong."""
        raise NotImplementedError


def digests(*paths: Path) -> dict[str, str]:
    """sha256 of files by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def result_of(prefix: str) -> list[Any]:
    """What a finished run has left, to be compared."""
    found = [path(prefix, EPOCHS) for path in (params_path, optimizer_path)]
    return [digests(*found), metrics(prefix)]


class _Training(Phase):
    """A run that is killed and resumed ends with the bits of one that nothing happens to."""

    place = ""
    calls: Sequence[int] = range(1, EPOCHS + 1)
    until_next = False

    def command(self, rng: random.Random) -> Command:
        words = train_words(self.options, self.prefix)
        return Command("train.main", words, self.place, rng.choice(self.calls), self.until_next)

    @property
    def prefix(self) -> Path:
        return self.folder / "killed" / "t"

    def prepare(self) -> None:
        for path in self.prefix.parent.glob("*"):
            path.unlink()

    def check(self, command: Command) -> str:
        prefix = str(self.prefix)
        damaged = answer(damaged_sets, prefix)
        if damaged:
            return damaged
        is_over = EPOCHS in list_epochs(prefix)  # what is left of it then draws curves
        if not is_over:
            run(Command("train.main", [*command.words, "--resume", "auto"]))
        if result_of(prefix) != result_of(self.options.output.prefix):
            return f"the {'finished' if is_over else 'resumed'} run has other bits"
        if is_over:
            return ""
        left = [path.name for path in self.prefix.parent.iterdir() if path.name.endswith(".tmp")]
        return f"left: {left}" if left else ""


def damaged_sets(prefix: str) -> str:
    """ "" or which checkpoint of a prefix cannot be loaded."""
    for epoch in list_epochs(prefix):
        load_checkpoint(prefix, epoch)
    return ""


class Training(_Training):
    name, place, until_next = "training", "train.module:DetectionModule.forward_backward", True
    calls = [k for k in range(1, 3 * EPOCHS) if k % 3]  # not the last batch of an epoch


class Validation(_Training):
    name, place = "validation", "train.module:DetectionModule.score"


class Saving(_Training):
    name, place = "saving", "train.saving:CheckpointWriter.save"


class Packing(Phase):
    """There is the old record or the new one, whole; packing again leaves the new one and nothing else."""

    name = "packing"

    def __init__(self, folder: Path, options: TrainOptions) -> None:
        super().__init__(folder, options)
        self.target = folder / "packed" / "r"
        self.roots = [annotated_folder(folder / "one", "abc"), annotated_folder(folder / "two")]
        self.target.parent.mkdir()
        self.states = []
        for root in self.roots:
            run(self._packing(root))
            self.states.append(self._state())
        assert self.states[0] != self.states[1]

    def _packing(self, root: Path, place: str = "") -> Command:
        words = ["--dataset", "pascal", "--root", str(root), "--target", f"{self.target}.lst", "--overwrite"]
        return Command("tools.prepare_dataset", words, place, to_the_end=True)

    def _state(self) -> dict[str, str]:
        return digests(*(self.target.with_suffix(suffix) for suffix in (".rec", ".idx", ".lst", ".json")))

    def command(self, rng: random.Random) -> Command:
        return self._packing(self.roots[1], "tools.prepare_dataset:pack_dataset")

    def prepare(self) -> None:
        run(self._packing(self.roots[0]))

    def check(self, command: Command) -> str:
        answer(verified, str(self.target.with_suffix(".rec")))  # as training does it; finishes a replacement
        if self._state() not in self.states:
            return "neither the old set nor the new one"
        run(command)
        if self._state() != self.states[1]:
            return "packing again gives another record"
        left = sorted(path.name for path in self.target.parent.iterdir())
        return "" if len(left) == len(self.states[1]) else f"left: {left}"


def verified(path: str) -> None:
    """The record is the one of its sidecar."""
    sidecar = read_sidecar(path)
    assert sidecar, "no sidecar"
    verify_sidecar(path, sidecar, hash=True)


class Export(Phase):
    """There is a whole folder of the name, at the latest after the next export, and nothing beside it."""

    name = "export"

    def command(self, rng: random.Random) -> Command:
        return Command("deploy.main", deploy_words(self.options, self.model), "model.folder:write_model_folder")

    @property
    def model(self) -> Path:
        return self.folder / "models" / "m"

    def prepare(self) -> None:
        if not self.model.exists():
            run(Command("deploy.main", deploy_words(self.options, self.model)))

    def check(self, command: Command) -> str:
        if self.model.exists():
            answer(whole_folder, str(self.model))
        run(Command("deploy.main", command.words))
        answer(whole_folder, str(self.model))
        left = sorted(path.name for path in self.model.parent.iterdir())
        return "" if left == [self.model.name] else f"left: {left}"


def whole_folder(path: str) -> None:
    """The model folder is sound."""
    read_model_folder(path)


class Evaluate(Phase):
    """Outputs are old or new, never half, and what is read is as it was."""

    name = "evaluate"

    def command(self, rng: random.Random) -> Command:
        words = ["--prefix", self.options.output.prefix, "--rec-path", self.options.data.val_path, "--cpu"]
        words += ["--json", str(self.output), "--coco-json", str(self.output.with_suffix(".coco")), "--workers", "0"]
        return Command("evaluate.main", words, "evaluate.runs:evaluated", to_the_end=True)

    @property
    def output(self) -> Path:
        return self.folder / "evaluated" / "e.json"

    def prepare(self) -> None:
        self.output.parent.mkdir(exist_ok=True)

    def _inputs(self) -> dict[str, str]:
        prefix = Path(self.options.output.prefix)
        return digests(*sorted(prefix.parent.glob("*-0*")), Path(self.options.data.val_path))

    def check(self, command: Command) -> str:
        before = self._inputs()
        for path in self.output.parent.iterdir():
            if not path.name.endswith(".tmp"):
                json.loads(path.read_text())
        run(Command("evaluate.main", command.words))
        left = [path.name for path in self.output.parent.iterdir()]
        if sorted(left) != ["e.coco", "e.json"]:
            return f"left: {left}"
        return "" if self._inputs() == before else "what was read has changed"


# Before the first fork: a child then has little to load, and a program that is changed meanwhile stays what it was.
IMPORTED = (
    *("train.main", "train.training", "deploy.main", "deploy.onnx_files", "deploy.precision", "engines.onnx_engines"),
    *("evaluate.main", "evaluate.runs", "evaluate.evaluate_net", "tools.prepare_dataset"),
)

PHASES: tuple[type[Phase], ...] = (Training, Validation, Saving, Packing, Export, Evaluate)


def kill_phases(
    folder: Path, count: int, seed: int, tell: Callable[[str], None], names: Sequence[str] = ("",)
) -> list[Row]:
    """Kills each phase `count` times, or those with these names."""
    for module in IMPORTED:
        import_module(module)
    import_module("machine.runtime").mx.cpu  # noqa: B018 - loads mxnet, and computes nothing
    options = run_options(folder)
    run(Command("train.main", train_words(options, Path(options.output.prefix))))
    rows = []
    for kind in (one for one in PHASES if one.name in names or not any(names)):
        rows.append(_kill(kind, folder, options, count, random.Random(seed)))
        tell(f"kills: {rows[-1].name} {rows[-1].done}, wrong {len(rows[-1].wrong)}")
    return rows


def _kill(kind: type[Phase], folder: Path, options: TrainOptions, count: int, rng: random.Random) -> Row:
    own = folder / kind.name
    own.mkdir()
    phase, row = kind(own, options), Row("kill", kind.name)
    phase.prepare()
    seconds = duration(phase.command(rng))
    for _ in range(ATTEMPTS * count):
        if row.done == count:
            break
        phase.prepare()
        command = phase.command(rng)
        if not killed(command, rng.uniform(0, seconds)):
            continue
        row.done += 1
        try:
            wrong = phase.check(command)
        except Exception:
            wrong = traceback.format_exc()
        if wrong:
            row.wrong.append(f"kill {row.done}: {wrong}")
        else:
            row.without_effect += 1
    return row


if __name__ == "__main__":
    sys.exit("run python -m tests.faults")
