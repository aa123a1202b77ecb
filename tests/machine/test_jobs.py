"""The cases of jobs_cases.py, in a process of their own.

They fork and send real signals. In a process that has run thousands of other tests, with mxnet's threads and its
handlers of forks, that has ended in a segmentation fault; launcher and agent, whose code it is, never load mxnet.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.faults
def test_jobs():
    cases = str(Path(__file__).with_name("jobs_cases.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0", cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
