"""Drawn boxes can be seen, stay inside, and leave the image alone.

Heat maps of scores.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing.boxes import GAP, batch_sheet, colour_of, draw, draw_heatmap, input_images, score_map

NAMES = ("cat", "Käfer", "猫")
SIZE = (12, 20)


def _rows(*rows):
    return np.array(rows, np.float32).reshape(-1, 6)


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (40, 30), (480, 640), (3000, 2000)])
def test_any_size_and_place(size):
    image = np.full((*size, 3), 40, np.uint8)
    height, width = size
    boxes = _rows([0, 0.9, 0, 0, width, height], [1, 0.5, 0, 0, 0, 0], [2, 0.4, width, height, width, height])
    picture = draw(image, boxes, NAMES)
    assert picture.shape == image.shape
    assert (image == 40).all()
    assert (picture != 40).any()


def test_box_and_label_have_the_colour_of_the_class():
    picture = draw(np.zeros((300, 300, 3), np.uint8), _rows([1, 0.87, 100, 120, 200, 220]), NAMES)
    for y, x in ((120, 150), (220, 150), (170, 100), (170, 200)):
        assert tuple(picture[y, x]) == colour_of(1)
    assert tuple(picture[170, 150]) == (0, 0, 0)
    label = (picture[108:119, 102:150] == colour_of(1)).all(axis=2)
    assert 0.4 < label.mean() < 0.95  # colour and letters


def test_labels_stay_inside():
    for corner in ([0, 0, 20, 20], [280, 0, 300, 20], [0, 280, 20, 300], [280, 280, 300, 300]):
        picture = draw(np.zeros((300, 300, 3), np.uint8), _rows([0, 0.5, *corner]), NAMES)
        assert (picture == colour_of(0)).all(axis=2).sum() > 250


def test_threshold_and_nothing():
    image = np.zeros((100, 100, 3), np.uint8)
    np.testing.assert_array_equal(draw(image, _rows([0, 0.4, 10, 10, 50, 50]), NAMES, 0.5), image)
    np.testing.assert_array_equal(draw(image, _rows(), NAMES), image)


def test_unknown_classes_are_shown_by_number():
    assert draw(np.zeros((100, 100, 3), np.uint8), _rows([7, 0.4, 10, 40, 50, 80])).any()


def test_colours_differ():
    colours = np.array([colour_of(k) for k in range(20)], int)
    distances = np.abs(colours[:, None] - colours).sum(axis=2) + 1000 * np.eye(20, dtype=int)
    assert distances.min() > 40
    assert colour_of(3) == colour_of(3)


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


def test_inputs_become_the_images_that_they_were_made_of():
    """Small ones are enlarged by a whole factor, large ones shrunk; NaN is black."""
    images = np.random.default_rng(0).integers(0, 256, (2, 100, 60, 3), dtype=np.uint8)
    mean, std = np.array([10, 20, 30], np.float32), np.array([2, 3, 4], np.float32)
    pixels = ((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)  # (2, 3, 100, 60)
    pixels[1, :, 7, 9] = np.nan
    found = input_images(pixels, mean, std)
    assert np.array_equal(found[0], images[0].repeat(3, axis=0).repeat(3, axis=1))
    assert not found[1][21:24, 27:30].any()
    large = np.full((1, 3, 640, 320), 50, np.float32)
    shrunk = input_images(large, mean, np.ones(3, np.float32))
    assert shrunk[0].shape == (320, 160, 3)
    assert np.array_equal(shrunk[0][3, 5], [60, 70, 80])


def test_a_sheet_of_a_batch_has_the_boxes_of_its_objects():
    pixels = np.zeros((2, 3, 320, 320), np.float32)
    objects = np.full((2, 3, 6), -1, np.float32)
    objects[1, 0] = [0, 0.25, 0.5, 0.75, 1, 0]
    picture = batch_sheet(pixels, objects, np.zeros(3), np.ones(3), ["cat"])
    assert picture.shape == (320, 640 + GAP, 3)
    assert not picture[:, :320].any()
    assert (picture[:, 320 : 320 + GAP] == 255).all()
    left = 320 + GAP
    for y, x in ((250, left + 80), (250, left + 240), (160, left + 160)):
        assert tuple(picture[y, x]) == colour_of(0)
