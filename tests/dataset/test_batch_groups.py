"""Batches of several input sizes and groups of batches that make one update together."""

import numpy as np
import pytest

from common.errors import DataError, OptionError
from config.augment_options import TrainAugment
from config.groups import DATA_ENGINES as ENGINES
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from dataset.workers import WorkerPool
from tests.dataset.test_iterator import COUNT, FIRST_ID, SIZE, assert_same, epoch_of, ids, write
from tests.dataset.toy_assigner import ColumnAssigner

SIZES = ((32, 32), (32, 64), (64, 96), (96, 64))
BATCH = 2
BATCHES = 6  # of COUNT = 11 records


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


@pytest.fixture
def make(record):
    """Makes iterators over the toy record and closes them."""
    iterators = []

    def build(path=record, engine="python", **options):
        options = {"augment": None, "num_classes": 3, "workers": 0, "assigner": ColumnAssigner()} | options
        iterators.append(open_batches(BatchSpec(path, BATCH, SIZE, **options), engine))
        return iterators[-1]

    yield build
    for iterator in iterators:
        iterator.close()


def shapes(batch):
    return [array.shape for array in batch.data + batch.label]


def test_a_batch_says_its_size_and_so_do_all_arrays(make):
    iterator = make(sizes=SIZES, epoch=3)
    assert iterator.provide_data[0].shape == (BATCH, 3, *SIZE)
    assert iterator.provide_label[1].shape == (BATCH, SIZE[0] * SIZE[1])
    seen = set()
    for batch in iterator:
        described = batch.provide_data + batch.provide_label
        assert [tuple(desc.shape) for desc in described] == shapes(batch)
        size = batch.data[0].shape[2:]
        assert batch.label[1].shape == (BATCH, size[0] * size[1])
        for row in range(BATCH - batch.pad):
            np.testing.assert_allclose(batch.geometry[row, 2:4] * batch.geometry[row, :2], size, rtol=1e-6)
        seen.add(size)
    assert seen <= set(SIZES)
    assert len(seen) > 1


def test_sizes_depend_on_seed_and_epoch_alone(make):
    options = {"augment": TrainAugment(), "shuffle": True, "sizes": SIZES, "accumulate": 2, "seed": 4}
    runs = {}
    for workers in (0, 1, 3):
        iterator = make(workers=workers, **options)
        runs[workers] = epoch_of(iterator)
        iterator.reset()
        runs[workers] += epoch_of(iterator)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[3])
    assert_same(runs[0][BATCHES:], epoch_of(make(epoch=1, **options)))
    sizes = [batch[0].shape for batch in runs[0]]
    assert sizes[:BATCHES:2] == sizes[1:BATCHES:2], "a group has one size"
    assert sizes[:BATCHES] != sizes[BATCHES:]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("accumulate", [1, 2, 4, 9])
def test_normalisers_are_the_column_sums_of_a_group(make, engine, accumulate):
    iterator = make(engine=engine, accumulate=accumulate, workers=1)
    for _ in range(2):
        batches = list(iterator)
        groups = [batches[k : k + accumulate] for k in range(0, BATCHES, accumulate)]
        assert [b.completes_update for b in batches] == [b is group[-1] for group in groups for b in group]
        for group in groups:
            expected = [sum(int((b.label[0].asnumpy()[..., 0] >= 0).sum()) for b in group)]
            expected.append(sum(BATCH - b.pad for b in group))
            for batch in group:
                np.testing.assert_array_equal(batch.label[-1].asnumpy(), [expected] * BATCH)
        iterator.reset()


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_of_the_warm_up_are_those_of_another_size(make, engine):
    """Two epochs with groups of one batch, then groups of four; whichever epoch an iterator begins at."""
    options = {"engine": engine, "accumulate": 4, "warmup_accumulate": 1, "warmup_end": 2, "workers": 1}
    ends = {1: [True] * BATCHES, 4: [False, False, False, True, False, True]}
    iterator = make(**options)
    for epoch in range(4):
        batches = list(iterator)
        group = 1 if epoch < 2 else 4
        assert iterator.group_size == group
        assert [batch.completes_update for batch in batches] == ends[group]
        counts = [int((batch.label[0].asnumpy()[..., 0] >= 0).sum()) for batch in batches]
        for k, batch in enumerate(batches):
            begin = k // group * group
            assert batch.label[-1].asnumpy()[0, 0] == sum(counts[begin : begin + group])
        others = list(make(epoch=epoch, **options))
        assert_same([index_and_total(b) for b in others], [index_and_total(b) for b in batches])
        iterator.reset()


def index_and_total(batch):
    return [batch.index, batch.label[-1].asnumpy()]


def test_each_update_of_the_warm_up_has_an_input_size_of_its_own(make):
    options = {"sizes": SIZES, "accumulate": 3, "warmup_accumulate": 1, "warmup_end": 1, "shuffle": True, "seed": 4}
    iterator = make(**options)
    early = [batch.data[0].shape for batch in iterator]
    iterator.reset()
    later = [batch.data[0].shape for batch in iterator]
    assert len(set(early)) > len(set(later))
    assert later[:2] == later[1:3]


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_or_leaving_a_group_in_its_middle(make, engine):
    expected = epoch_of(make(engine=engine, accumulate=4))
    iterator = make(engine=engine, accumulate=4, workers=1)
    iterator.next()
    iterator.close()
    assert_same(expected[1:], epoch_of(iterator))
    iterator.set_epoch(0)
    iterator.next()
    iterator.set_epoch(0)
    assert_same(expected, epoch_of(iterator))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_costs_its_group(make, tmp_path, workers):
    iterator = make(write(tmp_path / "bad.rec", images={3: b"no image"}), accumulate=2, workers=workers)
    with pytest.raises(DataError, match="record 103"):
        iterator.next()
    assert iterator.next().index[0] == FIRST_ID + 4
    iterator.reset()
    with pytest.raises(DataError, match="record 103"):
        iterator.next()


def test_shards_have_the_same_sizes(make):
    options = {"sizes": SIZES, "shuffle": True, "num_parts": 2, "seed": 1}
    shards = [list(make(part_index=part, **options)) for part in range(2)]
    assert [b.data[0].shape for b in shards[0]] == [b.data[0].shape for b in shards[1]]


def test_many_open_batches_do_not_fill_the_socket(make):
    iterator = make(accumulate=64, workers=2, shuffle=True)
    for _ in range(3):
        assert len(ids(iterator)) == COUNT
        iterator.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate 0"),
        ({"sizes": [(32, 32)], "engine": "native"}, "--data-engine python for --multi-scale"),
    ],
)
def test_wrong_options(make, options, message):
    with pytest.raises(OptionError, match=message):
        make(**options)


def test_workers_never_get_more_tasks_than_their_socket_holds(make, monkeypatch):
    """A group may have more batches than there is room for: both ends would wait for each other for ever."""
    monkeypatch.setattr("dataset.workers.MAX_TASKS", 3)
    submit, waiting = WorkerPool.submit, []

    def counted(pool, *arguments):
        submit(pool, *arguments)
        waiting.append(sum(pool._open))

    monkeypatch.setattr(WorkerPool, "submit", counted)
    batches = list(make(workers=1, accumulate=BATCHES))
    assert sorted(ids(batches)) == list(range(FIRST_ID, FIRST_ID + COUNT))
    assert max(waiting) <= 3
