"""Options of the networks: what get_symbol and get_symbol_train take beside name, shape and classes.

A family reads the fields of its own class. What other families' classes have beyond these is refused with its networks:
nothing lists what a network does not use.
"""

from dataclasses import dataclass

from config.options import option

MOST_BOXES = 1_000_000  # more than any network predicts; MXNet's numbers would overflow above 2**31


@dataclass(frozen=True)
class CommonOptions:
    """Options that every family has."""

    freeze: str = option(
        "", "parameters that stay as they are: body, all-but-heads, or a regular expression of names", "network"
    )
    nms: float = option(
        0.45,
        "IoU from which non-maximum suppression removes a box; 0 = any overlap",
        "detection",
        detection=True,
        minimum=0.0,
        maximum=1.0,
    )
    nms_topk: int = option(
        400,
        "boxes kept before suppression: of an image, with per_class of each class",
        "detection",
        detection=True,
        minimum=1,
        maximum=MOST_BOXES,
        aliases=("topk",),
    )
    keep_topk: int = option(
        200,
        "boxes of an image kept after suppression; multibox keeps all",
        "detection",
        detection=True,
        minimum=1,
        maximum=MOST_BOXES,
    )
    score_threshold: float = option(
        0.01, "lowest score of a detection", "detection", detection=True, minimum=0.0, maximum=1.0
    )
    force: bool = option(False, "suppress across classes", "detection", detection=True)


@dataclass(frozen=True)
class WidthOption:
    """For families that have bodies of several widths."""

    width: float = option(
        1.0,
        "width multiplier of mobilenet, mobilenet_v2 and YOLOv3; others refuse it",
        "network",
        minimum=0.125,
        maximum=2.0,
    )


@dataclass(frozen=True)
class LocWeightOption:
    """For families whose loss of the boxes has one weight."""

    loc_weight: float = option(1.0, "weight of the localisation loss (alpha)", "losses", minimum=0.0)


# Values of post_process by which an anchor may give several classes, and what a manifest calls them.
PER_CLASS = {
    "per_class": "box_nms per class",
    "clipped": "box_nms per class of clipped boxes",
    "pooled": "box_nms of pooled classes",
}


@dataclass(frozen=True)
class SSDOptions(WidthOption, LocWeightOption, CommonOptions):
    """Anchors, targets, losses and post-processing of SSD."""

    targets: str = option(
        "paper",
        "matching rule: paper = SSD's own, in the iterator's workers; mxnet = MultiBoxTarget in the graph",
        "network",
        choices=("paper", "mxnet"),
    )
    taps: tuple[str, ...] = option((), "backbone layers to read instead of the network's own", "network")
    extra_filters: tuple[int, ...] | None = option(
        None, "channels of the stride-2 layers after the backbone instead of the network's own", "network", minimum=8
    )
    anchor_sizes: str = option(
        "", "anchor sizes, fractions of the image, maps separated by ';': '0.1,0.14;0.2,0.27;...'", "network"
    )
    anchor_ratios: str = option(
        "", "aspect ratios, maps separated by ';' (one list serves all maps): '1,2,0.5'", "network"
    )
    overlap_threshold: float = option(0.5, "IoU from which an anchor is positive", "losses", minimum=0.0, maximum=1.0)
    negative_mining_ratio: float = option(
        3.0,
        "mined negatives per positive; 0 = none but --min-neg-samples with --targets paper, all with mxnet",
        "losses",
        minimum=0.0,
    )
    min_neg_samples: int = option(0, "mined negatives of an image at least", "losses", minimum=0)
    variances: tuple[float, ...] = option(
        (0.1, 0.1, 0.2, 0.2),
        "by which offsets are divided: x, y, w, h, or centre, size",
        "losses",
        minimum=0.001,
        maximum=10.0,
    )
    post_process: str = option(
        "multibox",
        "multibox = MultiBoxDetection, an anchor has its best class; per_class = NMS of each class, as ssd.pytorch; "
        "clipped = the same of boxes limited to the image, as torchvision; pooled = the --nms-topk best of all classes "
        "together, NMS of each class, as gluoncv",
        "detection",
        detection=True,
        choices=("multibox", *PER_CLASS),
    )


BOX_LOSSES = ("giou", "iou", "diou", "ciou")


