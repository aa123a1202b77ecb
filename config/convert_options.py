"""Options of tools/convert_weights.py."""

from dataclasses import dataclass

from config.options import option

DEFAULT_NETWORK = "vgg16_ssd_voc"


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, for which network; a word that belongs to no flag is the file."""

    from_: str = option(
        "ssd.pytorch",
        "project that the weights come from: ssd.pytorch, torchvision, caffe, gluon, classic, darknet, "
        "yolov3-spp.pytorch or efficientdet.pytorch",
        "source",
    )
    file: str = option("", "file to convert; a word without a flag is it, too", "source")
    network: str = option(
        "",
        "network to make weights for, see docs/networks.md (default: what the symbol of --from classic says, else "
        f"{DEFAULT_NETWORK})",
        "network",
    )
    data_shape: tuple[int, ...] | None = option(
        None,
        "input side, or height,width (default: the classic symbol's, else 300, of YOLO 416, of EfficientDet its own)",
        "network",
        minimum=32,
        maximum=8192,
    )
    width: float = option(1.0, "width multiplier of mobilenet and YOLOv3", "network", minimum=0.125, maximum=2.0)
    yolo_anchors: str = option("", "anchors of a YOLOv3 in pixels; '' = the network's", "network")
    num_class: int | None = option(
        None, "classes of the network (default: those of the heads in the file, else 20)", "network", minimum=1
    )
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes, a list or a file (default: VOC's if there are 20, else class0, class1, ...)",
        "network",
    )
    prefix: str = option("", "writes PREFIX-0000.params (default: the file without its suffix)", "output")
    overwrite: bool = option(False, "replace files of that prefix, never the file to convert", "output")
