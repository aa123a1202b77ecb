"""Whether there is room for a checkpoint, asked before the first batch."""

import shutil
from pathlib import Path

import numpy as np

from common.errors import CheckpointError
from model.weights.fit import expected_shapes
from train.options import TrainOptions, network_options

# Arrays of the size of a parameter that an optimizer keeps for it.
STATES = {"sgd": 1, "nag": 1, "adam": 2, "rmsprop": 1, "adadelta": 2}
BYTES = 4
MEGABYTE = 1 << 20


def check_disk_space(options: TrainOptions, num_classes: int) -> None:
    """CheckpointError where the disk of --prefix has less room than one checkpoint takes."""
    arg, aux = expected_shapes(options.network, options.data_shape, num_classes, **network_options(options))
    values = sum(int(np.prod(shape)) for shape in (*arg.values(), *aux.values()))
    needed = BYTES * values * (1 + STATES[options.optimizer] + (options.ema > 0))
    folder = Path(options.prefix).parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"--prefix {options.prefix}: a checkpoint takes {needed / MEGABYTE:.0f} MB, but {folder} has "
            f"{free / MEGABYTE:.0f} MB left; free space or choose another --prefix"
        )
