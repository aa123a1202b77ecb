"""The command deploy.py, and the same in one call."""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import OptionError
from common.files import check_prefix
from config.command_line import parse_options
from config.groups import InputOptions
from config.model_groups import CheckpointOptions, ExpectedModel
from config.options import joined_options, option, same_option, without_effect
from machine.command import exit_on_sigterm
from machine.cpu import configure_threads
from model.manifest import CALIBRATION_MODES, FLOAT32, INT8, NAIVE, ONNX_INT8, Manifest, check_checkpoint
from symbol.registry import detection_options_class, given_detection

if TYPE_CHECKING:
    from model.checkpoint import CheckpointMeta
    from model.folder import Model


@dataclass(frozen=True)
class DeployOptions(ExpectedModel, CheckpointOptions):
    """What to export; what is not given is the checkpoint's own, so that the model detects as validation did."""

    data_shape: tuple[int, ...] | None = same_option(InputOptions, "data_shape")
    resize_mode: str | None = same_option(InputOptions, "resize_mode", "the checkpoint's")
    output: str = option("", "folder to write (default: PREFIX-deploy)", "output")
    dtype: str = option(
        "float32",
        "how the network computes on CPUs: float32, bfloat16, int8 (which needs --calib-rec)",
        "output",
        choices=("float32", "bfloat16", "int8"),
    )
    uint8_input: bool = option(False, "the network takes uint8 RGB pixels (height, width, 3)", "output")
    eval_rec: str = option(
        "", "labelled record on which accuracy is measured (default for int8: the one of --calib-rec)", "accuracy"
    )
    thresholds: str = option(
        "",
        "JSON of evaluate.py whose score thresholds the model gets, for Detector, demo.py and the service (default: "
        "those of the best F1 on --eval-rec, if that is given)",
        "accuracy",
    )
    require: tuple[str, ...] = option(
        (),
        "what the score thresholds are to keep on --eval-rec, as evaluate.py --require takes it",
        "accuracy",
        words="several",
    )
    calib_rec: str = option("", "record of images from which int8 takes the ranges of its numbers", "int8")
    calib_mode: str = option(
        NAIVE, "naive = the extremes, entropy = the ranges of least divergence", "int8", choices=CALIBRATION_MODES
    )
    num_calib: int = option(48, "images to calibrate with: the record's first ones", "int8", minimum=1)
    max_loss: float = option(
        0.01, "mAP (1 = all) that int8 may lose; layers return to float32 until it does", "int8", minimum=0.0
    )
    onnx: bool = option(
        False,
        "write model.onnx, too: the same network for ONNX Runtime and OpenVINO; with int8 also model-int8.onnx",
        "onnx",
    )
    onnx_batch: int = option(0, "images that model.onnx takes at a time; 0 = any number", "onnx", minimum=0)


logger = logging.getLogger(__name__)


EXAMPLE = "python deploy.py --prefix output/ssd --epoch best --output output/ssd-model --onnx"
# What --help shows; --help-all has all.
FIRST = (
    *("prefix", "epoch", "output", "data_shape", "nms", "score_threshold", "onnx", "dtype", "calib_rec", "eval_rec"),
    *("thresholds", "require", "max_loss", "uint8_input"),
)


def idle_deploy_options(options: DeployOptions) -> list[str]:
    """A sentence for each option of deploy.py that another one keeps from having an effect."""
    int8 = ("calib_mode", "num_calib", "max_loss")
    return without_effect(options, [] if options.dtype == "int8" else [(int8, f"with --dtype {options.dtype}")])


def deploy_options_class() -> type[DeployOptions]:
    """DeployOptions with the detection settings of the families that are registered now."""
    return joined_options("DeployOptions", DeployOptions, detection_options_class())


def main(argv: list[str]) -> int:
    """Parses the options, writes the model folder and prints what it holds; SIGTERM ends it with status 143."""
    options = parse_options(
        deploy_options_class(),
        argv,
        "Exports a checkpoint as a model folder that Detector and demo.py run.",
        example=EXAMPLE,
        first=FIRST,
    )
    check_prefix(options.prefix)
    check_int8(options)
    check_onnx(options)
    check_thresholds(options)
    configure_threads()
    from deploy.score_thresholds import with_thresholds
    from machine.command import log_to_terminal
    from model.checkpoint import load_checkpoint
    from model.folder import check_replaceable, inference_model, model_from_checkpoint, write_model_folder

    log_to_terminal()
    exit_on_sigterm()
    for line in idle_deploy_options(options):
        logger.warning(line)
    checkpoint = load_checkpoint(options.prefix, options.epoch)
    check_checkpoint(replace(options, data_shape=None), checkpoint)
    folder = options.output or f"{options.prefix}-deploy"
    check_replaceable(folder)
    check_records(options, checkpoint.meta)
    model = model_from_checkpoint(checkpoint, data_shape=options.data_shape, **given_detection(options))
    if options.resize_mode is not None:
        model = replace(model, manifest=replace(model.manifest, resize_mode=options.resize_mode))
    model, files = converted(inference_model(model, options.uint8_input), options)
    model = with_thresholds(model, options)
    print_summary(folder, write_model_folder(folder, model, files))
    return 0


