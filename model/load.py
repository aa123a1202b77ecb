"""Checkpoints and model folders as models that detect: the one way from a training run to a Detector or a folder."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.sizes import input_size
from common.version import versions
from config.options import from_mapping, to_mapping
from graph.constants import fold_constants
from graph.fold import fold_batch_norm
from graph.pixels import with_pixel_input
from model.checkpoint import Checkpoint, list_epochs, load_checkpoint
from model.folder import Model, check_params, read_model_folder
from model.folder_files import check_options, is_model_folder
from model.manifest import UINT8_NHWC, Manifest, PostProcessing, Source
from symbol.registry import family_of, network_options_class
from symbol.symbol_factory import get_symbol, rebuilding_options, without_effect

logger = logging.getLogger(__name__)


def load_model(path: str | Path, epoch: int | str = "auto", **detection_options: Any) -> Model:
    """The model in a model folder, or that of the checkpoint with a prefix.

    epoch (a number, `auto` or `best`) chooses among checkpoints; a model folder holds one model. detection_options are
    those of model_from_checkpoint; OptionError where a model folder has others. CheckpointError says what was looked
    for, or what is damaged.
    """
    if is_model_folder(path):
        model = read_model_folder(path)
        check_options(model.manifest, path, epoch, detection_options)
        return model
    if not list_epochs(str(path)):
        raise CheckpointError(
            f"{path}: neither a model folder nor the prefix of a checkpoint (looked for {path}/manifest.json and "
            f"{path}-NNNN.json); train or export a model first, or correct the path"
        )
    return model_from_checkpoint(load_checkpoint(str(path), epoch), **detection_options)


def model_from_checkpoint(
    checkpoint: Checkpoint, *, data_shape: tuple[int, ...] | None = None, **detection_options: Any
) -> Model:
    """The detection network of a checkpoint with its weights.

    data_shape (side, or height and width) and detection_options (nms, nms_topk, score_threshold, force) replace the
    checkpoint's own. CheckpointError where the weights do not fit.
    """
    meta, origin = checkpoint.meta, f"{checkpoint.prefix}, epoch {checkpoint.epoch}"
    own = rebuilding_options(meta.network, meta.options, origin)
    options = from_mapping(network_options_class(), {**own, **detection_options}, origin)
    for line in without_effect(meta.network, to_mapping(options), detection_options):
        logger.warning(line)
    size = input_size(data_shape or meta.data_shape)
    symbol = get_symbol(meta.network, size, len(meta.class_names), **to_mapping(options))
    try:
        manifest = _manifest(checkpoint, size, options)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{origin}: its .json does not describe a detector ({error})") from error
    model = Model(symbol, checkpoint.arg_params, checkpoint.aux_params, manifest)
    check_params(model, origin)
    return model


def inference_model(model: Model, uint8_input: bool = False) -> Model:
    """The same detector for inference alone at its input size: batch norms and constants folded.

    By option it reads uint8 pixels (B, H, W, 3).
    """
    symbol, arg_params, aux_params = fold_batch_norm(model.symbol, model.arg_params, model.aux_params)
    manifest = model.manifest
    symbol, arg_params = fold_constants(symbol, arg_params, (1, *manifest.image_shape))
    if uint8_input:
        symbol, arg_params = with_pixel_input(symbol, arg_params, manifest.mean, manifest.std)
        manifest = dataclasses.replace(manifest, input_format=UINT8_NHWC)
    return Model(symbol, arg_params, aux_params, manifest)


def _manifest(checkpoint: Checkpoint, size: tuple[int, int], options: Any) -> Manifest:
    meta = checkpoint.meta
    return Manifest(
        class_names=meta.class_names,
        mean=meta.mean_pixels,
        std=meta.std,
        input_shape=size,
        resize_mode=meta.resize_mode,
        fill=meta.fill,
        network=meta.network,
        options=to_mapping(options),
        postprocessing=PostProcessing(
            family_of(meta.network).post_processing(options),
            options.nms,
            options.nms_topk,
            options.score_threshold,
            options.force,
        ),
        versions=versions(),
        source=Source(checkpoint.prefix, checkpoint.epoch, _finite(meta.scores.get("validation", {}))),
    )


def _finite(scores: dict[str, Any]) -> dict[str, float]:
    """The scores that are numbers; a class without ground truth has none."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
