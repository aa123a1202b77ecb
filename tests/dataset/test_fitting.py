"""Which objects are told to be the same as another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes.geometry import iou
from dataset import fitting


def by_all_pairs(objects, least, same_class):
    """Of each object the first one before it of its class, or another, with an IoU above `least`; -1 without one."""
    overlaps = iou(objects[:, 1:5], objects[:, 1:5])
    found = np.full(len(objects), -1)
    for later in range(len(objects)):
        for before in reversed(range(later)):
            if (objects[before, 0] == objects[later, 0]) == same_class and overlaps[before, later] > least:
                found[later] = before
    return found


@pytest.mark.parametrize(("least", "same_class"), [(fitting.ALIKE, True), (fitting.MIXED, False)])
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), at_a_time=st.sampled_from([1, 7, 1 << 20]))
@settings(max_examples=60, deadline=None)
def test_near_doubles_are_those_of_all_pairs(least, same_class, count, seed, at_a_time):
    rng = np.random.default_rng(seed)
    objects = np.zeros((count, 6), np.float32)
    objects[:, 0] = rng.integers(0, 2, count)
    places = rng.uniform(0, 0.5, (max(1, count // 4), 4)) + (0, 0, 0.4, 0.4)
    objects[:, 1:5] = places[rng.integers(0, len(places), count)] + rng.normal(0, 0.003, (count, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_COMPARED", at_a_time)
        found = fitting._near_partners(objects, least, same_class)
    np.testing.assert_array_equal(found, by_all_pairs(objects, least, same_class))
