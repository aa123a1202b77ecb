"""The errors that a user can cause, and parts of their sentences.

machine/command.py reports an error: one sentence, exit status 2, no traceback.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What MXNet's errors say, whose class is a RuntimeError: of the GPU, of its allocator on CPUs, and of C++.
_EXHAUSTED = re.compile(r"out of memory|failed to allocate|bad_alloc|cannot allocate memory", re.IGNORECASE)


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
