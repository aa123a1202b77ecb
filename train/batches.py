"""Which batches a stage of a run trains and validates on."""

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

from common.errors import OptionError
from common.sizes import input_size
from config.groups import DataOptions, batches_per_update, pixel_options, rect_multiple, warmup_span
from dataset.batch_memory import check_memory
from dataset.batch_spec import BatchPlan, BatchSpec
from dataset.input_sizes import multi_scale_sizes
from dataset.iterator import check_batches
from dataset.labels import HEADER_WIDTH, OBJECT_WIDTH
from dataset.left_out import left_out_limit
from dataset.sidecar import Sidecar
from symbol.symbol_factory import get_assigner, size_multiple
from train.options import augment_options, network_options
from train.stages import Stage
from train.start import Start

BYTES = 4  # of a float32

logger = logging.getLogger(__name__)


def batch_specs(stage: Stage, sidecars: Sequence[Sidecar | None], start: Start) -> tuple[BatchSpec, BatchSpec | None]:
    """What a stage trains on, from the epoch of its start on, and what it validates on.

    OptionError where options of the data or the targets do not fit together.
    """
    options, data, num_classes = stage.options, stage.options.data, len(stage.classes)
    close = options.augmentation.close_mosaic
    network, size, settings = options.input.network, input_size(options.input.data_shape), network_options(options)
    common: dict[str, Any] = {
        "batch_size": data.batch_size,
        "data_shape": size,
        **pixel_options(options.input),
        "max_objects": _label_rows(data, sidecars),
        "num_classes": num_classes,
        "workers": data.workers,
        "left_out": left_out_limit(data.bad_records),
    }
    sizes = multi_scale_sizes(size, data.multi_scale, size_multiple(network))
    groups = batches_per_update(options.schedule, data.batch_size)
    train_spec = BatchSpec(
        data.train_path,
        path_imglist=data.train_list,
        augment=augment_options(options),
        assigner=get_assigner(network, size, num_classes, sizes=sizes, **settings),
        shuffle=True,
        seed=data.seed,
        epoch=start.epoch,
        accumulate=groups,
        warmup_accumulate=options.schedule.warmup_accumulate or groups,
        warmup_end=0 if continues_early_version(start) else first_epoch(start) + warmup_span(options.schedule),
        sizes=sizes,
        rect=options.validation.rect_multiple if data.rect else 0,
        mosaic_end=stage.run_end - close if close else None,
        **common,
    )
    if not data.val_path:
        return train_spec, None
    if options.validation.val_loss:
        common["assigner"] = get_assigner(network, size, num_classes, **settings)
    rect = rect_multiple(options.validation)
    return train_spec, BatchSpec(data.val_path, path_imglist=data.val_list, augment=None, rect=rect, **common)


def _label_rows(data: DataOptions, sidecars: Sequence[Sidecar | None]) -> int | None:
    """Rows of the labels: as many as both records need unless given; None where a record without sidecar must be
    searched for it, or a list."""
    needed = max((sidecar.max_objects for sidecar in sidecars if sidecar), default=0)
    rows = (data.label_width - HEADER_WIDTH) // OBJECT_WIDTH
    if data.train_list or data.val_list:
        return rows if data.label_width else None
    if data.label_width and rows < max(1, needed):
        raise OptionError(
            f"--label-width {data.label_width} has room for {max(0, rows)} objects, but an image of the records has "
            f"{needed}; give {HEADER_WIDTH + OBJECT_WIDTH * max(1, needed)} or leave the option out"
        )
    return rows if data.label_width else (needed if all(sidecars) else None)


def check_stage_batches(stage: Stage, sidecars: Sequence[Sidecar | None], start: Start) -> None:
    """OptionError or DataError for what opening the batches of a stage would find wrong, or for more memory than there
    is; nothing is started. The estimate is logged."""
    engine = stage.options.data.data_engine
    plans = [check_batches(spec, engine) for spec in batch_specs(stage, sidecars, start) if spec]
    logger.info(check_memory(plans, 0 if stage.options.device.gpus else kept_bytes(stage, plans[0])))


def kept_bytes(stage: Stage, plan: BatchPlan) -> int:
    """Bytes that training keeps for a batch of a plan, at least: what trained convolutions give, which the layers
    behind them need again to go back."""
    layers = stage.losses.get_internals()
    rows, arguments = plan.layout.shapes[plan.maker.size], set(layers.list_arguments())
    inputs = {name: (1, *shape) for name, shape in rows.items() if name in arguments}  # of one image
    shapes = dict(zip(layers.list_outputs(), layers.infer_shape_partial(**inputs)[1], strict=True))
    names = [node["name"] for node in json.loads(layers.tojson())["nodes"] if node["op"] == "Convolution"]
    outputs = [shapes.get(f"{name}_output") for name in names if f"{name}_weight" not in stage.frozen]
    return plan.spec.batch_size * sum(BYTES * math.prod(shape) for shape in outputs if shape)


def first_epoch(start: Start) -> int:
    """The epoch at which the stage of a start began, from which its warm-up counts."""
    return start.origin.first_epoch if start.origin.updates else start.epoch


def continues_early_version(start: Start) -> bool:
    """Whether it goes on from a checkpoint that does not tell the pace: it has no early epochs."""
    return not start.origin.updates and start.num_update > start.earlier_updates
