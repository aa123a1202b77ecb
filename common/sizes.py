"""The input of a detection network: its size, and the names that symbols, files on disk and engines share."""

from collections.abc import Sequence

from common.errors import OptionError

Size = tuple[int, int]  # (height, width)
DataShape = int | Sequence[int]  # a side, (side,), (height, width) or (3, height, width)
SMALLEST_SIDE = 32  # pixels, of a network's input
DATA, DET = "data", "det"  # input and output of a detection network


def input_size(data_shape: DataShape, smallest: int = SMALLEST_SIDE) -> Size:
    """(height, width) of a DataShape; anything else, or a side below `smallest` pixels, raises OptionError."""
    try:
        sides = (data_shape,) if isinstance(data_shape, int) else tuple(data_shape)
    except TypeError:  # None, a float
        sides = ()
    if len(sides) == 3 and sides[0] == 3:
        sides = sides[1:]
    if len(sides) not in (1, 2) or min(sides) < smallest:
        raise OptionError(
            f"data_shape {data_shape}: expected a side, (height, width) or (3, height, width); at least {smallest}"
        )
    return int(sides[0]), int(sides[-1])
