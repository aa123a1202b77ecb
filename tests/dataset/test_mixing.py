"""Quarter turns, flips, mixtures, grey, blur, noise, JPEG, and the end of mosaics: pixels, boxes and random numbers."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import OptionError
from config.augment_options import TrainAugment
from config.config import NO_AUGMENT, classic_arguments
from dataset.augment import degrade, mix_up, orient
from dataset.batch_spec import BatchSpec, plan_batches
from dataset.iterator import DetRecordIter
from dataset.transforms import as_jpeg, turn_objects, turn_pixels
from tests.dataset.test_iterator import COUNT, SIZE, assert_same, epoch_of, write
from tests.dataset.test_mosaic import BACK, COLOURS, FRONT, RECIPE, scene
from tests.dataset.toy_assigner import ColumnAssigner

ALL = {
    **{"flip_ud_prob": 0.5, "quarter_turn_prob": 0.5, "mixup_prob": 0.5, "grey_prob": 0.3, "blur_prob": 0.5},
    **{"noise_prob": 0.5, "jpeg_prob": 0.5},
}


def options_of(**changes):
    return replace(NO_AUGMENT, **changes)


def exact_box(pixels):
    rows, columns = (
        np.flatnonzero((pixels == FRONT).any(axis=(1, 2))),
        np.flatnonzero((pixels == FRONT).any(axis=(0, 2))),
    )
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


def test_boxes_of_turned_and_flipped_images_sit_on_the_pixels():
    image, objects = scene((40, 70), [(5, 3, 30, 21)])
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        turned, found = orient(image, objects, options_of(flip_ud_prob=0.5, quarter_turn_prob=0.8), rng)
        box = found[0, 1:5] * np.tile(turned.shape[1::-1], 2)
        np.testing.assert_allclose(box, exact_box(turned), atol=1e-4)
        assert (turned == BACK).sum() + (turned == FRONT).sum() == image.size
        assert found[0, [0, 5]].tolist() == objects[0, [0, 5]].tolist()
        seen.add((turned.shape[:2], tuple(exact_box(turned))))
    assert len(seen) == 8, "four quarters, each also upside down"


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turn_is_clockwise_and_the_rest_of_the_circle_leads_back(quarters):
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(turn_pixels(image, quarters), np.rot90(image, -quarters))
    objects = scene((40, 70), [(5, 3, 30, 21), (0, 0, 70, 40)])[1]
    back = turn_objects(turn_objects(objects, quarters), 4 - quarters)
    np.testing.assert_allclose(back, objects, atol=1e-6)


def test_a_mixture_is_the_weighted_mean_with_the_objects_of_both():
    bright, dark = (np.full((20, 30, 3), value, np.uint8) for value in (200, 100))
    shares = []
    for seed in range(200):
        boxes = [scene((20, 30), [(1, 2, 9, 9)] * count, first)[1] for count, first in ((2, 0), (1, 7))]
        pixels, objects = mix_up((bright, boxes[0]), (dark, boxes[1]), np.random.default_rng(seed))
        np.testing.assert_array_equal(objects, np.concatenate(boxes))
        assert len(np.unique(pixels)) == 1
        shares.append((pixels[0, 0, 0] - 100) / 100)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.std(shares) == pytest.approx(0.062, abs=0.012)  # of Beta(32, 32): 1 / (2 sqrt(65))


def test_grey_blur_noise_and_jpeg_do_what_they_say():
    image = np.random.default_rng(0).integers(60, 190, (64, 64, 3), dtype=np.uint8)
    smooth = np.full((64, 64, 3), 128, np.uint8)
    rng = np.random.default_rng(1)
    grey = degrade(image, options_of(grey_prob=1.0), rng)
    assert (grey == grey[..., :1]).all()
    assert grey.std() > 10
    blur = degrade(image, options_of(blur_prob=1.0, max_blur=3.0), rng)
    assert blur.std() < 0.7 * image.std()
    assert blur.mean() == pytest.approx(image.mean(), abs=1)
    deviations = [degrade(smooth, options_of(noise_prob=1.0, max_noise=20.0), rng).std() for _ in range(100)]
    assert max(deviations) == pytest.approx(20, abs=1.5)
    assert np.mean(deviations) == pytest.approx(10, abs=2)
    qualities = {as_jpeg(image, quality).tobytes() for quality in range(40, 96)}
    for _ in range(10):
        assert degrade(image, options_of(jpeg_prob=1.0, min_jpeg_quality=40), rng).tobytes() in qualities


def test_what_is_off_draws_nothing():
    image, objects = scene((40, 70), [(5, 3, 30, 21)])
    rng = np.random.default_rng(3)
    assert orient(image, objects, TrainAugment(), rng)[0] is image
    assert degrade(image, TrainAugment(), rng) is image
    assert rng.random() == np.random.default_rng(3).random()


def iterator_of(path, workers=0, epoch=0, **changes):
    augment = replace(TrainAugment(), mosaic_prob=0.5, **RECIPE, **COLOURS, **ALL)
    settings = {"num_classes": 3, "shuffle": True, "seed": 5, "workers": workers, "epoch": epoch}
    return DetRecordIter(path, 4, SIZE, **(settings | {"augment": augment, "assigner": ColumnAssigner()} | changes))


def test_samples_are_the_same_for_any_number_of_workers_and_epoch_to_begin_with(record):
    runs = []
    for workers in (0, 2):
        iterator = iterator_of(record, workers, mosaic_end=1)
        runs.append(epoch_of(iterator))
        iterator.reset()
        runs[-1] += epoch_of(iterator)
        iterator.close()
    assert_same(*runs)
    assert_same(runs[0][3:], epoch_of(iterator_of(record, epoch=1, mosaic_end=1)))


def test_a_mixture_needs_room_for_the_objects_of_two_views(record):
    for augment, rows in (({}, 3), ({"mixup_prob": 1.0}, 6), ({"mixup_prob": 1.0, "mosaic_prob": 1.0}, 24)):
        batch = next(iterator_of(record, augment=options_of(**augment), assigner=None))
        assert batch.label[0].shape == (4, rows, 6)


def shown(path, epoch, **changes):
    """How many objects each sample of an epoch has, in the order of the file."""
    spec = BatchSpec(path, 4, SIZE, num_classes=3, epoch=epoch, **changes)
    maker = plan_batches(spec).maker
    return [len(maker.view(epoch, position)[1]) for position in range(COUNT)]


def test_from_the_end_of_mosaics_on_samples_show_one_record_each(record):
    own = [k % 4 for k in range(COUNT)]
    for augment in (
        options_of(mixup_prob=1.0),
        options_of(mosaic_prob=1.0),
        options_of(mosaic_prob=1.0, mixup_prob=1.0),
    ):
        for epoch, alone in ((0, False), (1, False), (2, True), (3, True)):
            assert (shown(record, epoch, augment=augment, mosaic_end=2) == own) == alone
        assert shown(record, 9, augment=augment) != own


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_mosaics_may_be_set_late(record, workers):
    late, early = iterator_of(record, workers), iterator_of(record, mosaic_end=0)
    late.end_mosaic(0)
    assert_same(epoch_of(late), epoch_of(early))
    late.close()


def test_the_geometry_of_a_view_of_several_or_turned_images_is_unknown(record):
    plain = plan_batches(BatchSpec(record, 4, SIZE, num_classes=3, augment=options_of())).maker.view(0, 1)[2]
    assert np.isfinite(plain).all()
    for name in ("mixup_prob", "flip_ud_prob", "quarter_turn_prob"):
        spec = BatchSpec(record, 4, SIZE, num_classes=3, augment=options_of(**{name: 1.0}))
        view = plan_batches(spec).maker.view(0, 1)[2]
        assert view[:2].tolist() == plain[:2].tolist(), name
        assert np.isnan(view[2:]).all(), name


@pytest.mark.parametrize("name", ALL)
def test_the_native_engine_refuses_them_by_name(name):
    with pytest.raises(OptionError, match=f"{name} is unknown to the native engine"):
        classic_arguments(replace(TrainAugment(), **{name: 0.5}))
