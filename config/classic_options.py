"""Options that the commands of the classic MXNet SSD have and ours need less: docs/classic.md lists them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from config.errors import OptionError
from config.options import option

_CLASSIC = "classic, checked or without effect"
_MEAN_TOLERANCE = 1e-3


def _obsolete(default: Any, now: str) -> Any:
    """An option that is accepted; who gives it is told what happens now."""
    return option(default, f"no effect: {now}", _CLASSIC, obsolete=now)


def _not_built(default: Any, what: str) -> Any:
    """An option that only its default is accepted for."""
    return option(default, f"{what} not built yet", _CLASSIC, not_built=what)


@dataclass(frozen=True)
class ClassicTrainOptions:
    """Classic options of train.py."""

    train_list: str = _not_built("", "lists that replace a record's labels are")
    val_list: str = _not_built("", "lists that replace a record's labels are")
    num_example: int | None = _obsolete(None, "the record says how many images it holds")
    kv_store: str = _not_built("local", "training on several machines is")
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

    list_path: str = _not_built("", "lists that replace a record's labels are")
    frequent: int | None = _obsolete(None, "the result is printed once, at the end")
    deploy: bool = _obsolete(False, "the network of the checkpoint is built without its losses in any case")


@dataclass(frozen=True)
class ClassicDemoOptions(ExpectedModel):
    """Classic options of demo.py."""

    deploy: bool = _obsolete(False, "--model says by itself whether it is a model folder or a checkpoint")
    timer: bool = _obsolete(True, "the seconds are always logged")
    camera: bool = _not_built(False, "detection in a camera's pictures is")
    frame_resize: str = _not_built("", "detection in a camera's pictures is")


def check_model(
    expected: ExpectedModel,
    origin: str,
    *,
    network: str,
    class_names: Sequence[str],
    data_shape: Sequence[int],
    mean_pixels: Sequence[float],
) -> None:
    """Compares what was given of a model, whose name is origin, with the model; OptionError where they differ.

    data_shape is the model's (height, width), mean_pixels its mean of red, green and blue.
    """
    side = expected.data_shape
    given: dict[str, tuple[Any, Any]] = {
        "network": (expected.network or None, network),
        "num-class": (expected.num_class, len(class_names)),
        "class-names": (expected.class_names or None, tuple(class_names)),
        "data-shape": (side and (side * 2 if len(side) == 1 else side[-2:]), tuple(data_shape)),
    }
    for flag, (wanted, found) in given.items():
        if wanted is not None and wanted != found:
            raise _differs(flag, wanted, origin, found)
    for flag, found in zip(("mean-r", "mean-g", "mean-b"), mean_pixels, strict=True):
        mean = getattr(expected, flag.replace("-", "_"))
        if mean is not None and abs(mean - found) > _MEAN_TOLERANCE:
            raise _differs(flag, mean, origin, found)


def _differs(flag: str, wanted: Any, origin: str, found: Any) -> OptionError:
    wanted, found = (", ".join(map(str, x)) if isinstance(x, tuple) else x for x in (wanted, found))
    return OptionError(f"--{flag} {wanted}: {origin} has {found}; leave the option out, the model knows")