@dataclass(frozen=True)
class YOLOOptions(WidthOption, CommonOptions):
    """Anchors, targets, losses and post-processing of YOLOv3.

    Defaults are the hyper-parameters of the YOLOv3-SPP trainer (hyp.yaml: gains, iou_t, fl_gamma; yolov3-spp.cfg:
    anchors).
    """

    yolo_anchors: str = option(
        "",
        "anchors in pixels of the input, the smallest first: '10,13, 16,30, ...'; '' = the network's",
        "yolo network",
    )
    darknet_cfg: str = option(
        "", "text of the .cfg of --network darknet:FILE (a checkpoint keeps it); '' = that of the file", "yolo network"
    )

    batch_norm_eps: float = option(
        1e-5,
        "what batch normalisation adds to variances (weights of Darknet: 1e-6, as OpenCV reads them)",
        "yolo network",
        minimum=0.0,
        maximum=0.1,
    )

    iou_t: float = option(
        0.2, "IoU of width and height above which an anchor learns an object", "yolo losses", minimum=0.0, maximum=1.0
    )
    box_loss: str = option("giou", "which overlap of boxes is learned", "yolo losses", choices=BOX_LOSSES)
    giou_gain: float = option(3.54, "weight of the box loss, whatever --box-loss", "yolo losses", minimum=0.0)
    cls_gain: float = option(37.4, "weight of the class loss, for 80 classes", "yolo losses", minimum=0.0)
    obj_gain: float = option(64.3, "weight of the objectness loss, for an input of 320", "yolo losses", minimum=0.0)
    cls_pw: float = option(1.0, "weight of positives in the class loss", "yolo losses", minimum=0.0)
    obj_pw: float = option(1.0, "weight of positives in the objectness loss", "yolo losses", minimum=0.0)
    fl_gamma: float = option(
        0.0, "gamma of the focal loss of classes and objectness; 0 = cross entropy", "yolo losses", minimum=0.0
    )
    gr: float = option(
        1.0, "share of the overlap in the objectness target; the rest is 1", "yolo losses", minimum=0.0, maximum=1.0
    )
    label_smoothing: float = option(
        0.0, "smoothing of the class targets to 1 - x / 2 and x / 2", "yolo losses", minimum=0.0, maximum=1.0
    )

    multi_label: bool = option(
        True, "a box may have several classes; otherwise its best one", "yolo detection", detection=True
    )
    one_class: str = option(
        "objectness",
        "score of a network of one class: its objectness, or the product with the probability of the class, as Darknet "
        "has it",
        "yolo detection",
        detection=True,
        choices=("objectness", "product"),
    )
    only_classes: tuple[int, ...] = option(
        (), "ids of the classes to detect; none = all", "yolo detection", detection=True, minimum=0
    )
    min_box: float = option(
        2.0,
        "sides of a detected box are longer than this, pixels of the input",
        "yolo detection",
        detection=True,
        minimum=0.0,
    )
    max_box: float = option(
        4096.0,
        "sides of a detected box are shorter than this, pixels of the input",
        "yolo detection",
        detection=True,
        minimum=1.0,
    )


@dataclass(frozen=True)
class EffDetOptions(LocWeightOption, CommonOptions):
    """Anchors, targets, losses and regularisation of EfficientDet.

    Defaults are the paper's (Tan et al. 2020, section 5.1), where it is silent those of the PyTorch trainers.
    """

    anchor_scale: float = option(
        0.0,
        "side of a map's smallest square anchor, in cells of that map; 0 = the network's own (4, D7: 5)",
        "efficientdet network",
        minimum=0.0,
    )
    drop_connect: float = option(
        0.2,
        "share of the samples that skip the last block's residual while training; earlier ones less, in proportion",
        "efficientdet network",
        minimum=0.0,
        maximum=0.9,
    )
    bn_momentum: float = option(
        0.99,
        "share of its moving averages that batch norm keeps at an update; lower for runs of few updates",
        "efficientdet network",
        minimum=0.0,
        maximum=0.9999,
    )

    pos_iou: float = option(
        0.5, "IoU from which an anchor learns its object", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    neg_iou: float = option(
        0.4, "IoU below which an anchor is background", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    focal_alpha: float = option(
        0.25, "weight of positives; negatives have 1 - it", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    focal_gamma: float = option(
        2.0, "gamma of the focal loss; 0 = cross entropy", "efficientdet losses", minimum=0.0, maximum=10.0
    )
    prob_clamp: float = option(
        1e-4,
        "probabilities are kept this far from 0 and 1, without gradient beyond; 0 = exact for all logits",
        "efficientdet losses",
        minimum=0.0,
        maximum=0.1,
    )
    smooth_l1_beta: float = option(
        1 / 9, "error at which the box loss turns from a parabola to a line", "efficientdet losses", minimum=1e-6
    )
