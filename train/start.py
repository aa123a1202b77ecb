"""Where a run starts: from scratch, from weights alone, or exactly where an earlier one stopped."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from common.errors import CheckpointError, OptionError
from common.sizes import input_size
from config.augment_options import FORCE
from config.groups import AUTO, OutputOptions, is_foreign, pixel_options, seconds_of
from dataset.iterator import RecordIter
from dataset.sidecar import read_sidecar
from dataset.transforms import shown_bit_depth
from graph.mixed_precision import FLOAT32
from graph.symbol_graph import Params
from machine.runtime import mx
from model.checkpoint import (
    Checkpoint,
    foreign_file,
    list_epochs,
    load_checkpoint,
    load_optimizer_state,
    params_path,
    plain_epoch,
    read_meta,
)
from model.params_file import read_params
from model.weights.fit import expected_shapes
from train.checks import BEST, is_resumed
from train.module import RAW
from train.options import TrainOptions, network_options
from train.pauses import Position, newest_paused, paused_prefix
from train.pretrained import epoch_of, foreign_weights, small_share
from train.run_files import is_own_prefix
from train.schedule import Origin
from train.stages import Stage, stage_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """First epoch, weights (None = initialise), and for an exact continuation the number of updates and optimizer
    state.

    learning_rate: of the update before, None in a new stage.
    averages: of the weights, where those of arg_params and aux_params are saved beside them (--ema).
    earlier_updates: those of num_update that were made in earlier stages, by other optimizers.
    plateau: state of the schedule of that name. origin: what a schedule by updates counts from.
    patience: state of --patience. time_limit: what --time-limit was found to mean (CheckpointMeta), {} = nothing yet.
    follows_stage: the checkpoint of the prefix that it starts from was left by an earlier stage of this very process.
    begun: epochs that the run found done when it began with weights alone; what they left is not compared with it.
    precision: as the checkpoint has it (CheckpointMeta), with its dtype; {} = nothing yet.
    left_out: records that could not be read, as checkpoints have them.
    position: within the epoch, where the run was paused in one.
    kept_epochs: the prefix's checkpoints and metrics up to this epoch belong to the run; later ones go when it has
    saved its first one.
    """

    epoch: int = 0
    kept_epochs: int = 0
    begun: int = 0
    arg_params: Params | None = None
    aux_params: Params | None = None
    num_update: int = 0
    learning_rate: float | None = None
    optimizer_state: dict[str, np.ndarray] | None = None
    averages: tuple[Params, Params] | None = None
    earlier_updates: int = 0
    plateau: dict[str, Any] = field(default_factory=dict)
    origin: Origin = Origin()
    patience: dict[str, Any] = field(default_factory=dict)
    time_limit: dict[str, int] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    follows_stage: bool = False
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    position: Position = Position()

    def within(self, iterator: RecordIter) -> int:
        """Updates that were made of the epoch in which it begins. OptionError where that epoch is another one now."""
        batch = self.position.batch
        if batch and (batch >= iterator.num_batches or batch % iterator.group_size):
            raise OptionError(
                f"the run was paused after batch {batch} of an epoch that has {iterator.num_batches} batches in groups "
                f"of {iterator.group_size} now; resume with the record and options of the run, or from an epoch by "
                "--resume N"
            )
        return batch // iterator.group_size


def find_start(plan: Sequence[Stage]) -> Start:
    """The start that --resume, --finetune or --pretrained asks for, in one of the stages of plan; what does not fit
    raises before anything is written."""
    options = plan[-1].options
    if is_resumed(options) and options.start.finetune >= 0:
        raise OptionError("--resume and --finetune exclude each other: continue a run, or start anew from its weights")
    if is_resumed(options):
        return _resume(plan)
    return _begin(plan)


def after_stage(stage: Stage) -> Start:
    """Where the stage after this one starts, which this process has trained to its end: at its last checkpoint."""
    checkpoint = load_checkpoint(stage.options.output.prefix, stage.options.schedule.end_epoch)
    return replace(_next_stage(stage.options, checkpoint), follows_stage=True)


def _begin(plan: Sequence[Stage]) -> Start:
    """A new run."""
    run = plan[-1].options
    kept = max(0, run.start.finetune)
    first = kept or run.schedule.begin_epoch
    if first >= run.schedule.end_epoch:
        raise OptionError(
            f"the first epoch, {first}, is not before --end-epoch {run.schedule.end_epoch}; raise --end-epoch"
        )
    _refuse_overwriting(run.output, kept)
    stage = stage_at(plan, first)
    options, classes = stage.options, stage.classes
    weights: tuple[Params | None, Params | None] = (None, None)
    if options.start.finetune >= 0:
        weights = _from_weights(options, classes, options.output.prefix, options.start.finetune)
    elif is_foreign(options.start.pretrained):
        weights = _fitted(options, classes, *foreign_weights(options))
    elif options.start.pretrained:
        epoch = epoch_of(options.start.pretrained, options.start.epoch)
        weights = _from_weights(options, classes, options.start.pretrained, epoch)
        newest = max(list_epochs(options.start.pretrained), default=0)
        if newest > epoch and options.start.epoch != BEST:
            logger.warning("%s has checkpoints up to epoch %d; --epoch chooses one", options.start.pretrained, newest)
    return Start(first, kept, first, *weights)


def _resume(plan: Sequence[Stage]) -> Start:
    run = plan[-1].options
    if run.start.resume != "auto" and not run.start.resume.isdecimal():
        raise OptionError(f"--resume {run.start.resume!r}: expected an epoch or `auto`")
    paused = newest_paused(run.output.prefix) if run.start.resume == "auto" else None
    if paused is None and run.start.resume == "auto" and not list_epochs(run.output.prefix):
        logger.info("no checkpoint under %s yet: starting from the beginning", run.output.prefix)
        return _begin(plan)
    if paused is None:
        _refuse_plain(run)
        checkpoint = load_checkpoint(run.output.prefix, run.start.resume)
    else:
        checkpoint = load_checkpoint(paused_prefix(run.output.prefix), paused)
    position = Position.of(checkpoint.meta)
    epoch = position.epoch
    trained_by = stage_at(plan, epoch if position.batch else epoch - 1)
    _refuse_other_run(trained_by, checkpoint)
    if epoch >= run.schedule.end_epoch:
        raise OptionError(
            f"{run.output.prefix} is trained up to epoch {epoch}, and --end-epoch is {run.schedule.end_epoch}; raise "
            f"--end-epoch to {epoch + 1} or more to train further"
        )
    place = f"batch {position.batch} of epoch {epoch + 1}" if position.batch else f"epoch {epoch}"
    logger.info("continuing %s after %s", run.output.prefix, place)
    if stage_at(plan, epoch) is not trained_by:
        return _next_stage(run, checkpoint)
    return _same_stage(run, checkpoint)


def _refuse_plain(run: TrainOptions) -> None:
    """OptionError where the epoch has weights alone: nothing tells how its run would go on."""
    epoch, prefix = plain_epoch(run.output.prefix, run.start.resume), run.output.prefix
    if epoch is not None:
        raise OptionError(
            f"{params_path(prefix, epoch)} has no .json beside it, so that its run cannot be resumed; "
            f"go on from its weights with --pretrained {prefix} --epoch {epoch} --begin-epoch {epoch} and another "
            "--prefix"
        )


def _same_stage(options: TrainOptions, checkpoint: Checkpoint) -> Start:
    """Exactly where the checkpoint's optimizer stopped."""
    averages = (checkpoint.arg_params, checkpoint.aux_params)
    state, raw = _split_raw(load_optimizer_state(checkpoint), averages)
    if bool(raw) != (options.schedule.ema > 0):
        was = "with" if raw else "without"
        raise OptionError(f"{options.output.prefix} was trained {was} --ema; resume with the same options")
    position = Position.of(checkpoint.meta)
    return Start(
        position.epoch,
        position.epoch,
        checkpoint.meta.begun,
        *(raw or averages),
        position=position,
        num_update=checkpoint.meta.num_update,
        learning_rate=checkpoint.meta.learning_rate,
        optimizer_state=state,
        averages=averages if raw else None,
        earlier_updates=checkpoint.meta.earlier_updates,
        plateau=checkpoint.meta.plateau,
        origin=Origin(*checkpoint.meta.origin),
        patience=checkpoint.meta.patience,
        time_limit=_time_limit(options, checkpoint),
        precision=_precision(options, checkpoint),
        left_out=_left_out(options, checkpoint),
    )


