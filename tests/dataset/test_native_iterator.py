"""What only the native engine does; the contract of both engines is tested in test_iterator.py."""

import gc
import io
import itertools
import os
import threading
import time
from dataclasses import dataclass, fields

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from config.groups import DATA_ENGINES as ENGINES
from config.options import option
from dataset import native_iterator
from dataset.augment import MIN_SIDE
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from dataset.labels import pack_label
from dataset.native_iterator import NativeDetRecordIter, split_by_bytes
from dataset.recordio import RecordReader, RecordWriter, pack
from machine.opencv import cv2
from tests.dataset.test_iterator import (
    CLASSES,
    COUNT,
    FIRST_ID,
    SIZE,
    assert_same,
    content,
    epoch_of,
    ids,
    image_of,
    objects_of,
    write,
)
from tests.dataset.toy_assigner import ToyAssigner


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


def native(path, batch_size=4, data_shape=SIZE, **options):
    options = {"augment": None, "num_classes": CLASSES, "workers": 1} | options
    return NativeDetRecordIter(path, batch_size, data_shape, **options)


def by_id(iterator):
    """{record id: (pixels, label, geometry)} of an epoch."""
    return {
        index: (batch.data[0].asnumpy()[k], batch.label[0].asnumpy()[k], batch.geometry[k])
        for batch in iterator
        for k, index in enumerate(batch.index[: len(batch.index) - batch.pad])
    }


def test_both_engines_see_the_same_photographs(bccd_dir, tmp_path):
    images = sorted((bccd_dir / "JPEGImages").glob("*.jpg"))[:12]
    with RecordWriter(tmp_path / "photos.rec") as writer:
        for k, path in enumerate(images):
            writer.write(k, pack(pack_label(objects_of(k)), path.read_bytes(), k))
    options = {"augment": None, "num_classes": CLASSES, "std": (58, 57, 57), "workers": 1}
    python, c = (by_id(open_batches(BatchSpec(tmp_path / "photos.rec", 5, (288, 384), **options), e)) for e in ENGINES)
    assert python.keys() == c.keys()
    assert len(c) == 12
    for index, (pixels, label, geometry) in c.items():
        # Both decode JPEG with other versions of libjpeg-turbo and OpenCV.
        difference = np.abs(pixels - python[index][0]) * 57
        assert difference.max() <= 8
        assert difference.mean() < 0.5
        np.testing.assert_array_equal(label, python[index][1])
        np.testing.assert_array_equal(geometry, python[index][2])


def test_augmented_labels_are_inside_the_input_and_of_their_record(record):
    iterator = native(record, augment=TrainAugment(), shuffle=True, seed=1)
    lost = 0
    for _ in range(6):
        for index, (_, label, geometry) in by_id(iterator).items():
            rows, original = label[label[:, 0] >= 0], objects_of(index - FIRST_ID)
            assert {(r[0], r[5]) for r in rows} <= {(r[0], r[5]) for r in original}
            assert (label[len(rows) :] == -1).all()
            assert ((rows[:, 1:5] >= 0) & (rows[:, 1:5] <= 1)).all()
            assert (rows[:, 3:5] - rows[:, 1:3] >= MIN_SIDE).all()
            np.testing.assert_array_equal(geometry[:2], [40 + index - FIRST_ID, 60])
            assert np.isnan(geometry[2:]).all()
            lost += len(original) - len(rows)
        iterator.reset()
    assert lost, "no crop has dropped an object"


@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_show_other_views_and_runs_the_same(record, shuffle):
    iterator, again = (native(record, augment=TrainAugment(), shuffle=shuffle) for _ in range(2))
    epochs = []
    for _ in range(3):
        epochs.append(by_id(iterator))
        repeated = by_id(again)
        assert list(epochs[-1]) == list(repeated)
        for index, arrays in repeated.items():
            assert_same([arrays], [epochs[-1][index]])
        iterator.reset()
        again.reset()
    for one, other in itertools.combinations(epochs, 2):
        assert (list(one) != list(other)) == shuffle
        assert not any(np.array_equal(one[index][0], other[index][0]) for index in one)


def test_the_assigner_runs_in_a_thread_of_this_process(record):
    batch = native(record, assigner=ToyAssigner()).next()
    np.testing.assert_array_equal(batch.label[2].asnumpy(), np.ones((4, 1)))
    np.testing.assert_array_equal(batch.label[1].asnumpy()[3].ravel(), np.resize(objects_of(3)[:, 0], 8))


def jpeg(orientation=1):
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8), (60, 40))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


NO_PIXELS = jpeg()[: jpeg().index(b"\xff\xc0") + 20]

