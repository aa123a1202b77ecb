"""Options of YOLOv3's networks alone; NetworkOptions adds what families share.

Defaults are the hyper-parameters of the YOLOv3-SPP trainer (hyp.yaml: gains, iou_t, fl_gamma; yolov3-spp.cfg:
anchors).
"""

from dataclasses import dataclass

from config.options import option

BOX_LOSSES = ("giou", "iou", "diou", "ciou")


@dataclass(frozen=True)
class YOLOOptions:
    """Anchors, targets, losses and post-processing of YOLOv3."""

    yolo_anchors: str = option(
        "",
        "anchors in pixels of the input, the smallest first: '10,13, 16,30, ...'; '' = the network's",
        "yolo network",
    )
    darknet_cfg: str = option(
        "", "text of the .cfg of --network darknet:FILE (a checkpoint keeps it); '' = that of the file", "yolo network"
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

    multi_label: bool = option(True, "a box may have several classes; otherwise its best one", "yolo detection")
    only_classes: tuple[int, ...] = option((), "ids of the classes to detect; none = all", "yolo detection", minimum=0)
    min_box: float = option(
        2.0, "sides of a detected box are longer than this, pixels of the input", "yolo detection", minimum=0.0
    )
    max_box: float = option(
        4096.0, "sides of a detected box are shorter than this, pixels of the input", "yolo detection", minimum=1.0
    )
