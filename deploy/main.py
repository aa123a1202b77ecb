"""The command deploy.py."""

import shlex
from dataclasses import replace

from config import threads
from config.deploy_options import DeployOptions
from config.detection_options import given_detection
from config.errors import OptionError
from config.options import parse_options

NOT_BUILT = ("bfloat16", "int8", "onnx")


def main(argv: list[str]) -> int:
    """Parses the options, writes the model folder and prints what it holds."""
    options = parse_options(DeployOptions, argv, "Export a checkpoint as a model folder that Detector and demo.py run.")
    _check_dtype(options.dtype)
    if options.onnx_batch and not options.onnx:
        raise OptionError(f"--onnx-batch {options.onnx_batch}: is for --onnx; give that as well, or leave it out")
    threads.configure()
    from deploy.export import model_from_checkpoint
    from deploy.model_folder import write_model_folder
    from deploy.onnx_file import onnx_files
    from train.checkpoint import load_checkpoint
    from train.expected_model import check_model

    checkpoint = load_checkpoint(options.prefix, options.epoch)
    known = {name: checkpoint.meta[name] for name in ("network", "class_names", "data_shape", "mean_pixels")}
    check_model(replace(options, data_shape=None), f"{options.prefix}, epoch {checkpoint.epoch},", **known)
    folder = options.output or f"{options.prefix}-deploy"
    chosen = given_detection(options)
    model = model_from_checkpoint(checkpoint, data_shape=options.data_shape, **chosen)
    more = onnx_files(model, options.onnx_batch) if options.onnx else {}
    manifest = write_model_folder(folder, model, more)
    post, (height, width) = manifest.postprocessing, manifest.size
    print(f"{folder}: {manifest.network}, epoch {manifest.source.epoch} of {manifest.source.prefix}")
    print(f"  input {height} x {width} (height x width), {len(manifest.class_names)} classes")
    print(f"  nms {post.nms}, topk {post.nms_topk}, score threshold {post.score_threshold}, force {post.force}")
    for name, record in manifest.files.items():
        print(f"  {name} {record.size / 1e6:.1f} MB")
    print(f"try it: python demo.py --model {shlex.quote(folder)} --images IMAGE_OR_FOLDER --output detections")
    return 0


def _check_dtype(dtype: str) -> None:
    """OptionError unless this version can write it."""
    if dtype in NOT_BUILT:
        raise OptionError(f"--dtype {dtype}: not built yet; --dtype float32 is")
    if dtype != "float32":
        raise OptionError(f"--dtype {dtype}: unknown; --dtype float32 is what can be written")
