"""What both packers do alike: images worked on in parallel, in their order, and the sentences about unusable ones."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from common.errors import DataError
from common.files import open_regular
from dataset.image_check import MAX_BYTES
from dataset.imdb import shortened
from machine.command import held

_CHUNK = 8  # images a worker takes at a time
_AHEAD = 4  # chunks in flight for each worker: bounds the memory

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_order(pool: Executor, workers: int, work: Callable[[T], R], items: Sequence[T]) -> Iterator[Iterator[R]]:
    """work(item) of all items, in their order, from the threads or processes of a pool of `workers`.

    The pool is shut down at the end; what is still in work is waited for, the rest is dropped. DataError for a process
    that dies.
    """
    try:
        yield _results(pool, _AHEAD * workers, work, items)
    except BrokenProcessPool as error:
        raise DataError("a worker process died, perhaps for lack of memory; try fewer with --num-thread") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(pool: Executor, limit: int, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """pool.map with at most `limit` chunks submitted and not yet consumed."""
    waiting: deque[Future[list[R]]] = deque()
    for begin in range(0, len(items), _CHUNK):
        if len(waiting) == limit:
            yield from _first(waiting)
        with held():
            waiting.append(pool.submit(_work_on, work, items[begin : begin + _CHUNK]))
    while waiting:
        yield from _first(waiting)


def _work_on(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [work(item) for item in items]


def _first(waiting: deque[Future[list[R]]]) -> list[R]:
    with held():
        return waiting.popleft().result()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes started from scratch, which leave Ctrl-C to this one and end with it even if it is killed."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file; OSError, or DataError with the reason alone for one that is too large."""
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"larger than {MAX_BYTES >> 20} MiB")
    return content


def or_reason(work: Callable[[], R], failed: Callable[[str], R]) -> R:
    """work(), or failed(the reason why its image cannot be used)."""
    try:
        return work()
    except FileNotFoundError:
        return failed("the image is missing")
    except OSError as error:
        return failed(f"cannot be read ({error.strerror})")
    except DataError as error:
        return failed(str(error))


def refuse_unusable(bad: Sequence[str], skip_bad: bool, packed: int) -> None:
    """DataError with the images that cannot be used (`bad`) unless they may be skipped and others were packed."""
    listed = "; ".join(shortened(bad))
    if bad and not skip_bad:
        raise DataError(
            f"images that cannot be used: {len(bad)} (repair them, or leave them out with --skip-bad): {listed}"
        )
    if packed == 0:
        raise DataError(f"no image can be used, nothing was written: {listed}")
