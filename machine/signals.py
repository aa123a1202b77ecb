"""An end by Ctrl-C or SIGTERM: raised as an exception, so that files and workers are cleaned up, and never lost."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

AGAIN_SECONDS = 0.01
TERMINATED = 128 + signal.SIGTERM


def exit_on_sigterm() -> None:
    """Makes SIGTERM raise SystemExit with status 143."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def keep_interrupts() -> None:
    """Sends a signal again whose exception Python dropped.

    Python ignores what is raised within __del__ (MXNet's arrays have one) and within callbacks of C code: a signal that
    arrives there would be shown as a traceback and forgotten.
    """
    sys.unraisablehook = _send_again


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
    handlers = {number: signal.signal(number, lambda arrived, _: found.append(arrived)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if found:
            os.kill(os.getpid(), found[0])
