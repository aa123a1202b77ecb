"""Fixtures of all tests: the folder of real images and the golden data."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny arrays: threads would only wait for one another

import pytest
from hypothesis import settings

from tests.golden.loader import GOLDEN_DIR

# Run in the background by a shell, pytest would ignore SIGINT and hand that on to the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("project", deadline=None, derandomize=True)  # a loaded machine must not fail a test
settings.load_profile("project")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets (bccd/ and others) named by DATA_DIR; tests that need it are skipped without it."""
    folder = os.environ.get("DATA_DIR")
    if not folder:
        pytest.skip("set DATA_DIR to a folder that holds real data sets, for instance bccd/")
    return Path(folder)


@pytest.fixture(scope="session")
def bccd_dir(data_dir: Path) -> Path:
    """The BCCD data set: Annotations/, ImageSets/Main/, JPEGImages/."""
    if not (data_dir / "bccd").is_dir():
        pytest.skip(f"{data_dir} holds no bccd/")
    return data_dir / "bccd"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden data."""
    return GOLDEN_DIR
