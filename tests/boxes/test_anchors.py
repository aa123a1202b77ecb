"""Anchors equal to the operator's."""

import dataclasses

import numpy as np
import pytest

from boxes.anchors import AnchorLayer, multibox_prior
from machine.runtime import mx

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
