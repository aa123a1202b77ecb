"""train_net with the arguments of the classic one, for scripts that call it; train.py calls train/training.py."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from common.errors import OptionError
from common.sizes import input_size
from config.options import from_mapping
from machine.runtime import mx
from train.options import train_options_class
from train.training import run_training

Contexts: TypeAlias = mx.Context | Sequence[mx.Context]


def train_net(
    net: str,
    train_path: str,
    num_classes: int | None,
    batch_size: int,
    data_shape: int | Sequence[int],
    mean_pixels: Sequence[float],
    resume: int | str,
    finetune: int,
    pretrained: str | None,
    epoch: int,
    prefix: str,
    ctx: Contexts,
    begin_epoch: int,
    end_epoch: int,
    frequent: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    lr_refactor_step: str | float | Sequence[float | str],
    lr_refactor_ratio: float,
    freeze_layer_pattern: str = "",
    num_example: int | None = None,
    label_pad_width: int = 0,
    nms_thresh: float = 0.45,
    force_nms: bool = False,
    ovp_thresh: float = 0.5,
    use_difficult: bool = False,
    class_names: str | Sequence[str] | None = None,
    voc07_metric: bool = False,
    nms_topk: int = 400,
    force_suppress: bool = False,
    train_list: str = "",
    val_path: str = "",
    val_list: str = "",
    iter_monitor: int = 0,
    monitor_pattern: str = ".*",
    log_file: str | None = None,
    **options: Any,
) -> None:
    """Trains as the classic function of this name does; order and names of the arguments are apache's.

    Args:
        net: name of the network.
        train_path, val_path: records; no val_path = no validation.
        num_classes: None = as many as the record's sidecar names.
        batch_size: images per step, over all contexts.
        data_shape: side, (height, width) or (3, height, width).
        mean_pixels: of red, green, blue.
        resume, finetune: epoch of the prefix above 0, resume also "auto"; else neither.
        pretrained, epoch: checkpoint whose weights are the start; None or "" = from scratch.
        prefix: of everything the run writes; it is used as given.
        ctx: a context or several, of one kind: mx.cpu(k) with k = 0, 1, ..., or mx.gpu(k).
        lr_refactor_step: epochs, as a text like "80, 160" or a sequence.
        num_example: obsolete, the record says it.
        label_pad_width: numbers in a label: 2 and 6 for each object; 0 = as many as needed.
        force_nms, force_suppress: one of them suffices to suppress across classes (apache's code drops force_nms).
        iter_monitor, monitor_pattern: mx.mon.Monitor every so many batches; 0 = none.
        log_file: None = PREFIX-train.log.
        options: further fields of train.options.TrainOptions by name, such as optimizer or augment.

    Raises:
        UserError: a mistake, before the first batch, as train.py reports it.
    """
    options = {name: value for name, value in options.items() if value is not None}  # apache's kv_store
    values: dict[str, Any] = {
        "network": net,
        "train_path": train_path,
        "num_class": num_classes,
        "batch_size": batch_size,
        "data_shape": input_size(data_shape),
        **_means(mean_pixels),
        "resume": str(resume) if resume == "auto" or int(resume) > 0 else "-1",
        "finetune": finetune if finetune > 0 else -1,
        "pretrained": pretrained or "",
        "epoch": epoch,
        "prefix": prefix,
        **_devices(ctx),
        "begin_epoch": begin_epoch,
        "end_epoch": end_epoch,
        "frequent": frequent,
        "lr": learning_rate,
        "momentum": momentum,
        "wd": weight_decay,
        "lr_steps": lr_refactor_step,
        "lr_factor": lr_refactor_ratio,
        "freeze": freeze_layer_pattern or "",
        **({} if num_example is None else {"num_example": num_example}),
        "label_width": label_pad_width,
        "nms": nms_thresh,
        "force": force_nms or force_suppress,
        "overlap": ovp_thresh,
        "use_difficult": use_difficult,
        "class_names": class_names or (),
        "voc07": voc07_metric,
        "nms_topk": nms_topk,
        "train_list": train_list or "",
        "val_path": val_path or "",
        "val_list": val_list or "",
        "monitor": iter_monitor,
        "pattern": monitor_pattern,
        "log": log_file or "",
    }
    run_training(from_mapping(train_options_class(), values | options, "train_net"))


def _means(mean_pixels: Sequence[float]) -> dict[str, float]:
    """The means of red, green, blue by their options; OptionError unless they are three."""
    names = ("mean_r", "mean_g", "mean_b")
    if mean_pixels is None or len(mean_pixels) != len(names):
        raise OptionError(f"mean_pixels {mean_pixels}: expected three numbers, for red, green and blue")
    return dict(zip(names, mean_pixels, strict=True))


def _devices(ctx: Contexts) -> dict[str, Any]:
    """Contexts as the options gpus, cpu and cpus; OptionError for kinds mixed or CPU numbers other than 0, 1, ..."""
    contexts = [ctx] if isinstance(ctx, mx.Context) else list(ctx or ())
    kinds = {context.device_type for context in contexts}
    numbers = [context.device_id for context in contexts]
    if kinds == {"gpu"}:
        return {"gpus": ",".join(map(str, numbers))}
    if kinds != {"cpu"} or numbers != list(range(len(numbers))):
        named = ", ".join(map(str, contexts)) or "none"
        raise OptionError(f"ctx: {named}; give GPUs, or the CPU contexts mx.cpu(0), mx.cpu(1), ...")
    return {"cpu": True, "cpus": len(contexts)}
