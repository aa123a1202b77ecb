"""Processes that work together and end together: one that dies, is killed or stopped ends all of them.

Each has a session of its own, gets no signal of the terminal, and is killed by the kernel when its parent dies. On
another machine `python -m machine.jobs COMMAND` does the same for a command: what it reads from standard input are
names of signals, and the end of that, as when the connection breaks, kills the command.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from machine.command import INTERRUPTED, MISTAKE, SIGNAL_STATUS

POLL_SECONDS = 0.1
STOPPED_SECONDS = 10.0  # that a process may be stopped (SIGSTOP, a debugger)
LAST_SECONDS = 20.0  # that the others may take to end when all that matter have ended
KILL_SECONDS = 10.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASKED = frozenset(SIGNAL_STATUS + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
STOPPED_STATES = "tT"  # proc(5), /proc/PID/stat
CRASHED = 1
_libc = ctypes.CDLL(None)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A process to start.

    Attributes:
        name: for messages.
        words: the command, which no shell reads.
        variables: of its environment, beside those of this process.
        matters: the job lasts until all of these have ended, and signals are handed on to them.
        is_remote: signals are handed on by their names through standard input.
    """

    name: str
    words: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    matters: bool = False
    is_remote: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job has ended.

    Attributes:
        status: of exit, 0 = well.
        sentence: what has gone wrong, "" = nothing.
        may_go_on: whether starting it again may help: it was no mistake and nobody has asked it to end.
    """

    status: int
    sentence: str = ""
    may_go_on: bool = False


class Running:
    """A process that has been started."""

    def __init__(self, command: Command) -> None:
        """Starts it; OSError where there is no such program."""
        self.command = command
        self._process = subprocess.Popen(  # noqa: S603 - the user's own command, no shell
            list(command.words),
            env=os.environ | dict(command.variables),
            stdin=subprocess.PIPE if command.is_remote else subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._stopped_since: float | None = None

    @property
    def status(self) -> int | None:
        """Its status once it has ended; -N where signal N has ended it."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stopped_seconds(self) -> float:
        """For how long it has been seen stopped."""
        if not self._is_stopped():
            self._stopped_since = None
            return 0.0
        self._stopped_since = self._stopped_since or time.monotonic()
        return time.monotonic() - self._stopped_since

    def hand_on(self, number: int) -> None:
        """Sends it a signal."""
        with suppress(OSError):
            if self._process.stdin:
                self._process.stdin.write(f"{signal.Signals(number).name}\n".encode())
                self._process.stdin.flush()
            elif self.status is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it and what it has started."""
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)

    def _is_stopped(self) -> bool:
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(") ")[2][:1] in STOPPED_STATES


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_job(commands: Sequence[Command], grace: float) -> Outcome:
    """Runs processes until those that matter have ended; no process is left.

    grace: seconds that they have to save and end after SIGINT, SIGTERM or SIGHUP; SIGUSR1 is only handed on.
    """
    running: list[Running] = []
    with _signals() as arrived:
        try:
            for command in commands:
                running.append(Running(command))
            return _Watch(running, arrived, grace).outcome()
        finally:
            for one in running:
                one.kill()


class _Watch:
    """Looks at processes until the job is over."""

    def __init__(self, running: Sequence[Running], arrived: list[int], grace: float) -> None:
        self._running, self._arrived, self._grace = running, arrived, grace
        self._ends: int | None = None  # the signal that asks to end
        self._deadline = float("inf")
        self._gone_since = float("inf")  # since when a process that the others need has ended without an error

    def outcome(self) -> Outcome:
        """Waits for it."""
        while True:
            self._hand_on()
            self._asked_elsewhere()
            busy = [one for one in self._running if one.command.matters and one.status is None]
            failed = self._stopped() or self._dead() or self._late(busy)
            if failed:
                return failed
            if not busy:
                self._wait_for_helpers()
                return Outcome(SIGNAL_STATUS + self._ends if self._ends else 0)
            time.sleep(POLL_SECONDS)

    def _hand_on(self) -> None:
        while self._arrived:
            number = self._arrived.pop(0)
            for one in self._running:
                if one.command.matters:
                    one.hand_on(number)
            if number != signal.SIGUSR1:
                self._ends, self._deadline = number, time.monotonic() + self._grace

    def _asked_elsewhere(self) -> None:
        """A signal may have asked one of those that matter alone: the others follow it."""
        for one in self._running:
            if one.command.matters and one.status in ASKED and self._ends is None:
                self._ends, self._deadline = one.status - SIGNAL_STATUS, time.monotonic() + self._grace

    def _stopped(self) -> Outcome | None:
        for one in self._running:
            if one.status is None and one.stopped_seconds() > STOPPED_SECONDS:
                text = f"{one.command.name} (process {one.pid}) has been stopped for {STOPPED_SECONDS:g} s"
                return Outcome(CRASHED, text, may_go_on=self._ends is None)
        return None

    def _dead(self) -> Outcome | None:
        expected = {None, 0} if self._ends is None else {None, 0, SIGNAL_STATUS + self._ends, INTERRUPTED}
        dead = [one for one in self._running if one.status not in expected]
        mistake = next((one for one in dead if one.status == MISTAKE), None)
        found = mistake or next(iter(dead), None)
        if found is None:
            return None
        status = found.status or CRASHED
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        text = f"{found.command.name} (process {found.pid}) {how}"
        return Outcome(abs(status) + SIGNAL_STATUS * (status < 0), text, mistake is None and self._ends is None)

    def _late(self, busy: Sequence[Running]) -> Outcome | None:
        """Where those that matter go on for too long: after a signal, or without what they need."""
        now = time.monotonic()
        if not busy:
            return None
        names = ", ".join(one.command.name for one in busy)
        if now > self._deadline:
            return Outcome(CRASHED, f"{names} did not end within {self._grace:g} s of the signal")
        gone = [one.command.name for one in self._running if not one.command.matters and one.status == 0]
        if gone and now > self._gone_since + LAST_SECONDS:
            return Outcome(CRASHED, f"{gone[0]} has ended, {names} not", may_go_on=self._ends is None)
        self._gone_since = min(self._gone_since, now) if gone else float("inf")
        return None

    def _wait_for_helpers(self) -> None:
        begun = time.monotonic()
        while any(one.status is None for one in self._running) and time.monotonic() < begun + LAST_SECONDS:
            time.sleep(POLL_SECONDS)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrive within the block, in their order, in place of what they did."""
    arrived: list[int] = []

    def arrive(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, arrive)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def serve_connection(words: Sequence[str]) -> int:
    """Runs a command of a job on this machine; its status. See the module."""
    running = Running(Command("", words))

    def listen() -> None:
        for line in sys.stdin:
            with suppress(KeyError, ProcessLookupError):
                os.kill(running.pid, signal.Signals[line.strip()])
        running.kill()

    threading.Thread(target=listen, daemon=True).start()
    while running.status is None:
        time.sleep(POLL_SECONDS)
    status = running.status
    running.kill()  # what it has left
    return status if status >= 0 else SIGNAL_STATUS - status


if __name__ == "__main__":
    sys.exit(serve_connection(sys.argv[1:]))
