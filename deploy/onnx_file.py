"""The model.onnx of a model folder: written, checked by onnx, and run beside MXNet before anyone gets it."""

import json
import logging

import numpy as np

from common.errors import InstallError, OptionError
from common.sizes import DATA, DET
from deploy.comparison import TOLERANCE, Comparison, compare
from graph.executor import outputs
from model.folder import Model
from model.folder_files import ONNX
from model.manifest import UINT8_NHWC, Manifest
from model.symbol_check import last_line

logger = logging.getLogger(__name__)
_INSTALL = "pip install -e '.[onnx]'"
_TRIAL_BATCH = 2  # of a file that takes any number of images
_SQUARE = 16  # pixels of one colour in the trial pictures
# Detections that may differ: where scores or overlaps are equal but for rounding, either order is right.
_MOST_UNMATCHED = 0.1


def onnx_files(model: Model, batch: int = 0) -> dict[str, bytes]:
    """{model.onnx: content} of a model, float32 whatever its dtype; batch: images at a time, 0 = any number.

    InstallError without the package onnx; OptionError where an operator has no translation, or where ONNX Runtime, if
    it is installed, does not find what MXNet finds.
    """
    try:
        import onnx

        from deploy.onnx_export.export import to_onnx
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "onnx":
            raise
        raise InstallError(f"--onnx: the package onnx is not installed; {_INSTALL}") from error
    manifest, params = model.manifest, model.arg_params | model.aux_params
    shape, kind = manifest.image_shape, _input_type(manifest)
    proto = to_onnx(model.symbol, params, shape, len(manifest.class_names), batch=batch, input_type=kind)
    onnx.helper.set_model_props(proto, properties(manifest))
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    check_runtime(content, model, batch or _TRIAL_BATCH)
    return {ONNX: content}


def properties(manifest: Manifest) -> dict[str, str]:
    """What who has the file alone must know, as its metadata: names of fields of the manifest, values as JSON."""
    names = ("class_names", "mean", "std", "resize_mode", "fill", "interpolation", "input_format")
    return {name: json.dumps(getattr(manifest, name), ensure_ascii=False) for name in names}


def check_runtime(content: bytes, model: Model, batch: int) -> None:
    """OptionError where ONNX Runtime cannot run the file, or finds something else than MXNet in coloured squares.

    A warning where it is not installed, or where neither finds anything.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        logger.warning("%s was not tried: onnxruntime is not installed (%s)", ONNX, _INSTALL)
        return
    data = trial_data(model.manifest, batch)
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run([DET], {DATA: data})[0]
    except Exception as error:  # its exceptions have no base class of their own
        raise OptionError(
            f"--onnx: ONNX Runtime {onnxruntime.__version__} cannot run {ONNX} ({last_line(error)}); leave --onnx out"
        ) from error
    result = compare(mxnet_det(model, data), found)
    if not result.detections and not result.unmatched:
        threshold = model.manifest.postprocessing.score_threshold
        logger.warning(
            "%s opens in ONNX Runtime, but nothing could be compared: no score reaches the threshold %g",
            ONNX,
            threshold,
        )
        return
    logger.info("%s in ONNX Runtime: %s", ONNX, describe(result))
    if result.unmatched > _MOST_UNMATCHED * result.detections:
        raise OptionError(
            f"--onnx: ONNX Runtime {onnxruntime.__version__} does not find what MXNet finds ({describe(result)}); "
            "leave --onnx out"
        )


def describe(result: Comparison) -> str:
    """A comparison in words."""
    return (
        f"of {result.detections} detections {result.in_place} are the same to {TOLERANCE:g}, "
        f"{result.unmatched} have no counterpart"
    )


def trial_data(manifest: Manifest, batch: int) -> np.ndarray:
    """Pictures of coloured squares as the network reads them."""
    height, width = manifest.size
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (batch, -(-height // _SQUARE), -(-width // _SQUARE), 3), dtype=np.uint8)
    pixels = squares.repeat(_SQUARE, 1).repeat(_SQUARE, 2)[:, :height, :width]
    if manifest.input_format == UINT8_NHWC:
        return np.ascontiguousarray(pixels)
    normalised = (pixels - np.array(manifest.mean, np.float32)) / np.array(manifest.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), np.float32)


def mxnet_det(model: Model, data: np.ndarray) -> np.ndarray:
    """det (B, N, 6) of the model's symbol in float32."""
    return outputs(model.symbol, model.arg_params, model.aux_params, data)[0]


def _input_type(manifest: Manifest) -> type:
    return np.uint8 if manifest.input_format == UINT8_NHWC else np.float32
