"""Options of demo.py."""

from dataclasses import dataclass

from config.classic_options import ExpectedModel
from config.groups import obsolete
from config.options import option


@dataclass(frozen=True)
class DemoOptions(ExpectedModel):
    """What to detect with which model; a word that belongs to no flag is an image, too."""

    model: str = option(
        "output/ssd", "model folder (of deploy.py), or prefix of a checkpoint", "model", aliases=("prefix",)
    )
    epoch: str = option("auto", "epoch of a checkpoint; auto = the newest, best = the best one", "model")
    gpus: str | None = option(
        None,
        "GPU to run on, the first of several; '' = the CPU (default: a usable one, else the CPU)",
        "model",
        aliases=("gpu",),
    )
    cpu: bool = option(False, "run on the CPU whatever --gpus says", "model")
    engine: str = option(
        "auto",
        "what runs the network; auto = mxnet for checkpoints and GPUs, else the fastest one that is installed",
        "model",
        choices=("auto", "mxnet", "onnxruntime", "openvino"),
    )
    images: str = option("", "files (images, videos), folders and globs, apart by commas", "images")
    video: str = option("", "video files, apart by commas, whatever their names end with", "images")
    camera: str = option(
        "", "number of a camera to read, 0 if none is given; Ctrl-C ends", "images", pattern=(r"\d*", "a number")
    )
    frame_resize: str = option(
        "", "size of the frames of videos and cameras: width,height or a factor (default: their own)", "images"
    )
    max_frames: int = option(0, "frames to read of each video or camera; 0 = all", "images", minimum=0)
    dir: str = option("", "folder put before each of the images; alone: its images", "images")
    ext: str = option("", "extension put after each of the images", "images")
    batch_size: int = option(1, "images at a time", "images", minimum=1, maximum=1024)
    thresh: float = option(0.5, "lowest score to show", "detections", minimum=0.0, maximum=1.0)
    nms: float | None = option(
        None,
        "IoU from which non-maximum suppression removes a box; for a checkpoint only (default: the model's)",
        "detections",
        minimum=0.0,
        maximum=1.0,
    )
    force: bool | None = option(
        None, "suppress across classes; for a checkpoint only (default: the model's)", "detections"
    )
    output: str = option("output/detections", "folder for the pictures and videos with boxes; '' = none", "detections")
    show: bool = option(False, "show the pictures in a window, too; q ends", "detections")
    crop: str = option("", "folder for the cut-out detections, CLASS/IMAGE-NNNN.png; '' = none", "detections")
    heatmap: str = option(
        "",
        "folder for pictures with a heat map of the scores of all boxes, those below --thresh included; '' = none",
        "detections",
    )
    json: str = option(
        "", "file for the detections: a list, or, if its name ends in .jsonl, a line for each picture", "detections"
    )
    benchmark: int = option(
        0,
        "measure each step over so many images (100 if no number is given), and write nothing",
        "measuring",
        minimum=0,
    )
    deploy: bool = obsolete(False, "--model says by itself whether it is a model folder or a checkpoint")
    timer: bool = obsolete(True, "the seconds are always logged")
