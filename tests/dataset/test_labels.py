"""Labels: every classic layout is read, and nothing that would train silently wrong passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import DataError
from dataset.labels import pack_label, parse_label, validate

GOOD = [1, 0.1, 0.2, 0.5, 0.6, 0]


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.just(6)), elements=st.floats(0, 1, width=32)))
def test_round_trip_keeps_every_bit(objects):
    np.testing.assert_array_equal(parse_label(pack_label(objects), "r"), objects)


@pytest.mark.parametrize(
    "flat",
    [
        [2, 5, *GOOD[:5]],
        [2, 6, *GOOD],
        [2, 8, *GOOD, 7, 7],
        [4, 6, 300, 400, *GOOD],
        [2, 6, *GOOD, *[-1] * 6],
        [2, 5, *[-1] * 5, *GOOD[:5]],
    ],
)
def test_classic_layouts(flat):
    np.testing.assert_array_equal(parse_label(np.array(flat), "r"), np.float32([GOOD]))


@pytest.mark.parametrize("flat", [[2, 6], [2, 5], [2, 6, *[-1] * 6], [4, 6, 300, 400], [2, 1e21]])
def test_image_without_objects(flat):
    assert parse_label(np.array(flat), "r").shape == (0, 6)


@pytest.mark.parametrize(
    "flat",
    [
        [],
        [3],
        [2, 4, 0, 0, 1, 1],
        [2, 0],
        [1, 6],
        [50, 6, *GOOD],
        [2, 6, *GOOD, 1],
        [np.nan, 6],
        [2, np.inf],
        [2, 5.5],
        [-2, 6],
    ],
)
def test_wrong_layout_names_the_record(flat):
    with pytest.raises(DataError, match="a.rec, record 4"):
        parse_label(np.array(flat, np.float32), "a.rec, record 4")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, -1, "class ids"),
        (0, 3, "0 to 2"),
        (0, 0.5, "class ids"),
        (0, np.nan, "not finite"),
        (3, np.inf, "not finite"),
        (3, 0.1, "no area"),
        (4, 0.1, "inverted"),
        (1, -0.01, r"in \[0, 1\]; "),
        (3, 1.01, r"in \[0, 1\]; "),
        (3, 250, "pixel coordinates"),
    ],
)
def test_bad_object_is_named(column, value, message):
    objects = np.array([GOOD, GOOD], np.float32)
    objects[1, column] = value
    with pytest.raises(DataError, match=rf"a.rec, record 4, object 1 .*{message}"):
        validate(objects, 3, "a.rec, record 4")


def test_good_objects_pass():
    edge = [2, -0.0005, 0, 1.0005, 1, 1]
    validate(np.array([GOOD, edge], np.float32), 3, "r")
    validate(np.array([[79, *GOOD[1:]]]), None, "r")
    validate(np.zeros((0, 6)), 3, "r")
