"""The model.onnx and model-int8.onnx of a model folder: written, checked by onnx, and tried before anyone gets them.

model.onnx is run beside MXNet. model-int8.onnx is the same file with the ranges of the calibration; its accuracy is
measured.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from common.errors import InstallError, OptionError
from common.sizes import DATA, DET
from deploy.precision import METRIC, RunBatch, mean_ap
from engines.mxnet_engine import fused_model
from graph.number_formats import Fused
from graph.symbol_graph import outputs
from machine.runtime import mx
from model.folder import Model
from model.manifest import ONNX, ONNX_INT8, UINT8_NHWC, Accuracy, Manifest
from model.symbol_check import last_line

TOLERANCE = 1e-4  # of scores and normalised coordinates
logger = logging.getLogger(__name__)
_INSTALL = "pip install -e '.[onnx]'"
_TRIAL_BATCH = 2  # of a file that takes any number of images
_SQUARE = 16  # pixels of one colour in the trial pictures
# Detections that may differ: where scores or overlaps are equal but for rounding, either order is right.
_MOST_UNMATCHED = 0.1
_MEASURED_BATCH = 4  # images at a time where a file takes any number


class Comparison(NamedTuple):
    """Detections of two runtimes side by side.

    Attributes:
        detections: number that the first finds.
        in_place: those that the second has in the same row.
        unmatched: those of both that the other does not have at all, in whatever row.
        largest: difference of scores and coordinates among the rows in place.
    """

    detections: int
    in_place: int
    unmatched: int
    largest: float


NOTHING = Comparison(0, 0, 0, 0.0)


def compare(expected: np.ndarray, found: np.ndarray) -> Comparison:
    """Compares det (B, N, 6) of one input: rows match with equal ids, and all else within TOLERANCE."""
    return total(_compare_image(*pair) for pair in zip(expected, found, strict=True))


def total(results: Iterable[Comparison]) -> Comparison:
    """All of them together."""
    detections, in_place, unmatched, largest = zip(NOTHING, *results, strict=True)
    return Comparison(sum(detections), sum(in_place), sum(unmatched), max(largest))


def _compare_image(expected: np.ndarray, found: np.ndarray) -> Comparison:
    valid = expected[:, 0] >= 0
    difference = np.abs(expected - found).max(axis=1)
    same = valid & (difference <= TOLERANCE)
    matches = _matches(expected[valid], found[found[:, 0] >= 0])
    unmatched = int((~matches.any(axis=1)).sum() + (~matches.any(axis=0)).sum())
    return Comparison(int(valid.sum()), int(same.sum()), unmatched, float(difference[same].max(initial=0)))


def _matches(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Booleans (n, m): which rows (n, 6) and (m, 6) are the same detection."""
    return np.abs(left[:, None] - right).max(axis=2) <= TOLERANCE


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
    """The metadata of the file, for users who have it alone: names of fields of the manifest, values as JSON."""
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


def add_int8_file(model: Model, files: dict[str, bytes], batch: int, max_loss: float) -> tuple[Model, dict[str, bytes]]:
    """An int8 model and its files with model-int8.onnx and its accuracy; as they were where that loses too much.

    files: among them model.onnx, which takes `batch` images, 0 = any number. The file has the same layers in int8 as
    MXNet; if it loses more than max_loss of the mAP, the first layer and the predictions are float32, too. A file that
    still does, or that cannot be measured because ONNX Runtime is not installed, is left out with a warning.
    """
    accuracy = model.manifest.accuracy
    if accuracy is None:
        raise ValueError("a model whose accuracy has not been measured")
    fused = fused_model(model)
    for more in ((), (next(iter(fused.layers)), *fused.predictions)):
        content = int8_onnx(model, fused, files[ONNX], more)
        try:
            found = onnx_mean_ap(content, model, accuracy.record, batch)
        except InstallError as error:
            logger.warning("%s is left out: %s", ONNX_INT8, error)
            return model, files
        also = f" with {len(more)} further layers in float32" if more else ""
        logger.info("%s%s: %s %.4f on %s", ONNX_INT8, also, METRIC, found, accuracy.record)
        if accuracy.float32 - found <= max_loss:
            changed = dataclasses.replace(accuracy, onnx_int8=found)
            return _with_accuracy(model, changed), {**files, ONNX_INT8: content}
    logger.warning("%s is left out: it loses more than --max-loss %.4f of the mAP", ONNX_INT8, max_loss)
    return model, files


def int8_onnx(model: Model, fused: Fused, content: bytes, excluded: Sequence[str] = ()) -> bytes:
    """The int8 file of an int8 model whose model.onnx is `content`.

    The convolutions that MXNet's int8 has are quantised, but the excluded ones, by the ranges of the calibration.
    """
    import onnx

    from deploy.onnx_export.quantize import quantized

    calibration = model.manifest.calibration
    if calibration is None:
        raise ValueError("a model without calibration")
    ranges = fused.by_node(calibration.thresholds)
    quantised = quantized(onnx.load_from_string(content), ranges, {*calibration.excluded, *excluded})
    onnx.checker.check_model(quantised, full_check=True)
    return quantised.SerializeToString()


def onnx_mean_ap(content: bytes, model: Model, record: str, batch: int) -> float:
    """The mAP of an ONNX file of a model by ONNX Runtime, which has OpenVINO's arithmetic but for rounding.

    InstallError where ONNX Runtime is not installed.
    """
    return mean_ap(_runtime(content), model.manifest, record, batch or _MEASURED_BATCH)


def _runtime(content: bytes) -> RunBatch:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InstallError("onnxruntime, which measures its accuracy, is not installed (extra onnx)") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])

    def run(data: mx.nd.NDArray) -> np.ndarray:
        return session.run([DET], {DATA: data.asnumpy()})[0]

    return run


def _with_accuracy(model: Model, accuracy: Accuracy) -> Model:
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, accuracy=accuracy))
