"""Which layers int8 harms: the error that each alone brings into the network's predictions."""

import logging

import numpy as np

from graph.number_formats import Fused, Thresholds, to_int8
from graph.symbol_graph import outputs
from machine.runtime import mx

logger = logging.getLogger(__name__)

_EVERY = 10  # layers between lines of the log


def rank_layers(fused: Fused, thresholds: Thresholds, data: mx.nd.NDArray) -> list[tuple[float, str]]:
    """(error, layer) of every layer, the most harmful first.

    data: a batch in the model's input format. Error: with that layer alone in int8, the squared difference from the
    float32 predictions over their square, averaged over the maps of predictions.
    """
    heads = _predictions(fused)
    reference = outputs(heads.symbol, heads.arg_params, heads.aux_params, data)
    errors = []
    for number, layer in enumerate(heads.layers, start=1):
        others = tuple(name for name in heads.layers if name != layer)
        symbol, arg_params = to_int8(heads, thresholds, others)
        errors.append((_error(outputs(symbol, arg_params, heads.aux_params, data), reference), layer))
        if number % _EVERY == 0 or number == len(heads.layers):
            logger.info("sensitivity: layer %d of %d", number, len(heads.layers))
    return sorted(errors, reverse=True)


def _predictions(fused: Fused) -> Fused:
    """The part of the symbol that ends with the predicting layers."""
    internals = fused.symbol.get_internals()
    predictions = [internals[f"{fused.layers[name]}_output"] for name in fused.predictions]
    return Fused(mx.sym.Group(predictions), fused.arg_params, fused.aux_params)


def _error(found: list[np.ndarray], reference: list[np.ndarray]) -> float:
    pairs = zip(found, reference, strict=True)
    return float(np.mean([np.square(a - b).sum() / max(np.square(b).sum(), 1e-12) for a, b in pairs]))
