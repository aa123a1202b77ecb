"""Checks what a command line says of a trained model, which the classic commands had to be told."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.errors import OptionError
from common.sizes import input_size
from config.classic_options import ExpectedModel
from dataset.class_names import read_class_names

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

_MEAN_TOLERANCE = 1e-3


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
        "class-names": (read_class_names(expected.class_names), tuple(class_names)),
        "data-shape": (side and input_size(side), tuple(data_shape)),
    }
    for flag, (wanted, found) in given.items():
        if wanted is not None and wanted != found:
            raise _differs(flag, wanted, origin, found)
    for flag, found in zip(("mean-r", "mean-g", "mean-b"), mean_pixels, strict=True):
        mean = getattr(expected, flag.replace("-", "_"))
        if mean is not None and abs(mean - found) > _MEAN_TOLERANCE:
            raise _differs(flag, mean, origin, found)


def check_checkpoint(expected: ExpectedModel, checkpoint: "Checkpoint") -> None:
    """check_model of a checkpoint."""
    meta = checkpoint.meta
    check_model(
        expected,
        f"{checkpoint.prefix}, epoch {checkpoint.epoch},",
        network=meta.network,
        class_names=meta.class_names,
        data_shape=meta.data_shape,
        mean_pixels=meta.mean_pixels,
    )


def _differs(flag: str, wanted: Any, origin: str, found: Any) -> OptionError:
    wanted, found = (", ".join(map(str, x)) if isinstance(x, tuple) else x for x in (wanted, found))
    return OptionError(f"--{flag} {wanted}: {origin} has {found}; leave the option out, the model knows")
