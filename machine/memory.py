"""Exhausted memory, told as a sentence with the remedy in place of a library's trace."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import OutOfMemoryError

# What MXNet's errors say, whose class is a RuntimeError: of the GPU, of its allocator on CPUs, and of C++.
_EXHAUSTED = re.compile(r"out of memory|failed to allocate|bad_alloc|cannot allocate memory", re.IGNORECASE)


@contextmanager
def told_exhaustion(remedy: str) -> Iterator[None]:
    """OutOfMemoryError with the remedy, a part of a sentence, where the block ends for want of memory.

    Other errors pass as they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _EXHAUSTED.search(str(error)):
            raise
        raise OutOfMemoryError(f"the memory of this machine, or of its GPU, does not suffice: {remedy}") from error
