"""Data shapes are understood in one way."""

import pytest

from common.errors import OptionError
from common.sizes import input_size


@pytest.mark.parametrize(
    ("data_shape", "size"),
    [
        (300, (300, 300)),
        ((300,), (300, 300)),
        ((288, 384), (288, 384)),
        ([288, 384], (288, 384)),
        ((3, 288, 384), (288, 384)),
    ],
)
def test_a_data_shape_is_a_side_or_height_and_width(data_shape, size):
    assert input_size(data_shape) == size


@pytest.mark.parametrize("data_shape", [16, 0, -300, (300, 8), (1, 300, 300), (3, 3, 300, 300), (), None, 300.0])
def test_others_are_refused_in_one_sentence(data_shape):
    with pytest.raises(OptionError, match=r"^data_shape .*: expected a side, .*; at least 32$"):
        input_size(data_shape)


def test_batches_may_be_smaller_than_networks():
    assert input_size((3, 1, 20), smallest=1) == (1, 20)
    with pytest.raises(OptionError, match=r"data_shape \(20, 0\): expected a side"):
        input_size((20, 0), smallest=1)
