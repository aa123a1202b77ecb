"""Lines that MXNet's C++ code writes by itself, kept from the terminal."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is written to standard error by this process appears; exceptions are raised as ever.

    For calls of a fraction of a second: lines of other threads are lost, too. Calls may overlap: standard error is back
    when the last of them ends. Without one nothing happens.
    """
    _redirection.begin()
    try:
        yield
    finally:
        _redirection.end()


class _Redirection:
    """Standard error, which is discarded while any call of quiet() lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._saved: int | None = None

    def begin(self) -> None:
        """The first of overlapping calls redirects."""
        with self._lock:
            if not self._calls:
                self._saved = _redirect()
            self._calls += 1

    def end(self) -> None:
        """The last of overlapping calls restores."""
        with self._lock:
            self._calls -= 1
            if not self._calls and self._saved is not None:
                os.dup2(self._saved, _STDERR)
                os.close(self._saved)
                self._saved = None


_redirection = _Redirection()


def _redirect() -> int | None:
    """A copy of standard error as it was; None where the process has none."""
    try:
        saved = os.dup(_STDERR)
    except OSError:
        return None
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
    except BaseException:
        os.close(saved)
        raise
    return saved
