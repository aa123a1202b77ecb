"""How a command runs: its log, signals that are never lost, and one sentence for a mistake of the user."""

import atexit
import errno
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from common.errors import UserError

SHOWN_OTHERWISE = {"shown_otherwise": True}  # `extra` of a log line that a terminal need not show
AGAIN_SECONDS = 0.01
SIGNAL_STATUS = 128  # a process that a signal ends has it and the signal's number
TERMINATED = SIGNAL_STATUS + signal.SIGTERM
INTERRUPTED = SIGNAL_STATUS + signal.SIGINT
MISTAKE = 2
_REQUESTS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})
logger = logging.getLogger(__name__)

_arrived: list[int] = []  # signals that have raised an exception


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Runs main(argv) and ends the process: 0 or main's value, 2 for a mistake of the user, 130 for Ctrl-C.

    "interrupted" is printed unless the KeyboardInterrupt has arguments: who gave it these has told already. A mistake
    is a UserError, a file that the system refuses (OSError with a file name) or a full disk. Status 141 when the reader
    of the output has gone (`train.py --help | head`). DETECTOR_TRACEBACK=1 shows a mistake's traceback. Closed
    streams lead nowhere.
    """
    open_streams()
    keep_interrupts()
    try:
        status = _status_of(main)
    except BaseException:
        if not _process.skips_goodbyes:
            raise
        traceback.print_exc()
        status = 1
    if _process.skips_goodbyes:
        _exit(status if isinstance(status, int) else 1)
    sys.exit(status)


def _status_of(main: Callable[[list[str]], int | None]) -> int | str:
    """The status with which the command ends; what has gone wrong is told."""
    try:
        return _run(main)
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("DETECTOR_TRACEBACK"):
            raise
        print(f"error: {_process.prefix}{sentence}", file=sys.stderr)
        return MISTAKE


@dataclass
class _Process:
    """What is known of this process.

    prefix: in front of what it says. level: of the lines of the log, below which a terminal shows none.
    skips_goodbyes: it ends without what Python does at its end.
    """

    prefix: str = ""
    level: int = logging.NOTSET
    skips_goodbyes: bool = False


_process = _Process()


def name_process(name: str) -> None:
    """Puts the name of this process, not the first of several, in front of its errors and of its log lines on the
    terminal, of which warnings alone are shown: what it does the first one tells."""
    _process.prefix, _process.level = f"[{name}] ", logging.WARNING


def skip_goodbyes() -> None:
    """Lets the process end without what libraries and Python do at its end, which would wait for other processes."""
    if not _process.skips_goodbyes:
        atexit.register(_exit, 1)  # of a script; run_command knows the status
    _process.skips_goodbyes = True


def die(status: int, sentence: str) -> NoReturn:
    """Ends the process from any thread, at once."""
    print(f"error: {_process.prefix}{sentence}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def open_streams() -> None:
    """Puts /dev/null in the place of standard input, output and error where they are closed (`2>&-`).

    Python then has no stream to print to, and a file opened later would get the number and be printed into.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115 - for good


def _run(main: Callable[[list[str]], int | None]) -> int | str:
    try:
        return main(sys.argv[1:]) or 0
    except SystemExit as end:  # --help has been printed
        return end.code or 0
    finally:
        sys.stdout.flush()


def _sentence(error: Exception) -> str | None:
    """The text for the user on one line; None for an OSError that no user can have caused."""
    if isinstance(error, OSError):
        if error.filename is None and error.errno != errno.ENOSPC:
            return None
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return " ".join(str(error).split())


def _reader_is_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads (and not some other pipe of this process)."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def exit_on_sigterm() -> None:
    """Makes SIGTERM raise SystemExit with status 143."""
    signal.signal(signal.SIGTERM, _arrive)


def keep_interrupts() -> None:
    """Sends a signal again whose exception Python dropped.

    Python ignores what is raised within __del__ (MXNet's arrays have one) and within callbacks of C code: a signal that
    arrives there would be shown as a traceback and forgotten. See raise_lost_signal for what drops it without a word.
    """
    sys.unraisablehook = _send_again
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's `command &` ignores it
        signal.signal(signal.SIGINT, _arrive)


def _arrive(number: int, frame: FrameType | None) -> NoReturn:
    _arrived.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(SIGNAL_STATUS + number)


def raise_lost_signal() -> None:
    """Raises again what a signal has raised before; for the body of a long loop, which runs on only if that was lost.

    C code that makes an exception of its own drops the one at hand: int("normal") calls repr for its message, repr runs
    the handler of a signal, and a ValueError takes the place of KeyboardInterrupt (seen in matplotlib).
    """
    if _arrived:
        _arrive(_arrived[0], None)


def _send_again(unraisable: Any) -> None:
    error = unraisable.exc_value
    lost_term = isinstance(error, SystemExit) and error.code == TERMINATED
    if sys.is_finalizing() or not (lost_term or isinstance(error, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if lost_term else signal.SIGINT
    timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


class SignalRequests:
    """What signals have asked a long loop for, which looks when it can: to end, to save and go on, or nothing (false).

    Attributes:
        end: the signal that asks to end; None = none has.
        save: whether SIGUSR1 has asked to save.
    """

    def __init__(self) -> None:
        """Nothing has been asked for."""
        self.end: int | None = None
        self.save = False

    def __bool__(self) -> bool:
        """Whether anything is to be done."""
        return self.end is not None or self.save

    def fulfil(self) -> None:
        """After saving: raises what the signal stands for, if it asks to end."""
        self.save = False
        if self.end is not None:
            raise KeyboardInterrupt if self.end == signal.SIGINT else SystemExit(SIGNAL_STATUS + self.end)

    def agree(self) -> None:
        """Takes in what other processes have been asked for, in the same place of all; alone there is nothing to do."""

    def arrive(self, number: int, frame: FrameType | None) -> None:
        """The handler: a second signal to end is not waited for."""
        if number == signal.SIGUSR1:
            self.save = True
        elif self.end is None:
            self.end = number
            name = signal.Signals(number).name
            logger.warning("%s: the run is saved and ends after this update; a second one ends it at once", name)
        else:
            _arrive(number, frame)


@contextmanager
def requested_by_signals(requests: SignalRequests) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP ask to end, SIGUSR1 to save, in place of what they did, within the block.

    SIGHUP where it is ignored (nohup) stays so. Outside of the main thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _REQUESTS}
    ignored = {number for number in (signal.SIGHUP, signal.SIGINT) if before[number] is signal.SIG_IGN}
    for number in _REQUESTS - ignored:
        signal.signal(number, requests.arrive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """Lets SIGINT and SIGTERM wait for the end of the block.

    For calls that take locks which other threads need, those of concurrent.futures for instance: an exception in the
    wrong place would leave them locked for ever. Does nothing outside of the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, lambda arrived, _: found.append(arrived))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if found:
            os.kill(os.getpid(), found[0])


class _BarHandler(logging.Handler):
    """Writes log lines to stderr above a progress bar, but for those that the bar shows."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= _process.level and not getattr(record, "shown_otherwise", False):
            tqdm.write(_process.prefix + self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """Sends the log to stderr, above progress bars; called by the commands."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler = _BarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
