"""Models that detect: written to and read from model folders, completely or not at all, and made from checkpoints.

`mx.model.load_checkpoint(FOLDER/model, 0)` reads a model folder, too.
"""

import dataclasses
import glob
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.errors import CheckpointError, OptionError
from common.files import check_name, file_sha256, is_alive, sync_folder, write_atomically
from common.sizes import input_size
from common.version import versions
from config.options import from_mapping, to_mapping
from graph.fold import fold_batch_norm, fold_constants, with_pixel_input
from graph.symbol_graph import Params
from machine.command import held
from machine.runtime import mx
from model.checkpoint import Checkpoint, list_epochs, load_checkpoint
from model.manifest import (
    FILES,
    MANIFEST,
    MANIFEST_FILE,
    PARAMS,
    SYMBOL,
    UINT8_NHWC,
    FileRecord,
    Manifest,
    PostProcessing,
    SourceCheckpoint,
    check_options,
    is_model_folder,
    read_manifest,
    verify_file,
)
from model.params_file import read_params, write_params
from model.symbol_check import check_shapes, last_line, load_symbol
from symbol.registry import family_of, network_options_class
from symbol.symbol_factory import get_symbol, ineffective_options, rebuilding_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A detector ready to be bound: `symbol` reads data of the manifest's input_format and gives det (B, N, 6)."""

    symbol: mx.sym.Symbol = field(repr=False)
    arg_params: Params = field(repr=False)
    aux_params: Params = field(repr=False)
    manifest: Manifest


def write_model_folder(folder: str | Path, model: Model, more: Mapping[str, bytes] = MappingProxyType({})) -> Manifest:
    """Writes a model folder under a temporary name, reads it back and renames it; returns the manifest with its files.

    more: further files by name, such as model.onnx, and their contents.
    An empty folder and an older model folder of that name are replaced; a folder with other files in it raises
    OptionError. CheckpointError where the folder cannot be written; an older one then stays.
    """
    target = Path(folder).resolve()
    check_replaceable(target)
    temporary = _beside(target, "tmp")
    try:
        _remove_leftovers(target)
        temporary.mkdir(parents=True)
        written = _write_files(temporary, model, more)
        read_model_folder(temporary)
        _replace(target, temporary)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); free space or change --output"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def read_model_folder(folder: str | Path) -> Model:
    """Loads and verifies a model folder; CheckpointError names the file that is missing, damaged or does not fit."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        verify_file(folder / name, record)
    symbol = load_symbol((folder / SYMBOL).read_bytes(), str(folder / SYMBOL))
    check_shapes(symbol, str(folder / SYMBOL), data=(1, *manifest.image_shape))
    arg_params, aux_params = read_params(folder / PARAMS)
    model = Model(symbol, arg_params, aux_params, manifest)
    check_params(model, str(folder / PARAMS))
    return model


def check_params(model: Model, origin: str) -> None:
    """CheckpointError naming `origin` and the parameter unless the weights are those that the symbol reads."""
    wanted = _shapes(model, origin)
    found = {name: array.shape for name, array in (model.arg_params | model.aux_params).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{origin}: parameter {name} has the shape {found.get(name, 'none')}, the network's is "
                f"{wanted.get(name, 'none')}; was it trained with another data shape or other options?"
            )


def _shapes(model: Model, origin: str) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by the symbol and the input shape."""
    symbol = model.symbol
    try:
        arg_shapes, _, aux_shapes = symbol.infer_shape(data=(1, *model.manifest.image_shape))
    except (mx.base.MXNetError, RuntimeError) as error:
        raise CheckpointError(f"{origin}: the symbol does not fit its input ({last_line(error)})") from error
    names = symbol.list_arguments() + symbol.list_auxiliary_states()
    return {name: shape for name, shape in zip(names, [*arg_shapes, *aux_shapes], strict=True) if name != "data"}


def _write_files(folder: Path, model: Model, more: Mapping[str, bytes]) -> Manifest:
    write_atomically(folder / SYMBOL, model.symbol.tojson().encode("utf-8"))
    write_params(folder / PARAMS, model.arg_params, model.aux_params)
    for name, content in more.items():
        write_atomically(folder / name, content)
    names = (SYMBOL, PARAMS, *more)
    files = {name: FileRecord((folder / name).stat().st_size, file_sha256(folder / name)) for name in names}
    manifest = dataclasses.replace(model.manifest, files=files)
    write_atomically(folder / MANIFEST, MANIFEST_FILE.to_json(manifest).encode("utf-8"))
    return manifest


