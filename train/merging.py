"""A validation of which each of several workers has seen a shard: its rows and values as those of one process."""

import io
from collections.abc import Sequence

import numpy as np

from evaluate.eval_metric import ValidationMetric
from evaluate.scoring import Served
from machine.runtime import mx
from train.ranks import Ranks

IMAGE = 0  # column of the number of the image


class ToldMetric(mx.metric.EvalMetric):
    """Values that another worker has measured."""

    def __init__(self, names: Sequence[str], values: Sequence[float]) -> None:
        """names and values: as a metric's get_global has them."""
        self._names, self._values = list(names), list(values)
        super().__init__("told", has_global_stats=True)

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values."""
        return self._names, self._values

    def get(self) -> tuple[list[str], list[float]]:
        """The same."""
        return self.get_global()


def merged_metric(ranks: Ranks, metric: mx.metric.EvalMetric, served: Served | None) -> mx.metric.EvalMetric:
    """The metric of a validation over the shards of all workers; metric: of this worker's own.

    Rank 0 gets the rows of all, in the order of one process, in the metric itself and in `served` (note_served), and
    measures them; the others get its values.
    """
    if ranks.count == 1 or not isinstance(metric, ValidationMetric):
        return metric
    for one in metric.together:
        _merge_rows(ranks, one)
    if served is not None:
        _merge_served(ranks, served)
    names, values = ranks.told(metric.get_global() if ranks.writes else None)
    if ranks.writes:
        return metric
    metric.take_compared()  # as rank 0 does, once it has told them
    return ToldMetric(names, values)


def _merge_rows(ranks: Ranks, metric: ValidationMetric) -> None:
    """Shard r of k has every k-th image, from the r-th on: its image i is image i * k + r."""
    parts = list(metric.parts.values())
    rows = [np.array(array, np.float64) for array in parts[0].rows()]
    for array in rows:
        array[:, IMAGE] = array[:, IMAGE] * ranks.count + ranks.rank
    shards = _gathered(ranks, [*rows, np.array([parts[0].global_num_inst])])
    if not ranks.writes:
        return
    detections, truths = (_in_order([shard[k] for shard in shards]) for k in range(2))
    for part in parts:
        part.take_rows(detections, truths, sum(int(shard[2][0]) for shard in shards))


def _in_order(shards: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all shards by the numbers of their images; those of an image keep their order."""
    rows = np.concatenate(shards)
    return rows[np.argsort(rows[:, IMAGE], kind="stable")]


def _merge_served(ranks: Ranks, served: Served) -> None:
    """Puts what all workers have served in the place of what this one has, in the order of one process."""
    own = [np.concatenate(part) for part in zip(*served, strict=True)]
    shards = _gathered(ranks, own)
    places = np.concatenate([np.arange(len(shard[0])) * ranks.count + r for r, shard in enumerate(shards)])
    order = np.argsort(places)
    served[:] = [(np.concatenate([s[0] for s in shards])[order], np.concatenate([s[1] for s in shards])[order])]


def _gathered(ranks: Ranks, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The arrays of all workers, in the order of their ranks, bit for bit."""
    file = io.BytesIO()
    np.savez(file, *arrays)
    texts = ranks.gather(file.getvalue())
    loaded = [np.load(io.BytesIO(text), allow_pickle=False) for text in texts]
    return [[one[f"arr_{k}"] for k in range(len(arrays))] for one in loaded]
