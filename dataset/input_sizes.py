"""The inputs of multi-scale training (YOLO9000, section 2, https://arxiv.org/abs/1612.08242)."""

import math
from collections.abc import Sequence

from common.errors import OptionError
from dataset.transforms import Size

MULTIPLE = 32  # pixels; the stride of the deepest maps
LARGEST_FACTOR = 8  # what is larger are pixels


def input_sizes(size: Size, limits: Sequence[float], multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The inputs (H, W) to train on beside `size` (H, W): those in about its proportions, the smallest first.

    limits: the smallest and the largest longer side, as factors of that of `size` (up to 8) or in pixels; () = no other
    inputs, (). multiple: what the sides are multiples of, in pixels. OptionError where limits are no two numbers, or no
    multiple lies between them.
    """
    if not limits:
        return ()
    longest = max(size)
    pixels = [value * longest if value <= LARGEST_FACTOR else value for value in limits]
    if len(pixels) != 2 or pixels[0] > pixels[1]:
        raise OptionError(
            f"--multi-scale {','.join(f'{v:g}' for v in limits)}: give the smallest and the largest input"
        )
    sides = range(math.ceil(pixels[0] / multiple), int(pixels[1] // multiple) + 1)
    if not sides or not sides[0]:
        raise OptionError(
            f"--multi-scale: no multiple of {multiple} lies between {pixels[0]:g} and {pixels[1]:g} pixels; widen it"
        )
    return tuple(tuple(max(1, round(s * side / longest)) * multiple for s in size) for side in sides)  # type: ignore[misc]
