"""Processes that fill batches in shared memory: started from scratch, never forked, so that mxnet is not in them.

A worker is `python -m dataset.workers SOCKET MEMORY OFFSET` (two descriptors, a number of bytes); the user's script is
not imported again. All workers share one socket (SOCK_SEQPACKET keeps messages whole): whoever is free takes the next
task, a few rows of a batch. Arrays never go through it; they are written to anonymous memory (memfd) that has no name
to leave behind and does not count against /dev/shm. When the parent closes the socket or dies, in whatever way, the
workers see its end and leave.
"""

import contextlib
import json
import logging
import mmap
import os
import pickle
import select
import socket
import subprocess
import sys
import time
import traceback
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from common.errors import DataError, WorkerError
from common.sizes import Size
from dataset.samples import Arrays, BatchLayout, SampleMaker
from machine.memory import shown_bytes

ROOT = Path(__file__).parent.parent
MAX_TASKS = 96  # of all slots together, few enough for the socket's buffer
MAX_MESSAGE = 1 << 16
CHECK_MILLISECONDS = 500  # how often a waiting parent looks whether its workers live
STOP_SECONDS = 5.0
WARN_SECONDS = 60.0  # without an answer of any worker, until that is told,
END_SECONDS = 900.0  # and until the run ends: a disk of a network may be slow, but not for so long
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
MAX_TEXT = 8192

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Rows of a batch to make: the records at `positions`, from row `row` of slot `slot` on, in inputs of (H, W)."""

    slot: int
    row: int
    epoch: int
    positions: list[int]
    height: int
    width: int

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.height, self.width

    def perform(self, maker: SampleMaker, arrays: Arrays) -> dict[int, str]:
        """Writes the samples into the slot's arrays of this size; {row: why it is padding} of those left out."""
        maker = maker.resized(self.size)
        rows = enumerate(self.positions, self.row)
        reasons = {row: maker.write(arrays, row, self.epoch, position) for row, position in rows}
        return {row: reason for row, reason in reasons.items() if reason}


@dataclass(frozen=True)
class Reply:
    """A task's end: `error` is "" or what went wrong from `row` on, a mistake of the user's if `data` is true.

    left_out: rows that are padding, as their records cannot be read, and why.
    """

    slot: int
    row: int
    error: str = ""
    data: bool = False
    left_out: list[tuple[int, str]] = field(default_factory=list)

    def exception(self) -> Exception:
        """The error to raise in the parent."""
        return DataError(self.error) if self.data else RuntimeError(f"a data worker failed\n{self.error}")


def to_bytes(message: Task | Reply) -> bytes:
    """A message as bytes for the socket."""
    return json.dumps(vars(message)).encode()


