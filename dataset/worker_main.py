"""A worker process of dataset/workers.py: python -m dataset.worker_main SOCKET MEMORY (descriptors) OFFSET (bytes)."""

import json
import mmap
import pickle
import socket
import sys
import traceback

from common.errors import DataError
from dataset.samples import BatchLayout, SampleMaker
from dataset.workers import MAX_MESSAGE, Reply, Task, encode

MAX_TEXT = 8192


def perform(task: Task, maker: SampleMaker, layout: BatchLayout, memory: memoryview) -> Reply:
    """Runs a task; what goes wrong is in the reply."""
    try:
        task.perform(maker, layout.arrays(memory, task.slot, task.size))
    except DataError as error:
        return Reply(task.slot, task.row, str(error)[:MAX_TEXT], data=True)
    except Exception:  # a bug: the parent raises it, with this traceback
        return Reply(task.slot, task.row, traceback.format_exc()[-MAX_TEXT:])
    return Reply(task.slot, task.row)


def main(connection: int, memory: int, specification: int) -> None:
    """Performs tasks until the parent closes its end of the connection."""
    shared = mmap.mmap(memory, 0)
    maker, layout = pickle.loads(shared[specification:])  # noqa: S301 - written by our parent
    memory_view = memoryview(shared)
    with socket.socket(fileno=connection) as parent:
        try:
            while message := parent.recv(MAX_MESSAGE):
                parent.sendall(encode(perform(Task(**json.loads(message)), maker, layout, memory_view)))
        except ConnectionError:  # the parent has gone
            return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
