"""Heat maps of scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing.heatmap import draw_heatmap, score_map

SIZE = (12, 20)


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    """Detections (n, 6) of class 0 from (score, xmin, ymin, xmax, ymax)."""
    return np.array([(0, *box) for box in boxes], np.float32).reshape(-1, 6)


def test_a_box_has_its_score_and_nothing_lies_beside_it() -> None:
    got = score_map(rows((0.7, 2, 3, 8, 6)), SIZE)
    want = np.zeros(SIZE)
    want[3:6, 2:8] = 0.7
    np.testing.assert_allclose(got, want, atol=1e-6)


BOX = st.tuples(st.floats(0, 1), st.integers(0, 19), st.integers(0, 11), st.integers(1, 20), st.integers(1, 12))


@given(st.lists(BOX, max_size=6))
def test_boxes_join_as_independent_events(boxes: list[tuple[float, int, int, int, int]]) -> None:
    missed = np.ones(SIZE)
    for score, x, y, w, h in boxes:
        missed[y : y + h, x : x + w] *= 1 - score
    got = score_map(rows(*((s, x, y, min(x + w, 20), min(y + h, 12)) for s, x, y, w, h in boxes)), SIZE)
    np.testing.assert_allclose(got, 1 - missed, atol=1e-5)
    assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize("box", [(19.9, 11.9, 20, 12), (4.2, 3.1, 4.3, 3.2), (0, 0, 0, 0)])
def test_the_smallest_box_covers_a_pixel(box: tuple[float, ...]) -> None:
    assert (score_map(rows((0.5, *box)), SIZE) > 0).sum() == 1


def test_colours_go_from_blue_to_red_and_the_image_stays() -> None:
    image = np.full((*SIZE, 3), 100, np.uint8)
    picture = draw_heatmap(image, np.linspace(0, 1, 240, dtype=np.float32).reshape(SIZE))
    assert (image == 100).all()
    assert picture.shape == image.shape
    assert picture[0, 0].argmax() == 2
    assert picture[-1, -1].argmax() == 0
