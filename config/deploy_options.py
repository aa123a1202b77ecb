"""Options of deploy.py."""

from dataclasses import dataclass

from config.classic_options import ExpectedModel
from config.options import option


@dataclass(frozen=True)
class DeployOptions(ExpectedModel):
    """What to export; what is not given is the checkpoint's own, so that the model detects as validation did."""

    prefix: str = option("output/ssd", "prefix of the checkpoint", "model")
    epoch: str = option("auto", "epoch of the checkpoint; auto = the newest, best = the best one", "model")
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width (default: as in training)", "model", minimum=32
    )
    output: str = option("", "folder to write (default: PREFIX-deploy)", "output")
    dtype: str = option("float32", "number format of the weights; float32 only so far", "output")
    nms: float | None = option(
        None,
        "IoU from which non-maximum suppression removes a box (default: as in training)",
        "detection",
        minimum=0.0,
        maximum=1.0,
    )
    post_process: str | None = option(
        None,
        "multibox, or per_class as ssd.pytorch (default: as in training)",
        "detection",
        choices=("multibox", "per_class"),
    )
    nms_topk: int | None = option(
        None, "boxes kept before suppression (default: as in training)", "detection", minimum=1, aliases=("topk",)
    )
    keep_topk: int | None = option(
        None, "boxes kept after suppression by per_class (default: as in training)", "detection", minimum=1
    )
    score_threshold: float | None = option(
        None, "lowest score of a detection (default: as in training)", "detection", minimum=0.0, maximum=1.0
    )
    force: bool | None = option(None, "suppress across classes (default: as in training)", "detection")
