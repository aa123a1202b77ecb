"""Modules that compute a symbol for an iterator's batches, without gradients."""

import logging
from collections.abc import Sequence

from graph.onednn import squeezes, suit_onednn
from machine.runtime import mx
from model.params_file import Params

LOGGER = logging.getLogger(__name__)


def is_rewritten(symbol: mx.sym.Symbol, devices: Sequence[mx.Context]) -> bool:
    """Whether inference_module runs another graph that gives the same (graph/onednn.py), and so weights of its own."""
    return all(device.device_type == "cpu" for device in devices) and squeezes(symbol)


def inference_module(
    symbol: mx.sym.Symbol,
    arg_params: Params,
    aux_params: Params,
    devices: Sequence[mx.Context],
    data: Sequence[mx.io.DataDesc],
    labels: Sequence[mx.io.DataDesc] = (),
    logger: logging.Logger = LOGGER,
) -> mx.mod.Module:
    """A Module that gives the symbol's outputs for batches of `data` (and `labels`, if it reads any) on the devices.

    Batches may have other heights and widths, if the symbol takes them and is not rewritten. An EfficientDet is, for
    the size of `data`, as it then takes a third of the time on CPUs; its outputs differ by rounding.
    """
    if is_rewritten(symbol, devices):
        symbol, arg_params, aux_params = suit_onednn(symbol, arg_params, aux_params, data[0].shape)
    module = mx.mod.Module(
        symbol,
        data_names=[desc.name for desc in data],
        label_names=[desc.name for desc in labels] or None,
        context=list(devices),
        logger=logger,
    )
    module.bind(list(data), list(labels) or None, for_training=False)
    module.set_params(arg_params, aux_params)
    return module
