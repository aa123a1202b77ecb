"""Which --freeze a run really has: random layers are not kept, and a resumed run goes on as it began."""

import logging
import re
from collections.abc import Sequence

from common.errors import OptionError
from config.options import replace_options
from model.checkpoint import CheckpointMeta
from model.weights.fit import expected_shapes
from train.options import TrainOptions, network_options
from train.run_files import resumed_meta
from train.start import fitting, read_weights

PREDICTIONS = "pred"  # a part of the names of all heads
logger = logging.getLogger(__name__)


def settle_freeze(options: TrainOptions, classes: Sequence[str]) -> TrainOptions:
    """The options with the freeze of the start that they ask for; what is left out is logged.

    From scratch nothing is frozen, as in the classic trainers: the layers would stay random. (The first of two stages
    is as it was asked for.) finetune_freeze `classic` becomes the pattern of what the checkpoint has. A resumed run has
    that of its checkpoint in place of `classic`, and of a pattern that it left out when it began. OptionError for
    --freeze beside `classic`.
    """
    is_classic = options.start.finetune_freeze == "classic"
    if is_classic and options.net.freeze:
        raise OptionError("--freeze and --finetune-freeze classic exclude each other; give one of them")
    before = resumed_meta(options)
    if before:
        return _as_before(options, before)
    if is_classic and options.start.finetune >= 0:
        return replace_options(options, freeze=_all_but_predictions(options, classes))
    if options.start.pretrained or options.start.finetune >= 0:
        return options
    if options.schedule.freeze_epochs:
        logger.warning(
            "--freeze-epochs: the first stage keeps layers as they are that begin with random weights; start from "
            "weights by --pretrained"
        )
        return options
    return _nothing(options, "this run starts from scratch, and random layers would stay random; start from weights by "
                    "--pretrained to freeze")  # fmt: skip


def _nothing(options: TrainOptions, reason: str) -> TrainOptions:
    """The options without --freeze, which is told if it was given."""
    if not options.net.freeze:
        return options
    logger.warning("--freeze %s has no effect: %s", options.net.freeze, reason)
    return replace_options(options, freeze="")


def _as_before(options: TrainOptions, meta: CheckpointMeta) -> TrainOptions:
    """The options of a resumed run with the freeze of its checkpoint where that is what they mean."""
    before = str(meta.options.get("freeze", ""))
    if options.start.finetune_freeze == "classic":
        return replace_options(options, freeze=before)
    began_with_weights = bool(options.start.pretrained)
    if before or began_with_weights or options.schedule.freeze_epochs:
        return options
    return _nothing(options, "the run goes on as it began, with nothing frozen")


def _all_but_predictions(options: TrainOptions, classes: Sequence[str]) -> str:
    """The pattern of the parameters that --finetune takes over, without the heads; CheckpointError without the file."""
    settings = network_options(options)
    wanted, _ = expected_shapes(options.input.network, options.input.data_shape, len(classes), **settings)
    kept = fitting(read_weights(options.output.prefix, options.start.finetune)[0], wanted)
    fresh = [f"{re.escape(name)}$" for name in wanted if name not in kept and PREDICTIONS not in name]
    return f"(?!{'|'.join([f'.*{PREDICTIONS}', *fresh])})"
