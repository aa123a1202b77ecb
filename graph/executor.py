"""Symbols with weights, run without gradients."""

import numpy as np

from common.errors import out_of_memory_hint
from common.sizes import DATA
from graph.nodes import Params
from machine.runtime import mx

_REMEDY = "lower --batch-size, or export the model with a smaller --data-shape"


def bound(
    symbol: mx.sym.Symbol,
    arg_params: Params,
    aux_params: Params,
    shape: tuple[int, ...],
    dtype: str | np.dtype = "float32",
    ctx: mx.Context | None = None,
) -> mx.executor.Executor:
    """An executor in ctx (None: the CPU) for data of this shape and type; weights that the symbol does not read are
    left out."""
    types = None if np.dtype(dtype) == np.float32 else {DATA: np.dtype(dtype).name}  # with types none is a default
    with out_of_memory_hint(_REMEDY):
        executor = symbol.simple_bind(ctx or mx.cpu(), grad_req="null", type_dict=types, **{DATA: shape})
        executor.copy_params_from(arg_params, aux_params, allow_extra_params=True)
        return executor


def run(executor: mx.executor.Executor, data: np.ndarray | mx.nd.NDArray) -> list[np.ndarray]:
    """The outputs for data of the executor's shape."""
    with out_of_memory_hint(_REMEDY):
        executor.arg_dict[DATA][:] = data
        return [output.asnumpy() for output in executor.forward(is_train=False)]


def outputs(
    symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params, data: np.ndarray | mx.nd.NDArray
) -> list[np.ndarray]:
    """The outputs of a symbol on the CPU for one batch, in float32 as it is written."""
    return run(bound(symbol, arg_params, aux_params, data.shape, data.dtype), data)
