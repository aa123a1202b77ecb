"""The tiny records, options to train on them, and a finished run."""

import shutil
from functools import partial

import numpy as np
import pytest

from common.files import write_atomically
from dataset.iterator import DetRecordIter
from drawing.boxes import png_of
from symbol.symbol_factory import get_assigner
from tests.train.tiny import BATCH, CLASSES, NETWORK, TRAIN, VAL, write_record
from train.curves import save_curves
from train.options import network_options, train_options
from train.training import run_training

PIXEL = png_of(np.zeros((1, 1, 3), np.uint8))


# A run draws its curves twice, which takes more of the processor than all its batches; where tests look at them, they
# ask for `drawn_curves`.
@pytest.fixture(scope="package", autouse=True)
def undrawn_curves():
    """PREFIX-curves.png of a run is a picture of one pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.curves.save_curves", lambda records, path, live=(): write_atomically(path, PIXEL))
        yield


@pytest.fixture
def drawn_curves(monkeypatch):
    """Curves are drawn as usual."""
    monkeypatch.setattr("train.curves.save_curves", save_curves)


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """(training record, validation record)."""
    folder = tmp_path_factory.mktemp("records")
    return write_record(folder / "train.rec", TRAIN, 1), write_record(folder / "val.rec", VAL, 2)


@pytest.fixture
def options(records, tmp_path):
    """Builds train_options_class() of a run of two epochs in this test's folder, with changes."""
    return partial(tiny_options, records, tmp_path / "run")


def tiny_options(records, folder, **changes):
    train, val = records
    common = {
        "train_path": train,
        "val_path": val,
        "batch_size": BATCH,
        "workers": 0,
        "prefix": str(folder / "t"),
        "end_epoch": 2,
        "lr": 0.05,
        "augment": "none",
    }
    return train_options(**(NETWORK | common | changes))


@pytest.fixture(scope="session")
def finished_run(records, tmp_path_factory):
    """Folder of a run of three epochs of prefix `t`; `continued` copies it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.curves.save_curves", save_curves)
        run_training(tiny_options(records, folder, end_epoch=3))
    return folder


@pytest.fixture
def continued(finished_run, records, tmp_path):
    """Builds options whose prefix holds a copy of the finished run."""

    def build(**changes):
        shutil.copytree(finished_run, tmp_path / "run", dirs_exist_ok=True)
        return tiny_options(records, tmp_path / "run", **changes)

    return build


@pytest.fixture
def batches(records):
    """Builds the batches of an epoch for network options."""

    def build(**changes):
        settings = network_options(train_options(**NETWORK, **changes))
        assigner = get_assigner("mobilenet", 64, len(CLASSES), **settings)
        return list(DetRecordIter(records[0], BATCH, 64, augment=None, assigner=assigner, workers=0))

    return build
