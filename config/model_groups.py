"""Groups of options that say which trained model a command reads; the others are in config/groups.py."""

from dataclasses import dataclass

from config.options import CLASSIC, DATA_SHAPE_FORM, option


@dataclass(frozen=True)
class CheckpointOptions:
    """Which checkpoint."""

    prefix: str = option("output/ssd", "prefix of the checkpoint", "model")
    epoch: str = option("auto", "epoch of the checkpoint; auto = the newest, best = the best one", "model")


@dataclass(frozen=True)
class ExpectedModel:
    """What the classic commands must be told about a trained model; ours read it, and check what is given."""

    network: str = option("", "network that the model must have", CLASSIC)
    num_class: int | None = option(
        None, "number of classes that the model must have", CLASSIC, minimum=1, aliases=("num_classes",)
    )
    class_names: tuple[str, ...] = option((), "classes that the model must have", CLASSIC)
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width, that the model must have", CLASSIC, minimum=1, form=DATA_SHAPE_FORM
    )
    mean_r: float | None = option(None, "mean of red that the model must have", CLASSIC)
    mean_g: float | None = option(None, "mean of green that the model must have", CLASSIC)
    mean_b: float | None = option(None, "mean of blue that the model must have", CLASSIC)


@dataclass(frozen=True)
class ModelOptions:
    """Which model detects, and who runs it."""

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
