"""A tiny SSD with made-up weights, as a checkpoint."""

import dataclasses
import zlib

import numpy as np

from config.options import to_mapping
from machine.runtime import mx
from model.checkpoint import CheckpointMeta, save_checkpoint
from symbol.registry import network_options_class
from symbol.symbol_factory import get_symbol

CLASSES = ("red", "grün", "blue")
SIZE = (96, 80)
MEAN = (120.0, 110.0, 100.0)
OPTIONS = to_mapping(
    network_options_class()(
        width=0.25,
        score_threshold=0.05,
        extra_filters=(16, 16),
        anchor_ratios="1,2,0.5",
        anchor_sizes="0.1,0.2;0.3,0.4;0.5,0.6;0.7,0.8",
    )
)


def tiny_symbol():
    return get_symbol("mobilenet", SIZE, len(CLASSES), **OPTIONS)


def tiny_params():
    """Weights by name and shape alone; heads are large enough for detections of every class."""
    symbol = tiny_symbol()
    params, aux_names = deterministic_params(symbol, SIZE), symbol.list_auxiliary_states()
    return ({n: a for n, a in params.items() if n not in aux_names}, {n: params[n] for n in aux_names})


def deterministic_params(symbol, size):
    """Arguments and auxiliary states of a symbol by name and shape alone."""
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, 3, *size))
    names = symbol.list_arguments() + symbol.list_auxiliary_states()
    shapes = zip(names, [*arg_shapes, *aux_shapes], strict=True)
    return {name: _values(name, shape) for name, shape in shapes if name != "data"}


def _values(name, shape):
    if name.endswith(("gamma", "moving_var")):
        return mx.nd.ones(shape)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    spread = (2 / max(1, np.prod(shape[1:]))) ** 0.5 * (0.3 if "loc_pred" in name else 1)
    return mx.nd.array(rng.normal(0, spread, shape) * (len(shape) > 1))


def save_tiny(prefix, epoch=3, **changes):
    args, aux = tiny_params()
    meta = CheckpointMeta(
        epoch=epoch,
        num_update=10,
        learning_rate=0.1,
        scores={"train": {"CrossEntropy": 1.0}, "validation": {"mAP": 0.5, "blue": 0.25}},
        seed=1,
        class_names=CLASSES,
        mean_pixels=MEAN,
        data_shape=SIZE,
        network="mobilenet",
        options=OPTIONS,
        batch_size=2,
        symbol_sha256="0" * 64,
    )
    meta = dataclasses.replace(meta, **changes)
    save_checkpoint(str(prefix), tiny_symbol().tojson(), args, aux, {}, meta)
    return str(prefix)


def picture(seed, height, width):
    """Smooth coloured noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
