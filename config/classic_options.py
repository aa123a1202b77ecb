"""Options that the commands of the classic MXNet SSD have and ours need less: docs/classic.md lists them all."""

from dataclasses import dataclass
from typing import Any

from config.options import option

_CLASSIC = "classic, checked or without effect"


def _obsolete(default: Any, now: str) -> Any:
    """An option that is accepted; who gives it is told what happens now."""
    return option(default, f"no effect: {now}", _CLASSIC, obsolete=now)


@dataclass(frozen=True)
class ClassicTrainOptions:
    """Classic options of train.py."""

    train_list: str = option("", "list (.lst) whose labels replace those of --train-path", "data")
    val_list: str = option("", "list (.lst) whose labels replace those of --val-path", "data")
    num_example: int | None = _obsolete(None, "the record says how many images it holds")
    kv_store: str = option(
        "local",
        "where gradients of several devices are added up: local = on the CPU, device = on the GPUs",
        "devices",
        pattern=(r"local|device", "local or device (training on several machines is not built yet)"),
    )
    monitor: int = option(0, "batches between statistics of arrays (mx.mon.Monitor); 0 = none", "output", minimum=0)
    pattern: str = option(".*", "regular expression of the arrays that --monitor shows", "output")


@dataclass(frozen=True)
class ExpectedModel:
    """What the classic commands must be told about a trained model; ours read it, and check what is given."""

    network: str = option("", "network that the model must have", _CLASSIC)
    num_class: int | None = option(
        None, "number of classes that the model must have", _CLASSIC, minimum=1, aliases=("num_classes",)
    )
    class_names: tuple[str, ...] = option((), "classes that the model must have", _CLASSIC)
    data_shape: tuple[int, ...] | None = option(
        None, "input side, or height,width, that the model must have", _CLASSIC, minimum=1
    )
    mean_r: float | None = option(None, "mean of red that the model must have", _CLASSIC)
    mean_g: float | None = option(None, "mean of green that the model must have", _CLASSIC)
    mean_b: float | None = option(None, "mean of blue that the model must have", _CLASSIC)


@dataclass(frozen=True)
class ClassicEvaluateOptions(ExpectedModel):
    """Classic options of evaluate.py."""

    list_path: str = option("", "list (.lst) whose labels replace those of --rec-path", "data")
    frequent: int | None = _obsolete(None, "the result is printed once, at the end")
    deploy: bool = _obsolete(False, "the network of the checkpoint is built without its losses in any case")


@dataclass(frozen=True)
class ClassicDemoOptions(ExpectedModel):
    """Classic options of demo.py."""

    deploy: bool = _obsolete(False, "--model says by itself whether it is a model folder or a checkpoint")
    timer: bool = _obsolete(True, "the seconds are always logged")
