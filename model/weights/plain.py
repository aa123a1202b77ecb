"""Checkpoints without our .json: PREFIX-symbol.json and PREFIX-0012.params as mx.callback.do_checkpoint leaves them."""

import logging
from collections.abc import Sequence
from typing import Any

from common.errors import CheckpointError, OptionError
from common.sizes import input_size
from config.groups import DataOptions, InputOptions, pixel_options
from config.model_groups import ExpectedModel
from config.options import from_mapping, replace_options, to_mapping
from graph.symbol_graph import Params
from machine.runtime import mx
from model.checkpoint import Checkpoint, CheckpointMeta, params_path
from model.weights import classic
from model.weights.fit import compare, expected_shapes
from symbol.registry import network_options_class

logger = logging.getLogger(__name__)


def load_plain(prefix: str, epoch: int, expected: ExpectedModel, record_classes: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint of an SSD, with what its symbol says, else what was given, else the defaults of train.py.

    expected: network, classes, input and means that were given. record_classes: names in the order of the ids, where
    none are given. What is assumed is logged. CheckpointError where the symbol is missing or the weights do not fit it,
    OptionError where something must be given.
    """
    path = params_path(prefix, epoch)
    found = classic.describe(path, expected.network or None)
    network = expected.network or found.network
    if not network:
        raise OptionError(f"{prefix}-symbol.json is of no network that is known by its layers; give --network")
    side = expected.data_shape or (found.data_shape and (found.data_shape,)) or InputOptions().data_shape
    names = _class_names(expected, record_classes, found.num_classes, str(path))
    settings = to_mapping(from_mapping(network_options_class(), found.options))
    arg_params, aux_params = _weights(str(path), network, side, len(names), settings)
    given = {name: getattr(expected, name) for name in ("mean_r", "mean_g", "mean_b")}
    means = {name: value for name, value in given.items() if value is not None}
    meta = CheckpointMeta(
        epoch=epoch,
        num_update=0,
        learning_rate=0.0,
        scores={},
        seed=DataOptions().seed,
        class_names=names,
        **pixel_options(replace_options(InputOptions(), **means)),
        data_shape=input_size(side),
        network=network,
        options=settings,
        batch_size=DataOptions().batch_size,
        symbol_sha256="",
    )
    _tell(str(path), meta, found.notes)
    return Checkpoint(prefix, epoch, arg_params, aux_params, meta)


def _tell(path: str, meta: CheckpointMeta, notes: Sequence[str]) -> None:
    """Logs what is assumed of the model, and what its symbol asks for that our network has not."""
    height, width = meta.data_shape
    logger.warning(
        "%s has no .json: taken as %s at %dx%d, RGB means %s, images stretched, classes %s; --network, --data-shape, "
        "--mean-r, --mean-g, --mean-b and --class-names say otherwise",
        path, meta.network, height, width, ", ".join(f"{mean:g}" for mean in meta.mean_pixels),
        ", ".join(meta.class_names),
    )  # fmt: skip
    for note in notes:
        logger.warning("%s: of its symbol, %s", path, note)


def _class_names(
    expected: ExpectedModel, record_classes: Sequence[str], count: int | None, path: str
) -> tuple[str, ...]:
    """The names given, else the record's, else class0, class1, ...; as many as the heads have."""
    from dataset.class_names import read_class_names

    names = read_class_names(expected.class_names) or tuple(record_classes)
    count = count or expected.num_class
    names = names or tuple(f"class{k}" for k in range(count or 0))
    if not names or (count and len(names) != count):
        raise OptionError(
            f"{path} predicts {count or 'an unknown number of'} classes, but {len(names)} are named "
            f"({', '.join(names) or 'none'}); give its --class-names"
        )
    return names


def _weights(
    path: str, network: str, side: Sequence[int], num_classes: int, settings: dict[str, Any]
) -> tuple[Params, Params]:
    """The weights under our names; CheckpointError where the network needs others."""
    arg, aux = classic.rename(classic.read(path), network, settings)
    wanted_arg, wanted_aux = expected_shapes(network, side, num_classes, **settings)
    report = compare({**wanted_arg, **wanted_aux}, {**arg, **aux})
    if report.missing:
        raise CheckpointError(
            f"{path}: {report.missing[0]} and {len(report.missing) - 1} others of {network} are missing or of another "
            "shape; give the --network, --data-shape and classes that it was trained with"
        )
    return (
        {name: mx.nd.array(arg[name]) for name in wanted_arg},
        {name: mx.nd.array(aux[name]) for name in wanted_aux},
    )
