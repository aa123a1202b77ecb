"""More memory than there is: one sentence that names the option and what would fit, before anything is reserved."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import DataError, OptionError
from dataset import batch_memory
from dataset.batch_spec import BatchSpec
from dataset.iterator import DetRecordIter, check_batches
from tests.train.tiny import CLASSES, flags
from train.preflight import preflight

FREE = 2 << 30


@pytest.fixture
def two_gigabytes(monkeypatch):
    monkeypatch.setattr(batch_memory, "available_memory", lambda: FREE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 1_000_000_000}, r"^--batch-size 1000000000: .* at most \d+ would fit$"),
        ({"batch_size": 3000, "data_shape": (512,)}, r"^--batch-size 3000: .* but 2.0 GB are free; at most \d+ would"),
        ({"batch_size": 32, "data_shape": (2048,)}, r"^--batch-size 32: .* at most \d would fit$"),
        ({"batch_size": 2, "data_shape": (8192,)}, r"^--data-shape 8192,8192: .*; not even --batch-size 1 would fit"),
        ({"accumulate": 10_000}, r"^--accumulate 10000: .*; at most \d+ would fit$"),
        ({"label_width": 1_000_000_000}, r"^--label-width 999999998 .*; \d+ would fit$"),
    ],
)
def test_the_option_is_named_and_what_would_fit(options, two_gigabytes, changes, sentence):
    with pytest.raises(OptionError, match=sentence):
        preflight(options(**changes))
    assert not Path(options().output.prefix).parent.exists()


def test_what_is_said_to_fit_does(records, monkeypatch):
    monkeypatch.setattr(batch_memory, "available_memory", lambda: 50 << 20)
    plan = check_batches(BatchSpec(records[0], 1000, 64, augment=None))
    with pytest.raises(OptionError, match="at most 354 would fit"):
        batch_memory.check_memory([plan])
    fitting = check_batches(BatchSpec(records[0], 354, 64, augment=None))
    assert batch_memory.check_memory([fitting]) == "the batches in memory take 50 MB; 50 MB are free"


def test_the_estimate_is_logged(options, two_gigabytes, caplog):
    caplog.set_level("INFO")
    preflight(options())
    (line,) = [one.getMessage() for one in caplog.records if "batches in memory" in one.getMessage()]
    assert line == "the batches in memory take 2 MB and the network at least 2 MB; 2.0 GB are free"


def test_a_limit_of_the_shell_is_a_sentence(options):
    words = [*flags(options(batch_size=2000, data_shape=(512,))), "--cpu"]
    limit = 6 << 30  # of addresses, of which mxnet takes some
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "error: --batch-size 2000: the batches in memory take" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1 << 40, 1 << 60])
def test_where_the_machine_does_not_tell_the_system_does(records, monkeypatch, workers, batch_size):
    monkeypatch.setattr(batch_memory, "available_memory", lambda: None)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(DataError, match="GB of shared memory for batches cannot be reserved .*batch_size"):
            DetRecordIter(records[0], batch_size, 64, augment=None, num_classes=len(CLASSES), workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_addresses_that_run_out_are_a_sentence(records):
    """The memory is there, its map is not: ENOMEM of mmap."""
    program = (
        "import resource, sys\n"
        "from dataset.workers import _reserve\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)\n"
        "_reserve(64 << 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "DataError: 64 MB of shared memory for batches cannot be reserved (Cannot allocate memory)" in done.stderr
