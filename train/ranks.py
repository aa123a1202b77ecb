"""Several workers that train one network: sums over them by MXNet's kvstore, in the same order of calls on each.

The stores are dist_sync and dist_device_sync. Their servers add up what the workers push to a key and hand the sum back
when all have pushed; they hold no weights and no optimizer. All that workers have to tell each other goes this way, as
float32: numbers as they are, texts as integers of 16 bits.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from common.errors import OptionError
from machine.command import name_process, skip_goodbyes
from machine.runtime import mx
from train.ps_lite import check_job, close_store, open_store, own_rank

SMALL, LARGE = 1 << 12, 1 << 20  # numbers of a message
FIRST = 1 << 20  # priority of what a process waits for; gradients have those below 1
HALVES = 1 << 16  # values of two bytes
DIST = "dist"  # what names of stores of several processes begin with


class Ranks:
    """The workers of a job as one of them sees it; a run of one process is rank 0 of 1, for which nothing is sent.

    Every method is called by all workers, in the same order and with arrays of the same shapes.

    Attributes:
        rank: of this worker, from 0. The files of the run are those of rank 0.
        count: of the workers.
        ends_together: all workers leave the run at the same place, by an exception, too.
    """

    def __init__(self, store: Any = None, rank: int = 0, count: int = 1) -> None:
        """store: an mx.kv.KVStore of several processes, None for one."""
        self._store, self.rank, self.count = store, rank, count
        self.ends_together = False
        self._keys: set[str] = set()
        self._buffers: dict[str, Any] = {}  # an NDArray for each key of sum_array

    @property
    def writes(self) -> bool:
        """Whether this is the worker whose files are the run's."""
        return self.rank == 0

    def sum_gradients(self, names: Sequence[str], arrays: Sequence[Sequence[Any]]) -> None:
        """Puts the sums over all workers and contexts in the place of gradients; does not wait.

        arrays: for each of the names the NDArrays of the contexts, None for a frozen parameter.
        """
        if self.count == 1:
            return
        keyed = {
            f"gradient/{name}/{own[0].shape}": own
            for name, own in zip(names, arrays, strict=True)
            if own[0] is not None
        }
        self._begin({key: own[0].shape for key, own in keyed.items()})
        for k, (key, own) in enumerate(keyed.items()):
            self._store.push(key, own, priority=-k)
            self._store.pull(key, own, priority=-k)

    def sum_array(self, key: str, array: Any) -> None:
        """Puts the sum over the workers in the place of an NDArray; does not wait.

        All go through one buffer of the key, so that each waits for the one before: a server counts what is pushed, and
        would take the second push of a fast worker for that of a slow one.
        """
        if self.count == 1:
            return
        self._begin({key: array.shape})
        buffer = self._buffers.setdefault(key, mx.nd.zeros(array.shape))
        array.copyto(buffer)
        self._store.push(key, buffer, priority=FIRST)
        self._store.pull(key, buffer, priority=FIRST)
        buffer.copyto(array)

    def sum_numbers(self, key: str, numbers: Sequence[float] | np.ndarray) -> np.ndarray:
        """The sums over the workers, (n,) float32; a key has always as many numbers."""
        array = mx.nd.array(np.asarray(numbers, np.float32))
        self.sum_array(key, array)
        return array.asnumpy()

    def any(self, key: str, is_so: bool) -> bool:
        """Whether it is so for any worker."""
        return is_so if self.count == 1 else bool(self.sum_numbers(key, [is_so])[0])

    def sum_many(self, numbers: np.ndarray) -> np.ndarray:
        """The sums over the workers of any number of float32, (n,)."""
        size = SMALL if len(numbers) <= SMALL else LARGE
        sums = []
        for begin in range(0, len(numbers), size):
            part = numbers[begin : begin + size].astype(np.float32)
            sums.append(self.sum_numbers(f"message/{size}", np.pad(part, (0, size - len(part))))[: len(part)])
        return np.concatenate([np.empty(0, np.float32), *sums])

    def gather(self, text: bytes) -> list[bytes]:
        """The texts of all workers, in the order of their ranks."""
        sizes = np.zeros((self.count, 2), np.float32)
        sizes[self.rank] = divmod(len(text), HALVES)
        lengths = [int(high) * HALVES + int(low) for high, low in self.sum_many(sizes.ravel()).reshape(-1, 2)]
        whole = np.zeros((self.count, (max(lengths) + 1) // 2), np.float32)
        whole[self.rank, : (len(text) + 1) // 2] = np.frombuffer(text + b"\0" * (len(text) % 2), "<u2")
        sums = self.sum_many(whole.ravel()).astype("<u2").reshape(whole.shape)
        return [row.tobytes()[:length] for row, length in zip(sums, lengths, strict=True)]

    def told(self, value: Any) -> Any:
        """What rank 0 gives, as JSON brings it; what the others give does not matter."""
        if self.count == 1:
            return value
        return json.loads(self.gather(json.dumps(value).encode() if self.writes else b"")[0])

    def all_told(self, value: Any) -> list[Any]:
        """What all give, as JSON brings it, in the order of their ranks."""
        return [value] if self.count == 1 else [json.loads(one) for one in self.gather(json.dumps(value).encode())]

    def told_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The float32 arrays of rank 0; those of the others do not matter."""
        if self.count == 1:
            return dict(arrays)
        shapes = self.told([(name, list(array.shape)) for name, array in arrays.items()])
        flat = [np.asarray(array, np.float32).ravel() for array in arrays.values()] if self.writes else []
        size = sum(int(np.prod(shape)) for _, shape in shapes)
        whole = self.sum_many(np.concatenate(flat) if flat else np.zeros(size, np.float32))
        ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])[:-1]
        parts = np.split(whole, ends) if shapes else []
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

    def means(self, numbers: np.ndarray) -> np.ndarray:
        """Means (n,) float32 over the workers; where all have the same number, it stays bit for bit."""
        base = self.told_arrays({"base": numbers})["base"]
        return base + self.sum_many(numbers - base) / np.float32(self.count)

    def _begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Makes the keys that there are not yet."""
        new = {key: shape for key, shape in shapes.items() if key not in self._keys}
        if new:
            self._store.init(list(new), [mx.nd.zeros(shape) for shape in new.values()])
            self._keys.update(new)


ALONE = Ranks()


@contextmanager
def open_ranks(kv_store: str) -> Iterator[Ranks]:
    """The workers that train by a store, ALONE for `local` and `device`; waits until all processes are there.

    Leaving the block waits for the other workers; with an exception of this worker alone it does not, and the process
    will end at once. OptionError where variables of the job are missing, or two workers have the same rank.
    """
    if not kv_store.startswith(DIST):
        yield ALONE
        return
    check_job(kv_store)
    store, watch = open_store(kv_store)
    rank = own_rank()
    ranks = Ranks(store, store.rank if rank is None else rank, store.num_workers)
    if not ranks.writes:
        name_process(f"rank {ranks.rank}")
    try:
        _check_numbers(ranks)
        yield ranks
    except BaseException:
        if not ranks.ends_together:
            skip_goodbyes()
            raise
        close_store(store, watch)
        raise
    close_store(store, watch)


def _check_numbers(ranks: Ranks) -> None:
    """OptionError where the workers do not have one number each."""
    found = ranks.sum_numbers("ranks", np.eye(ranks.count)[ranks.rank])
    twice = np.flatnonzero(found != 1)
    if len(twice):
        raise OptionError(
            f"{int(found[twice[0]])} of the {ranks.count} workers have the number {twice[0]}; number them from 0 by "
            "DMLC_TASK_ID"
        )
