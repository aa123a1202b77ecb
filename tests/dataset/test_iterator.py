"""The batch contract of docs/contracts.md, whatever the number of workers, and what happens when something dies."""

import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dataset.workers
from boxes.yolo_assigner import YOLOAssigner
from common.errors import DataError, OptionError, UserError, WorkerError
from config.augment_options import TrainAugment
from config.groups import DATA_ENGINES as ENGINES
from dataset.batch_spec import BatchSpec
from dataset.iterator import DetRecordIter, open_batches
from dataset.labels import PADDING, pack_label
from dataset.recordio import RecordWriter, pack
from dataset.sidecar import Sidecar, write_sidecar
from dataset.transforms import decode
from dataset.workers import ROOT
from machine.opencv import cv2
from tests.dataset.toy_assigner import IGNORED, ToyAssigner

COUNT, CLASSES, FIRST_ID = 11, 3, 100
SIZE = (32, 48)
MEAN = np.array([123, 117, 104], np.float32)


def objects_of(index):
    """Record k has k % 4 objects."""
    rng = np.random.default_rng(index)
    low = rng.uniform(0, 0.6, (index % 4, 2))
    rows = np.zeros((index % 4, 6), np.float32)
    rows[:, 0] = rng.integers(0, CLASSES, len(rows))
    rows[:, 1:3], rows[:, 3:5] = low, low + rng.uniform(0.2, 0.4, low.shape)
    rows[:, 5] = rng.integers(0, 2, len(rows))
    return rows


def image_of(index):
    image = np.random.default_rng(index).integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def write(path, count=COUNT, images=None, labels=None):
    """A record whose k-th image or label may be replaced by {k: ...}."""
    with RecordWriter(path) as writer:
        for k in range(count):
            objects = (labels or {}).get(k, objects_of(k))
            writer.write(FIRST_ID + k, pack(pack_label(objects), (images or {}).get(k, image_of(k)), FIRST_ID + k))
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rec") / "toy.rec")


both_engines = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def engine():
    """The engine of tests that are not parametrised."""
    return "python"


@pytest.fixture
def make(record, engine):
    """Makes iterators over the toy record and closes them."""
    iterators = []

    def build(path=record, batch_size=4, data_shape=SIZE, **options):
        options = {"augment": None, "num_classes": CLASSES, "workers": 0} | options
        iterators.append(open_batches(BatchSpec(path, batch_size, data_shape, **options), engine))
        return iterators[-1]

    yield build
    for iterator in iterators:
        iterator.close()


def content(batch):
    return [*(array.asnumpy() for array in batch.data + batch.label), batch.index, batch.geometry, np.array(batch.pad)]


def epoch_of(iterator):
    return [content(batch) for batch in iterator]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def ids(iterator):
    return np.concatenate([batch.index[: len(batch.index) - batch.pad] for batch in iterator])


def alive(pid):
    """Is this a process that still runs (not a zombie)?"""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


