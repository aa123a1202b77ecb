"""Training metrics: losses are added up on the device and read one batch late, so that they never make the engine
wait."""

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from config.runtime import mx

NDArray: TypeAlias = mx.nd.NDArray


class MultiBoxMetric(mx.metric.EvalMetric):
    """CrossEntropy and SmoothL1 of a training symbol, for both target rules.

    targets=paper: the mean over batches of the two losses (their sums over the batch's positives divided by that
    number). targets=mxnet: CrossEntropy per valid anchor and the smooth L1 sum over the same number, as in apache's
    example. A batch with nothing to count is 0. first_bad is the number of the epoch's first batch whose losses are
    not finite, or None.
    """

    def __init__(self, num_contexts: int = 1) -> None:
        """num_contexts: how many times update() is called for each batch."""
        self.num_contexts = num_contexts
        self.first_bad: int | None = None
        super().__init__("MultiBox")

    def reset(self) -> None:
        """Forgets everything, at the start of an epoch."""
        self._waiting: deque[tuple[NDArray, NDArray, NDArray | None]] = deque()
        self._sums = [0.0, 0.0]
        self._counts = 0.0
        self._read_updates = 0
        self.first_bad = None

    def reset_local(self) -> None:
        """Does nothing: values are those of the epoch so far."""

    def update(self, labels: Sequence[NDArray], preds: Sequence[NDArray]) -> None:
        """Queues the losses of one context's outputs and reads those of the batch before."""
        self._waiting.append(_classic_losses(*preds[:3]) if len(preds) > 2 else (preds[0].sum(), preds[1].sum(), None))
        while len(self._waiting) > self.num_contexts:
            self._read_one()

    def flush(self) -> None:
        """Reads what is still on the device; waits for it."""
        while self._waiting:
            self._read_one()

    def get(self) -> tuple[list[str], list[float]]:
        """Names and values of the batches read so far (the newest may be missing)."""
        scale = 1.0 / self._counts if self._counts else 0.0
        return ["CrossEntropy", "SmoothL1"], [value * scale for value in self._sums]

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values of all batches."""
        self.flush()
        return self.get()

    def get_global_name_value(self) -> list[tuple[str, float]]:
        """The same as pairs."""
        return list(zip(*self.get_global(), strict=True))

    def _read_one(self) -> None:
        cross_entropy, smooth_l1, count = self._waiting.popleft()
        values = [cross_entropy.asscalar(), smooth_l1.asscalar()]
        if self.first_bad is None and not all(map(math.isfinite, values)):
            self.first_bad = self._read_updates // self.num_contexts
        self._read_updates += 1
        self._sums = [total + float(value) for total, value in zip(self._sums, values, strict=True)]
        self._counts += 1.0 / self.num_contexts if count is None else count.asscalar()


def _classic_losses(cls_prob: NDArray, loc_loss: NDArray, cls_target: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Sums of cross entropy and smooth L1, and the number of valid anchors, without waiting.

    cls_prob (B, C + 1, A), loc_loss (B, 4 A), cls_target (B, A) with -1 = ignored.
    """
    valid = cls_target >= 0
    prob = mx.nd.pick(cls_prob, mx.nd.maximum(cls_target, 0), axis=1)  # (B, A)
    return -(mx.nd.log(prob + 1e-8) * valid).sum(), loc_loss.sum(), valid.sum()
