"""Which layers int8 harms: the error that each alone brings into the network's predictions."""

import logging

import numpy as np

from config.runtime import mx
from deploy.int8 import Fused, Thresholds, to_int8
from deploy.manifest import Calibration
from train.params_file import Params

logger = logging.getLogger(__name__)

_EVERY = 10  # layers between lines of the log


def rank_layers(fused: Fused, thresholds: Thresholds, data: mx.nd.NDArray) -> list[tuple[float, str]]:
    """(error, layer) of every layer, the most harmful first.

    data: a batch in the model's input format. Error: with that layer alone in int8, the squared difference from the
    float32 predictions over their square, averaged over the maps of predictions.
    """
    heads = _predictions(fused)
    reference = _run(heads.symbol, heads.arg_params, heads.aux_params, data)
    errors = []
    for number, layer in enumerate(heads.layers, start=1):
        others = tuple(name for name in heads.layers if name != layer)
        symbol, arg_params = to_int8(heads, Calibration("", "", 0, thresholds, others))
        errors.append((_error(_run(symbol, arg_params, heads.aux_params, data), reference), layer))
        if number % _EVERY == 0 or number == len(heads.layers):
            logger.info("sensitivity: layer %d of %d", number, len(heads.layers))
    return sorted(errors, reverse=True)


def _predictions(fused: Fused) -> Fused:
    """The part of the symbol that ends with the predicting layers."""
    internals = fused.symbol.get_internals()
    outputs = [internals[f"{fused.layers[name]}_output"] for name in fused.predictions]
    return Fused(mx.sym.Group(outputs), fused.arg_params, fused.aux_params)


def _run(symbol: mx.sym.Symbol, arg_params: Params, aux_params: Params, data: mx.nd.NDArray) -> list[np.ndarray]:
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", type_dict={"data": data.dtype}, data=data.shape)
    executor.copy_params_from(arg_params, aux_params, allow_extra_params=True)
    executor.arg_dict["data"][:] = data
    return [array.asnumpy() for array in executor.forward(is_train=False)]


def _error(found: list[np.ndarray], reference: list[np.ndarray]) -> float:
    pairs = zip(found, reference, strict=True)
    return float(np.mean([np.square(a - b).sum() / max(np.square(b).sum(), 1e-12) for a, b in pairs]))
