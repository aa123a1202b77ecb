"""The classic call of DetRecordIter and a BatchSpec are two doors to the same batches."""

import dataclasses

import pytest

from common.errors import OptionError
from config.augment_options import TrainAugment
from dataset.batch_spec import BatchSpec
from dataset.iterator import DetRecordIter, open_batches
from dataset.native_iterator import NativeDetRecordIter
from tests.dataset.test_iterator import CLASSES, assert_same, epoch_of, write
from tests.dataset.toy_assigner import ToyAssigner

CLASSIC = pytest.mark.parametrize(("engine", "classic"), [("python", DetRecordIter), ("native", NativeDetRecordIter)])
OPTIONS = {
    "augment": TrainAugment(),
    "mean_pixels": (1, 2, 3),
    "std": (50, 60, 70),
    "max_objects": 8,
    "num_classes": CLASSES,
    "assigner": ToyAssigner(),
    "shuffle": True,
    "seed": 3,
    "epoch": 2,
    "workers": 1,
    "num_parts": 2,
    "part_index": 1,
    "label_name": "boxes",
    "path_imglist": "",
    "resize_mode": "force",
    "fill": 9,
    "accumulate": 2,
    "warmup_accumulate": 3,
    "warmup_end": 5,
    "sizes": (),
    "rect": 0,
}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


def served(iterator):
    """Names, shapes and content of an epoch."""
    try:
        return iterator.provide_data, iterator.provide_label, epoch_of(iterator)
    finally:
        iterator.close()


@CLASSIC
def test_the_classic_call_serves_the_batches_of_the_spec(record, engine, classic):
    assert {field.name for field in dataclasses.fields(BatchSpec)} == {
        "path_imgrec",
        "batch_size",
        "data_shape",
        *OPTIONS,
    }
    *wanted, batches = served(open_batches(BatchSpec(record, 2, (3, 32, 48), **OPTIONS), engine))
    by_place = served(classic(str(record), 2, (3, 32, 48), **OPTIONS))
    by_name = served(classic(path_imgrec=record, batch_size=2, data_shape=(32, 48), **OPTIONS))
    for *descriptions, found in (by_place, by_name):
        assert descriptions == wanted
        assert_same(found, batches)


@CLASSIC
def test_the_classic_call_needs_to_know_whether_images_are_augmented(record, engine, classic):
    with pytest.raises(TypeError, match="augment"):
        classic(record, 2, 32)
    with pytest.raises(TypeError, match="no_such_option"):
        classic(record, 2, 32, augment=None, no_such_option=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate 0: an update needs at least one batch"),
        ({"batch_size": 0}, "batch_size 0 and part 0 of 1 do not make batches"),
        ({"part_index": -1}, "part -1 of 1"),
        ({"data_shape": (1, 32, 32)}, r"data_shape \(1, 32, 32\): expected a side"),
        ({"warmup_accumulate": 0}, "accumulate 0: an update needs at least one batch"),
        ({"rect": 32}, "--rect-val: .* letterbox"),
        ({"rect": 32, "resize_mode": "letterbox", "sizes": ((32, 32),)}, "--rect-val: .* not --multi-scale"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_the_record_is_opened(changes, message):
    values = {"path_imgrec": "nowhere.rec", "batch_size": 2, "data_shape": 32, "augment": None}
    with pytest.raises(OptionError, match=message):
        BatchSpec(**values | changes)
