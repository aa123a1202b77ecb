"""Mosaic, affine maps and gains in HSV: boxes follow the pixels, whatever happens to them."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from config.config import NO_AUGMENT, classic_arguments, iterator_options
from dataset.augment import augment, augment_mosaic, choose_matrix
from dataset.iterator import DetRecordIter
from dataset.letterbox import Resize
from dataset.transforms import map_objects, scale_hsv, warp
from tests.dataset.test_iterator import COUNT, FIRST_ID, assert_same, epoch_of, write
from tests.dataset.toy_assigner import ColumnAssigner

SIZE = (96, 128)
FILL = 114
BACK, FRONT = 40, 220
RECIPE = {"degrees": 8.0, "translate": 0.1, "scale": 0.3, "shear": 3.0, "rand_mirror_prob": 0.5}
UPRIGHT = {name: RECIPE[name] for name in ("translate", "scale", "rand_mirror_prob")}  # exact where the input cuts
COLOURS = {"hsv_h": 0.1, "hsv_s": 0.5, "hsv_v": 0.4}


def options_of(**changes):
    return replace(NO_AUGMENT, fill_value=FILL, **changes)


def scene(shape, boxes, first_id=0):
    """A dark image with bright rectangles on whole pixels, and its objects; every second one is difficult."""
    image = np.full((*shape, 3), BACK, np.uint8)
    objects = np.zeros((len(boxes), 6), np.float32)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] = FRONT
        objects[k] = [first_id + k, x0 / shape[1], y0 / shape[0], x1 / shape[1], y1 / shape[0], k % 2]
    return image, objects


def bright_box(pixels):
    """(4,) edges of what is bright, to a part of a pixel: the borders are where half of the step is reached."""
    part = np.clip((pixels[..., 0].astype(float) - FILL) / (FRONT - FILL), 0, 1)
    rows, columns = np.flatnonzero(part.max(axis=1) > 0.5), np.flatnonzero(part.max(axis=0) > 0.5)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("part", ["degrees", "translate", "scale", "shear", "rand_mirror_prob", None])
def test_the_box_sits_on_the_pixels_after_an_affine_map(part, seed):
    strengths = RECIPE if part is None else {part: RECIPE[part]}
    image, objects = scene((60, 100), [(40, 20, 70, 45)])
    pixels, found, view = augment(image, objects, SIZE, options_of(**strengths), np.random.default_rng(seed))
    assert pixels.shape == (*SIZE, 3)
    np.testing.assert_array_equal(found[:, [0, 5]], [[0, 0]])
    np.testing.assert_allclose(found[0, 1:5] * np.tile(SIZE[::-1], 2), bright_box(pixels), atol=1.3)
    assert np.isnan(view).any() == options_of(**strengths).affine


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["force", "letterbox"])
@pytest.mark.parametrize("strengths", [{}, UPRIGHT])
def test_boxes_of_a_mosaic_sit_on_the_pixels(mode, strengths, seed):
    """One tile has the object; the other three are dark."""
    shapes, resize = ((60, 100), (90, 50), (50, 50), (40, 100)), Resize(mode, FILL)
    rng = np.random.default_rng(seed)
    lit = int(rng.integers(4))
    tiles = []
    for k, (h, w) in enumerate(shapes):
        box = [(w // 4, h // 4, 3 * w // 4, 3 * h // 4)] if k == lit else []
        tiles.append(scene((h, w), box, first_id=7))
    pixels, found, view = augment_mosaic(tiles, SIZE, options_of(mosaic_prob=1.0, **strengths), rng, resize)
    assert pixels.shape == (*SIZE, 3)
    assert view[:2].tolist() == [60, 100]
    assert np.isnan(view[2:]).all()
    if len(found):
        assert found[0, [0, 5]].tolist() == [7, 0]
        np.testing.assert_allclose(found[0, 1:5] * np.tile(SIZE[::-1], 2), bright_box(pixels), atol=1.5)
    else:
        assert (pixels[..., 0] > (FILL + FRONT) / 2).mean() < 0.1


def test_a_mosaic_shows_all_four_images():
    tiles = [(np.full((50, 60, 3), 50 * k, np.uint8), np.array([[k, 0, 0, 1, 1, k % 2]], np.float32)) for k in range(4)]
    for seed in range(20):
        pixels, found, _ = augment_mosaic(tiles, SIZE, options_of(mosaic_prob=1.0), np.random.default_rng(seed))
        for number, x0, y0, x1, y1, difficult in found * ([1, *SIZE[::-1], *SIZE[::-1], 1]):
            assert difficult == number % 2
            part = pixels[round(y0) : round(y1), round(x0) : round(x1)]
            assert (part == 50 * number).all()
            assert part.size == (pixels == 50 * number).sum(), "the box has all of it"
        assert set(np.unique(pixels)) <= {0, 50, 100, 150}, "stretched images leave nothing empty"


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 10, 60, 60), True),
        ((10, 10, 14, 60), False),  # 4 pixels wide
        ((-40, 10, 9, 60), False),  # less than a fifth of it
        ((-40, 10, 11, 60), True),
        ((5, 10, 15, 109), True),
        ((5, 5, 15, 105), False),  # ten times as high as wide
        ((-30, 10, -5, 60), False),
        ((30, 10, 30, 60), False),
    ],
)
def test_objects_of_which_too_little_is_left_are_dropped(box, kept):
    size = (110, 100)
    objects = np.array([[2, *np.array(box) / np.tile(size[::-1], 2), 1]])
    found = map_objects(objects, size, np.eye(3), size)
    assert found.dtype == np.float32
    assert len(found) == kept
    if kept:
        np.testing.assert_allclose(found[0, 1:5], np.clip(objects[0, 1:5], 0, 1), atol=1e-6)


def test_the_image_stays_as_it_is_where_nothing_is_random():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    matrix = choose_matrix((40, 60), (20, 30), options_of(), rng)
    np.testing.assert_array_equal(warp(image, matrix, (20, 30), FILL), image[10:30, 15:45])
    np.testing.assert_array_equal(warp(image, np.eye(3), (50, 60), FILL)[40:], np.full((10, 60, 3), FILL))


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_images_without_objects(mosaic):
    tile = scene((30, 40), [])
    options, rng = options_of(mosaic_prob=mosaic, **RECIPE, **COLOURS), np.random.default_rng(0)
    found = augment_mosaic([tile] * 4, SIZE, options, rng)[1] if mosaic else augment(*tile, SIZE, options, rng)[1]
    assert found.shape == (0, 6)


def test_gains_in_hsv():
    red, grey = (np.full((2, 2, 3), colour, np.uint8) for colour in ((0, 0, 200), (90, 90, 90)))
    np.testing.assert_array_equal(scale_hsv(red, np.ones(3)), red)
    np.testing.assert_array_equal(scale_hsv(red, np.array([1, 1, 2])), np.broadcast_to([0, 0, 255], red.shape))
    np.testing.assert_array_equal(scale_hsv(red, np.array([1, 0, 1])), np.full_like(red, 200))
    np.testing.assert_array_equal(scale_hsv(grey, np.array([1.5, 1, 1])), grey)
    blue = np.full((2, 2, 3), (200, 0, 0), np.uint8)  # hue 120 of 180; 1.5 times that is red again
    np.testing.assert_array_equal(scale_hsv(blue, np.array([1.5, 1, 1])), red)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


def iterator_of(path, workers=0, **options):
    augmentation = options_of(mosaic_prob=0.5, **RECIPE, **COLOURS)
    settings = {"augment": augmentation, "num_classes": 3, "shuffle": True, "seed": 5, "workers": workers}
    return DetRecordIter(path, 4, SIZE, **(settings | options))


def test_mosaics_are_the_same_for_any_number_of_workers(record):
    runs = {}
    for workers in (0, 1, 3):
        iterator = iterator_of(record, workers, sizes=[(32, 64), SIZE], assigner=ColumnAssigner())
        runs[workers] = epoch_of(iterator)
        iterator.reset()
        runs[workers] += epoch_of(iterator)
        iterator.close()
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[3])
    again = iterator_of(record, epoch=1, sizes=[(32, 64), SIZE], assigner=ColumnAssigner())
    assert_same(runs[0][3:], epoch_of(again))


def test_an_epoch_has_as_many_samples_as_records_and_labels_for_four(record):
    batches = list(iterator_of(record))
    index = np.concatenate([batch.index[: 4 - batch.pad] for batch in batches])
    assert sorted(index) == list(range(FIRST_ID, FIRST_ID + COUNT))
    assert batches[0].label[0].shape == (4, 4 * 3, 6)
    plain = iterator_of(record, augment=TrainAugment())
    assert next(plain).label[0].shape == (4, 3, 6)


def test_a_damaged_partner_is_named(tmp_path):
    path = write(tmp_path / "bad.rec", images={6: b"no image"})
    iterator = iterator_of(path, augment=options_of(mosaic_prob=1.0), shuffle=False)
    with pytest.raises(DataError, match=r"bad\.rec, record 106"):
        list(iterator)


@pytest.mark.parametrize("name", ["mosaic_prob", *COLOURS, *(name for name in RECIPE if "_" not in name)])
def test_the_native_engine_refuses_them_by_name(name):
    with pytest.raises(OptionError, match=f"{name} is unknown to the native engine"):
        classic_arguments(replace(TrainAugment(), **{name: 0.5}))
    assert iterator_options({name: 0.5, "num_crop_sampler": 0, **QUIET})["augment"] is not None
    assert iterator_options({"num_crop_sampler": 0, **QUIET})["augment"] is None


QUIET = {
    **{f"{name}_prob": 0.0 for name in ("rand_crop", "rand_pad", "rand_mirror", "random_hue", "random_contrast")},
    **{f"random_{name}_prob": 0.0 for name in ("saturation", "illumination")},
    "inter_method": 1,
}
