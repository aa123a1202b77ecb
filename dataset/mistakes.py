"""Mistakes in the labels of a data set: all of them are collected; then it is refused, or goes on without their images.

An image of which one label cannot be read is left out whole: packed without it, its object would be learnt as none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from common.errors import DataError

SHOWN = 10  # lines of a list in an error or a report


class Mistakes:
    """Sentences about labels that cannot be used, in `lines`."""

    def __init__(self, skip: bool = False) -> None:
        """skip: settle() refuses only a data set in which nothing else is left."""
        self.skip = skip
        self.lines: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps the sentence of a DataError in the block, which ends there; what follows goes on."""
        try:
            yield
        except DataError as error:
            self.lines.append(str(error))

    def settle(self, usable: int) -> None:
        """DataError with all that was collected, unless it may be skipped; with the first if nothing is usable.

        usable: images that are left.
        """
        if not self.lines:
            return
        if not self.skip and len(self.lines) == 1:
            raise DataError(self.lines[0])
        if not self.skip:
            listed = "; ".join(shortened(self.lines))
            raise DataError(
                f"labels that cannot be used: {len(self.lines)} (correct them, or leave their images out with "
                f"--skip-bad): {listed}"
            )
        if not usable:
            raise DataError(f"no annotation can be used: {self.lines[0]}")


def shortened(lines: Sequence[str]) -> list[str]:
    """The first ten lines and how many more there are."""
    rest = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]
