"""Training metrics: losses are added up on the device and read one batch late, so that they never make the engine
wait."""

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from config.runtime import mx

NDArray: TypeAlias = mx.nd.NDArray


class MultiBoxMetric(mx.metric.EvalMetric):
    """CrossEntropy and SmoothL1 of a training symbol, for both target rules.

    targets=paper: the mean over batches of the two losses (their sums over the batch's positives divided by that
    number). targets=mxnet: CrossEntropy per valid anchor and the smooth L1 sum over the same number, as in apache's
    example. A batch with nothing to count is 0. first_bad is the number of the epoch's first batch whose losses or
    gradients are not finite, or None: losses alone do not tell, as ReLU of a NaN is 0 (mxnet 1.9.1, oneDNN).
    """

    def __init__(self, num_contexts: int = 1) -> None:
        """num_contexts: how many times update() is called for each batch."""
        self.num_contexts = num_contexts
        self.first_bad: int | None = None
        super().__init__("MultiBox")

    def reset(self) -> None:
        """Forgets everything, at the start of an epoch."""
        self._waiting: deque[NDArray] = deque()  # (4,) losses, number to divide by, sum of squared gradients
        self._sums, self._count = np.zeros(2), 0.0
        self._read_updates = 0
        self.first_bad = None

    def reset_local(self) -> None:
        """Does nothing: values are those of the epoch so far."""

    def update(self, labels: Sequence[NDArray], preds: Sequence[NDArray]) -> None:
        """Queues the losses of one context's outputs and reads those of the batch before.

        labels: the sum of the context's squared gradients (1,), or nothing.
        """
        if len(preds) > 2:
            losses = _classic_losses(*preds[:3])
        else:
            losses = (preds[0].sum(), preds[1].sum(), mx.nd.full((1,), 1.0 / self.num_contexts, preds[0].context))
        self._waiting.append(mx.nd.concat(*losses, *labels, dim=0))
        while len(self._waiting) > self.num_contexts:
            self._read_one()

    def flush(self) -> None:
        """Reads what is still on the device; waits for it."""
        while self._waiting:
            self._read_one()

    def get(self) -> tuple[list[str], list[float]]:
        """Names and values of the batches read so far (the newest may be missing)."""
        return ["CrossEntropy", "SmoothL1"], (self._sums / (self._count or 1.0)).tolist()

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values of all batches."""
        self.flush()
        return self.get()

    def get_global_name_value(self) -> list[tuple[str, float]]:
        """The same as pairs."""
        return list(zip(*self.get_global(), strict=True))

    def _read_one(self) -> None:
        values = self._waiting.popleft().asnumpy()
        if self.first_bad is None and not np.isfinite(values).all():
            self.first_bad = self._read_updates // self.num_contexts
        self._read_updates += 1
        self._sums += values[:2]
        self._count += values[2]


def _classic_losses(cls_prob: NDArray, loc_loss: NDArray, cls_target: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Sums of cross entropy and smooth L1, and the number of valid anchors, without waiting.

    cls_prob (B, C + 1, A), loc_loss (B, 4 A), cls_target (B, A) with -1 = ignored.
    """
    valid = cls_target >= 0
    prob = mx.nd.pick(cls_prob, mx.nd.maximum(cls_target, 0), axis=1)  # (B, A)
    return -(mx.nd.log(prob + 1e-8) * valid).sum(), loc_loss.sum(), valid.sum()
