"""Augmentation: objects stay under their boxes, crops obey their samplers, colours leave the canvas alone."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxes.geometry import iou
from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from config.options import from_mapping, to_mapping
from dataset.augment import MIN_SIDE, augment, choose_canvas, choose_crop, choose_rectangle, propose_crops, resize_only
from dataset.transforms import (
    WHOLE,
    ColourShift,
    decode,
    draw,
    geometry,
    map_boxes,
    normalise,
    place,
    resize,
    shape_of,
    shift_colours,
)
from machine.opencv import cv2

PLAIN = TrainAugment(
    random_hue_prob=0.0,
    random_saturation_prob=0.0,
    random_illumination_prob=0.0,
    random_contrast_prob=0.0,
    fill_value=0,
    inter_method=0,
)
GREEN = (0, 255, 0)
seeds = st.integers(0, 2**32)
sides = st.integers(20, 90)
NEAREST, LINEAR = 0, 1


@st.composite
def objects_of(draw_value, max_count=6):
    """(n, 6) rows with sides of at least a tenth of the image."""
    rng = np.random.default_rng(draw_value(seeds))
    low = rng.uniform(0, 0.8, (draw_value(st.integers(0, max_count)), 2))
    high = np.minimum(low + rng.uniform(0.1, 0.6, low.shape), 1)
    rows = np.zeros((len(low), 6), np.float32)
    rows[:, 0], rows[:, 1:3], rows[:, 3:5] = np.arange(len(low)), low, high
    return rows


def painted(height, width, box):
    image = np.full((height, width, 3), 90, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = GREEN
    return image, np.array([[0, x0 / width, y0 / height, x1 / width, y1 / height, 0]], np.float32)


def bounds_of_green(pixels):
    """Edges (4,) in pixels of the painted rectangle, None if it is not there."""
    ys, xs = np.nonzero((pixels == GREEN).all(axis=2))
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) if len(xs) else None


@given(seed=seeds, height=sides, width=sides, out=st.tuples(sides, sides))
def test_painted_object_stays_under_its_box(seed, height, width, out):
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, (width - 10, height - 10))
    box = (x0, y0, *(int(v) for v in rng.integers((x0 + 10, y0 + 10), (width, height), endpoint=True)))
    image, objects = painted(height, width, box)
    pixels, found, _ = augment(image, objects, out, PLAIN, rng)
    if len(found):
        wanted = found[0, 1:5] * [out[1], out[0], out[1], out[0]]
        seen = bounds_of_green(pixels)
        if seen is None:  # thinner than the step of nearest-neighbour sampling
            assert (wanted[2:] - wanted[:2]).min() < 1
        else:
            np.testing.assert_allclose(seen, wanted, atol=1.01)


@given(seed=seeds, objects=objects_of(), size=st.tuples(sides, sides), shape=st.tuples(sides, sides))
def test_boxes_are_inside_and_large_enough(seed, objects, size, shape):
    image = np.zeros((*shape, 3), np.uint8)
    pixels, found, view = augment(image, objects, size, TrainAugment(), np.random.default_rng(seed))
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    assert view.shape == (6,)
    assert tuple(view[:2]) == shape
    assert found.dtype == np.float32
    assert ((found[:, 1:5] >= 0) & (found[:, 1:5] <= 1)).all()
    assert (found[:, 3:5] - found[:, 1:3] >= MIN_SIDE).all()
    assert set(found[:, 0]) <= set(objects[:, 0])


@given(seed=seeds, objects=objects_of(), size=st.tuples(sides, sides), shape=st.tuples(sides, sides))
def test_geometry_leads_back_to_the_image(seed, objects, size, shape):
    image = np.zeros((*shape, 3), np.uint8)
    _, found, view = augment(image, objects, size, TrainAugment(), np.random.default_rng(seed))
    h, w, scale_y, scale_x, offset_y, offset_x = view.astype(float)
    corners = found[:, 1:5].reshape(-1, 2, 2) * size[::-1]
    back = (corners - [offset_x, offset_y]) / [scale_x, scale_y] / [w, h]
    back = np.concatenate([back.min(axis=1), back.max(axis=1)], axis=1)
    originals = objects[found[:, 0].astype(int), 1:5]
    inside = (found[:, 1:5] > 0) & (found[:, 1:5] < 1)  # clipped edges cannot come back
    inside = inside[:, [2, 1, 0, 3]] if scale_x < 0 else inside
    np.testing.assert_allclose(back[inside], originals[inside], atol=1e-3)


@given(seed=seeds, objects=objects_of())
def test_a_view_of_an_image_with_objects_keeps_one(seed, objects):
    _, kept = choose_rectangle(objects[:, 1:5], 1.3, TrainAugment(), np.random.default_rng(seed))
    assert kept.any() or not len(objects)


@given(seed=seeds, sampler=st.integers(0, 4), objects=objects_of())
def test_crop_overlaps_an_object_as_its_sampler_demands(seed, sampler, objects):
    options = one_sampler(TrainAugment(), sampler)
    crop, kept = choose_crop(objects[:, 1:5], 1.0, options, np.random.default_rng(seed))
    assert ((crop >= 0) & (crop <= 1)).all()
    if (crop != WHOLE).any() and len(objects):
        boxes = objects[:, 1:5].astype(float)
        assert iou(crop[None], boxes).max() >= options.min_crop_overlaps[0]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        np.testing.assert_array_equal(kept, ((centres >= crop[:2]) & (centres < crop[2:])).all(axis=1))


def one_sampler(options, sampler):
    changes = {n: (v[sampler],) for n, v in to_mapping(options).items() if isinstance(v, list)}
    return replace(options, **changes)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("sample_coverages", lambda crop, box, common: common / crop),
        ("object_coverages", lambda crop, box, common: common / box),
    ],
)
def test_coverage_limits(name, measure):
    limits = {f"min_crop_{name}": (0.4,), f"max_crop_{name}": (0.6,), "min_crop_overlaps": (0.0,)}
    options = replace(one_sampler(TrainAugment(), 0), **limits)
    box = np.array([[0.3, 0.3, 0.8, 0.7]])
    for seed in range(20):
        crop, _ = choose_crop(box, 1.0, options, np.random.default_rng(seed))
        low, high = np.maximum(crop[:2], box[0, :2]), np.minimum(crop[2:], box[0, 2:])
        value = measure(np.prod(crop[2:] - crop[:2]), np.prod(box[0, 2:] - box[0, :2]), np.prod(high - low))
        assert 0.4 <= value <= 0.6


def test_overlap_mode_keeps_objects_by_their_part_inside():
    options = replace(one_sampler(TrainAugment(), 0), crop_emit_mode="overlap", emit_overlap_thresh=0.3)
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.4, 0.4, 0.9, 0.9]])
    crop, kept = choose_crop(boxes, 1.0, options, np.random.default_rng(1))
    sides_inside = np.minimum(crop[2:], boxes[:, 2:]) - np.maximum(crop[:2], boxes[:, :2])
    part = np.maximum(sides_inside, 0).prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    np.testing.assert_array_equal(kept, part > 0.3)


@given(seed=seeds, aspect=st.floats(0.5, 2))
def test_proposals_have_the_scale_and_shape_asked_for(seed, aspect):
    options = TrainAugment()
    crops = propose_crops(np.zeros(50, int), aspect, options, np.random.default_rng(seed))
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert ((crops >= 0) & (crops <= 1 + 1e-12)).all()
    assert (np.sqrt(width * height) >= 0.3 - 1e-9).all()
    assert ((width / height * aspect > 0.5 - 1e-9) & (width / height * aspect < 2 + 1e-9)).all()


def test_canvas_is_up_to_four_times_as_large_in_half_of_the_cases():
    rng = np.random.default_rng(0)
    canvases = np.array([choose_canvas(TrainAugment(), rng) for _ in range(2000)])
    padded = canvases[(canvases != WHOLE).any(axis=1)]
    scale = padded[:, 2] - padded[:, 0]
    assert 0.45 < len(padded) / 2000 < 0.55
    assert scale.min() >= 1.05
    assert 3.9 < scale.max() <= 4
    assert (padded[:, :2] <= 0).all()
    assert (padded[:, 2:] >= 1).all()


def test_failing_samplers_show_everything():
    options = replace(one_sampler(TrainAugment(), 0), min_crop_overlaps=(1.0,), rand_pad_prob=0.0, rand_crop_prob=1.0)
    rectangle, kept = choose_rectangle(np.array([[0.1, 0.1, 0.2, 0.2]]), 1.0, options, np.random.default_rng(0))
    np.testing.assert_array_equal(rectangle, WHOLE)
    assert kept.all()


def test_without_samplers_nothing_is_cropped():
    none = {name: () for name, value in to_mapping(TrainAugment()).items() if isinstance(value, list)}
    options = replace(TrainAugment(), rand_pad_prob=0.0, **none)
    rectangle, _ = choose_rectangle(np.zeros((0, 4)), 1.0, options, np.random.default_rng(0))
    np.testing.assert_array_equal(rectangle, WHOLE)


@given(seed=seeds, shape=st.tuples(sides, sides))
def test_mirroring_twice_changes_nothing(seed, shape):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    boxes = np.sort(rng.random((4, 2, 2)), axis=1).reshape(4, 4).astype(np.float32)
    mirrored = place(WHOLE, shape, shape, mirror=True)
    once = draw(image, mirrored, shape, 0, LINEAR, ColourShift())
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_array_equal(draw(once, mirrored, shape, 0, LINEAR, ColourShift()), image)
    view = geometry(mirrored, shape, shape)
    np.testing.assert_allclose(map_boxes(map_boxes(boxes, view, shape), view, shape), boxes, atol=1e-6)


def test_canvas_keeps_its_colour_and_image_has_its_place():
    image = np.full((40, 80, 3), 200, np.uint8)
    view = draw(
        image, place(np.array([-1.0, -1, 2, 2]), (40, 80), (60, 60)), (60, 60), 127, 1, ColourShift(5, 20, 9, 0.4)
    )
    inside = np.zeros((60, 60), bool)
    inside[20:40, 20:40] = True
    assert (view[~inside] == 127).all()
    assert (view[inside] == 255).all()


@pytest.mark.parametrize("shape", [(300, 100), (100, 300)])
def test_colours_shift_alike_before_and_after_the_resize(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shift = ColourShift(hue=7, lightness=-12, saturation=20, contrast=-0.2)
    view = draw(image, place(WHOLE, shape, (150, 150)), (150, 150), 0, NEAREST, shift)
    np.testing.assert_array_equal(view, shift_colours(resize(image, (150, 150), NEAREST), shift))
    np.testing.assert_array_equal(view, resize(shift_colours(image, shift), (150, 150), NEAREST))


def test_hue_wraps_around():
    red = np.full((2, 2, 3), (0, 0, 255), np.uint8)
    for hue in (-15, 15):
        shifted = shift_colours(red, ColourShift(hue=hue))
        assert cv2.cvtColor(shifted, cv2.COLOR_BGR2HLS)[0, 0, 0] == hue % 180
    assert (red == (0, 0, 255)).all()


def test_lightness_and_contrast():
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert (shift_colours(grey, ColourShift(lightness=30)) == 130).all()
    assert (shift_colours(grey, ColourShift(contrast=0.5)) == 150).all()
    assert (shift_colours(grey, ColourShift(contrast=0.5, lightness=-200)) == 0).all()


def test_validation_is_a_plain_bilinear_resize():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    objects = np.array([[1, 0.1, 0.2, 0.3, 0.4, 1]], np.float32)
    pixels, same, view = resize_only(image, objects, (30, 50))
    np.testing.assert_array_equal(pixels, cv2.resize(image, (50, 30), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_array_equal(same, objects)
    np.testing.assert_allclose(view, [48, 64, 30 / 48, 50 / 64, 0, 0])


def test_normalise_gives_rgb_planes():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = np.empty((3, 5, 7), np.float32)
    mean, std = np.array([123, 117, 104], np.float32), np.array([1, 2, 4], np.float32)
    normalise(image, mean, std, out)
    np.testing.assert_allclose(out, ((image[..., ::-1] - mean) / std).transpose(2, 0, 1))


def test_undecodable_image_is_named():
    with pytest.raises(DataError, match=r"train.rec, record 7.*decoded"):
        decode(b"not an image", "train.rec, record 7")
    with pytest.raises(DataError, match="record 8"):
        decode(b"", "record 8")


def test_orientation_is_ignored():
    jpeg = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # one tag: orientation 6
    rotated = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (40, 20, 3)
    assert shape_of(decode(rotated, "")) == (20, 40)


def test_options_are_the_classic_ones_and_checked():
    options = TrainAugment()
    assert options.num_crop_sampler == 5
    assert from_mapping(TrainAugment, to_mapping(options)) == options
    with pytest.raises(OptionError, match="max_crop_trials has 1 entries for 5"):
        TrainAugment(max_crop_trials=(25,))
    with pytest.raises(OptionError, match="min_crop_scales exceeds max_crop_scales"):
        TrainAugment(min_crop_scales=(0.5,) * 5, max_crop_scales=(0.4,) * 5)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    """In a process of its own: OpenCV reads its limit when it is loaded."""
    code = """
import io
from PIL import Image
from common.errors import DataError
from dataset.transforms import decode
file = io.BytesIO()
Image.new("1", (20000, 20000)).save(file, "PNG")
try:
    decode(file.getvalue(), "train.rec, record 7")
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = (
        "train.rec, record 7: the image cannot be decoded (more than 64000000 pixels); replace it and pack again\n"
    )
    assert done.stdout == expected
