"""A checkpoint written as a float32 model folder."""

from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, write_model_folder
from model.manifest import Manifest


def export(
    prefix: str,
    epoch: int | str,
    folder: str | Path,
    *,
    data_shape: tuple[int, ...] | None = None,
    **detection_options: Any,
) -> Manifest:
    """Writes the float32 model folder of a checkpoint and returns its manifest; arguments as model_from_checkpoint."""
    model = model_from_checkpoint(load_checkpoint(prefix, epoch), data_shape=data_shape, **detection_options)
    return write_model_folder(folder, inference_model(model))