def split_batch(slot: int, epoch: int, positions: np.ndarray, size: Size, limit: int) -> list[Task]:
    """The tasks of a batch, at most `limit`."""
    rows = -(-len(positions) // limit)
    return [Task(slot, k, epoch, positions[k : k + rows].tolist(), *size) for k in range(0, len(positions), rows or 1)]


class InProcess:
    """The interface of WorkerPool without processes: submit() makes the batch at once."""

    def __init__(self, maker: SampleMaker, layout: BatchLayout, slots: int) -> None:
        size = slots * layout.slot_bytes()
        try:
            self._memory = memoryview(bytearray(size))
        except (MemoryError, OverflowError) as error:
            raise _too_little(size, error) from error
        self._maker, self._layout = maker, layout
        self._errors: dict[int, Exception] = {}
        self._left_out: dict[int, dict[int, str]] = {}

    def arrays(self, slot: int, size: Size) -> dict[str, np.ndarray]:
        """The arrays of a slot whose batch has the input (H, W)."""
        return self._layout.arrays(self._memory, slot, size)

    def submit(self, slot: int, epoch: int, positions: np.ndarray, size: Size) -> None:
        """Makes a batch; an error waits for wait()."""
        try:
            task = Task(slot, 0, epoch, positions.tolist(), *size)
            self._left_out[slot] = task.perform(self._maker, self.arrays(slot, size))
        except DataError as error:
            self._errors[slot] = error

    def wait(self, slot: int) -> None:
        """Raises what went wrong in this slot's batch."""
        if slot in self._errors:
            raise self._errors.pop(slot)

    def left_out(self, slot: int) -> dict[int, str]:
        """{row: why it is padding} of the slot's batch, which has been waited for."""
        return self._left_out[slot]

    def drain(self) -> None:
        """Forgets all batches."""
        self._errors.clear()

    def close(self) -> None:
        """Frees the memory."""
        self._memory = memoryview(b"")


class WorkerPool:
    """Fills slots of shared memory in worker processes.

    Usage: submit(slot, epoch, positions, size), later wait(slot), then read arrays(slot, size) until the next submit
    for that slot. Batches are made in the order of submission. close() ends the processes; so do garbage collection and
    the end of this process. After any exception but a DataError from wait() the pool is of no use and should be closed.
    """

    def __init__(self, maker: SampleMaker, layout: BatchLayout, slots: int, workers: int) -> None:
        """Reserves the memory (DataError if there is too little) and starts the workers; does not wait for them."""
        specification = pickle.dumps((maker, layout))
        begin = slots * layout.slot_bytes()
        descriptor, memory = _reserve(begin + len(specification))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            memory[begin:] = specification
            self._processes = [_start(theirs.fileno(), descriptor, begin) for _ in range(workers)]
        finally:
            os.close(descriptor)
            theirs.close()
        self._memory, self._layout = memoryview(memory), layout
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._open = [0] * slots
        self._failures: dict[int, list[Reply]] = {}
        self._left_out: dict[int, dict[int, str]] = {}
        self._waiting: dict[tuple[int, int], Task] = {}  # by slot and row
        self._where = maker.reader.where
        self.close = weakref.finalize(self, _stop, self._socket, self._processes)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [process.pid for process in self._processes]

    def arrays(self, slot: int, size: Size) -> dict[str, np.ndarray]:
        """The arrays of a slot whose batch has the input (H, W)."""
        return self._layout.arrays(self._memory, slot, size)

    def submit(self, slot: int, epoch: int, positions: np.ndarray, size: Size) -> None:
        """Queues a batch of inputs (H, W): records at `positions` in the first rows of a slot without open tasks.

        With more slots than MAX_TASKS it may wait until tasks are done: a full socket would block both ends for ever.
        """
        tasks = split_batch(slot, epoch, positions, size, max(1, MAX_TASKS // len(self._open)))
        while any(self._open) and sum(self._open) + len(tasks) > MAX_TASKS:
            self._receive()
        self._open[slot], self._failures[slot], self._left_out[slot] = len(tasks), [], {}
        with contextlib.suppress(ConnectionError):  # no worker is left: wait() says so
            for task in tasks:
                self._waiting[slot, task.row] = task
                self._socket.sendall(to_bytes(task))

    def wait(self, slot: int) -> None:
        """Waits for the slot's batch. Raises its first DataError, WorkerError if a worker died or does not answer,
        RuntimeError if one failed."""
        self._check_alive()
        while self._open[slot]:
            self._receive()
        if self._failures[slot]:
            raise min(self._failures[slot], key=lambda reply: reply.row).exception()

    def left_out(self, slot: int) -> dict[int, str]:
        """{row: why it is padding} of the slot's batch, which has been waited for."""
        return self._left_out[slot]

    def drain(self) -> None:
        """Waits for all batches that have been submitted, and forgets them."""
        while any(self._open):
            self._receive()

    def _receive(self) -> None:
        """Takes one reply; WorkerError if a worker is dead, or none comes for END_SECONDS."""
        begun, is_told = time.monotonic(), False
        while not self._poll.poll(CHECK_MILLISECONDS):
            self._check_alive()
            waited = time.monotonic() - begun
            if waited > END_SECONDS:
                raise WorkerError(f"{self._silence(waited)}; look at the disk and the load, and continue the run")
            if waited > WARN_SECONDS and not is_told:
                logger.warning("%s; the run ends after %.0f s", self._silence(waited), END_SECONDS)
                is_told = True
        try:
            message = self._socket.recv(MAX_MESSAGE)
        except ConnectionError:
            message = b""
        if not message:
            self._report_end()
        reply = Reply(**json.loads(message))
        self._open[reply.slot] -= 1
        self._waiting.pop((reply.slot, reply.row), None)
        self._left_out[reply.slot].update(dict(reply.left_out))
        if reply.error:
            self._failures[reply.slot].append(reply)

    def _silence(self, seconds: float) -> str:
        """What is known where no worker answers: the first record that is waited for, and who has been stopped."""
        position = next(iter(self._waiting.values())).positions[0]
        stopped = [str(pid) for pid in self.pids if _is_stopped(pid)]
        who = f"data worker {', '.join(stopped)} is stopped (SIGSTOP)" if stopped else f"data workers {self.pids}"
        return f"no batch for {seconds:.0f} s: {self._where(position)} and later ones are waited for; {who}"

    def _report_end(self) -> NoReturn:
        """All workers have closed their end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[0].wait(STOP_SECONDS)
        self._check_alive()
        raise WorkerError("the data workers have closed their connection; continue the run")

    def _check_alive(self) -> None:
        for process in self._processes:
            status = process.poll()
            if status is not None:
                raise WorkerError(f"data worker {process.pid} {_cause_of_death(status)}")


def _is_stopped(process: int) -> bool:
    """Whether a process has been stopped by a signal or a debugger (man 5 proc: states T and t)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text("ascii", "replace").rpartition(") ")[2][:1]
    except OSError:
        return False
    return state in ("T", "t")


def _cause_of_death(status: int) -> str:
    if status == -9:
        return "was killed (signal 9), perhaps because memory ran out: use fewer workers or a smaller batch"
    if status < 0:
        return f"died of signal {-status}; continue the run, and report it if it happens again"
    return f"ended with status {status}, see its message above"


def _reserve(size: int) -> tuple[int, mmap.mmap]:
    """(file descriptor, map) of `size` bytes of memory that is really there: a later write cannot end in SIGBUS."""
    descriptor = os.memfd_create("batches")
    try:
        os.posix_fallocate(descriptor, 0, size)
        return descriptor, mmap.mmap(descriptor, size)
    except (OSError, OverflowError, ValueError) as error:
        os.close(descriptor)
        raise _too_little(size, error) from error


def _too_little(size: int, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) else "no process can have so much"
    return DataError(
        f"{shown_bytes(size)} of shared memory for batches cannot be reserved ({reason}): use a smaller batch_size or "
        "data_shape, or give this machine or container more memory"
    )


def _start(connection: int, memory: int, specification: int) -> subprocess.Popen[Any]:
    """Starts a worker in a process group of its own: Ctrl-C in the terminal is the parent's business."""
    paths = [str(ROOT), *(path for path in sys.path if path)]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "dataset.workers", str(connection), str(memory), str(specification)],
        stdin=subprocess.DEVNULL,
        pass_fds=(connection, memory),
        process_group=0,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def _stop(connection: socket.socket, processes: list[subprocess.Popen[Any]]) -> None:
    connection.close()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_task(task: Task, maker: SampleMaker, layout: BatchLayout, memory: memoryview) -> Reply:
    """Runs a task; what goes wrong is in the reply."""
    try:
        found = task.perform(maker, layout.arrays(memory, task.slot, task.size))
    except DataError as error:
        return Reply(task.slot, task.row, str(error)[:MAX_TEXT], data=True)
    except Exception:  # a bug: the parent raises it, with this traceback
        return Reply(task.slot, task.row, traceback.format_exc()[-MAX_TEXT:])
    length = MAX_TEXT // max(1, len(found))
    return Reply(task.slot, task.row, left_out=[(row, reason[:length]) for row, reason in found.items()])


def main(connection: int, memory: int, specification: int) -> None:
    """Performs tasks until the parent closes its end of the connection."""
    shared = mmap.mmap(memory, 0)
    maker, layout = pickle.loads(shared[specification:])  # noqa: S301 - written by our parent
    memory_view = memoryview(shared)
    with contextlib.suppress(DataError):  # the first task tells
        maker.reader.open_file()
    with socket.socket(fileno=connection) as parent:
        try:
            while message := parent.recv(MAX_MESSAGE):
                parent.sendall(to_bytes(run_task(Task(**json.loads(message)), maker, layout, memory_view)))
        except ConnectionError:  # the parent has gone
            return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
