"""The one subclass of mx.mod.Module: labels by name, exact optimizer state, validation by an inference Module."""

import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from common.errors import CheckpointError
from evaluate.scoring import Served, inference_module, is_rewritten, note_served, score_detections
from graph.mixed_precision import FLOAT32, LOSS_SCALE, scaled, to_mixed
from graph.onednn_training import is_constant, suit_training
from graph.symbol_graph import Params
from graph.weight_gradients import PROBE, Layer, WeightGradients, expose, layers_of
from machine.runtime import mx
from symbol.layers import matches
from train.merging import merged_metric
from train.metric import LossMetric
from train.recipe import ClippedUpdater, LossScaler, Recipe, WeightAverage, sum_of_squares

Symbol: TypeAlias = mx.sym.Symbol
LOGGER = logging.getLogger(__name__)
RAW = "raw:"  # optimizer_state's prefix of the weights that training continues from, where others are saved


class DetectionModule(mx.mod.Module):
    """Trains a detector's losses and validates its `det`; `fit` is mx.mod.Module's own."""

    _param_names: list[str]  # Module's

    def __init__(
        self,
        symbol: Symbol,
        detection_symbol: Symbol,
        label_names: Sequence[str],
        context: Sequence[mx.Context],
        fixed_param_names: Sequence[str] = (),
        optimizer_state: Mapping[str, np.ndarray] | None = None,
        logger: logging.Logger | logging.LoggerAdapter = LOGGER,
        recipe: Recipe = Recipe(),  # noqa: B008 - it is immutable
        validation_losses: LossMetric | None = None,
        rewrite_graph: bool = True,
        seed: int | None = None,
        dtype: str = FLOAT32,
        scaler: LossScaler | None = None,
        gradient_ways: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """symbol: training outputs without det; detection_symbol: get_symbol's det.

        optimizer_state: {parameter:k} -> k-th state array, restored when the optimizer has been created; it must fit
        exactly. None = the optimizer's own start. validation_losses: the metric of the losses of detection_symbol,
        which is then get_symbol_train's; None = they are not computed. rewrite_graph: CPUs train the graph that
        graph/onednn_training.py makes of symbol. seed: the random numbers of an update come from it and the number of
        the update; None = from MXNet's generator as it is.
        dtype: number format in which the training graph computes (graph/mixed_precision.py). scaler: the factor of the
        losses, which float16 needs; reading whether gradients are finite then waits for each update.
        gradient_ways: how weight gradients of bfloat16 are computed, by layer (graph/weight_gradients.py), where it is
        not by the layer's own kernel; for inputs of one size.
        """
        super().__init__(
            scaled(symbol) if scaler else symbol,
            data_names=("data",),
            label_names=tuple(label_names),
            context=list(context),
            fixed_param_names=list(fixed_param_names),
            state_names=[LOSS_SCALE] if scaler else None,
            logger=logger,
        )
        self._dtype, self.scaler, self._ways = dtype, scaler, dict(gradient_ways)
        self._beside: list[WeightGradients] = []
        self._num_losses = len(symbol.list_outputs())
        self._detection_symbol = detection_symbol
        self._restored_state = optimizer_state
        self._used_labels: list[int] = []
        self._recipe = recipe
        self.validation_losses = validation_losses
        # Called with the first batch of each validation, its labels and detections (score_detections).
        self.watch_validation: Callable[[mx.io.DataBatch, np.ndarray, np.ndarray], None] | None = None
        self.served: Served | None = None  # where the samples of each validation are noted (note_served)
        self._average: WeightAverage | None = None
        self._rewrites = rewrite_graph and all(device.device_type == "cpu" for device in context)
        self._completes_update = True
        self._batches = 0  # of the update that is being made
        self._draws_by = seed if is_random(symbol) else None
        self._squares: list[mx.nd.NDArray] = []
        self._sums: list[mx.nd.NDArray] = []  # of the gradients of this update's batches but the newest
        self._update_squares: list[mx.nd.NDArray] = []  # those of all batches of this update, where a scaler reads them
        self._rescale = 1.0

    def bind(self, data_shapes: Any, label_shapes: Any = None, **options: Any) -> None:
        """Binds only the labels that the graph reads; an iterator may offer more."""
        offered = [desc[0] for desc in label_shapes or ()]
        self._used_labels = [k for k, name in enumerate(offered) if name in self._label_names]
        if not self.binded:
            shapes = {
                name: (size // len(self._context), *rest) for name, (size, *rest) in _shapes(data_shapes, label_shapes)
            }
            self._symbol: Symbol = self._rewritten(shapes)
            self._aux_names = self._symbol.list_auxiliary_states()
            if self._ways:
                layers = self._expose(shapes)
                options["grad_req"] = {PROBE + name: "write" for name in self._ways}
            # In the order of the arguments, as Module pairs names and arrays; a rewritten graph may have another one.
            names = set(self._param_names)
            self._param_names = [name for name in self._symbol.list_arguments() if name in names]
        super().bind(data_shapes, [label_shapes[k] for k in self._used_labels] or None, **options)
        if self._ways and not self._beside:
            self._beside = [WeightGradients(one, layers, self._ways) for one in self._exec_group.execs]

    def _expose(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layer]:
        """Takes the weight gradients that are computed beside the graph out of it."""
        layers = layers_of(self._symbol, shapes, frozenset(self._fixed_param_names))
        self._ways = {name: way for name, way in self._ways.items() if name in layers}
        self._symbol = expose(self._symbol, self._ways)
        self._state_names = [PROBE + name for name in self._ways]
        return layers

    def backward(self, out_grads: Any = None) -> None:
        """As Module.backward, with the weight gradients that are computed beside the graph."""
        super().backward(out_grads)
        for gradients in self._beside:
            gradients.compute()

    def _rewritten(self, shapes: Mapping[str, tuple[int, ...]]) -> Symbol:
        """The training graph as it is bound; shapes: of data and labels on one device."""
        symbol = suit_training(self.symbol, shapes) if self._rewrites else self.symbol
        return symbol if self._dtype == FLOAT32 else to_mixed(symbol, shapes, self._dtype)

    def forward(self, data_batch: mx.io.DataBatch, is_train: bool | None = None) -> None:
        """As Module.forward, with the batch's labels reduced to those bound."""
        if self._completes_update and self._draws_by is not None and is_train is not False:
            seed_update(self._draws_by, self.num_update, self._recipe.ranks.rank)
        self._batches = 1 if self._completes_update else self._batches + 1
        self._completes_update = getattr(data_batch, "completes_update", True)
        if self.scaler and self._batches == 1:
            self._exec_group.set_states(value=self.scaler.scale)
        labels = [data_batch.label[k] for k in self._used_labels]
        super().forward(mx.io.DataBatch(data_batch.data, labels, pad=data_batch.pad), is_train)

    def update(self) -> None:
        """As Module.update, where the batch completes an update; then takes the weights into their average."""
        gradients = self._gradients()
        self._squares = [sum_of_squares(arrays) for arrays in gradients if arrays]
        self._add_up([array for arrays in gradients for array in arrays])
        self._update_squares = [*(self._update_squares if self._batches > 1 else []), *self._squares]
        if not self._completes_update:
            return
        self._optimizer.rescale_grad = self._rescale / (self._batches if self._recipe.means else 1)
        if self.scaler:
            self._optimizer.rescale_grad /= self.scaler.scale
            if self._skips(self.scaler):
                return
        self._recipe.before_update(self._optimizer)
        ranks = self._recipe.ranks
        ranks.sum_gradients(self._exec_group.param_names, self._exec_group.grad_arrays)
        if isinstance(self._updater, ClippedUpdater):
            is_whole = self._batches == 1 and len(self._squares) == 1 and ranks.count == 1
            self._updater.squares = self._squares[0] if is_whole else None
        super().update()
        if self._average:
            aux = list(zip(*self._moving_averages().values(), strict=True))
            self._average.update(self._trained_arrays(), aux, self._squares, self._optimizer.num_update)

    def _skips(self, scaler: LossScaler) -> bool:
        """Whether the update must not be made, as a gradient is not finite. It counts as one all the same."""
        is_bad = any(not np.isfinite(squares.asnumpy()).all() for squares in self._update_squares)
        is_finite = not self._recipe.ranks.any("not finite", is_bad)
        scaler.note(is_finite)
        if not is_finite:
            self._squares = [mx.nd.zeros_like(squares) for squares in self._squares]
            for index in self._updater.states:
                self._optimizer._update_count(index)
        return not is_finite

    def update_metric(self, eval_metric: mx.metric.EvalMetric, labels: Any, pre_sliced: bool = False) -> None:
        """Hands the outputs of each context to the metric, and in place of labels the sum of its squared gradients."""
        for k, executor in enumerate(self._exec_group.execs):
            losses = executor.outputs[: self._num_losses]
            eval_metric.update(self._squares[k : k + 1], losses, self._completes_update)

    def get_params(self) -> tuple[dict, dict]:
        """As Module.get_params, after all work is done.

        BatchNorm's backward updates the moving averages without the engine knowing (mxnet 1.9.1, CPU): a read that does
        not wait for everything returns those of an earlier batch, and fit would write them back.
        """
        mx.nd.waitall()
        return super().get_params()

    def average_over_ranks(self) -> None:
        """Gives all workers the means of their moving averages; called by all of them in the same place."""
        ranks, moving = self._recipe.ranks, self._moving_averages()
        if ranks.count == 1 or not moving:
            return
        mx.nd.waitall()  # see get_params
        own = [np.mean([array.asnumpy() for array in arrays], axis=0) for arrays in moving.values()]
        means = ranks.means(np.concatenate([array.ravel() for array in own]))
        parts = np.split(means, np.cumsum([array.size for array in own])[:-1])
        for arrays, part in zip(moving.values(), parts, strict=True):
            for array in arrays:
                array[:] = part.reshape(array.shape)
        self._params_dirty = True
        if self._average:
            self._average.mean_over(ranks)

    def params_to_save(self) -> tuple[Params, Params]:
        """(arg_params, aux_params) to validate and save: the averaged ones where there are, else get_params()."""
        arg_params, aux_params = self._average.params() if self._average else self.get_params()
        return arg_params, {name: array for name, array in aux_params.items() if not is_constant(name)}

    def init_optimizer(self, *args: Any, **options: Any) -> None:
        """Creates the optimizer, then restores the state given to the constructor; begins the average of the
        weights."""
        super().init_optimizer(*args, **options)
        self._share_weights()
        self._rescale = self._optimizer.rescale_grad
        if not self._recipe.bn_decay:
            self._optimizer.set_wd_mult({name: 0.0 for name in self._param_names if name.endswith("_gamma")})
        if self._recipe.body_lr != 1.0:
            body = [name for name in self._param_names if matches(self._recipe.body, name)]
            self._optimizer.set_lr_mult(dict.fromkeys(body, self._recipe.body_lr))
        if self._recipe.clip_norm:
            self._updater = ClippedUpdater(self._optimizer, self._recipe.clip_norm)
        if self._recipe.ema:
            mx.nd.waitall()
            arrays = self._exec_group
            args_0 = dict(zip(arrays.param_names, (a[0] for a in arrays.param_arrays), strict=True))
            aux_0 = {name: averages[0] for name, averages in self._moving_averages().items()}
            self._average = WeightAverage(self._recipe.ema, args_0, aux_0, self._recipe.averages, self._recipe.ema_ramp)
        self._create_states(self._restored_state)
        self._restored_state = None

    def _share_weights(self) -> None:
        """Gives all workers the weights with which rank 0 begins."""
        if self._recipe.ranks.count == 1:
            return
        named = list(zip(self._exec_group.param_names, self._exec_group.param_arrays, strict=True))
        told = self._recipe.ranks.told_arrays({name: arrays[0].asnumpy() for name, arrays in named})
        for name, arrays in named:
            for array in arrays:
                array[:] = told[name]
        self._params_dirty = True

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """{parameter:k} -> k-th state array (momentum; adam: mean, variance) of the first context.

        With averaged weights, {raw:parameter} -> the weights that training continues from, too.
        """
        states: dict[str, np.ndarray] = {}
        for index, name in enumerate(self._exec_group.param_names):
            state = self._updater.states.get(index * len(self._context))
            for k, array in enumerate(_as_arrays(state)):
                states[f"{name}:{k}"] = array.asnumpy()
        if self._average:
            raw = {name: array for params in self.get_params() for name, array in params.items()}
            states |= {RAW + name: array.asnumpy() for name, array in raw.items() if not is_constant(name)}
        return states

    @property
    def precision(self) -> dict[str, Any]:
        """CheckpointMeta.precision: the number format with what belongs to it; {} = float32."""
        if self._dtype == FLOAT32:
            return {}
        ways = {"gradients": self._ways} if self._ways else {}
        return {"dtype": self._dtype, **ways, **(self.scaler.state() if self.scaler else {})}

    @property
    def is_between_updates(self) -> bool:
        """Whether the newest batch completed an update."""
        return self._completes_update

    @property
    def num_update(self) -> int:
        """Updates made so far, in this run and those it continues, in all stages."""
        return self.earlier_updates + self._optimizer.num_update

    @property
    def earlier_updates(self) -> int:
        """Of them, those of the run's earlier stages, which other optimizers made."""
        return self._recipe.earlier_updates

    @property
    def learning_rate(self) -> float:
        """The learning rate of the newest update."""
        return float(self._optimizer.learning_rate)

    def _create_states(self, saved: Mapping[str, np.ndarray] | None) -> None:
        """Creates the state of every trained parameter, and fills it if there is a saved one: CheckpointError where the
        shapes do not fit.

        The optimizer itself would create it at the first update: none where a warm-up begins with momentum 0.
        """
        used = set()
        for index, (name, weights) in enumerate(
            zip(self._exec_group.param_names, self._exec_group.param_arrays, strict=True)
        ):
            if name in self._fixed_param_names:
                continue
            for device, weight in enumerate(weights):
                key = index * len(self._context) + device
                state = self._optimizer.create_state_multi_precision(key, weight)
                for k, array in enumerate(_as_arrays(state)):
                    if saved is not None:
                        _fill(array, saved, f"{name}:{k}")
                        used.add(f"{name}:{k}")
                self._updater.states[key] = state
                self._updater.states_synced[key] = True
        unused = sorted(set(saved or ()) - used)
        if unused:
            raise CheckpointError(f"optimizer state {unused[0]} has no place in this run; resume with the same options")

    def score(
        self,
        eval_data: mx.io.DataIter,
        eval_metric: mx.metric.EvalMetric,
        num_batch: int | None = None,
        batch_end_callback: Callable | None = None,
        score_end_callback: Any = None,
        reset: bool = True,
        epoch: int = 0,
        sparse_row_id_fn: Callable | None = None,
    ) -> list[tuple[str, float]]:
        """Validates `det` over one pass of eval_data; padding rows are not counted. Returns the metric's pairs.

        Nothing is done, and score_end_callback not called, in an epoch that the recipe does not validate.
        """
        if not self._recipe.validates(epoch):
            return []
        if reset:
            eval_data.reset()
        self.average_over_ranks()
        mx.nd.waitall()  # see get_params
        data = eval_data if self.served is None else note_served(eval_data, self.served)
        with self._inference(eval_data) as inference:
            batches = score_detections(
                inference, data, eval_metric, num_batch, self.validation_losses, self.watch_validation
            )
        eval_metric = merged_metric(self._recipe.ranks, eval_metric, self.served)
        param = mx.model.BatchEndParam(epoch=epoch, nbatch=batches, eval_metric=eval_metric, locals=None)
        callbacks = score_end_callback if isinstance(score_end_callback, (list, tuple)) else [score_end_callback]
        for callback in filter(None, callbacks):
            callback(param)
        return eval_metric.get_global_name_value()

    @contextmanager
    def _weights_to_save(self) -> Iterator[None]:
        """Puts the averaged weights, where there are any, in the place of those being trained."""
        if not self._average:
            yield
            return
        places = [*self._exec_group.param_arrays, *self._exec_group.aux_arrays]
        raw = [[array.copy() for array in arrays] for arrays in places]
        self._exec_group.set_params(*self._average.params())
        try:
            yield
        finally:
            for arrays, kept in zip(places, raw, strict=True):
                for array, value in zip(arrays, kept, strict=True):
                    value.copyto(array)

    def _add_up(self, gradients: list[mx.nd.NDArray]) -> None:
        """Keeps the sum of the gradients of an update's batches; those of its last batch become the sum, not waiting.

        grad_req "add" would do this, too, but oneDNN's convolutions cannot: a step then takes several times as long
        (mxnet 1.9.1, CPU).
        """
        if self._batches == 1:
            self._sums = [] if self._completes_update else [array.copy() for array in gradients]
            return
        for total, array in zip(self._sums, gradients, strict=True):
            if self._completes_update:
                array += total
            else:
                total += array

    def _gradients(self) -> list[list[mx.nd.NDArray]]:
        """The gradients of each context, without those of frozen parameters."""
        contexts = zip(*self._exec_group.grad_arrays, strict=True)
        return [[array for array in arrays if array is not None] for arrays in contexts]

    def _moving_averages(self) -> dict[str, list[mx.nd.NDArray]]:
        """{name: array of each context} of the auxiliary states that training changes."""
        named = zip(self._aux_names, self._exec_group.aux_arrays, strict=True)
        return {name: arrays for name, arrays in named if not is_constant(name)}

    def _trained_arrays(self) -> dict[str, mx.nd.NDArray]:
        """{name: array of the first context} of the parameters that are not frozen."""
        group = self._exec_group
        names = zip(group.param_names, group.param_arrays, group.grad_arrays, strict=True)
        return {name: arrays[0] for name, arrays, gradients in names if gradients[0] is not None}

    @contextmanager
    def _inference(self, eval_data: mx.io.DataIter) -> Iterator[mx.mod.Module]:
        """A Module for `det`, and the losses where they are wanted, with the weights that are saved.

        It is made anew for each validation: the executor folds batch norm into weights at its first run and keeps the
        result although the parameters change (mxnet 1.9.1, oneDNN subgraphs). It shares this one's parameters and
        memory, unless its graph is rewritten.
        """
        names = self._label_names if self.validation_losses else []
        data, symbol = eval_data.provide_data, self._detection_symbol
        labels = [desc for desc in eval_data.provide_label if desc[0] in names] if names else []
        if is_rewritten(symbol, self._context):
            yield inference_module(symbol, *self.params_to_save(), self._context, data, labels, self.logger)
            return
        label_names = [desc[0] for desc in labels] or None
        module = mx.mod.Module(
            symbol, data_names=("data",), label_names=label_names, context=self._context, logger=self.logger
        )
        module.bind(data, labels or None, for_training=False, shared_module=self)
        with self._weights_to_save():
            yield module


def is_random(symbol: Symbol) -> bool:
    """Whether a symbol draws random numbers in training."""
    operators = {node["op"] for node in json.loads(symbol.tojson())["nodes"]}
    return any(name == "Dropout" or re.match(r"_?(random|sample|shuffle)", name) for name in operators)


def seed_update(seed: int, update: int, rank: int = 0) -> None:
    """Seeds MXNet for the update after so many: what it draws does not depend on how the run came there.

    rank: of the worker, as each draws for other images.
    """
    mx.random.seed(zlib.crc32(f"{seed}/update/{update}{f'/{rank}' * (rank > 0)}".encode()))


def _shapes(*described: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the DataDesc or pairs that a bind takes."""
    return ((desc[0], desc[1]) for some in described for desc in some or ())


def _as_arrays(state: Any) -> list[mx.nd.NDArray]:
    """The arrays of an optimizer's state, which is None, one array or a tuple."""
    if state is None:
        return []
    return [array for array in (state if isinstance(state, (list, tuple)) else [state]) if array is not None]


def _fill(array: mx.nd.NDArray, saved: Mapping[str, np.ndarray], name: str) -> None:
    if name not in saved or saved[name].shape != array.shape:
        raise CheckpointError(f"optimizer state {name} is missing or has another shape; resume with the same options")
    array[:] = saved[name]
