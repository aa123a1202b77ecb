"""Inputs of several sizes: of multi-scale training and of rectangular batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from dataset.batch_spec import BatchSpec
from dataset.input_sizes import multi_scale_sizes
from dataset.iterator import DetRecordIter, open_batches
from dataset.labels import pack_label
from dataset.letterbox import letterbox
from dataset.recordio import RecordWriter, pack
from machine.opencv import cv2

SHAPES = [(60, 90), (90, 60), (64, 64), (40, 120), (50, 100), (100, 50), (63, 64)]
SIDE, BATCH, FILL = 96, 2, 114
BOX = [0.25, 0.5, 0.75, 1.0]
LETTERBOX = {"augment": None, "num_classes": 1, "workers": 0, "resize_mode": "letterbox", "fill": FILL}


def test_factors_and_pixels():
    assert multi_scale_sizes((416, 416), ()) == ()
    sides = [side for side, _ in multi_scale_sizes((416, 416), (0.67, 1.5))]
    assert sides == list(range(288, 609, 32))
    assert multi_scale_sizes((416, 416), (279, 624)) == multi_scale_sizes((416, 416), (0.67, 1.5))
    assert multi_scale_sizes((320, 640), (640, 640)) == ((320, 640),)
    assert multi_scale_sizes((32, 640), (0.2, 0.2)) == ((32, 128),)
    assert multi_scale_sizes((256, 384), (0.6, 1.4), 128) == ((128, 256), (256, 384), (384, 512))


@pytest.mark.parametrize("side", [320, 416, 512, 608, 640])
def test_one_factor_gives_the_range_of_the_trainer(side):
    """grid_min and grid_max of train.py of the YOLOv3-SPP trainer: 320 to 736 at 512."""
    low, high = int(side // 1.5) // 32 * 32, int(side // 0.667) // 32 * 32
    assert [height for height, _ in multi_scale_sizes((side, side), (1.5,))] == list(range(low, high + 1, 32))


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.floats(0.5, 1), st.floats(1, 2))
def test_sides_are_multiples_in_the_proportions_of_the_input(units, low, high):
    size = (units[0] * 32, units[1] * 32)
    found = multi_scale_sizes(size, (low, high))
    assert size in found
    for height, width in found:
        assert height % 32 == width % 32 == 0
        assert low * max(size) - 1 <= max(height, width) <= high * max(size) + 1
        assert abs(height * size[1] - width * size[0]) <= 16 * max(size)


@pytest.mark.parametrize("limits", [(1.0,), (0.7,), (448,), (1.5, 0.5), (1, 2, 3), (0.01, 0.02), (300, 310)])
def test_limits_that_make_no_sense(limits):
    with pytest.raises(OptionError, match="--multi-scale"):
        multi_scale_sizes((300, 300), limits)


def write(path, images):
    with RecordWriter(path) as writer:
        for index, image in enumerate(images):
            label = pack_label(np.array([[0, *BOX, 0]], np.float32))
            writer.write(index, pack(label, image, index))
    return path


def picture(shape, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    images = [picture(shape, seed) for seed, shape in enumerate(SHAPES)]
    return write(tmp_path_factory.mktemp("rect") / "a.rec", images)


def batches_of(record, **options):
    iterator = DetRecordIter(record, BATCH, SIDE, **(LETTERBOX | options))
    try:
        return list(iterator), iterator.provide_data[0].shape
    finally:
        iterator.close()


def samples_of(batches):
    """{id: (pixels, label, geometry)}"""
    return {
        int(index): (batch.data[0].asnumpy()[row], batch.label[0].asnumpy()[row], batch.geometry[row])
        for batch in batches
        for row, index in enumerate(batch.index[: BATCH - batch.pad])
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_every_record_once_in_the_smallest_input(record, workers):
    batches, reserved = batches_of(record, rect=32, workers=workers)
    shapes = [batch.data[0].shape for batch in batches]
    assert shapes == [(2, 3, 64, 96), (2, 3, 96, 96), (2, 3, 96, 96), (2, 3, 96, 64)]
    assert [batch.provide_data[0].shape for batch in batches] == shapes
    assert reserved == (2, 3, 96, 96)
    assert [batch.index.tolist() for batch in batches] == [[3, 4], [0, 6], [2, 1], [5, -1]]
    assert [batch.pad for batch in batches] == [0, 0, 0, 1]
    assert (batches[-1].label[0].asnumpy()[1, :, 0] == -1).all()


def test_the_image_is_that_of_the_square_batch(record):
    """Only the borders differ; boxes are normalised to each batch's own input."""
    square, wide = (samples_of(batches_of(record, rect=rect)[0]) for rect in (0, 32))
    assert square.keys() == wide.keys() == set(range(len(SHAPES)))
    for index, shape in enumerate(SHAPES):
        (full, label, view), (cut, rect_label, rect_view) = square[index], wide[index]
        np.testing.assert_array_equal(view[:4], rect_view[:4])
        parts = []
        for pixels in (full, cut):
            frame = letterbox(shape, pixels.shape[1:])
            parts.append(pixels[:, frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]])
        np.testing.assert_array_equal(*parts)
        for rows, geometry, pixels in ((label, view, full), (rect_label, rect_view, cut)):
            height, width, scale_y, scale_x, top, left = geometry
            edges = np.array(BOX) * ([width, height] * 2) * ([scale_x, scale_y] * 2) + [left, top, left, top]
            np.testing.assert_allclose(rows[0, 1:5], edges / (pixels.shape[:0:-1] * 2), atol=1e-6)


