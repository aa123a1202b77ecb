"""--bad-records skip:N: records that cannot be read become padding, in the same way whoever makes the batches."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from dataset.labels import PADDING
from dataset.left_out import left_out_limit
from dataset.recordio import RecordReader, RecordWriter
from tests.dataset.test_iterator import CLASSES, COUNT, FIRST_ID, SIZE, assert_same, content, ids, write
from tests.dataset.toy_assigner import ToyAssigner

DAMAGED = {2: b"not an image", 7: b"\x89PNG\r\n\x1a\n", COUNT - 1: b""}
PLAIN = TrainAugment()


@pytest.fixture
def damaged(tmp_path):
    return write(tmp_path / "bad.rec", images=DAMAGED)


@pytest.fixture
def make():
    iterators = []

    def build(path, **options):
        given = {"augment": None, "num_classes": CLASSES, "workers": 0, "left_out": 3, "assigner": ToyAssigner()}
        iterators.append(open_batches(BatchSpec(path, 4, SIZE, **(given | options))))
        return iterators[-1]

    yield build
    for iterator in iterators:
        iterator.close()


def test_they_are_padding_at_the_end_of_their_batches(make, damaged, tmp_path):
    sound = make(write(tmp_path / "sound.rec"), left_out=0)
    iterator = make(damaged)
    for batch, wanted in zip(iterator, sound, strict=True):
        rows = len(batch.index) - batch.pad
        kept = [k for k, number in enumerate(wanted.index) if number >= 0 and number - FIRST_ID not in DAMAGED]
        assert rows == len(kept)
        assert (batch.index[:rows] == wanted.index[kept]).all()
        assert (batch.index[rows:] == -1).all()
        assert (batch.geometry[rows:] == 0).all()
        label = batch.label[0].asnumpy()
        assert (label[rows:, :, :-1] == -1).all()
        assert (label[rows:, :, -1] == PADDING).all()
        for own, other in zip((batch.data[0], *batch.label[:-1]), (wanted.data[0], *wanted.label[:-1]), strict=True):
            np.testing.assert_array_equal(own.asnumpy()[:rows], other.asnumpy()[kept])
        objects = sum(int(number) % 4 for number in wanted.index[kept] - FIRST_ID)  # as objects_of makes them
        assert (batch.label[-1].asnumpy() == objects).all()
    assert list(iterator.left_out.state()) == [str(k) for k in DAMAGED]


@pytest.mark.parametrize(
    "options",
    [
        {"augment": PLAIN, "shuffle": True},
        {"augment": replace(PLAIN, mosaic_prob=1.0), "shuffle": True, "accumulate": 2},
        {"augment": replace(PLAIN, mixup_prob=1.0), "shuffle": True},
        {"rect": 32, "resize_mode": "letterbox", "data_shape": 64},
    ],
    ids=["random views", "mosaic", "mixture", "rect"],
)
def test_workers_change_nothing_and_each_is_logged_once(damaged, caplog, options):
    found = []
    for workers in (0, 3):
        given = {"data_shape": SIZE, "augment": None, "num_classes": CLASSES, "left_out": 3} | options
        iterator = open_batches(BatchSpec(damaged, 4, workers=workers, **given))
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            found.append([content(batch) for _ in range(2) for batch in epoch(iterator)])
        iterator.close()
        assert len(caplog.messages) == len(DAMAGED)
        for k in DAMAGED:
            assert sum(f"bad.rec, record {FIRST_ID + k}:" in line for line in caplog.messages) == 1
        assert "3 so far" in caplog.text
    assert_same(*found)


def epoch(iterator):
    yield from iterator
    iterator.reset()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_allowed_is_an_error_that_names_all_and_the_option(make, damaged, workers):
    iterator = make(damaged, left_out=2, workers=workers)
    with pytest.raises(DataError, match="3 of .* records cannot be read, more than --bad-records skip:2") as error:
        ids(iterator)
    for k in DAMAGED:
        assert f"record {FIRST_ID + k}:" in str(error.value)


def test_a_damaged_label_or_record_counts_but_wrong_options_do_not(make, tmp_path):
    label = np.array([[0, 0.5, 0.5, 0.2, 0.2, 0]], np.float32)
    path = write(tmp_path / "label.rec", labels={3: label})
    assert FIRST_ID + 3 not in ids(make(path))
    with pytest.raises(DataError, match="raise max_objects"):
        ids(make(path, max_objects=1))
    reader = RecordReader(path)
    with RecordWriter(tmp_path / "short.rec") as writer:
        for k in range(len(reader)):
            writer.write(FIRST_ID + k, b"short" if k == 5 else reader.read(k))
    assert FIRST_ID + 5 not in ids(make(tmp_path / "short.rec"))


def test_a_record_file_that_becomes_shorter_still_ends_the_run(make, tmp_path):
    path = write(tmp_path / "cut.rec")
    iterator = make(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match="the file ends inside it"):
        ids(iterator)


def test_nothing_that_can_be_read_is_an_error(make, tmp_path):
    path = write(tmp_path / "none.rec", count=3, images=dict.fromkeys(range(3), b"x"))
    with pytest.raises(DataError, match="none of its 3 records can be read"):
        ids(make(path, left_out=5))


def test_what_an_earlier_part_of_a_run_left_out_counts_and_is_not_logged(make, damaged, caplog):
    iterator = make(damaged)
    iterator.left_out.resume({"2": "known"})
    ids(iterator)
    assert len(caplog.messages) == 2
    assert iterator.left_out.state()["2"] == "known"
    with pytest.raises(DataError, match="2 of .* more than --bad-records skip:1"):
        make(damaged, left_out=1).left_out.resume({"2": "known", "7": "too"})


def test_the_native_engine_refuses(damaged):
    with pytest.raises(OptionError, match="--data-engine python for --bad-records"):
        open_batches(BatchSpec(damaged, 4, SIZE, augment=None, num_classes=CLASSES, left_out=1), "native")


def test_words_of_the_option():
    assert (left_out_limit("stop"), left_out_limit("skip:12")) == (0, 12)
