"""Lines that MXNet's C++ code writes by itself, kept from the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that is written to standard error by this process appears; exceptions are raised as ever.

    For calls of a fraction of a second: lines of other threads are lost, too.
    """
    sys.stderr.flush()
    saved, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(saved)
        os.close(nowhere)
