"""Anchors equal to the operator's, and offsets of boxes from anchors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from boxes.anchors import AnchorLayer, decode, encode, expand_variances, multibox_prior
from boxes.geometry import corners_to_centres
from machine.runtime import mx
from tests.boxes.strategies import corner_boxes

PLAIN = AnchorLayer(sizes=(0.1, 0.141, 0.9), ratios=(1.0, 2.0, 0.5, 3.0, 1 / 3))


@pytest.mark.parametrize(
    "changes",
    [{}, {"step": (0.06, 0.11)}, {"offset": (0.2, 0.9)}, {"clip": True}, {"ratios": (2.0, 0.5)}, {"ratios": (1.0,)}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(38, 38), (7, 12), (10, 3), (1, 1)], ids=str)
def test_anchors_are_those_of_multibox_prior(shape: tuple[int, int], changes: dict[str, object]) -> None:
    layer = dataclasses.replace(PLAIN, **changes)
    features = mx.nd.zeros((1, 1, *shape))
    want = mx.nd.contrib.MultiBoxPrior(
        features, sizes=layer.sizes, ratios=layer.ratios, steps=layer.step, offsets=layer.offset, clip=layer.clip
    )
    got = multibox_prior(shape, layer)
    assert got.dtype == np.float32
    assert len(got) == shape[0] * shape[1] * layer.per_cell
    np.testing.assert_array_equal(got, want.asnumpy()[0])


@pytest.mark.parametrize(
    "changes", [{"sizes": ()}, {"sizes": (0.1, -0.2)}, {"ratios": (0.0,)}, {"step": (0.1, -1.0)}], ids=str
)
def test_impossible_layers_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="anchors need|both steps"):
        dataclasses.replace(PLAIN, **changes)


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
