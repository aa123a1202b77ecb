"""Kills the processes of a job in turn, many times, and compares the outcome with an undisturbed run.

    python -m benchmarks.kill_job --kills 20 python train.py --kv-store dist_sync --train-path data/train.rec \
        --val-path data/val.rec --prefix output/killed --end-epoch 100

The command runs under tools/launch.py with two workers and a server. After each epoch that a restart has gained, the
next of the scheduler, the server and both workers is killed by SIGKILL at a random time. It prints how long the others
took to end, what was left of them, which checkpoints were lost, and whether the last one equals that of a run with the
same options and the prefix PREFIX-plain.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import print_table
from common.errors import OptionError
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.runtime import mx
from model.checkpoint import list_epochs

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("scheduler", "server", "worker 0", "worker 1")
LONGEST_WAIT = 600.0  # seconds for an epoch, or for a restart
HANG_SECONDS = 30.0  # after which processes that still live count as a hang
MOST_DELAY = 1.0  # seconds of chance before a kill
POLL = 0.02


@dataclass(frozen=True)
class KillOptions:
    """What to kill how often."""

    kills: int = option(20, "kills of each of the four processes", minimum=1)
    seed: int = option(0, "of the times of the kills")


@dataclass
class Outcome:
    """What has become of the kills of one role."""

    seconds: list[float] = field(default_factory=list)
    hangs: int = 0
    left: int = 0
    lost: int = 0


def main(argv: list[str]) -> None:
    """Prints a table, a row for each role, and the comparison."""
    begin = next((k for k, word in enumerate(argv) if word == "python"), len(argv))
    options, command = parse_options(KillOptions, argv[:begin], "Kills the processes of a job in turn."), argv[begin:]
    if "--prefix" not in command:
        raise OptionError("the command needs --prefix; see python -m benchmarks.kill_job --help")
    prefix = command[command.index("--prefix") + 1]
    outcomes = _disturbed(options, command, prefix)
    plain = [f"{word}-plain" if word == prefix else word for word in command]
    subprocess.run(_launched(plain, 0), cwd=ROOT, check=True)  # noqa: S603 - the user's own command
    rows = [
        [role, str(len(one.seconds)), f"{max(one.seconds):.1f} s", str(one.hangs), str(one.left), str(one.lost)]
        for role, one in outcomes.items()
    ]
    print_table(
        ["killed", "times", "all had ended after, at most", "hangs", "processes left", "lost checkpoints"], rows
    )
    print(f"\nparameters and optimizer of the last checkpoint: {_compared(prefix)}")


def _launched(command: list[str], restarts: int) -> list[str]:
    words = ["-n", "2", "-s", "1", "--max-restarts", str(restarts), *command]
    return [sys.executable, "tools/launch.py", *words]


def _disturbed(options: KillOptions, command: list[str], prefix: str) -> dict[str, Outcome]:
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    restarts = 2 * options.kills * len(ROLES)  # more than there are kills: what ends by itself must not end all
    with subprocess.Popen(_launched(command, restarts), cwd=ROOT) as job:  # noqa: S603 - the user's own command
        try:
            for k in range(options.kills * len(ROLES)):
                _wait(job, partial(_is_beyond, prefix, _newest(prefix)))
                time.sleep(chance.uniform(0, MOST_DELAY))
                _kill(job, ROLES[k % len(ROLES)], prefix, outcomes[ROLES[k % len(ROLES)]])
            if job.wait(LONGEST_WAIT * 10):
                raise OptionError(f"the job has ended with status {job.returncode}; see what it has told")
        finally:
            job.kill()
    return dict(outcomes)


def _kill(job: subprocess.Popen, role: str, prefix: str, outcome: Outcome) -> None:
    """Kills one process and waits for the others of this start to end."""
    _wait(job, lambda: set(_processes(job.pid)) == set(ROLES))
    found, saved = _processes(job.pid), set(list_epochs(prefix))
    begun = time.monotonic()
    os.kill(found[role], signal.SIGKILL)
    old = set(found.values())
    while _living(old) and time.monotonic() < begun + HANG_SECONDS:
        time.sleep(POLL)
    outcome.seconds.append(time.monotonic() - begun)
    left = _living(old)
    outcome.hangs += bool(left)
    outcome.left += len(left)
    outcome.lost += len(saved - set(list_epochs(prefix)))


def _is_beyond(prefix: str, epoch: int) -> bool:
    return _newest(prefix) > epoch


def _newest(prefix: str) -> int:
    return max(list_epochs(prefix), default=0)


def _wait(job: subprocess.Popen, condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        if job.poll() is not None or time.monotonic() > begun + LONGEST_WAIT:
            raise OptionError("the job has ended or makes no progress; give more --end-epoch, see what it has told")
        time.sleep(POLL)


def _processes(launcher: int) -> dict[str, int]:
    """{role: process id} of a launcher's children."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(_fields(folder)[1])
            words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError, IndexError):
            continue
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        if parent == launcher and "DMLC_ROLE" in variables:
            number = variables.get("DMLC_TASK_ID")
            found[variables["DMLC_ROLE"] + (f" {number}" if number else "")] = int(folder.name)
    return found


def _living(sessions: set[int]) -> list[int]:
    """Processes of these sessions that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = _fields(folder)[:4]
        except (OSError, ValueError):
            continue
        if int(session) in sessions and state not in "ZX":
            found.append(int(folder.name))
    return found


def _fields(folder: Path) -> list[str]:
    """State, parent, group, session and more of a process; proc(5)."""
    return (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()


def _compared(prefix: str) -> str:
    number, differ = _newest(prefix), []
    for kind in ("params", "optim.params"):
        one, two = (mx.nd.load(f"{which}-{number:04d}.{kind}") for which in (prefix, f"{prefix}-plain"))
        pairs = {name: (array.asnumpy(), two[name].asnumpy()) for name, array in one.items()}
        differ += [name for name, pair in pairs.items() if not np.array_equal(*pair)]
    return f"{len(differ)} arrays differ" if differ else "equal to the last bit"


if __name__ == "__main__":
    run_command(main)
