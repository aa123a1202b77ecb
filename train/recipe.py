"""How a Module updates: AdamW, clipped gradients, accumulation, averaged weights, the loss scale of
float16, warm-up, validated epochs."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from graph.mixed_precision import FLOAT16
from graph.symbol_graph import Params
from machine.runtime import mx
from train.ranks import ALONE, Ranks

NDArray: TypeAlias = mx.nd.NDArray
logger = logging.getLogger(__name__)
RAMP_UPDATES = 2000.0
# Of torch.amp.GradScaler (https://docs.pytorch.org/docs/stable/amp.html).
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 65536.0, 2.0, 0.5, 2000
NOT_CLIPPED = -1.0  # of MXNet's operators


@mx.optimizer.register
class AdamW(mx.optimizer.Adam):
    """Adam with decoupled weight decay: Loshchilov, Hutter 2019, algorithm 2, as torch.optim.AdamW has it.

    weight -= lr * (wd * weight + mean / (1 - beta1^t) / (sqrt(variance / (1 - beta2^t)) + epsilon)). MXNet's own
    operator adamw_update knows no bias correction, and the scale of the gradients would be an array.
    """

    def update(self, index: int, weight: NDArray, grad: NDArray, state: tuple[NDArray, NDArray]) -> None:
        """Makes one step of a parameter; waits for nothing."""
        self._update_count(index)
        rate, wd, t = self._get_lr(index), self._get_wd(index), self._index_update_count[index]
        unbias = math.sqrt(1.0 - self.beta2**t)
        if wd:
            weight *= 1.0 - rate * wd
        mx.nd.adam_update(
            weight, grad, *state, out=weight, lr=rate * unbias / (1.0 - self.beta1**t), wd=0.0, beta1=self.beta1,
            beta2=self.beta2, epsilon=self.epsilon * unbias, rescale_grad=self.rescale_grad,
            clip_gradient=self.clip_gradient or NOT_CLIPPED,
        )  # fmt: skip


class ClippedUpdater(mx.optimizer.Updater):
    """Shortens the gradient of an update, of all parameters and contexts together, to a limit before it is used.

    Lengths are those after the optimizer's rescale_grad. Everything stays on the devices: each computes the same factor
    from the same sum of gradients. A gradient within the limit is multiplied by 1 and stays bit for bit.
    """

    def __init__(self, optimizer: mx.optimizer.Optimizer, limit: float) -> None:
        """limit: the greatest length, above 0."""
        super().__init__(optimizer)
        self.limit = limit
        self.squares: NDArray | None = None  # (1,): sum of the squares, where it is known already

    def __call__(self, index: Sequence[int], grad: Sequence[NDArray], weight: Sequence[NDArray]) -> None:
        """One device's part of an update: all its gradients, summed over the devices."""
        squares = sum_of_squares(grad) if self.squares is None else self.squares
        length = squares.sqrt() * abs(self.optimizer.rescale_grad)
        factor = self.limit / mx.nd.maximum(length, self.limit)
        for array in grad:
            mx.nd.broadcast_mul(array, factor.reshape((1,) * array.ndim), out=array)
        super().__call__(index, grad, weight)


def sum_of_squares(arrays: Sequence[NDArray]) -> NDArray:
    """(1,) on their device, without waiting."""
    return mx.nd.multi_sum_sq(*arrays, num_arrays=len(arrays)).sum()


def decay_at(decay: float, num_update: int, ramp: float = RAMP_UPDATES) -> float:
    """Decay after num_update >= 1 updates: decay * (1 - exp(-num_update / ramp)), so that early weights are forgotten.

    Source: ModelEMA of the YOLOv3-SPP reference (utils/torch_utils.py).
    """
    return decay * (1.0 - math.exp(-num_update / ramp))


