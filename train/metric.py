"""Training metrics: losses are added up on the device and read one batch late, so that they never make the engine
wait."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from common.errors import CheckpointError, OptionError
from machine.runtime import mx
from train.ranks import ALONE, Ranks

NDArray: TypeAlias = mx.nd.NDArray
CLASSIC_OUTPUTS = ("cls_prob", "loc_loss", "cls_label")
CLASSIC_NAMES = ("CrossEntropy", "SmoothL1")
# Outputs of SSD's paper losses: they are shown under the names of the classic ones.
SSD_OUTPUTS = ("cls_loss", "loc_loss")
EPSILON = 1e-8  # added to a probability before its logarithm is taken
# What the names mean; docs/classic.md says how the two rules relate.
RULES = {
    CLASSIC_OUTPUTS: "CrossEntropy and SmoothL1 (targets=mxnet): sums over the anchors / anchors that are positive or "
    "mined, as the classic MultiBoxMetric has them",
    SSD_OUTPUTS: "CrossEntropy and SmoothL1 (targets=paper): sums over the anchors / positive anchors, about 1 + "
    "--negative-mining-ratio times those of the classic MultiBoxMetric",
}


def make_metric(symbol: mx.sym.Symbol, num_contexts: int = 1, ranks: Ranks = ALONE) -> "LossMetric":
    """The metric for a training symbol without det: its losses by output name, SSD's as CrossEntropy and SmoothL1.

    ranks: the workers whose losses add up.
    """
    names = output_names(symbol)
    if names == CLASSIC_OUTPUTS:
        metric: LossMetric = ClassicMetric(num_contexts=num_contexts)
    else:
        metric = LossMetric(CLASSIC_NAMES if names == SSD_OUTPUTS else names, num_contexts)
    metric.ranks = ranks
    return metric


def loss_rule(symbol: mx.sym.Symbol) -> str:
    """A line on what CrossEntropy and SmoothL1 of a training symbol without det are; "" for other losses."""
    return RULES.get(output_names(symbol), "")


def output_names(symbol: mx.sym.Symbol) -> tuple[str, ...]:
    """Names of the operators that make the outputs: without the `_output`, or make_loss's `_loss`, that mxnet adds."""
    names = (name.removesuffix("_output") for name in symbol.list_outputs())
    return tuple(name.removesuffix("_loss") if name.endswith("_loss_loss") else name for name in names)


class LossMetric(mx.metric.EvalMetric):
    """Mean over updates of losses (B,), each summed over the images (and batches and contexts) of one update.

    Such outputs are divided by a number of the whole update already, so that their sum is the loss. A value of no
    update is 0, and batches of an update that is not complete do not count yet. first_bad is the number of the epoch's
    first batch whose losses or gradients are not finite, or None: losses alone do not tell, as ReLU of a NaN is 0
    (mxnet 1.9.1, oneDNN).
    """

    def __init__(self, names: Sequence[str] = CLASSIC_NAMES, num_contexts: int = 1) -> None:
        """names: of the outputs, in their order; num_contexts: how many times update() is called for each batch."""
        self.names, self.num_contexts = list(names), num_contexts
        self.first_bad: int | None = None
        self.ranks = ALONE
        self._restored: dict[str, Any] = {}
        super().__init__("losses")

    def reset(self) -> None:
        """Forgets everything, at the start of an epoch."""
        self._waiting: deque[NDArray] = deque()  # losses, number to divide by, sum of squared gradients
        self._sums, self._count = np.zeros(len(self.names)), 0.0
        self._complete = self._sums.copy(), self._count  # of the updates that are
        self._read_updates = 0
        self.first_bad = None
        if self._restored:
            self._sums, self._count = np.array(self._restored["sums"], float), float(self._restored["count"])
            self._read_updates, self._restored = int(self._restored["read"]), {}
            self._complete = self._sums.copy(), self._count

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON has it; after flush() and a whole update."""
        return {"sums": self._sums.tolist(), "count": self._count, "read": self._read_updates}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Lets the next reset() put the metric into this state of an epoch; {} = nothing. CheckpointError for another
        one."""
        try:
            fits = not state or (
                len([float(value) for value in state["sums"]]) == len(self.names)
                and np.isfinite([float(state["count"]), int(state["read"])]).all()
            )
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise CheckpointError("the losses of the epoch in which the run was paused are damaged")
        self._restored = dict(state)

    def reset_local(self) -> None:
        """Does nothing: values are those of the epoch so far."""

    def update(self, labels: Sequence[NDArray], preds: Sequence[NDArray], completes_update: bool = True) -> None:
        """Queues the losses of one context's outputs and reads those of the batch before.

        labels: the sum of the context's squared gradients (1,), or nothing. completes_update: whether this batch is the
        last of those whose gradients make one update.
        """
        losses = self._losses(preds, completes_update)
        numbers = mx.nd.concat(*losses, *labels, dim=0)
        self.ranks.sum_array(f"losses/{len(numbers)}", numbers)
        self._waiting.append(numbers)
        while len(self._waiting) > self.num_contexts:
            self._read_one()

    def flush(self) -> None:
        """Reads what is still on the device; waits for it."""
        while self._waiting:
            self._read_one()

    def totals(self) -> tuple[np.ndarray, float]:
        """(sums of the losses, number they are divided by) of the updates read so far."""
        return self._complete

    def get(self) -> tuple[list[str], list[float]]:
        """Names and values of the updates read so far (the newest may be missing)."""
        sums, count = self._complete
        return self.names, (sums / (count or 1.0)).tolist()

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values of all batches."""
        self.flush()
        return self.get()

    def get_global_name_value(self) -> list[tuple[str, float]]:
        """The same as pairs."""
        return list(zip(*self.get_global(), strict=True))

    def _losses(self, preds: Sequence[NDArray], completes_update: bool) -> list[NDArray]:
        """The loss sums (1,) and what one context's part of a batch adds to the number they are divided by."""
        part = completes_update / (self.num_contexts * self.ranks.count)
        return [*(loss.sum() for loss in preds), mx.nd.full((1,), part, preds[0].context)]

    def _read_one(self) -> None:
        values = self._waiting.popleft().asnumpy()
        if self.first_bad is None and not np.isfinite(values).all():
            self.first_bad = self._read_updates // self.num_contexts
        self._read_updates += 1
        losses = len(self.names)
        self._sums += values[:losses]
        self._count += values[losses]
        if values[losses] and self._read_updates % self.num_contexts == 0:
            self._complete = self._sums.copy(), self._count