BAD = {
    "image": ({"images": {6: b"not an image"}}, "record 106.*decoded"),
    "rotated": ({"images": {6: jpeg(orientation=6)}}, "record 106.*EXIF orientation 6.*--data-engine python"),
    "class": ({"labels": {6: np.array([[CLASSES, 0, 0, 1, 1, 0]], np.float32)}}, "record 106.*class"),
    "pixels": ({"labels": {6: np.array([[0, 10, 20, 50, 60, 0]], np.float32)}}, "record 106.*pixel"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_label_or_header_is_named_at_once(tmp_path, kind):
    changes, message = BAD[kind]
    with pytest.raises(DataError, match=f"bad.rec, {message}"):
        native(write(tmp_path / "bad.rec", **changes))


def test_upright_jpeg_with_exif_is_fine(tmp_path):
    assert len(epoch_of(native(write(tmp_path / "upright.rec", images={6: jpeg()})))) == 3


def test_undecodable_image_is_named_and_reset_begins_anew(tmp_path):
    iterator = native(write(tmp_path / "bad.rec", images={6: NO_PIXELS}), shuffle=True)
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(DataError, match="bad.rec, record 106.*decoded"):
                epoch_of(iterator)
        iterator.reset()


def test_shard_of_another_record_is_not_troubled_by_it(tmp_path):
    path = write(tmp_path / "bad.rec", images={10: NO_PIXELS})
    assert set(ids(native(path, num_parts=2, part_index=0))) == set(range(FIRST_ID, FIRST_ID + 6))


def test_record_cut_off_after_the_start(tmp_path):
    path = write(tmp_path / "cut.rec")
    iterator = native(path)
    os.truncate(path, RecordReader(path).bounds[3])
    iterator.reset()
    with pytest.raises(DataError, match="cut.rec, record 10[3-9]"):
        epoch_of(iterator)


def test_two_records_of_one_id(tmp_path):
    with RecordWriter(tmp_path / "twins.rec") as writer:
        for k in range(2):
            writer.write(k, pack(pack_label(objects_of(1)), image_of(k), 7))
    with pytest.raises(DataError, match="record 1: id 7 is that of another record"):
        native(tmp_path / "twins.rec")


def test_name_with_characters_that_mxnet_interprets(tmp_path):
    folder = tmp_path / "a;b?c#d e"
    folder.mkdir()
    assert len(ids(native(write(folder / "toy.rec")))) == COUNT


def test_classic_label_with_a_long_header_and_narrow_objects(tmp_path):
    flat = np.array([4, 5, 640, 480, 1, 0.1, 0.2, 0.3, 0.4], np.float32)
    with RecordWriter(tmp_path / "old.rec") as writer:
        writer.write(0, pack(flat, image_of(0), 0))
    label = native(tmp_path / "old.rec").next().label[0].asnumpy()[0]
    np.testing.assert_array_equal(label, flat[None, [4, 5, 6, 7, 8, 4]] * [1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("parts", [1, 3])
def test_blocks_of_a_large_file_are_shuffled_and_served_once(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(native_iterator, "SHUFFLE_CHUNK_MB", 1)
    noise = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))[1].tobytes()
    path = write(tmp_path / "large.rec", 40, images=dict.fromkeys(range(40), noise))
    assert path.stat().st_size > 7_000_000
    shards = [native(path, shuffle=True, num_parts=parts, part_index=k) for k in range(parts)]
    for _ in range(2):
        orders = [ids(shard) for shard in shards]
        assert sorted(np.concatenate(orders)) == list(range(FIRST_ID, FIRST_ID + 40))
        for shard in shards:
            shard.reset()
    # Blocks of 1 MB hold 5 of these records: the first record of the file is seldom among the first 5.
    firsts = []
    for epoch in range(8):
        shards[0].set_epoch(epoch)
        firsts.append(FIRST_ID in ids(shards[0])[:5])
    assert not all(firsts)


def test_split_by_bytes_is_that_of_mxnet():
    bounds = np.array([0, 10, 20, 30, 40])
    assert [list(part) for part in split_by_bytes(bounds, 3, 1)] == [[0, 1], [2, 3], []]
    assert [list(part) for part in split_by_bytes(bounds, 1, 5)] == [[0, 1, 2, 3]]


def test_shard_without_records(tmp_path):
    with pytest.raises(OptionError, match="too large for 4 parts"):
        native(write(tmp_path / "toy.rec", 4, images={0: jpeg() + bytes(40000)}), num_parts=4)


def threads_and_files():
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def more_than(before):
    """Whether there are more than before; fewer are other tests' threads that have ended meanwhile."""
    return any(now > then for now, then in zip(threads_and_files(), before, strict=True))


@pytest.mark.parametrize("how", ["close", "collect"])
def test_close_and_garbage_collection_end_threads_and_free_files(record, how):
    epoch_of(native(record))
    gc.collect()
    before = threads_and_files()
    iterator = native(record)
    iterator.next()
    if how == "close":
        iterator.close()
        assert iterator.next().index[0] == FIRST_ID + 4, "an iterator goes on after close()"
        iterator.close()
    del iterator
    gc.collect()
    end = time.monotonic() + 10
    while more_than(before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not more_than(before)


def test_epoch_alone_decides_after_close_too(record):
    options = {"augment": TrainAugment(), "shuffle": True, "seed": 3}
    whole = epoch_of(native(record, **options))
    iterator = native(record, **options)
    parts = [content(iterator.next())]
    iterator.close()
    assert_same(whole, parts + epoch_of(iterator))


@dataclass(frozen=True)
class LaterAugment(TrainAugment):
    mosaic_prob: float = option(0.0, "a field that C++ does not know")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (TrainAugment(inter_method=0), "inter_method 0"),
        (TrainAugment(min_crop_scales=(1.0,) * 5), "min_crop_scales"),
        (LaterAugment(mosaic_prob=0.5), "mosaic_prob.*--data-engine python"),
    ],
)
def test_what_c_cannot_do_is_refused_by_name(record, augment, message):
    with pytest.raises(OptionError, match=message):
        native(record, augment=augment)


def test_augmentation_without_crop_samplers(record):
    nothing = {field.name: () for field in fields(TrainAugment) if isinstance(field.default, tuple)}
    assert len(ids(native(record, augment=LaterAugment(**nothing), shuffle=True))) == COUNT