def check_replaceable(folder: str | Path) -> None:
    """OptionError unless `folder` is free, empty, or a folder with nothing but a model in it."""
    check_name(str(folder), "--output")
    target = Path(folder).resolve()
    if not target.exists():
        return
    if not target.is_dir():
        raise OptionError(f"--output {target}: a file of that name is there; choose another folder")
    foreign = sorted(path.name for path in target.iterdir() if path.name not in FILES)
    if foreign:
        raise OptionError(
            f"--output {target}: the folder holds {foreign[0]}, which is no part of a model; choose another folder"
        )


def _beside(target: Path, suffix: str) -> Path:
    """The hidden name of this process for a folder that is to have the name `target`, or had it."""
    return target.with_name(f".{target.name}.{os.getpid()}.{suffix}")


def _remove_leftovers(target: Path) -> None:
    """Removes what killed exports left; where the model had lost its name, the newest whole one gets it back."""
    left = _leftovers(target)
    whole = None if target.exists() else _newest_whole(left)
    if whole:
        os.rename(whole, target)
        logger.warning("%s: was left as %s by an export that was killed, and has its name again", target, whole.name)
    for path in left:
        if path != whole:
            shutil.rmtree(path)


def _leftovers(target: Path) -> list[Path]:
    """The hidden folders beside `target` of exports that have ended, by being killed. One of this process's number is
    of an earlier process: in containers the numbers are always the same."""
    found = []
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        number, _, suffix = path.name.removeprefix(f".{target.name}.").partition(".")
        is_ours = suffix in ("tmp", "old") and number.isdecimal() and path.is_dir()
        if is_ours and (int(number) == os.getpid() or not is_alive(int(number))):
            found.append(path)
    return found


def _newest_whole(folders: Sequence[Path]) -> Path | None:
    """The folder whose manifest is the newest among those with all their files; of equal ones the one to be, .tmp."""
    whole = []
    for folder in folders:
        with suppress(CheckpointError, OSError):
            for name, record in read_manifest(folder).files.items():
                verify_file(folder / name, record)
            whole.append(folder)
    return max(whole, key=lambda folder: ((folder / MANIFEST).stat().st_mtime_ns, folder.suffix), default=None)


def _replace(target: Path, new: Path) -> None:
    """Gives the folder `new` the name `target`; an older folder of that name comes back if this fails. Signals wait
    for both renames."""
    old = _beside(target, "old")
    with held():
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.rename(old, target)
            raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _lost_name(folder: Path) -> str:
    """What to do about a model folder that an export left under another name when it was killed; "" without one."""
    target = folder.resolve()
    whole = None if target.exists() else _newest_whole(_leftovers(target))
    return f"an export that was killed left it as {whole}: rename that, or export again" if whole else ""


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
            f"{path}-NNNN.json); {_lost_name(Path(path)) or 'train or export a model first, or correct the path'}"
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
    for line in ineffective_options(meta.network, to_mapping(options), detection_options):
        logger.warning(line)
    size = input_size(data_shape or meta.data_shape)
    symbol = get_symbol(meta.network, size, len(meta.class_names), **to_mapping(options))
    try:
        manifest = _manifest_of(checkpoint, size, options)
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


def _manifest_of(checkpoint: Checkpoint, size: tuple[int, int], options: Any) -> Manifest:
    meta = checkpoint.meta
    return Manifest(
        class_names=meta.class_names,
        mean=meta.mean_pixels,
        std=meta.std,
        input_shape=size,
        resize_mode=meta.resize_mode,
        fill=meta.fill,
        bit_depth=meta.bit_depth,
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
        source=SourceCheckpoint(checkpoint.prefix, checkpoint.epoch, _finite(meta.scores.get("validation", {}))),
    )


def _finite(scores: dict[str, Any]) -> dict[str, float]:
    """The scores that are numbers; a class without ground truth has none."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
