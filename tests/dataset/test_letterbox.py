"""Letterboxed images keep their proportions, boxes stay on the pixels they belong to, and lead back to the image."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import OptionError
from config.augment_options import TrainAugment
from dataset.augment import MIN_SIDE, augment, resize_only
from dataset.letterbox import Resize, letterbox, smallest_size
from dataset.transforms import to_image

FILL = 114
LETTERBOX = Resize("letterbox", FILL)
PAINT = (10, 250, 40)
sides = st.integers(24, 200)
shapes = st.tuples(sides, sides)


def painted(shape, box):
    """An image (h, w) of black and one painted rectangle, box (4,) in whole pixels, and its object."""
    image = np.zeros((*shape, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = PAINT
    corners = np.array(box) / [shape[1], shape[0], shape[1], shape[0]]
    return image, np.array([[1, *corners, 0]], np.float32)


def edges(mask):
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@given(shape=shapes, size=shapes)
def test_the_frame_is_as_large_as_fits_and_in_the_middle(shape, size):
    frame = letterbox(shape, size)
    assert any(inner == side for inner, side in zip(frame.inner, size, strict=True))
    assert all(0 < inner <= side for inner, side in zip(frame.inner, size, strict=True))
    scale = min(size[0] / shape[0], size[1] / shape[1])
    np.testing.assert_allclose(frame.inner, np.maximum(np.array(shape) * scale, 1), atol=0.51)
    after = np.array(size) - frame.inner - [frame.top, frame.left]
    assert ((after - [frame.top, frame.left] >= 0) & (after - [frame.top, frame.left] <= 1)).all()


@given(shape=shapes, size=shapes, seed=st.integers(0, 10**6))
def test_boxes_stay_on_their_pixels_and_lead_back(shape, size, seed):
    rng = np.random.default_rng(seed)
    y0, x0 = rng.integers(0, np.array(shape) - 12)
    y1, x1 = (int(rng.integers(low + 12, high, endpoint=True)) for low, high in zip((y0, x0), shape, strict=True))
    image, objects = painted(shape, (x0, y0, x1, y1))
    pixels, found, view = resize_only(image, objects, size, LETTERBOX)
    assert pixels.shape == (*size, 3)
    in_pixels = found[:, 1:5] * (size[::-1] * 2)
    np.testing.assert_allclose(to_image(in_pixels, view), [[x0, y0, x1, y1]], atol=1e-3)
    assume((in_pixels[0, 2:] - in_pixels[0, :2]).min() > 3)
    np.testing.assert_allclose(edges(pixels[..., 1] > 125), in_pixels[0], atol=1.01)


@given(shape=shapes, size=shapes)
def test_the_way_back_uses_the_borders_that_were_drawn(shape, size):
    image = np.full((*shape, 3), 255, np.uint8)
    pixels, _, view = resize_only(image, np.zeros((0, 6), np.float32), size, LETTERBOX)
    shown = edges((pixels == 255).all(axis=2))
    assert ((pixels == 255).all(axis=2) | (pixels == FILL).all(axis=2)).all()
    np.testing.assert_allclose(to_image(shown[None], view), [[0, 0, shape[1], shape[0]]], atol=1e-9)
    np.testing.assert_array_equal(to_image(np.array([[-50, -50, 999, 999]]), view), [[0, 0, shape[1], shape[0]]])


@given(shape=shapes, size=shapes, seed=st.integers(0, 10**6))
def test_a_random_view_has_borders_around_its_crop(shape, size, seed):
    """Borders show nothing and hold no boxes; inside, the crop has the image's proportions."""
    plain = TrainAugment(
        random_hue_prob=0, random_saturation_prob=0, random_illumination_prob=0, random_contrast_prob=0,
        rand_pad_prob=0.5, fill_value=200, inter_method=0,
    )  # fmt: skip
    image, objects = painted(shape, (0, 0, shape[1], shape[0]))
    pixels, found, view = augment(image, objects, size, plain, np.random.default_rng(seed), LETTERBOX)
    assert pixels.shape == (*size, 3)
    visible = ~(pixels == FILL).all(axis=2)
    x0, y0, x1, y1 = edges(visible)
    assert visible[y0:y1, x0:x1].all()
    assert x1 - x0 == size[1] or y1 - y0 == size[0]
    if len(found):
        limits = np.array([x0, y0, x1, y1]) / (size[::-1] * 2)
        assert (found[:, 1:3] >= limits[:2] - 1e-6).all()
        assert (found[:, 3:5] <= limits[2:] + 1e-6).all()
        assert (found[:, 3:5] - found[:, 1:3] >= MIN_SIDE).all()
        bounds = edges((pixels == PAINT).all(axis=2))
        np.testing.assert_allclose(bounds, found[0, 1:5] * (size[::-1] * 2), atol=1.01)
    narrow = min(x1 - x0, y1 - y0)
    assume(narrow > 20)
    assert abs(view[2] / abs(view[3]) - 1) < 3 / narrow + 3 / min(shape) / 0.3


@given(shape=shapes, size=shapes, seed=st.integers(0, 10**6))
def test_force_is_what_it_was_without_a_mode(shape, size, seed):
    image, objects = painted(shape, (2, 3, 20, 22))
    for view in (
        lambda **mode: resize_only(image, objects, size, **mode),
        lambda **mode: augment(image, objects, size, TrainAugment(), np.random.default_rng(seed), **mode),
    ):
        for a, b in zip(view(), view(resize=Resize("force", 7)), strict=True):
            np.testing.assert_array_equal(a, b)


@given(images=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=5),
       units=st.tuples(st.integers(2, 20), st.integers(2, 20)))  # fmt: skip
def test_images_in_the_smallest_input_have_the_pixels_of_the_whole_one(images, units):
    whole = (units[0] * 32, units[1] * 32)
    size = smallest_size(images, whole, 32)
    assert size[0] == whole[0] or size[1] == whole[1]
    assert all(length % 32 == 0 and 32 <= length <= side for length, side in zip(size, whole, strict=True))
    for image in images:
        assert letterbox(image, size).inner == letterbox(image, whole).inner
    for axis in (0, 1):
        if size[axis] > 32:
            smaller = tuple(length - 32 * (k == axis) for k, length in enumerate(size))
            assert any(letterbox(image, smaller).inner != letterbox(image, size).inner for image in images) or any(
                image[axis] * Fraction(whole[k]) / image[k] > smaller[axis]
                for image in images
                for k in (min((0, 1), key=lambda k: Fraction(whole[k], image[k])),)  # the side that the image fills
            )


@pytest.mark.parametrize("arguments", [("stretch", 114), ("letterbox", 256), ("letterbox", -1)])
def test_modes_and_colours_that_do_not_exist(arguments):
    with pytest.raises(OptionError, match="expected"):
        Resize(*arguments)
