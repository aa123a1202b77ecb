"""Options of deploy.py."""

from dataclasses import dataclass

from config.classic_options import ExpectedModel
from config.detection_options import DetectionOptions
from config.options import option


@dataclass(frozen=True)
class DeployOptions(DetectionOptions, ExpectedModel):
    """What to export; what is not given is the checkpoint's own, so that the model detects as validation did."""

    prefix: str = option("output/ssd", "prefix of the checkpoint", "model")
    epoch: str = option("auto", "epoch of the checkpoint; auto = the newest, best = the best one", "model")
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width (default: as in training)", "model", minimum=32
    )
    output: str = option("", "folder to write (default: PREFIX-deploy)", "output")
    dtype: str = option("float32", "number format of the weights; float32 only so far", "output")
    onnx: bool = option(False, "write model.onnx, too: the same network for ONNX Runtime and OpenVINO", "onnx")
    onnx_batch: int = option(0, "images that model.onnx takes at a time; 0 = any number", "onnx", minimum=0)
