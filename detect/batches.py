"""Batches of one size for a network that was made for another."""

from collections.abc import Callable

import numpy as np


def run_in_batches(run: Callable[[np.ndarray], np.ndarray], data: np.ndarray, size: int | None) -> np.ndarray:
    """run(data) by a network that takes `size` images at a time, None = any number; the last batch is filled up."""
    if size is None or len(data) == size:
        return run(data)
    parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
    missing = size - len(parts[-1])
    if missing:
        parts[-1] = np.concatenate([parts[-1], np.zeros((missing, *data.shape[1:]), data.dtype)])
    return np.concatenate([run(part) for part in parts])[: len(data)]