class RecentMeans:
    """Means of the losses since the last time that they were taken; waits for nothing, so that the newest batch may be
    missing."""

    def __init__(self, metric: LossMetric) -> None:
        """metric: the training metric."""
        self._metric = metric
        self.reset()

    def reset(self) -> None:
        """At the start of an epoch, where the metric forgets everything."""
        self._sums, self._count = np.zeros(len(self._metric.names)), 0.0

    def take(self) -> dict[str, float]:
        """{name: mean}, {} where nothing has been read since."""
        sums, count = self._metric.totals()
        if count <= self._count:
            return {}
        means = (sums - self._sums) / (count - self._count)
        self._sums, self._count = sums, count
        return {name: float(mean) for name, mean in zip(self._metric.names, means, strict=True) if np.isfinite(mean)}


class ClassicMetric(LossMetric):
    """CrossEntropy per valid anchor and the smooth L1 sum over the same number, of the outputs of targets=mxnet, as in
    apache's example/ssd."""

    def __init__(self, num_contexts: int = 1, eps: float = EPSILON) -> None:
        """eps: added to probabilities before their logarithm is taken."""
        self.eps = eps
        super().__init__(CLASSIC_NAMES, num_contexts)

    def _losses(self, preds: Sequence[NDArray], completes_update: bool) -> list[NDArray]:
        """Sums of cross entropy and smooth L1, and the number of valid anchors, without waiting.

        preds: cls_prob (B, C + 1, A), loc_loss (B, 4 A), cls_label (B, A) with -1 = ignored.
        """
        cls_prob, loc_loss, cls_label = preds
        valid = cls_label >= 0
        prob = mx.nd.pick(cls_prob, mx.nd.maximum(cls_label, 0), axis=1)  # (B, A)
        return [-(mx.nd.log(prob + self.eps) * valid).sum(), loc_loss.sum(), valid.sum()]


class MultiBoxMetric(ClassicMetric):
    """The classic training metric for a Module of one's own, over get_symbol_train's outputs of targets=mxnet.

    `get` gives the values since the last reset or reset_local (mx.callback.Speedometer calls that after each of its
    lines), get_global those since the last reset: fit's line of the epoch. Both wait for the newest batch. A value is
    nan where no anchor was positive or mined.
    """

    def __init__(self, eps: float = EPSILON) -> None:
        """eps: added to probabilities before their logarithm is taken."""
        super().__init__(eps=eps)

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._before = self.totals()  # what get() leaves out

    def reset_local(self) -> None:
        """Starts a new window for `get`; get_global still counts all."""
        self.flush()
        self._before = self.totals()

    def update(self, labels: Sequence[NDArray], preds: Sequence[NDArray], completes_update: bool = True) -> None:
        """Queues the losses of outputs [cls_prob, loc_loss, cls_label, ...]; the labels are not looked at.

        OptionError for the outputs of another symbol.
        """
        del labels
        if len(preds) < len(CLASSIC_OUTPUTS) or [array.ndim for array in preds[:3]] != [3, 2, 2]:
            raise OptionError(
                "MultiBoxMetric reads the outputs cls_prob, loc_loss and cls_label; build the symbol by "
                'get_symbol_train(..., targets="mxnet")'
            )
        super().update((), preds[: len(CLASSIC_OUTPUTS)], completes_update)

    def get(self) -> tuple[list[str], list[float]]:
        """Names and values since the last reset or reset_local."""
        self.flush()
        sums, count = self.totals()
        return self.names, _means(sums - self._before[0], count - self._before[1])

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values since the last reset."""
        self.flush()
        return self.names, _means(*self.totals())


def _means(sums: np.ndarray, count: float) -> list[float]:
    """The sums over the count, nan where it is 0."""
    return (sums / count if count else np.full(len(sums), np.nan)).tolist()
