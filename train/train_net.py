"""The functions of the classic module of this name, for scripts; train.py calls train/training.py.

A script sees the log on its console, and mistakes and how to go on in the words of its arguments.
"""

import logging
import numbers
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from common.errors import OptionError, UserError
from common.sizes import input_size
from config.options import from_mapping
from graph.symbol_graph import Params
from machine.command import log_to_terminal
from machine.runtime import mx
from train.options import train_options_class
from train.schedule import get_lr_scheduler
from train.training import run_training

__all__ = ["convert_pretrained", "get_lr_scheduler", "train_net"]

Contexts: TypeAlias = mx.Context | Sequence[mx.Context]
# Option of train.py -> classic argument, where the names differ.
ARGUMENTS = {
    "network": "net",
    "num_class": "num_classes",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "lr_steps": "lr_refactor_step",
    "lr_factor": "lr_refactor_ratio",
    "freeze": "freeze_layer_pattern",
    "label_width": "label_pad_width",
    "nms": "nms_thresh",
    "force": "force_nms",
    "overlap": "ovp_thresh",
    "voc07": "voc07_metric",
    "monitor": "iter_monitor",
    "pattern": "monitor_pattern",
    "log": "log_file",
}


def train_net(
    net: str,
    train_path: str,
    num_classes: int | None,
    batch_size: int,
    data_shape: int | Sequence[int],
    mean_pixels: float | Sequence[float],
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

    The log goes to the console, unless the script has set handlers of its own, and to log_file.

    Args:
        net: name of the network.
        train_path, val_path: records; no val_path = no validation.
        num_classes: None = as many as the record's sidecar names.
        batch_size: images per step, over all contexts.
        data_shape: side, (height, width) or (3, height, width).
        mean_pixels: of red, green, blue; a number stands for three.
        resume, finetune: epoch of the prefix above 0, resume also "auto"; else neither.
        pretrained, epoch: checkpoint whose weights are the start; None or "" = from scratch.
        prefix: of everything the run writes; it is used as given.
        ctx: a context or several, of one kind: mx.cpu(k) with k = 0, 1, ..., or mx.gpu(k).
        lr_refactor_step, lr_refactor_ratio: as get_lr_scheduler takes them.
        num_example: obsolete, the record says it.
        label_pad_width: numbers in a label: 2 and 6 for each object; 0 = as many as needed.
        force_nms, force_suppress: one of them suffices to suppress across classes (apache's code drops force_nms).
        iter_monitor, monitor_pattern: mx.mon.Monitor every so many batches; 0 = none.
        log_file: None = PREFIX-train.log.
        options: further fields of train.options.TrainOptions by name, such as optimizer or augment.

    Raises:
        UserError: a mistake, before the first batch, as train.py reports it, in the words of these arguments.
    """
    arguments = dict(locals())
    more = {name: value for name, value in arguments.pop("options").items() if value is not None}  # apache's kv_store
    log_to_console()
    with named_by_arguments(ARGUMENTS):
        run = from_mapping(train_options_class(), _options_of(arguments) | more, "train_net")
        run_training(run, way_to_continue)


def convert_pretrained(name: str, args: Params) -> Params:
    """The weights of a pretrained model as the network wants them: as they are, like the classic function.

    name: prefix of the model. Weights of other projects are converted by tools/convert_weights.py.
    """
    del name
    return args


def _options_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of train.py that the classic arguments mean; OptionError for means, contexts or epochs that are
    none."""
    values = dict(arguments)
    values |= _means(values.pop("mean_pixels")) | _devices(values.pop("ctx"))
    values["data_shape"] = input_size(values["data_shape"])
    values["resume"] = _epoch("resume", values["resume"]) if values["resume"] != "auto" else "auto"
    values["finetune"] = _epoch("finetune", values["finetune"])
    suppress = values.pop("force_suppress")
    values["force_nms"] = values["force_nms"] or suppress
    if values["num_example"] is None:
        del values["num_example"]
    if not values["pretrained"]:  # a classic call always gives it
        del values["epoch"]
    for name in ("pretrained", "freeze_layer_pattern", "train_list", "val_path", "val_list", "log_file"):
        values[name] = values[name] or ""
    values["class_names"] = values["class_names"] or ()
    options = {argument: option for option, argument in ARGUMENTS.items()}
    return {options.get(name, name): value for name, value in values.items()}


def _epoch(name: str, epoch: int | str) -> int:
    """The epoch of resume or finetune, -1 for 0 and less; OptionError for what is no whole number."""
    try:
        return int(epoch) if int(epoch) > 0 else -1
    except (TypeError, ValueError):
        words = ' or "auto"' if name == "resume" else ""
        raise OptionError(f"{name} {epoch!r}: expected an epoch{words}; -1 = not at all") from None


def _means(mean_pixels: float | Sequence[float]) -> dict[str, Any]:
    """The means of red, green, blue by their options, a number for all three; OptionError for anything else."""
    names = ("mean_r", "mean_g", "mean_b")
    means = [mean_pixels] * len(names) if isinstance(mean_pixels, numbers.Real) else mean_pixels
    if not isinstance(means, Sequence | np.ndarray) or isinstance(means, str) or len(means) != len(names):
        raise OptionError(f"mean_pixels {mean_pixels}: expected three numbers, for red, green and blue, or one for all")
    checked = [float(value) if isinstance(value, numbers.Real) else value for value in means]
    return dict(zip(names, checked, strict=True))


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


_AUTO = re.compile(r"--resume auto")
_FLAG = re.compile(r"--([a-z][a-z0-9]*(?:[-_][a-z0-9]+)*)")


def log_to_console() -> None:
    """Sends the log to stderr, as logging.basicConfig does: handlers that the script has set stay alone."""
    root = logging.getLogger()
    if not root.handlers:
        log_to_terminal()
    root.setLevel(logging.INFO)


def way_to_continue(is_saved: bool) -> str:
    """How the script goes on: as it is where there is no checkpoint of this run, else with another call."""
    is_file = hasattr(sys.modules["__main__"], "__file__")  # not in a notebook
    script = shlex.join(["python", *sys.argv]) if is_file else "the same call"
    if not is_saved:
        return script
    return f'{script}, once its train_net has resume="auto", and neither finetune nor overwrite'


@contextmanager
def named_by_arguments(names: Mapping[str, str]) -> Iterator[None]:
    """Raises a mistake again with arguments in place of flags: `resume="auto"`, not `--resume auto`.

    names: {option: argument} where the two differ.
    """
    try:
        yield
    except UserError as error:
        text = _AUTO.sub('resume="auto"', str(error))
        text = _FLAG.sub(lambda found: _argument(found[1].replace("-", "_"), names), text)
        raise type(error)(text) from error


def _argument(option: str, names: Mapping[str, str]) -> str:
    return names.get(option, option)
