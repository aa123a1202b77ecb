"""Offsets between boxes and anchors."""

import numpy as np
import pytest
from hypothesis import given

from boxes.coders import decode, encode, expand_variances
from boxes.geometry import corners_to_centres
from tests.boxes.strategies import corner_boxes


@given(corner_boxes(3, 3), corner_boxes(3, 3))
def test_decode_undoes_encode(boxes: np.ndarray, anchors: np.ndarray) -> None:
    centres = corners_to_centres(anchors.astype(np.float64))
    variances = (0.1, 0.1, 0.2, 0.2)
    np.testing.assert_allclose(decode(encode(boxes, centres, variances), centres, variances), boxes, atol=1e-12)


def test_an_anchor_on_its_box_has_no_offset() -> None:
    anchors = np.array([[0.5, 0.5, 0.2, 0.4]])
    np.testing.assert_allclose(encode(np.array([[0.4, 0.3, 0.6, 0.7]]), anchors, (0.1, 0.2)), 0, atol=1e-14)


def test_two_variances_are_centre_and_size() -> None:
    np.testing.assert_array_equal(expand_variances((0.1, 0.2)), expand_variances((0.1, 0.1, 0.2, 0.2)))


@pytest.mark.parametrize("variances", [(), (0.1,), (0.1, 0.1, 0.2), (0.1, 0.0)])
def test_wrong_variances_are_refused(variances: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 or 4 positive"):
        expand_variances(variances)


def test_float32_stays_float32() -> None:
    ones = np.ones((2, 4), np.float32)
    assert encode(ones, ones, (0.1, 0.2)).dtype == np.float32
    assert decode(ones, ones, (0.1, 0.2)).dtype == np.float32
