"""Networks with made-up weights that every layer notices, and what they predict."""

import re
import zlib

import numpy as np

from machine.runtime import mx
from model.folder import Model
from model.manifest import Manifest, PostProcessing, SourceCheckpoint
from symbol.symbol_factory import get_symbol
from tests.symbol.network_cases import CLASSES, small_options, small_size

EFFDET_SIZE = (128, 256)
_PREDICTION = re.compile(r"(.*_pred_conv|pred_\d+_conv|(cls|box)_pred_p\d_pointwise)_output$")


def made_up(network, **options):
    """A Model of a registered network at a small size."""
    size = EFFDET_SIZE if network.startswith("efficientdet") else small_size(network)
    symbol = get_symbol(network, size, CLASSES, score_threshold=0.05, **small_options(network), **options)
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, *size))
    args = {name: _values(name, shape) for name, shape in zip(symbol.list_arguments(), arg_shapes, strict=True)}
    aux = {name: _values(name, shape) for name, shape in zip(symbol.list_auxiliary_states(), aux_shapes, strict=True)}
    del args["data"]
    manifest = Manifest(
        class_names=("a", "b", "c"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        input_shape=size,
        network=network,
        options={},
        postprocessing=PostProcessing("", 0.45, 400, 0.05, False),
        versions={},
        source=SourceCheckpoint("made up", 1, {}),
    )
    return Model(symbol, args, aux, manifest)


def images(model, count=1):
    """Data (count, 3, H, W) of the size of a network's inputs after normalisation."""
    return mx.nd.array(np.random.default_rng(7).normal(0, 1, (count, 3, *model.manifest.size)))


def run(symbol, arg_params, aux_params, data):
    """All outputs as arrays."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", type_dict={"data": data.dtype}, data=data.shape)
    executor.copy_params_from(arg_params, aux_params, allow_extra_params=True)
    executor.arg_dict["data"][:] = data
    return [array.asnumpy() for array in executor.forward(is_train=False)]


def predictions(symbol):
    """The symbol of the maps of predictions, before decoding."""
    internals = symbol.get_internals()
    return mx.sym.Group([internals[name] for name in internals.list_outputs() if _PREDICTION.match(name)])


def largest_error(found, expected):
    """The largest difference, relative to the largest value of the map."""
    return max(abs(a - b).max() / abs(b).max() for a, b in zip(found, expected, strict=True))


def _values(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("var"):
        return mx.nd.array(rng.uniform(0.5, 2, shape))
    if name.endswith(("gamma", "_w1", "_w2")):
        return mx.nd.array(rng.uniform(0.7, 1.3, shape))
    if name.endswith("scale"):
        return mx.nd.full(shape, 20)
    if name.endswith(("beta", "mean", "bias")):
        return mx.nd.array(rng.normal(0, 0.1, shape))
    return mx.nd.array(rng.normal(0, (1.5 / max(1, np.prod(shape[1:]))) ** 0.5, shape))
