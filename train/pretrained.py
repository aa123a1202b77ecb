"""The weights that --pretrained names: of which epoch of a prefix, and of classifiers with the pixels they are for."""

import logging
from pathlib import Path
from typing import Any

from config.groups import InputOptions, is_foreign
from config.options import replace_options
from machine.runtime import mx
from model.checkpoint import best_epoch
from model.weights.imagenet import Pixels, Pretrained, body_share, pixels_of, read_pretrained
from train.checks import BEST, check_epoch, check_weights_file
from train.options import TrainOptions, network_options
from train.run_files import resumed_meta

LEAST_SHARE = 2 / 3  # of a body's values, below which weights are probably another network's
_MEANS, _STDS = ("mean_r", "mean_g", "mean_b"), ("std_r", "std_g", "std_b")
logger = logging.getLogger(__name__)


def epoch_of(prefix: str, epoch: str | int) -> int:
    """The epoch of --epoch, a number or `best`; CheckpointError with those that there are where its file is not."""
    number = best_epoch(prefix) if epoch == BEST else int(epoch)
    check_epoch(prefix, number)
    return number


def with_pixels(options: TrainOptions) -> TrainOptions:
    """The options with the mean and std that foreign weights are for, unless any of these six is given.

    A resumed run goes on with those of its checkpoints.
    """
    start = options.start
    if not is_foreign(start.pretrained) or start.finetune >= 0:
        return options
    meta = resumed_meta(options)
    if meta:
        before = Pixels(_three(meta.mean_pixels), _three(meta.std))
    else:
        check_weights_file(start.pretrained)
        before = pixels_of(start.pretrained, options.input.network)
    given = _pixels(options.input)
    if given != _pixels(InputOptions()):
        if given != before:
            logger.warning(
                "the weights of --pretrained %s are for %s, this run has %s: leave these options out, unless that is "
                "meant", start.pretrained, _told(before), _told(given),
            )  # fmt: skip
        return options
    logger.info("%s, as the weights of --pretrained %s want it", _told(before), start.pretrained)
    values = (*before.mean, *before.std)
    return replace_options(options, **dict(zip((*_MEANS, *_STDS), values, strict=True)))


def _pixels(options: InputOptions) -> Pixels:
    mean, std = ([getattr(options, name) for name in names] for names in (_MEANS, _STDS))
    return Pixels(_three(mean), _three(std))


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _told(pixels: Pixels) -> str:
    mean, std = (",".join(f"{value:g}" for value in part) for part in (pixels.mean, pixels.std))
    return f"mean pixels {mean} and std {std}"


def foreign_weights(options: TrainOptions) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(what they are, parameters, states) of --pretrained imagenet or FILE.pth, as MXNet's arrays."""
    check_weights_file(options.start.pretrained)
    found: Pretrained = read_pretrained(options.start.pretrained, options.input.network, network_options(options))
    arg, aux = ({name: mx.nd.array(array) for name, array in part.items()} for part in (found.arg, found.aux))
    return found.source, arg, aux


def small_share(
    source: str | Path, wanted: dict[str, tuple[int, ...]], kept: dict[str, Any], options: TrainOptions
) -> str:
    """A sentence where so little of the body is loaded that the weights are probably another network's; else ""."""
    share = body_share(wanted, kept, options.input.network)
    if share >= LEAST_SHARE:
        return ""
    return (
        f"{source} fills {share:.0%} of the body of {options.input.network}, the rest starts at random: are they the "
        "weights of this --network and --width?"
    )
