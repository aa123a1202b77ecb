"""Options of commands that run a trained model: its detection settings, changed or as in training."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from config.options import option


@dataclass(frozen=True)
class DetectionOptions:
    """What turns predictions into detections; None = as in training."""

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
    multi_label: bool | None = option(
        None, "YOLOv3: a box may have several classes (default: as in training)", "detection"
    )
    only_classes: tuple[int, ...] | None = option(
        None, "YOLOv3: ids of the classes to detect (default: as in training)", "detection", minimum=0
    )
    min_box: float | None = option(
        None, "YOLOv3: pixels that sides of a box exceed (default: as in training)", "detection", minimum=0.0
    )
    max_box: float | None = option(
        None, "YOLOv3: pixels that sides of a box stay below (default: as in training)", "detection", minimum=1.0
    )


def given_detection(options: DetectionOptions) -> dict[str, Any]:
    """The settings that were given: {name: value}."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(DetectionOptions)}
    return {name: value for name, value in values.items() if value is not None}
