"""Darknet's input is RGB / 255: the first convolution of a network that was trained on other pixels, for that input."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from common.errors import CheckpointError
from symbol.darknet_sections import Convolutional, Sections, layer_names

WHITE = 255.0  # of our pixels; Darknet's are 1
Arrays = dict[str, np.ndarray]


def for_unit_pixels(
    origin: str, parameters: Mapping[str, np.ndarray], sections: Sections, mean: Sequence[float], std: Sequence[float]
) -> tuple[Arrays, float]:
    """(parameters for RGB / 255, largest error) of a network that was trained on (RGB - mean) / std.

    parameters: those of `sections`, by our names. The weights of the first convolution take the scale; what the mean
    adds to its output goes to its moving mean, or its bias. That is exact but for rounding, except where the kernel
    reaches beyond the input: the zeros there are the mean in training, black in Darknet. The error is that of the
    convolution's output, in standard deviations of it with batch normalisation. CheckpointError for a network that
    does not begin with a convolution, unless its pixels are Darknet's; it names origin.
    """
    if all(value == 0 for value in mean) and all(value == WHITE for value in std):
        return dict(parameters), 0.0
    first = sections[0]
    if not isinstance(first, Convolutional):
        raise CheckpointError(
            f"{origin}: the network does not begin with a convolution that could take the mean and std of its pixels; "
            f"train it with --mean-r/g/b 0 and --std-r/g/b {WHITE:g}"
        )
    name = layer_names(sections)[0]
    kernel = parameters[f"{name}_conv_weight"].astype(np.float64)  # (filters, 3, size, size)
    scaled = kernel * (WHITE / np.array(std))[:, None, None]
    taps = (kernel * (np.array(mean) / np.array(std))[:, None, None]).sum(axis=1)  # (filters, size, size)
    shift, error = taps.sum(axis=(1, 2)), _border_error(taps)
    changed = {f"{name}_conv_weight": scaled}
    if first.batch_normalize:
        changed[f"{name}_bn_moving_mean"] = parameters[f"{name}_bn_moving_mean"] + shift
        error = error / np.sqrt(np.maximum(parameters[f"{name}_bn_moving_var"], np.finfo(np.float32).tiny))
    else:
        changed[f"{name}_conv_bias"] = parameters[f"{name}_conv_bias"] - shift
    return {**parameters, **{key: array.astype(np.float32) for key, array in changed.items()}}, float(error.max())


def _border_error(taps: np.ndarray) -> np.ndarray:
    """The largest sum (filters,) of those taps (filters, size, size) that lie outside at some place of the border."""
    size = taps.shape[-1]
    pad, ends = size // 2, np.arange(size)
    sides = (ends < 0, ends < pad, ends >= size - pad)  # nothing outside, the low side, the high side
    outside = (rows[:, None] | columns for rows, columns in product(sides, sides))
    return np.max([np.abs((taps * mask).sum(axis=(1, 2))) for mask in outside], axis=0)
