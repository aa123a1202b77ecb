"""Inputs of multi-scale training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OptionError
from dataset.input_sizes import input_sizes


def test_factors_and_pixels():
    assert input_sizes((416, 416), ()) == ()
    sides = [side for side, _ in input_sizes((416, 416), (0.67, 1.5))]
    assert sides == list(range(288, 609, 32))
    assert input_sizes((416, 416), (279, 624)) == input_sizes((416, 416), (0.67, 1.5))
    assert input_sizes((320, 640), (640, 640)) == ((320, 640),)
    assert input_sizes((32, 640), (0.2, 0.2)) == ((32, 128),)
    assert input_sizes((256, 384), (0.6, 1.4), 128) == ((128, 256), (256, 384), (384, 512))


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.floats(0.5, 1), st.floats(1, 2))
def test_sides_are_multiples_in_the_proportions_of_the_input(units, low, high):
    size = (units[0] * 32, units[1] * 32)
    found = input_sizes(size, (low, high))
    assert size in found
    for height, width in found:
        assert height % 32 == width % 32 == 0
        assert low * max(size) - 1 <= max(height, width) <= high * max(size) + 1
        assert abs(height * size[1] - width * size[0]) <= 16 * max(size)


@pytest.mark.parametrize("limits", [(1.5,), (1.5, 0.5), (1, 2, 3), (0.01, 0.02), (300, 310)])
def test_limits_that_make_no_sense(limits):
    with pytest.raises(OptionError, match="--multi-scale"):
        input_sizes((300, 300), limits)