def _left_out(options: TrainOptions, checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """The records that the run has left out so far, of the record files that are those of the checkpoint."""
    paths = {"train": options.data.train_path, "validation": options.data.val_path}
    sidecars = {name: read_sidecar(path) for name, path in paths.items() if path}
    now = {name: sidecar.sha256 for name, sidecar in sidecars.items() if sidecar}
    before, found = checkpoint.meta.records, checkpoint.meta.left_out
    return {name: one for name, one in found.items() if before.get(name) == now.get(name)}


def _time_limit(options: TrainOptions, checkpoint: Checkpoint) -> dict[str, int]:
    """What --time-limit was found to mean; OptionError where that was another limit."""
    found, wanted = checkpoint.meta.time_limit, options.schedule.time_limit
    if not wanted or not found:
        return {}
    if found["seconds"] != seconds_of(wanted):
        raise OptionError(
            f"--time-limit {wanted}: the schedule of {options.output.prefix} was fitted to {found['seconds']} s and "
            f"ends with update {found['updates']}; resume with --time-limit {found['seconds']}s, or with --max-iter in "
            "its place"
        )
    return found


def _precision(options: TrainOptions, checkpoint: Checkpoint) -> dict[str, Any]:
    """The number format of the run so far; OptionError where --dtype is another one."""
    found, wanted = _format_of(checkpoint), options.device.dtype
    if wanted not in (AUTO, found["dtype"]):
        raise OptionError(
            f"{options.output.prefix} was trained in {found['dtype']}; resume with --dtype {found['dtype']}, or start "
            f"anew with --pretrained {options.output.prefix} --epoch {checkpoint.epoch} and another --prefix"
        )
    return found


def _format_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"dtype": FLOAT32, **checkpoint.meta.precision}


