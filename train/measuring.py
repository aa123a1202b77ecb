"""What a run finds out by trying before it begins: the end that --time-limit means, and the fastest number format."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import out_of_memory_hint
from config.groups import AUTO, seconds_of
from config.options import replace_options
from dataset.iterator import RecordIter
from graph.mixed_precision import BFLOAT16, FLOAT16, FLOAT32, to_mixed
from graph.number_formats import supports_bfloat16
from graph.onednn_training import suit_training
from graph.weight_gradients import WAYS, fastest_ways, layers_of
from machine.cpu import has_amx
from machine.runtime import mx
from train.batches import first_epoch
from train.building import (
    make_module,
    make_recipe,
    optimizer_params,
    schedule_origin,
    stage_pace,
    store_of_devices,
    validated_size,
)
from train.metric import make_metric
from train.module import DetectionModule
from train.preflight import Plan, validation_metric
from train.progress import seconds_a_batch, seconds_of_validation
from train.recipe import every_epoch
from train.saving import CheckpointWriter
from train.schedule import warm_up_of
from train.stages import SPARE, Costs, Patience, Stage, end_after, updates_within
from train.start import Start

MEASURED_SHARE = 0.02  # of --time-limit, over which the speed of training is measured,
MEASURED_SECONDS = 120.0  # but not longer than that
DTYPE_SECONDS = 3.0  # over which a number format is measured
LESS_MEMORY = "lower --batch-size (--accumulate keeps the images of an update) or --data-shape; checkpoints are kept"
logger = logging.getLogger(__name__)


def with_dtype(stage: Stage, plan: Plan, start: Start, train_iter: RecordIter) -> Stage:
    """The stage in one number format: where --dtype is auto that of the run so far, else the fastest one; with the ways
    of its weight gradients, which are those of the run so far, too."""
    if stage.options.device.dtype == AUTO:
        stage = _in_dtype(stage, start.precision.get("dtype") or _fastest(stage, plan, start, train_iter))
    found = start.precision.get("gradients") if start.precision else _gradient_ways(stage, plan, train_iter)
    ways = plan.ranks.told(found)  # of rank 0: the gradients of all workers are computed alike
    return replace(stage, gradient_ways=ways or {})


def _in_dtype(stage: Stage, dtype: str) -> Stage:
    return replace(stage, options=replace_options(stage.options, dtype=dtype))


def _gradient_ways(stage: Stage, plan: Plan, train_iter: RecordIter) -> dict[str, str]:
    """How the weight gradients of bfloat16 are computed fastest, measured where there is a choice: on CPUs with AMX,
    whose own kernel is the slow one. Elsewhere it runs at the limit of the arithmetic. Inputs of one size alone."""
    options = stage.options
    one_size = not options.data.multi_scale and not options.data.rect
    if options.device.dtype != BFLOAT16 or not options.device.rewrite_graph or not one_size or not has_amx():
        return {}
    described = (*train_iter.provide_data, *train_iter.provide_label)
    shapes = {desc.name: (desc.shape[0] // len(plan.devices), *desc.shape[1:]) for desc in described}
    mixed = to_mixed(suit_training(stage.losses, shapes), shapes, BFLOAT16)
    layers = layers_of(mixed, shapes, frozenset(stage.frozen))
    with out_of_memory_hint(LESS_MEMORY):
        ways = fastest_ways(layers)
    numbers = ", ".join(f"{list(ways.values()).count(way)} by {way}" for way in WAYS[1:])
    logger.info("weight gradients of bfloat16: %d of %d layers by their own kernel, %s", len(layers) - len(ways),
                len(layers), numbers)  # fmt: skip
    return ways


def _fastest(stage: Stage, plan: Plan, start: Start, train_iter: RecordIter) -> str:
    narrow = BFLOAT16 if _is_on_cpu(plan.devices) else FLOAT16
    if narrow == BFLOAT16 and not supports_bfloat16():
        logger.info("--dtype auto: float32, as this CPU has no AVX-512")
        return FLOAT32
    seconds = {}
    with out_of_memory_hint(LESS_MEMORY):
        for dtype in (FLOAT32, narrow):
            trained = Trial(_in_dtype(stage, dtype), plan, start, train_iter, None)
            seconds[dtype] = seconds_a_batch(trained.train, train_iter, DTYPE_SECONDS, plan.ranks.told)
            train_iter.set_epoch(start.epoch)
    seconds = plan.ranks.told(seconds)
    dtype = min(seconds, key=lambda name: seconds[name])
    shown = ", ".join(f"{name} {found:.3f} s" for name, found in seconds.items())
    logger.info("--dtype auto: %s (a batch takes: %s)", dtype, shown)
    return dtype


def _is_on_cpu(devices: Sequence[mx.Context]) -> bool:
    return all(device.device_type == "cpu" for device in devices)


class Trial:
    """A Module that trains to be measured, and is dropped: the run begins as if nothing had been trained."""

    def __init__(
        self, stage: Stage, plan: Plan, start: Start, train_iter: RecordIter, val_iter: RecordIter | None
    ) -> None:
        """As the run will be."""
        options, pace = stage.options, stage_pace(stage, start, train_iter.places)
        self.origin = schedule_origin(start, pace)
        recipe = make_recipe(options, start, pace.first, every_epoch, plan.ranks)
        self.module: DetectionModule = make_module(stage, plan, start, validated_size(stage, val_iter), recipe)
        self.module.bind(train_iter.provide_data, train_iter.provide_label)
        self.module.init_params(mx.init.Xavier(), start.arg_params, start.aux_params, allow_missing=True)
        arguments = optimizer_params(options, start, self.origin, pace, len(plan.devices) * plan.ranks.count)
        store = store_of_devices(options, plan.ranks)
        self.module.init_optimizer(store, options.schedule.optimizer, arguments)
        self._losses = make_metric(stage.losses, len(plan.devices), plan.ranks)

    def train(self, batch: mx.io.DataBatch) -> None:
        """Begins to train a batch."""
        self.module.forward_backward(batch)
        self.module.update()
        self.module.update_metric(self._losses, batch.label)


def with_time_limit(
    stage: Stage, plan: Plan, start: Start, train_iter: RecordIter, val_iter: RecordIter | None
) -> Stage:
    """The stage with the end that --time-limit means: found now, or before the checkpoint that it is resumed from."""
    time_limit, validation = stage.options.schedule.time_limit, stage.options.validation
    if not time_limit:
        return stage
    pace, begin, limit = stage_pace(stage, start, train_iter.places), first_epoch(start), start.time_limit
    if not limit:
        seconds = seconds_of(time_limit)
        with out_of_memory_hint(LESS_MEMORY):
            costs = _measured(stage, plan, start, train_iter, val_iter, seconds)
        train_iter.set_epoch(start.epoch)
        left = seconds * (1 - SPARE) - (time.monotonic() - plan.begun)
        every = 0 if validation.eval_every == "last" else int(validation.eval_every)
        more = updates_within(left, costs, pace, train_iter.num_batches, every, start.epoch - begin)
        end_epoch = plan.options.schedule.end_epoch
        limit = plan.ranks.told({"seconds": seconds, "updates": start.num_update + more, "end_epoch": end_epoch})
        logger.info(
            "--time-limit %s: a batch takes %.3f s, a validation %.1f s, a checkpoint %.1f s; the run ends with update "
            "%d", time_limit, costs.batch, costs.validation, costs.checkpoint, limit["updates"],
        )  # fmt: skip
        if limit["updates"] <= warm_up_of(stage.options.schedule, pace.first).updates:
            logger.warning(
                "--time-limit %s ends the run within its warm-up; shorten that, or give more time", time_limit
            )
    return end_after(stage, limit, pace, begin)


def _measured(
    stage: Stage, plan: Plan, start: Start, train_iter: RecordIter, val_iter: RecordIter | None, seconds: float
) -> Costs:
    """What the parts of a run take."""
    options, trial = stage.options, Trial(stage, plan, start, train_iter, val_iter)

    def validate(count: int) -> None:
        trial.module.score(val_iter, validation_metric(options, stage.classes), count)

    batch = seconds_a_batch(trial.train, train_iter, min(MEASURED_SHARE * seconds, MEASURED_SECONDS), plan.ranks.told)
    validation = seconds_of_validation(validate, val_iter.num_batches) if val_iter else 0.0
    writer = CheckpointWriter(stage, trial.module, None, trial.origin, 0, plan.sidecars, Patience(0, {}), {})
    if not plan.ranks.writes:
        return Costs(batch, validation, 0.0)
    begun = time.monotonic()
    with TemporaryDirectory(prefix=".measured-", dir=Path(options.output.prefix).parent) as folder:
        rate = trial.module.learning_rate
        writer.save(f"{folder}/t", 1, {"num_update": 1, "learning_rate": rate, "train": {}, "validation": {}})
    return Costs(batch, validation, time.monotonic() - begun)
