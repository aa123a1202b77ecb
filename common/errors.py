"""The errors that a user can cause, and parts of their sentences.

machine/command.py reports an error: one sentence, exit status 2, no traceback.
"""

import ctypes
import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What MXNet's errors say, whose class is a RuntimeError: of the GPU, of its allocator on CPUs, and of C++.
_EXHAUSTED = re.compile(r"out of memory|failed to allocate|bad_alloc|cannot allocate memory", re.IGNORECASE)

# System libraries that the Python wheels expect, and the Debian packages that bring them.
DEBIAN_PACKAGES = {
    "libGL.so.1": "libgl1",  # opencv-python
    "libgthread-2.0.so.0": "libglib2.0-0",  # opencv-python
    "libglib-2.0.so.0": "libglib2.0-0",  # opencv-python
    "libgomp.so.1": "libgomp1",  # mxnet
    "libquadmath.so.0": "libquadmath0",  # mxnet, through its own libgfortran.so.3
}


class UserError(Exception):
    """A mistake that the user can correct; its text names the file, record or option and the remedy."""


class OptionError(UserError):
    """A wrong option, or options that do not fit together."""


class DataError(UserError):
    """A damaged or unsuitable file of the user's: annotation, image, list, record, sidecar."""


class CheckpointError(UserError):
    """A missing, damaged or unsuitable checkpoint or model folder."""


class InstallError(UserError):
    """A library that is not installed, or that cannot run on this machine."""


class TrainingError(UserError):
    """Training cannot go on, for instance because the loss is no longer finite."""


class WorkerError(UserError, RuntimeError):
    """A data worker has died or does not answer; its pool is of no more use."""


class OutOfMemoryError(UserError):
    """What was asked for does not fit into the memory of the machine or its GPU."""


@contextmanager
def out_of_memory_hint(remedy: str) -> Iterator[None]:
    """OutOfMemoryError with the remedy, a part of a sentence, where memory runs out in the block.

    Other errors pass as they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _EXHAUSTED.search(str(error)):
            raise
        raise OutOfMemoryError(f"the memory of this machine, or of its GPU, is too small: {remedy}") from error


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """ " (did you mean X or Y?)" of the `most` known words that are most like a wrong one; "" where none is like it."""
    close = difflib.get_close_matches(word, list(known), n=most)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def missing_packages() -> list[str]:
    """Debian packages of those libraries that the loader does not find, sorted, each once."""
    return sorted({package for library, package in DEBIAN_PACKAGES.items() if not _loads(library)})


def named_library(error: BaseException) -> str | None:
    """The library that the loader's message names ("libGL.so.1: cannot open shared object file"), or None."""
    found = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    return found.group(1) if found else None


def remedy(library: str) -> str:
    """What to do about a missing library, as the end of a sentence; names all missing packages at once."""
    if library not in DEBIAN_PACKAGES:
        return f"install the package that contains {library}"
    return f"apt-get install {' '.join(missing_packages() or [DEBIAN_PACKAGES[library]])}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
