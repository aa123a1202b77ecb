"""Options of the networks (symbol/): what get_symbol and get_symbol_train take beside name, shape and classes."""

from dataclasses import dataclass

from config.effdet_options import EffDetOptions
from config.options import option
from config.yolo_options import YOLOOptions

# Options of SSD's networks alone; with another family they are refused.
SSD_OPTIONS = frozenset(
    {
        "targets",
        "taps",
        "extra_filters",
        "anchor_sizes",
        "anchor_ratios",
        "overlap_threshold",
        "negative_mining_ratio",
        "min_neg_samples",
        "variances",
        "post_process",
    }
)


@dataclass(frozen=True)
class NetworkOptions(YOLOOptions, EffDetOptions):
    """Options of the network, its losses and its post-processing; the command line offers them all."""

    targets: str = option(
        "paper",
        "matching rule: paper = SSD's own, in the iterator's workers; mxnet = MultiBoxTarget in the graph",
        "network",
        choices=("paper", "mxnet"),
    )
    width: float = option(
        1.0,
        "width multiplier of mobilenet, mobilenet_v2 and YOLOv3; others refuse it",
        "network",
        minimum=0.125,
        maximum=2.0,
    )
    taps: tuple[str, ...] = option((), "backbone layers to read instead of the network's own", "network")
    extra_filters: tuple[int, ...] | None = option(
        None, "channels of the stride-2 layers after the backbone instead of the network's own", "network", minimum=8
    )
    anchor_sizes: str = option(
        "", "anchor sizes, fractions of the image, maps apart by ';': '0.1,0.14;0.2,0.27;...'", "network"
    )
    anchor_ratios: str = option("", "aspect ratios, maps apart by ';' (one list serves all maps): '1,2,0.5'", "network")
    freeze: str = option(
        "", "parameters that stay as they are: body, all-but-heads, or a regular expression of names", "network"
    )
    overlap_threshold: float = option(0.5, "IoU from which an anchor is positive", "losses", minimum=0.0, maximum=1.0)
    negative_mining_ratio: float = option(
        3.0,
        "mined negatives per positive; 0 = none but --min-neg-samples with --targets paper, all with mxnet",
        "losses",
        minimum=0.0,
    )
    min_neg_samples: int = option(0, "mined negatives of an image at least", "losses", minimum=0)
    loc_weight: float = option(1.0, "weight of the localisation loss (alpha)", "losses", minimum=0.0)
    variances: tuple[float, ...] = option(
        (0.1, 0.1, 0.2, 0.2),
        "by which offsets are divided: x, y, w, h, or centre, size",
        "losses",
        minimum=0.001,
        maximum=10.0,
    )
    post_process: str = option(
        "multibox",
        "multibox = MultiBoxDetection, an anchor has its best class; per_class = NMS of each class, as ssd.pytorch",
        "detection",
        choices=("multibox", "per_class"),
    )
    nms: float = option(
        0.45,
        "IoU from which non-maximum suppression removes a box; 0 = any overlap",
        "detection",
        minimum=0.0,
        maximum=1.0,
    )
    nms_topk: int = option(
        400, "boxes kept before suppression: of an image, with per_class of each class", "detection", minimum=1
    )
    keep_topk: int = option(200, "boxes of an image kept after suppression by per_class", "detection", minimum=1)
    score_threshold: float = option(0.01, "lowest score of a detection", "detection", minimum=0.0, maximum=1.0)
    force: bool = option(False, "suppress across classes", "detection")
