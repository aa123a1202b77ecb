"""Standard error is silent during quiet(), and back afterwards, whoever else calls it; without one nothing happens."""

import subprocess
import sys

import pytest

OVERLAPPING = """
first, second = quiet(), quiet()
first.__enter__()
second.__enter__()
first.__exit__(None, None, None)
os.write(2, b"lost")
second.__exit__(None, None, None)
os.write(2, b"back")
"""
THREADS = """
def call():
    for _ in range(300):
        with quiet():
            os.write(2, b"lost")
threads = [threading.Thread(target=call) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.write(2, b"back")
"""
NESTED = """
try:
    with quiet():
        with quiet():
            os.write(2, b"lost")
        os.write(2, b"lost")
        raise KeyError
except KeyError:
    os.write(2, b"back")
"""
CLOSED = """
saved = os.dup(2)
os.close(2)
with quiet():
    pass
try:
    os.fstat(2)
except OSError:
    os.write(saved, b"back")
"""
NO_OBJECT = """
sys.stderr = None
with quiet():
    os.write(2, b"lost")
os.write(2, b"back")
"""


@pytest.mark.parametrize(
    "code",
    [OVERLAPPING, THREADS, NESTED, CLOSED, NO_OBJECT],
    ids=["overlapping", "threads", "nested", "closed", "no object"],
)
def test_standard_error_is_as_before(code):
    code = "import os, sys, threading\nfrom graph.number_formats import quiet\n" + code
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, timeout=60)
    assert done.stderr == b"back"