def _next_stage(options: TrainOptions, checkpoint: Checkpoint) -> Start:
    """The saved weights, the averaged ones where there are any, under a new optimizer."""
    updates, epoch = checkpoint.meta.num_update, Position.of(checkpoint.meta).epoch
    return Start(
        epoch,
        epoch,
        checkpoint.meta.begun,
        checkpoint.arg_params,
        checkpoint.aux_params,
        num_update=updates,
        earlier_updates=updates,
        precision=_format_of(checkpoint),
        left_out=_left_out(options, checkpoint),
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


def _refuse_other_run(stage: Stage, checkpoint: Checkpoint) -> None:
    """A resumed run has the network, classes, pixels, stages, batch size and seed of its prefix."""
    options = stage.options
    given: dict[str, Any] = {
        "network": options.input.network,
        "data_shape": input_size(options.input.data_shape),
        "class_names": tuple(stage.classes),
        **pixel_options(options.input),
        "freeze_epochs": options.schedule.freeze_epochs,
        "batch_size": options.data.batch_size,
        "seed": options.data.seed,
        "symbol_sha256": stage.digest,
    }
    for name, value in given.items():
        found = getattr(checkpoint.meta, name)
        if found != value:
            was = f"{name} {_shown(found)}, not {_shown(value)}"
            if name == "symbol_sha256":
                was = "other network options" + _changed_network(checkpoint.meta.options, options)
            raise OptionError(
                f"{options.output.prefix} was trained with {was}; resume with the same options, or start anew with "
                f"--pretrained {options.output.prefix} --epoch {checkpoint.epoch} and another --prefix"
            )


def _shown(value: Any) -> Any:
    """A value as a sentence has it: (1,) as [1]."""
    return list(value) if isinstance(value, tuple) else value


def _changed_network(before: dict[str, Any], options: TrainOptions) -> str:
    """The first network option whose value, as a checkpoint has it, is another one now: " (--width 1.0, not 0.5)"."""
    for name, now in network_options(options).items():
        was = before.get(name, now)
        if json.dumps(was) != json.dumps(now):
            return f" (--{name.replace('_', '-')} {was}, not {now})"
    return ""


def _refuse_overwriting(output: OutputOptions, kept: int) -> None:
    if output.overwrite:
        return
    prefix, epochs = output.prefix, list_epochs(output.prefix)
    if not epochs and newest_paused(prefix) is not None:
        raise OptionError(
            f"{prefix} was paused in its first epoch; add --resume auto to continue, --overwrite to lose it and start "
            "anew, or choose another --prefix"
        )
    if epochs and epochs[-1] > kept:
        lost = f"those after epoch {kept}" if kept else "them"
        raise OptionError(
            f"{prefix} has checkpoints up to epoch {epochs[-1]}; add --resume auto to continue, --overwrite to lose "
            f"{lost} and start anew, or choose another --prefix"
        )
    foreign = None if is_own_prefix(prefix) else foreign_file(prefix, kept)
    if foreign:
        raise OptionError(
            f"{foreign} is there already and was not written by this trainer's runs, which would replace it; choose "
            "another --prefix, or add --overwrite to lose it"
        )


def _from_weights(options: TrainOptions, classes: Sequence[str], prefix: str, epoch: int) -> tuple[Params, Params]:
    """The weights of a checkpoint that fit by name and shape; they and those to initialise are listed."""
    arg_params, aux_params = read_weights(prefix, epoch)
    for line in _other_input(prefix, epoch, options, classes):
        logger.warning(line)
    if epoch not in list_epochs(prefix):
        logger.info(
            "%s has no .json: its weights are taken to be of this run's pixels and, where they are as many, classes",
            params_path(prefix, epoch),
        )
    return _fitted(options, classes, str(params_path(prefix, epoch)), arg_params, aux_params)


def _fitted(
    options: TrainOptions, classes: Sequence[str], source: str, arg_params: Params, aux_params: Params
) -> tuple[Params, Params]:
    """Those of the weights that fit by name and shape; source: what they are, for messages."""
    settings = network_options(options)
    wanted, wanted_aux = expected_shapes(options.input.network, options.input.data_shape, len(classes), **settings)
    kept_arg, kept_aux = fitting(arg_params, wanted), fitting(aux_params, wanted_aux)
    _report(source, {**wanted, **wanted_aux}, {**arg_params, **aux_params}, {**kept_arg, **kept_aux}, options)
    return kept_arg, kept_aux


def _other_input(prefix: str, epoch: int, options: TrainOptions, classes: Sequence[str]) -> list[str]:
    """A sentence for each way in which weights were trained on other pixels or class ids, if their .json tells."""
    try:
        meta = read_meta(prefix, epoch)
    except CheckpointError:
        return []
    source, names, found = params_path(prefix, epoch), meta.class_names, meta.pixels
    lines = [
        f"{source} was trained with {name} {_shown(found[name])}, this run has {_shown(value)}: give the same, unless "
        "that is meant"
        for name, value in pixel_options(options.input).items()
        if found[name] != value and not (name == "fill" and options.input.resize_mode == FORCE)
    ]
    sidecar = read_sidecar(options.data.train_path)
    if sidecar and meta.bit_depth and meta.bit_depth != sidecar.bit_depth:
        lines.append(
            f"{source} was trained with the bit depth {meta.bit_depth}, {options.data.train_path} was packed with "
            f"{shown_bit_depth(sidecar.bit_depth)}: pack it with the same, unless that is meant"
        )
    if len(names) == len(classes) and names != tuple(classes):
        lines.append(
            f"{source} was trained on the classes {', '.join(names)}, this run has {', '.join(classes)}: its "
            "predictors begin with the weights of other classes; pack the record with --class-names in their order"
        )
    return lines


def read_weights(prefix: str, epoch: int) -> tuple[Params, Params]:
    """Weights and auxiliary states of an epoch; CheckpointError where there is no such file, or a damaged one."""
    if not params_path(prefix, epoch).is_file():
        raise CheckpointError(f"{params_path(prefix, epoch)}: no such file; check the prefix and the epoch")
    return read_params(params_path(prefix, epoch))


def fitting(params: Params, wanted: Mapping[str, tuple[int, ...]]) -> Params:
    """The parameters that a network has, by name and shape."""
    return {name: array for name, array in params.items() if name in wanted and array.shape == wanted[name]}


def _report(source: str, wanted: dict[str, Any], found: Params, kept: Params, options: TrainOptions) -> None:
    """Logs what was loaded, re-initialised and unused; nothing loaded at all is an error."""
    if not kept:
        raise CheckpointError(f"{source}: none of its {len(found)} parameters fits --network {options.input.network}")
    fresh = [name for name in wanted if name not in kept]
    unused = [name for name in found if name not in kept and name not in wanted]
    logger.info("%s: %d of %d parameters loaded", source, len(kept), len(wanted))
    little = small_share(source, wanted, kept, options)
    if little:
        logger.warning(little)
    for title, names in (("initialised anew", fresh), ("in the file but unused", unused)):
        if names:
            logger.info("%s (%d): %s", title, len(names), " ".join(names))