def converted(model: "Model", options: DeployOptions) -> tuple["Model", dict[str, bytes]]:
    """The float32 model as one of the dtype that is asked for, its accuracy measured, and its ONNX files by name."""
    files: dict[str, bytes] = {}
    if options.onnx:
        from deploy.onnx_files import onnx_files

        files = onnx_files(model, options.onnx_batch)
    if options.dtype != FLOAT32 or options.eval_rec:
        from deploy.precision import Int8Options, with_dtype

        int8 = Int8Options(options.calib_rec, options.calib_mode, options.num_calib, options.max_loss)
        model = with_dtype(model, options.dtype, options.eval_rec, int8)
    if options.onnx and options.dtype == INT8:
        from deploy.onnx_files import add_int8_file

        model, files = add_int8_file(model, files, options.onnx_batch, options.max_loss)
    return model, files


def print_summary(folder: str, manifest: Manifest) -> None:
    """Prints what a folder holds and the command that tries it."""
    post, (height, width) = manifest.postprocessing, manifest.size
    print(f"{folder}: {manifest.network}, epoch {manifest.source.epoch} of {manifest.source.prefix}")
    print(f"  input {height} x {width} (height x width), {len(manifest.class_names)} classes")
    print(f"  nms {post.nms}, topk {post.nms_topk}, score threshold {post.score_threshold}, force {post.force}")
    _print_precision(manifest)
    if manifest.thresholds:
        print(f"  thresholds {', '.join(f'{name} {value:g}' for name, value in manifest.thresholds.items())}")
    for name, record in manifest.files.items():
        print(f"  {name} {record.size / 1e6:.1f} MB")
    print(f"try it: python demo.py --model {shlex.quote(folder)} --images IMAGE_OR_FOLDER --output detections")


def export(
    prefix: str,
    epoch: int | str,
    folder: str | Path,
    *,
    data_shape: tuple[int, ...] | None = None,
    **detection_options: Any,
) -> Manifest:
    """Writes the float32 model folder of a checkpoint and returns its manifest; arguments as model_from_checkpoint."""
    from model.checkpoint import load_checkpoint
    from model.folder import inference_model, model_from_checkpoint, write_model_folder

    model = model_from_checkpoint(load_checkpoint(prefix, epoch), data_shape=data_shape, **detection_options)
    return write_model_folder(folder, inference_model(model))


def check_int8(options: DeployOptions) -> None:
    """OptionError unless int8 has images to calibrate with, or where other dtypes have them."""
    if options.dtype == "int8" and not options.calib_rec:
        raise OptionError("--dtype int8: needs --calib-rec, a record of images like those it will see")
    if options.dtype != "int8" and options.calib_rec:
        raise OptionError(f"--calib-rec {options.calib_rec}: is for --dtype int8; leave it out")


def check_thresholds(options: DeployOptions) -> None:
    """OptionError for thresholds from nothing or from two places, and for what cannot be read."""
    from deploy.score_thresholds import read_thresholds
    from evaluate.thresholds import parse_requirement

    if options.require and (options.thresholds or not options.eval_rec):
        raise OptionError("--require: is measured on --eval-rec; give that, and leave --thresholds out")
    for text in options.require:
        parse_requirement(text)
    if options.thresholds:
        read_thresholds(options.thresholds)


def check_onnx(options: DeployOptions) -> None:
    """OptionError for an option of model.onnx without it."""
    if options.onnx_batch and not options.onnx:
        raise OptionError(f"--onnx-batch {options.onnx_batch}: is for --onnx; give that as well, or leave it out")


def check_records(options: DeployOptions, meta: "CheckpointMeta") -> None:
    """DataError for a record that is not there or has changed, OptionError for one with other classes than the
    checkpoint's."""
    from evaluate.sets import check_record

    for what, record in (("--calib-rec", options.calib_rec), ("--eval-rec", options.eval_rec)):
        if record:
            check_record(record, meta, options.prefix, what)


def _print_precision(manifest: Manifest) -> None:
    print(f"  {manifest.dtype}, input {manifest.input_format}")
    if manifest.calibration:
        known = manifest.calibration
        print(f"  calibrated on {known.images} images of {known.record}, {len(known.excluded)} layers in float32")
    if manifest.accuracy:
        measured = manifest.accuracy
        print(f"  {measured.metric} {measured.this:.4f}, in float32 {measured.float32:.4f}, on {measured.record}")
        if measured.onnx_int8 is not None:
            print(f"  {measured.metric} of {ONNX_INT8} {measured.onnx_int8:.4f}")
