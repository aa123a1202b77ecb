"""The classic call of DetRecordIter and a BatchSpec are two doors to the same batches."""

import dataclasses

import numpy as np
import pytest

from common.errors import OptionError
from config.augment_options import TrainAugment
from config.config import cfg, iterator_options
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
    "mosaic_end": 4,
    "left_out": 0,
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
def test_settings_of_cfg_are_arguments_of_the_classic_call(record, engine, classic):
    """`**cfg.train` as the document has it; the limit of preprocess_threads is that of the machine."""
    common = {"num_classes": CLASSES, "num_parts": 1}
    for settings in (cfg.train, cfg.valid):
        wanted = served(open_batches(BatchSpec(record, 2, 32, **iterator_options(settings), **common), engine))
        found = served(classic(record, 2, (3, 32, 32), path_imglist="", **settings, **common))
        assert found[:2] == wanted[:2]
        assert_same(found[2], wanted[2])


@CLASSIC
def test_what_is_not_asked_for_is_not_done(record, engine, classic):
    wanted = served(open_batches(BatchSpec(record, 2, 32, augment=None, num_classes=CLASSES), engine))
    found = served(classic(record, 2, 32, num_classes=CLASSES))
    assert_same(found[2], wanted[2])
    mirrored = classic(record, 2, 32, rand_mirror_prob=1.0, num_classes=CLASSES, workers=0)
    label, original = (batches[0][1] for batches in (served(mirrored)[2], wanted[2]))
    there = original[..., 0] >= 0
    np.testing.assert_allclose(label[there][:, 1], 1 - original[there][:, 3], atol=1e-6)


@CLASSIC
def test_the_width_of_labels_counts_numbers(record, engine, classic):
    for width, rows in ((350, 58), (20, 3)):
        iterator = classic(record, 2, 32, label_pad_width=width, num_classes=CLASSES, workers=0)
        assert iterator.provide_label[0].shape == (2, rows, 6)
        iterator.close()


@CLASSIC
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rand_miror_prob": 1}, r"no argument 'rand_miror_prob' \(did you mean rand_mirror_prob\?\)"),
        ({"label_pad_with": 350}, r"no argument 'label_pad_with' \(did you mean label_pad_width\?\)"),
        ({"label_pad_width": 7}, "label_pad_width 7 has no room for an object; give 8 or more, or 0"),
        ({"label_pad_width": 350, "max_objects": 3}, "label_pad_width and max_objects exclude each other"),
        ({"augment": None, "rand_pad_prob": 1}, "augment and rand_pad_prob exclude each other"),
        ({"rand_pad_prob": 2}, "--rand-pad-prob in cfg"),
        ({"mean_pixels": (1, 2)}, r"mean_pixels \(1, 2\) is not one number for each of red, green, blue"),
        ({"mean_pixels": "grey"}, "mean_pixels grey is not one number"),
    ],
)
def test_mistakes_of_the_classic_call_are_told(record, engine, classic, changes, message):
    with pytest.raises(OptionError, match=message):
        classic(record, 2, 32, num_classes=CLASSES, **changes)


@CLASSIC
def test_one_mean_stands_for_three(record, engine, classic):
    one, three = (
        served(classic(record, 2, 32, mean_pixels=mean, num_classes=CLASSES)) for mean in (100, (100, 100, 100))
    )
    assert_same(one[2], three[2])


@CLASSIC
def test_a_classic_record_has_the_classes_of_its_labels(record, engine, classic, caplog):
    iterator = classic(record, 2, 32)
    iterator.close()
    assert iterator.num_classes == CLASSES
    assert f"they are taken to be the {CLASSES} of its labels" in caplog.text


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
