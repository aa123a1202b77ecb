"""Hypothesis strategies for boxes."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

GRID = 64  # coordinates are multiples of 1 / GRID: sums and products of a few are exact in float32


def corner_boxes(min_rows: int = 1, max_rows: int = 6) -> st.SearchStrategy[np.ndarray]:
    """(n, 4) float32 boxes with an area, inside the unit square."""

    def build(cells: np.ndarray) -> np.ndarray:
        low = cells[:, :2]
        size = 1 + cells[:, 2:] % (GRID - low)
        return (np.concatenate([low, low + size], axis=1) / GRID).astype(np.float32)

    rows = st.integers(min_rows, max_rows)
    return rows.flatmap(lambda n: arrays(np.int64, (n, 4), elements=st.integers(0, GRID - 1))).map(build)