@both_engines
def test_validation_batches(make):
    iterator = make()
    assert [tuple(d.shape) for d in iterator.provide_data] == [(4, 3, *SIZE)]
    assert [(d.name, tuple(d.shape)) for d in iterator.provide_label] == [("label", (4, 3, 6))]
    assert (iterator.num_batches, iterator.num_examples, iterator.class_names) == (3, COUNT, None)
    batches = list(iterator)
    for k in range(COUNT):
        batch, row = batches[k // 4], k % 4
        expected = cv2.resize(decode(image_of(k), ""), SIZE[::-1])[..., ::-1].astype(np.float32) - MEAN
        np.testing.assert_array_equal(batch.data[0].asnumpy()[row], expected.transpose(2, 0, 1))
        label = batch.label[0].asnumpy()[row]
        np.testing.assert_array_equal(label[: k % 4], objects_of(k))
        assert (label[k % 4 :] == -1).all()
        assert batch.index[row] == FIRST_ID + k
        np.testing.assert_allclose(batch.geometry[row], [40 + k, 60, 32 / (40 + k), 48 / 60, 0, 0], rtol=1e-6)
    assert [batch.pad for batch in batches] == [0, 0, 1]


@both_engines
def test_padding_rows(make):
    iterator = make(assigner=ToyAssigner())
    first, *_, last = iterator
    # Batch norm sees these rows too: they show images, not zeros.
    np.testing.assert_array_equal(last.data[0].asnumpy()[-1], first.data[0].asnumpy()[0])
    assert (last.geometry[-1] == 0).all()
    assert (last.label[0].asnumpy()[-1, :, :-1] == -1).all()
    assert (last.label[0].asnumpy()[-1, :, -1] == PADDING).all()
    assert (last.label[1].asnumpy()[-1] == IGNORED).all()
    assert last.index[-1] == -1
    assert last.index.dtype == np.int64


@both_engines
def test_assigner_arrays_are_labels_and_the_normaliser_is_of_the_batch(make):
    iterator = make(assigner=ToyAssigner(), label_name="truth")
    names = [(d.name, tuple(d.shape)) for d in iterator.provide_label]
    assert names == [("truth", (4, 3, 6)), ("ids", (4, 4, 2)), ("knows_mxnet", (4, 1)), ("normaliser", (4, 1))]
    for batch in iterator:
        objects = batch.label[0].asnumpy()[..., 0] >= 0
        np.testing.assert_array_equal(batch.label[-1].asnumpy(), np.full((4, 1), objects.sum(), np.float32))


@both_engines
def test_every_record_once_in_an_order_of_seed_and_epoch(make):
    first, again, other = make(shuffle=True, seed=3), make(shuffle=True, seed=3), make(shuffle=True, seed=4)
    order = ids(first)
    assert sorted(order) == list(range(FIRST_ID, FIRST_ID + COUNT))
    np.testing.assert_array_equal(order, ids(again))
    assert (order != ids(other)).any()
    first.reset()
    second = ids(first)
    assert sorted(second) == sorted(order)
    assert (second != order).any()
    np.testing.assert_array_equal(ids(make()), np.arange(FIRST_ID, FIRST_ID + COUNT))


def test_workers_change_nothing(make):
    options = {"augment": TrainAugment(), "shuffle": True, "seed": 5, "assigner": ToyAssigner()}
    epochs = {}
    for workers in (0, 1, 3):
        iterator = make(workers=workers, **options)
        epochs[workers] = epoch_of(iterator)
        iterator.reset()
        epochs[workers] += epoch_of(iterator)
    assert not any(content[3].any() for content in epochs[3]), "mxnet is imported in a worker"
    assert any(content[3].any() for content in epochs[0])
    without_modules = {w: [[*c[:3], *c[4:]] for c in batches] for w, batches in epochs.items()}
    assert_same(without_modules[0], without_modules[1])
    assert_same(without_modules[1], without_modules[3])
    assert any((a[0] != b[0]).any() for a, b in zip(epochs[0][:3], epochs[0][3:], strict=True))


@both_engines
def test_reset_in_mid_epoch_and_set_epoch(make):
    options = {"augment": TrainAugment(), "shuffle": True, "workers": 2}
    iterator = make(**options)
    iterator.next()
    iterator.reset()
    assert iterator.epoch == 1
    assert_same(epoch_of(iterator), epoch_of(make(epoch=1, **options)))
    with pytest.raises(StopIteration):
        iterator.next()
    iterator.set_epoch(0)
    assert_same(epoch_of(iterator), epoch_of(make(**options)))


@both_engines
def test_batches_belong_to_the_caller(make):
    iterator = make(augment=TrainAugment(), workers=1)
    batches = list(iterator)
    before = [content(batch) for batch in batches]
    iterator.reset()
    epoch_of(iterator)
    assert_same(before, [content(batch) for batch in batches])


@both_engines
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_shards_share_the_records_and_have_equal_batch_counts(make, parts, batch_size):
    shards = [make(batch_size=batch_size, shuffle=True, num_parts=parts, part_index=k) for k in range(parts)]
    seen = [list(shard) for shard in shards]
    assert len({len(batches) for batches in seen} | {shard.num_batches for shard in shards}) == 1
    index = [row for batches in seen for b in batches for row in b.index[: batch_size - b.pad]]
    assert sorted(index) == list(range(FIRST_ID, FIRST_ID + COUNT))
    assert sum(shard.num_examples for shard in shards) == COUNT


@both_engines
def test_only_records_without_objects(make, tmp_path):
    empty = {k: np.zeros((0, 6), np.float32) for k in range(COUNT)}
    iterator = make(write(tmp_path / "empty.rec", labels=empty), augment=TrainAugment(), assigner=ToyAssigner())
    for batch in iterator:
        assert batch.label[0].shape == (4, 1, 6)
        assert (batch.label[0].asnumpy()[..., :-1] == -1).all()
        assert (batch.label[-1].asnumpy() == 0).all()


BAD = {
    "image": ({"images": {6: b"not an image"}}, "record 106.*decoded"),
    "class": ({"labels": {6: np.array([[CLASSES, 0, 0, 1, 1, 0]], np.float32)}}, "record 106.*class"),
    "pixels": ({"labels": {6: np.array([[0, 10, 20, 50, 60, 0]], np.float32)}}, "record 106.*pixel"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_named_when_its_batch_is_due_and_the_next_epoch_works(make, tmp_path, kind, workers):
    changes, message = BAD[kind]
    path = write(tmp_path / "bad.rec", **changes)
    iterator = make(path, workers=workers)
    for _ in range(2):
        assert iterator.next().index[0] == FIRST_ID
        with pytest.raises(DataError, match=f"bad.rec, {message}"):
            iterator.next()
        assert iterator.next().index[0] == FIRST_ID + 8
        iterator.reset()


@both_engines
def test_sidecar_tells_classes_and_width_and_must_belong_to_the_record(make, tmp_path):
    path = write(tmp_path / "toy.rec")
    facts = {"objects_per_class": (1, 2, 3, 4), "num_objects": 15, "label_width": 20, "source": "", "sha256": ""}
    facts |= {"class_names": tuple("abcd"), "max_objects": 5, "size": path.stat().st_size, "tool_version": "1"}
    write_sidecar(path, Sidecar(num_images=COUNT, **facts))
    iterator = make(path, num_classes=None)
    assert (iterator.class_names, iterator.num_classes) == (tuple("abcd"), 4)
    assert next(iterator).label[0].shape == (4, 5, 6)
    write_sidecar(path, Sidecar(num_images=COUNT + 1, **facts))
    with pytest.raises(DataError, match="11 records instead of 12"):
        make(path)


@both_engines
def test_label_wider_than_max_objects(make):
    with pytest.raises(DataError, match="record 103: 3 objects, but labels have 2 rows"):
        epoch_of(make(max_objects=2))
    assert next(make(max_objects=9)).label[0].shape == (4, 9, 6)


@both_engines
def test_an_image_that_the_assigner_cannot_take_is_named(make):
    with pytest.raises(DataError, match="toy.rec, record 103: 3 objects are too many"):
        epoch_of(make(assigner=ToyAssigner(most=2)))


@both_engines
def test_an_assigner_gets_room_for_the_widest_record(make):
    assigner = YOLOAssigner(anchors=(((16.0, 16.0), (8.0, 8.0)),), strides=(1,), iou_threshold=0.0, max_targets=1)
    assert dict(make(assigner=assigner).provide_label)["yolo_target"][1:3] == (1, 3 * 2)
    assert dict(make(assigner=assigner, max_objects=9).provide_label)["yolo_target"][1:3] == (1, 9 * 2)


@both_engines
@pytest.mark.parametrize("workers", [0, 1])
def test_bug_in_an_assigner_is_raised(make, workers):
    iterator = make(workers=workers, assigner=ToyAssigner(fail=True))
    with pytest.raises((RuntimeError, KeyError), match="a bug in the assigner"):
        iterator.next()


@pytest.mark.faults
def test_killed_worker_is_an_error_and_then_replaced(make):
    iterator = make(workers=2)
    iterator.next()
    os.kill(iterator.worker_pids[0], signal.SIGKILL)
    assert gone(iterator.worker_pids[:1])
    with pytest.raises(WorkerError, match="killed"):
        iterator.next()
    assert iterator.next().index[0] == FIRST_ID + 4
    iterator.reset()
    assert len(epoch_of(iterator)) == 3
    assert all(map(alive, iterator.worker_pids))


@pytest.mark.faults
def test_a_stopped_worker_is_told_by_name_and_ends_the_wait(make, monkeypatch, caplog):
    iterator = make(workers=1)
    epoch_of(iterator)  # it runs
    limits = {"CHECK_MILLISECONDS": 20, "WARN_SECONDS": 0.1, "END_SECONDS": 0.5, "STOP_SECONDS": 0.1}
    for name, value in limits.items():
        monkeypatch.setattr(dataset.workers, name, value)
    (pid,) = iterator.worker_pids
    os.kill(pid, signal.SIGSTOP)
    iterator.reset()
    with pytest.raises(UserError, match=rf"no batch for .* record {FIRST_ID} and .*; data worker {pid} is stopped"):
        iterator.next()
    (warning,) = [one.getMessage() for one in caplog.records]
    assert f"data worker {pid} is stopped (SIGSTOP); the run ends after" in warning
    assert gone([pid])


def test_workers_open_the_record_when_they_start(make):
    """Not when their first batch is due, by when another file may have its name."""
    iterator = make(workers=1)
    path, (pid,) = os.path.realpath(iterator.spec.path_imgrec), iterator.worker_pids
    for _ in range(600):
        if path in {os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()}:
            return
        time.sleep(0.1)
    pytest.fail(f"{path} is not open")


@pytest.mark.faults
def test_worker_killed_at_work_is_no_endless_wait(make):
    iterator = make(workers=1)
    os.kill(iterator.worker_pids[0], signal.SIGSTOP)
    threading.Timer(0.3, os.kill, [iterator.worker_pids[0], signal.SIGKILL]).start()
    with pytest.raises(WorkerError, match="killed"):
        iterator.next()


@pytest.mark.faults
def test_all_workers_killed(make):
    iterator = make(workers=2)
    for pid in iterator.worker_pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="killed"):
        iterator.next()
    assert len(epoch_of(iterator)) == 3


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_close_and_garbage_collection_end_workers_and_free_files(record):
    options = {"augment": None, "num_classes": CLASSES, "workers": 2}
    gc.collect()
    before = open_files()
    iterator = DetRecordIter(record, 4, SIZE, **options)
    iterator.next()
    pids = iterator.worker_pids
    assert len(pids) == 2
    iterator.close()
    assert not any(map(alive, pids))
    assert iterator.next().index[0] == FIRST_ID + 4, "an iterator goes on after close()"
    pids = iterator.worker_pids
    del iterator
    gc.collect()
    assert not any(map(alive, pids))
    assert open_files() == before


SCRIPT = """
    print("begin", flush=True)
    import time
    from dataset.iterator import DetRecordIter
    iterator = DetRecordIter({path!r}, 4, 32, augment=None, num_classes=3, workers=2)
    iterator.next()
    print(*iterator.worker_pids, flush=True)
    while {forever}:
        iterator.reset()
        iterator.next()
"""


def start_script(record, tmp_path, forever):
    """A user's script without `if __name__ == "__main__"`, in a process group of its own; and its workers' pids."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(path=str(record), forever=forever))
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begin\n"
    return process, [int(word) for word in process.stdout.readline().split()]


def test_script_without_main_guard_ends_cleanly(record, tmp_path):
    process, pids = start_script(record, tmp_path, forever=False)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")
    assert gone(pids, 0)


@pytest.mark.faults
def test_ctrl_c_gives_one_traceback_and_no_orphans(record, tmp_path):
    process, pids = start_script(record, tmp_path, forever=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
    assert gone(pids, 0)


@pytest.mark.faults
def test_workers_leave_when_the_parent_is_killed(record, tmp_path):
    shared = set(os.listdir("/dev/shm"))
    process, pids = start_script(record, tmp_path, forever=True)
    process.kill()
    process.communicate(timeout=60)
    assert len(pids) == 2
    assert gone(pids)
    assert set(os.listdir("/dev/shm")) <= shared


def test_too_little_memory_is_one_sentence(record):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(DataError, match="MB of shared memory for batches cannot be reserved.*batch_size"):
            DetRecordIter(record, 64, 300, augment=None, num_classes=CLASSES, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@both_engines
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_shape": (1, 2, 3, 4)}, "data_shape"),
        ({"data_shape": (1, 32, 32)}, "data_shape"),
        ({"part_index": 2, "num_parts": 2}, "part 2 of 2"),
        ({"num_parts": COUNT + 1}, "too few for 12 parts"),
        ({"batch_size": 0}, "batch_size"),
        ({"mean_pixels": (1, 2)}, "mean_pixels"),
        ({"std": (1, 0, 1)}, "std"),
    ],
)
def test_wrong_options(make, options, message):
    with pytest.raises(OptionError, match=message):
        make(**options)


@both_engines
def test_missing_record(make, tmp_path):
    with pytest.raises(DataError, match="nowhere.rec"):
        make(tmp_path / "nowhere.rec")