def test_epochs_are_alike_and_sides_follow_the_multiple(record):
    iterator = DetRecordIter(record, BATCH, SIDE, rect=48, **LETTERBOX)
    first = list(iterator)
    iterator.reset()
    for a, b in zip(first, iterator, strict=True):
        np.testing.assert_array_equal(a.data[0].asnumpy(), b.data[0].asnumpy())
    assert [batch.data[0].shape[2:] for batch in first] == [(48, 96), (96, 96), (96, 96), (96, 48)]
    iterator.close()


def test_memory_is_reserved_for_the_largest_batch_alone(tmp_path):
    record = write(tmp_path / "wide.rec", [picture((30, 90), seed) for seed in range(3)])
    _, reserved = batches_of(record, rect=32)
    assert reserved == (2, 3, 32, 96)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rect": 64}, "96,96, are not multiples of 64"),
        ({"resize_mode": "force"}, "--resize-mode letterbox"),
        ({"num_parts": 2}, "not 2 parts of a record"),
        ({"sizes": ((64, 64),)}, "not --multi-scale"),
        ({"augment": TrainAugment(mosaic_prob=0.5)}, "not --mosaic-prob"),
    ],
)
def test_what_does_not_go_together(record, options, words):
    with pytest.raises(OptionError, match=words):
        batches_of(record, **({"rect": 32} | options))


def test_a_damaged_header_is_named_at_once(tmp_path):
    record = write(tmp_path / "bad.rec", [picture((60, 90), 1), b"no image"])
    with pytest.raises(DataError, match=r"bad\.rec, record 1: the image cannot be decoded"):
        batches_of(record, rect=32)


@pytest.mark.parametrize("rect", [0, 32])
def test_the_native_engine_refuses(record, rect):
    with pytest.raises(OptionError, match="--data-engine python"):
        open_batches(BatchSpec(record, BATCH, SIDE, **(LETTERBOX | {"workers": 1, "rect": rect})), "native")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Nine images of which six have the same size: batches of two, the last of one."""
    shapes = [(60, 90)] * 6 + [(64, 64), (90, 60), (90, 60)]
    images = [picture(shape, seed) for seed, shape in enumerate(shapes)]
    return write(tmp_path_factory.mktemp("twins") / "a.rec", images)


def test_training_shuffles_the_batches_and_images_of_equal_size(twins):
    """Each epoch has every record once, in the inputs of the validation's batches, in an order of its own."""
    plain = [batch.data[0].shape for batch in batches_of(twins, rect=32)[0]]
    seen, orders = set(), set()
    for epoch in range(4):
        batches, _ = batches_of(twins, rect=32, shuffle=True, epoch=epoch, seed=3)
        assert sorted(batch.data[0].shape for batch in batches) == sorted(plain)
        assert sorted(samples_of(batches)) == list(range(9))
        orders.add(tuple(batch.data[0].shape for batch in batches))
        seen |= {frozenset(batch.index.tolist()) for batch in batches}
    assert len(orders) > 1
    assert len(seen) > len(plain), "the same images do not always meet"


def test_padding_shows_images_of_the_batch_itself(twins):
    batches, _ = batches_of(twins, rect=32, shuffle=True, epoch=1)
    short = next(batch for batch in batches if batch.pad)
    pixels = short.data[0].asnumpy()
    np.testing.assert_array_equal(pixels[1], pixels[0])
    assert (short.label[0].asnumpy()[1, :, 0] < 0).all()
    assert short.index.tolist()[1] == -1


def test_the_order_of_rectangles_depends_on_seed_and_epoch_alone(twins):
    options = {"rect": 32, "shuffle": True, "augment": TrainAugment(), "seed": 1, "epoch": 2}
    runs = [batches_of(twins, workers=workers, **options)[0] for workers in (0, 2)]
    for one, other in zip(*runs, strict=True):
        assert one.index.tolist() == other.index.tolist()
        np.testing.assert_array_equal(one.data[0].asnumpy(), other.data[0].asnumpy())
