"""Options of deploy.py."""

from dataclasses import dataclass

from config.classic_options import ExpectedModel
from config.options import option

NAIVE, _ = CALIBRATION_MODES = ("naive", "entropy")


@dataclass(frozen=True)
class DeployOptions(ExpectedModel):
    """What to export; what is not given is the checkpoint's own, so that the model detects as validation did."""

    prefix: str = option("output/ssd", "prefix of the checkpoint", "model")
    epoch: str = option("auto", "epoch of the checkpoint; auto = the newest, best = the best one", "model")
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width (default: as in training)", "model", minimum=32, maximum=8192
    )
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
