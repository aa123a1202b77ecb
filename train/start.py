"""Where a run starts: from scratch, from weights alone, or exactly where an earlier one stopped."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from config.errors import CheckpointError, OptionError
from config.run import TrainOptions, network_options, pixel_options
from config.runtime import mx
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern, input_size
from train.checkpoint import Checkpoint, list_epochs, load_checkpoint, load_optimizer_state, params_path
from train.module import RAW
from train.params_file import Params, read_params
from train.weights.report import expected_shapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """First epoch, weights (None = initialise), and for an exact continuation the number of updates and optimizer
    state.

    averages: of the weights, where those of arg_params and aux_params are saved beside them (--ema).
    kept_epochs: the prefix's checkpoints and metrics up to this epoch belong to the run; later ones go when it has
    finished its first epoch.
    """

    epoch: int = 0
    kept_epochs: int = 0
    arg_params: Params | None = None
    aux_params: Params | None = None
    num_update: int = 0
    optimizer_state: dict[str, np.ndarray] | None = None
    averages: tuple[Params, Params] | None = None


def find_start(options: TrainOptions, classes: tuple[str, ...], symbol_sha256: str) -> Start:
    """The start that --resume, --finetune or --pretrained asks for; what does not fit raises before anything is
    written."""
    if options.resume not in ("-1", "") and options.finetune >= 0:
        raise OptionError("--resume and --finetune exclude each other: continue a run, or start anew from its weights")
    if options.resume not in ("-1", ""):
        return _resume(options, classes, symbol_sha256)
    kept = max(0, options.finetune)
    first = kept or options.begin_epoch
    if first >= options.end_epoch:
        raise OptionError(f"the first epoch, {first}, is not before --end-epoch {options.end_epoch}; raise --end-epoch")
    _refuse_overwriting(options, kept)
    weights: tuple[Params | None, Params | None] = (None, None)
    if options.finetune >= 0:
        weights = _from_weights(options, len(classes), options.prefix, options.finetune)
    elif options.pretrained:
        weights = _from_weights(options, len(classes), options.pretrained, options.epoch)
    return Start(first, kept, *weights)


def _resume(options: TrainOptions, classes: tuple[str, ...], symbol_sha256: str) -> Start:
    if options.resume != "auto" and not options.resume.isdecimal():
        raise OptionError(f"--resume {options.resume!r}: expected an epoch or `auto`")
    if options.resume == "auto" and not list_epochs(options.prefix):
        logger.info("no checkpoint under %s yet: starting from the beginning", options.prefix)
        return find_start(replace(options, resume="-1"), classes, symbol_sha256)
    checkpoint = load_checkpoint(options.prefix, options.resume)
    _refuse_other_run(options, checkpoint, classes, symbol_sha256)
    if checkpoint.epoch >= options.end_epoch:
        raise OptionError(
            f"{options.prefix} is trained up to epoch {checkpoint.epoch}; raise --end-epoch above it to train further"
        )
    logger.info("continuing %s after epoch %d", options.prefix, checkpoint.epoch)
    averages = (checkpoint.arg_params, checkpoint.aux_params)
    state, raw = _split_raw(load_optimizer_state(checkpoint), averages)
    if bool(raw) != (options.ema > 0):
        was = "with" if raw else "without"
        raise OptionError(f"{options.prefix} was trained {was} --ema; resume with the same options")
    return Start(
        checkpoint.epoch,
        checkpoint.epoch,
        *(raw or averages),
        num_update=checkpoint.meta["num_update"],
        optimizer_state=state,
        averages=averages if raw else None,
    )


def _split_raw(
    state: dict[str, np.ndarray], params: tuple[Params, Params]
) -> tuple[dict[str, np.ndarray], tuple[Params, Params] | None]:
    """(state of the optimizer alone, the weights that training continues from: None where params are these)."""
    own = {name: array for name, array in state.items() if not name.startswith(RAW)}
    if len(own) == len(state):
        return own, None
    try:
        arg, aux = ({name: mx.nd.array(state[RAW + name]) for name in part} for part in params)
    except KeyError as error:
        raise CheckpointError(f"the checkpoint lacks {error.args[0]}; use another epoch") from error
    return own, (arg, aux)


def _refuse_other_run(
    options: TrainOptions, checkpoint: Checkpoint, classes: tuple[str, ...], symbol_sha256: str
) -> None:
    """A resumed run has the network, classes, pixels, batch size and seed of its prefix."""
    given: dict[str, Any] = {
        "network": options.network,
        "data_shape": list(input_size(options.data_shape)),
        "class_names": list(classes),
        **pixel_options(options),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "symbol_sha256": symbol_sha256,
    }
    for name, value in given.items():
        if checkpoint.meta[name] != value:
            was = "other network options" if name == "symbol_sha256" else f"{name} {checkpoint.meta[name]}, not {value}"
            raise OptionError(
                f"{options.prefix} was trained with {was}; resume with the same options, or start anew with "
                f"--pretrained {options.prefix} --epoch {checkpoint.epoch} and another --prefix"
            )


def _refuse_overwriting(options: TrainOptions, kept: int) -> None:
    epochs = list_epochs(options.prefix)
    if epochs and epochs[-1] > kept and not options.overwrite:
        lost = f"those after epoch {kept}" if kept else "them"
        raise OptionError(
            f"{options.prefix} has checkpoints up to epoch {epochs[-1]}; add --resume auto to continue, --overwrite to "
            f"lose {lost} and start anew, or choose another --prefix"
        )


def _from_weights(options: TrainOptions, num_classes: int, prefix: str, epoch: int) -> tuple[Params, Params]:
    """The weights of a checkpoint that fit by name and shape; they and those to initialise are listed."""
    if not params_path(prefix, epoch).is_file():
        raise CheckpointError(f"{params_path(prefix, epoch)}: no such file; check the prefix and the epoch")
    arg_params, aux_params = read_params(params_path(prefix, epoch))
    settings = network_options(options)
    wanted, wanted_aux = expected_shapes(options.network, options.data_shape, num_classes, **settings)
    kept_arg, kept_aux = _fitting(arg_params, wanted), _fitting(aux_params, wanted_aux)
    _report(prefix, epoch, {**wanted, **wanted_aux}, {**arg_params, **aux_params}, {**kept_arg, **kept_aux}, options)
    return kept_arg, kept_aux


def _fitting(params: Params, wanted: dict[str, tuple[int, ...]]) -> Params:
    return {name: array for name, array in params.items() if name in wanted and array.shape == wanted[name]}


def _report(
    prefix: str, epoch: int, wanted: dict[str, Any], found: Params, kept: Params, options: TrainOptions
) -> None:
    """Logs what was loaded, re-initialised, unused and frozen; nothing loaded at all is an error."""
    if not kept:
        raise CheckpointError(
            f"{params_path(prefix, epoch)}: none of its {len(found)} parameters fits --network {options.network}"
        )
    fresh = [name for name in wanted if name not in kept]
    unused = [name for name in found if name not in kept and name not in wanted]
    pattern = freeze_pattern(options.network, options.freeze)
    frozen = [name for name in wanted if matches(pattern, name)]
    logger.info("%s: %d of %d parameters loaded", params_path(prefix, epoch), len(kept), len(wanted))
    for title, names in (("initialised anew", fresh), ("in the file but unused", unused), ("frozen", frozen)):
        if names:
            logger.info("%s (%d): %s", title, len(names), " ".join(names))
