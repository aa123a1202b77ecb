"""What the tools that pack images share: progress for the user."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from dataset.image_pool import shortened

T = TypeVar("T")
_LOG_SECONDS = 10.0
logger = logging.getLogger(__name__)


def progress(images: Iterable[T], total: int) -> Iterator[T]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(images, total=total, unit="image", desc="packing", file=sys.stderr)
        return
    begin = shown = time.monotonic()
    for count, image in enumerate(images, 1):
        yield image
        now = time.monotonic()
        if now - shown >= _LOG_SECONDS or count == total:
            logger.info("packing: %d of %d images, %.0f images/s", count, total, count / max(now - begin, 1e-6))
            shown = now


def print_list(what: str, lines: list[str]) -> None:
    """A heading with the number of lines, and the first ten of them; nothing without lines."""
    if lines:
        print(f"{what}: {len(lines)}")
        for line in shortened(lines):
            print(f"  {line}")
