"""The inputs of multi-scale training (YOLO9000, section 2, https://arxiv.org/abs/1612.08242)."""

import math
from collections.abc import Sequence

from config.errors import OptionError
from dataset.transforms import Size

MULTIPLE = 32  # pixels; the stride of the deepest maps
LARGEST_FACTOR = 8  # what is larger are pixels


def input_sizes(size: Size, limits: Sequence[float]) -> tuple[Size, ...]:
    """The inputs (H, W) to train on beside `size` (H, W): multiples of 32 in about its proportions, the smallest first.

    limits: the smallest and the largest longer side, as factors of that of `size` (up to 8) or in pixels; () = no other
    inputs, (). OptionError where they are no two numbers, or no multiple of 32 lies between them.
    """
    if not limits:
        return ()
    longest = max(size)
    pixels = [value * longest if value <= LARGEST_FACTOR else value for value in limits]
    if len(pixels) != 2 or pixels[0] > pixels[1]:
        raise OptionError(
            f"--multi-scale {','.join(f'{v:g}' for v in limits)}: give the smallest and the largest input"
        )
    sides = range(math.ceil(pixels[0] / MULTIPLE), int(pixels[1] // MULTIPLE) + 1)
    if not sides or not sides[0]:
        raise OptionError(
            f"--multi-scale: no multiple of {MULTIPLE} lies between {pixels[0]:g} and {pixels[1]:g} pixels; widen it"
        )
    return tuple((_scaled(size[0], side / longest), _scaled(size[1], side / longest)) for side in sides)


def _scaled(side: int, factor: float) -> int:
    """`factor` multiples of 32 times a side, to the nearest multiple, at least one."""
    return max(1, round(side * factor)) * MULTIPLE
