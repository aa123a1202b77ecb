"""Runs with --bad-records skip:N: what is left out is in log and checkpoints, and a resumed run has the same bits."""

import logging
import signal
from pathlib import Path

import pytest

from common.errors import DataError
from dataset.recordio import RecordReader, RecordWriter, pack
from evaluate.evaluate_net import evaluate_net
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from tests.train.test_pauses import DETERMINED, files_of, signalled
from tests.train.tiny import CLASSES, TRAIN, VAL, metrics, write_record
from train.pauses import newest_paused
from train.training import run_training

EMPTY = {"width": 1.0, "taps": (), "extra_filters": None, "anchor_sizes": "", "anchor_ratios": "", "lr": 0.001}
YOLO = EMPTY | {"network": "yolov3_spp_mini", "data_shape": (64,)}
EFFDET = EMPTY | {"network": "efficientdet_mini", "data_shape": (128,)}
BAD = {"train": (3, 11), "validation": (4,)}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """(training record, validation record), each with images that no decoder reads, and without a sidecar."""
    folder = tmp_path_factory.mktemp("damaged")
    made = [write_record(folder / "t.rec", TRAIN, 1), write_record(folder / "v.rec", VAL, 2)]
    paths = []
    for path, bad in zip(made, BAD.values(), strict=True):
        reader = RecordReader(path)
        paths.append(str(Path(path).with_name(f"bad-{Path(path).name}")))
        with RecordWriter(paths[-1]) as writer:
            for k in range(len(reader)):
                record = reader.record(k)
                writer.write(k, pack(record.label, record.image[: 20 if k in bad else None], k))
    return paths


@pytest.fixture
def run(options, damaged):
    def build(**changes):
        files = {"train_path": damaged[0], "val_path": damaged[1], "class_names": CLASSES}
        return options(**(files | {"bad_records": "skip:2", "workers": 1} | changes))

    return build


@pytest.mark.faults
def test_the_first_one_ends_a_run_by_default(run):
    with pytest.raises(DataError, match="bad-t.rec, record (3|11): "):
        run_training(run(bad_records="stop", end_epoch=1))


@pytest.mark.faults
@pytest.mark.parametrize("place", [pytest.param((0, 1), marks=pytest.mark.slow), (1, 6)])
def test_a_resumed_run_knows_what_was_left_out_and_ends_with_the_same_bits(run, tmp_path, monkeypatch, caplog, place):
    plain, paused = (run(prefix=str(tmp_path / name / "t"), **DETERMINED) for name in ("plain", "paused"))
    with caplog.at_level(logging.WARNING):
        run_training(plain)
    told = [line for line in caplog.messages if line.startswith("left out")]
    assert len(told) == 3  # in two epochs
    with monkeypatch.context() as patched:
        signalled(patched, place, number=signal.SIGTERM)
        with pytest.raises(SystemExit):
            run_training(paused)
    assert newest_paused(paused.output.prefix)
    caplog.clear()
    run_training(run(prefix=paused.output.prefix, resume="auto", **DETERMINED))
    if place[0]:  # after a whole epoch
        assert not [line for line in caplog.messages if line.startswith("left out")]
    assert files_of(plain) == files_of(paused)
    assert metrics(plain.output.prefix) == metrics(paused.output.prefix)
    for options in (plain, paused):
        found = load_checkpoint(options.output.prefix, 2).meta.left_out
        assert {name: tuple(map(int, one)) for name, one in found.items()} == BAD
        assert "record 4:" in found["validation"]["4"]
        log = Path(f"{options.output.prefix}-train.log").read_text()
        assert sum("left out" in line for line in log.splitlines()) == 3


def test_too_many_end_the_run_and_the_sentence_names_them(run):
    with pytest.raises(DataError, match="2 of 22 records cannot be read, more than --bad-records skip:1") as error:
        run_training(run(bad_records="skip:1", end_epoch=1))
    assert "record 3:" in str(error.value)
    assert "record 11:" in str(error.value)


def test_metrics_are_those_of_a_record_without_them(run, tmp_path, damaged):
    """Validation drops the image and its objects, evaluate.py the same."""
    options = run(end_epoch=1)
    run_training(options)
    checkpoint = load_checkpoint(options.output.prefix, 1)
    reader = RecordReader(damaged[1])
    with RecordWriter(tmp_path / "sound.rec") as writer:
        for k in range(len(reader)):
            if k not in BAD["validation"]:
                writer.write(k, reader.read(k))
    whole = evaluate_net(checkpoint, str(tmp_path / "sound.rec"), [mx.cpu()], workers=0)
    skipping = evaluate_net(checkpoint, damaged[1], [mx.cpu()], workers=0, left_out=1)
    assert skipping.images == whole.images == VAL - 1
    (one,), (other,) = skipping.results.values(), whole.results.values()
    assert [(c.ap, c.npos, c.num_detections) for c in one.classes] == [
        (c.ap, c.npos, c.num_detections) for c in other.classes
    ]
    with pytest.raises(DataError, match="record 4:"):
        evaluate_net(checkpoint, damaged[1], [mx.cpu()], workers=0)


FAMILIES = {
    "ssd": {},
    "classic": {"targets": "mxnet"},
    "yolo": YOLO,
    "effdet": EFFDET,
}


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_batches_of_padding_alone_leave_weights_finite(run, changes):
    """A checkpoint whose weights are not is refused."""
    options = run(**({"batch_size": 1, "end_epoch": 1, "max_iter": 15} | changes))
    run_training(options)
    assert load_checkpoint(options.output.prefix, 1).meta.left_out["validation"]
    assert metrics(options.output.prefix)[0]["train"]
