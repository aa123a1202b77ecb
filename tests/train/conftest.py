"""The tiny records, options to train on them, and a finished run."""

import pytest

from config.run import TrainOptions
from tests.train.tiny import BATCH, NETWORK, TRAIN, VAL, write_record


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """(training record, validation record)."""
    folder = tmp_path_factory.mktemp("records")
    return write_record(folder / "train.rec", TRAIN, 1), write_record(folder / "val.rec", VAL, 2)


@pytest.fixture
def options(records, tmp_path):
    """Builds TrainOptions of a run of two epochs in this test's folder, with changes."""

    def build(**changes):
        train, val = records
        common = {
            "train_path": train,
            "val_path": val,
            "batch_size": BATCH,
            "workers": 0,
            "prefix": str(tmp_path / "run" / "t"),
            "end_epoch": 2,
            "lr": 0.05,
            "augment": "none",
        }
        return TrainOptions(**NETWORK, **(common | changes))

    return build
