"""The model-int8.onnx of an int8 folder: model.onnx with the calibration's ranges, measured before anyone gets it."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from common.errors import InstallError
from common.sizes import DATA, DET
from deploy.labelled import METRIC, Run, mean_ap
from graph.int8 import Fused
from machine.runtime import mx
from model.bind import fused_model
from model.folder import Model
from model.folder_files import ONNX, ONNX_INT8
from model.manifest import Accuracy

logger = logging.getLogger(__name__)

_BATCH = 4  # images at a time where a file takes any number


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
            found = measured(content, model, accuracy.record, batch)
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


def measured(content: bytes, model: Model, record: str, batch: int) -> float:
    """The mAP of an ONNX file of a model by ONNX Runtime, which has OpenVINO's arithmetic but for rounding.

    InstallError where ONNX Runtime is not installed.
    """
    return mean_ap(_runtime(content), model.manifest, record, batch or _BATCH)


def _runtime(content: bytes) -> Run:
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