class WeightAverage:
    """average = d * average + (1 - d) * parameter after each update, d = decay_at(decay, updates made, ramp).

    The moving averages of batch norm are averaged, too; those that do not change, because they are frozen, stay bit for
    bit as they are. Nothing waits for the device.
    """

    def __init__(
        self,
        decay: float,
        arg_arrays: Mapping[str, NDArray],
        aux_arrays: Mapping[str, NDArray],
        start: tuple[Params, Params] | None = None,
        ramp: float = RAMP_UPDATES,
    ) -> None:
        """The arrays of the first context, which tell shapes and device; start: averages to go on from, None = those
        arrays as they are now (the caller has waited for all work)."""
        args, aux = start or (arg_arrays, aux_arrays)
        self.decay, self.ramp = decay, ramp
        self._args = {name: args[name].copyto(array.context) for name, array in arg_arrays.items()}
        self._aux_shapes = {name: array.shape for name, array in aux_arrays.items()}
        flat = [aux[name].copyto(array.context).reshape((-1,)) for name, array in aux_arrays.items()]
        self._aux = mx.nd.concat(*flat, dim=0) if flat else None

    def update(
        self,
        trained: Mapping[str, NDArray],
        aux_by_context: Sequence[Sequence[NDArray]],
        after: Sequence[NDArray],
        num_update: int,
    ) -> None:
        """Takes in one update.

        trained: parameters that the update changed, of the first context. aux_by_context: moving averages in the
        constructor's order, for each context. after: for each context an array (1,) whose computation reads all
        gradients. BatchNorm's backward changes the moving averages without the engine knowing (mxnet 1.9.1, CPU), but
        it knows that the gradients come from there: what reads both is done late enough, and BatchNorm's next forward,
        which is known to change them, waits for it.
        """
        rate = 1.0 - decay_at(self.decay, num_update, self.ramp)
        for name, array in trained.items():
            _approach(self._args[name], array, rate)
        if self._aux is None:
            return
        context, size = self._aux.context, self._aux.shape[0]
        parts = []
        for arrays, gradients_done in zip(aux_by_context, after, strict=True):
            flat = mx.nd.concat(*(array.reshape((-1,)) for array in arrays), gradients_done, dim=0)
            parts.append(flat[:size].as_in_context(context))
        change = mx.nd.add_n(*(part - self._aux for part in parts)) / len(parts)
        mx.nd.sgd_update(self._aux, change, lr=rate, wd=0.0, rescale_grad=-1.0, out=self._aux)

    def mean_over(self, ranks: Ranks) -> None:
        """Puts the mean over the workers in the place of each one's average of moving averages; weights are equal."""
        if self._aux is not None:
            self._aux[:] = ranks.means(self._aux.asnumpy())

    def params(self) -> tuple[Params, Params]:
        """(arg_params, aux_params): copies of the averages on the CPU."""
        ends = np.cumsum([np.prod(shape) for shape in self._aux_shapes.values()], dtype=int)[:-1]
        parts = np.split(self._aux.asnumpy(), ends) if self._aux is not None else []
        shaped = zip(self._aux_shapes.items(), parts, strict=True)
        aux = {name: mx.nd.array(part.reshape(shape), dtype=part.dtype) for (name, shape), part in shaped}
        return {name: array.copyto(mx.cpu()) for name, array in self._args.items()}, aux


def _approach(average: NDArray, array: NDArray, rate: float) -> None:
    """average += rate * (array - average) in one pass: plain SGD with weight decay 1 and the gradient -array.

    An array that equals its average may change it by a rounding.
    """
    mx.nd.sgd_update(average, array, lr=rate, wd=1.0, rescale_grad=-1.0, out=average)


class LossScaler:
    """The factor by which losses are multiplied in float16, by GradScaler's rule.

    An update whose gradients are not all finite is skipped and halves the scale; it doubles after GROWTH_INTERVAL
    updates in a row that were made. Source: torch.amp.GradScaler; Micikevicius et al. 2018, section 3.2.
    """

    def __init__(self, scale: float = FIRST_SCALE, good: int = 0, skipped: int = 0) -> None:
        """good: updates since the scale changed or one was skipped; skipped: updates of the run that were."""
        self.scale, self.good, self.skipped = scale, good, skipped

    def note(self, is_finite: bool) -> None:
        """Takes note of an update's gradients; is_finite: whether all of them are."""
        if not is_finite:
            self.scale, self.good, self.skipped = self.scale * BACKOFF, 0, self.skipped + 1
            logger.info(
                "an update is skipped, the %s. of the run: its float16 gradients are not finite; the losses are now "
                "multiplied by %g", self.skipped, self.scale,
            )  # fmt: skip
            return
        self.good += 1
        if self.good == GROWTH_INTERVAL:
            grown = self.scale * GROWTH
            self.scale, self.good = grown if math.isfinite(grown) else self.scale, 0

    def state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}


def make_scaler(dtype: str, precision: Mapping[str, Any]) -> LossScaler | None:
    """The scaler that a run in float16 needs, as a checkpoint left it (CheckpointMeta.precision, {} = a new one)."""
    if dtype != FLOAT16:
        return None
    return LossScaler(**{name: precision[name] for name in ("scale", "good", "skipped") if name in precision})


def no_change(optimizer: mx.optimizer.Optimizer) -> None:
    """Before an update: leaves the optimizer as it is."""


def every_epoch(epoch: int) -> bool:
    """Each epoch is validated."""
    return True


@dataclass(frozen=True)
class Recipe:
    """What DetectionModule does around mx.mod.Module's own steps.

    Gradients add up until a batch whose `completes_update` is true; a batch without the attribute completes one.
    means: gradients are those of means over a batch (targets=mxnet), so that their sum is divided by the number of
    batches; otherwise losses are divided by a number of the whole update already.
    ema, ema_ramp: of the averaged weights (decay_at), 0 = none; averages: to go on from, None = the
    first weights.
    before_update: called with the optimizer. validates: whether the epoch of this number is validated.
    earlier_updates: made by the optimizers of earlier stages of the run.
    bn_decay: whether the gamma of batch norms decays as weights do.
    clip_norm: limit of the length of an update's gradient (ClippedUpdater), 0 = none.
    body, body_lr: the regular expression of the parameters whose learning rate has a factor, and this.
    ranks: the workers whose gradients make an update together.
    """

    means: bool = False
    ema: float = 0.0
    ema_ramp: float = RAMP_UPDATES
    averages: tuple[Params, Params] | None = None
    before_update: Callable[[mx.optimizer.Optimizer], None] = no_change
    validates: Callable[[int], bool] = every_epoch
    earlier_updates: int = 0
    bn_decay: bool = True
    clip_norm: float = 0.0
    body: str = ""
    body_lr: float = 1.0
    ranks: Ranks = ALONE
