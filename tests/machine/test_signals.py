"""A signal ends a command wherever it finds it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BODY = """
import os, signal, time
from machine.command import run_command
from machine.command import exit_on_sigterm

class Dies:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):  # Python runs the handler here
            pass

def main(argv):
    exit_on_sigterm()
    try:
        {body}
        time.sleep(20)
    finally:
        print("cleaned up")

run_command(main)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_within_del_is_not_lost(name, status):
    done = run(BODY.format(name=name, body="Dies()"))
    assert (done.returncode, done.stdout) == (status, "cleaned up\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_other_errors_within_del_are_shown():
    done = run(BODY.format(name="SIGINT", body="return") + "\n").stderr
    assert done == ""
    code = "from machine.command import keep_interrupts\nkeep_interrupts()\nclass A:\n def __del__(self): 1 / 0\nA()"
    assert "ZeroDivisionError" in run(code).stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_waits_for_the_end_of_held(name, status):
    body = f"with held():\n            os.kill(os.getpid(), signal.{name}); time.sleep(0.1); print('whole')"
    code = BODY.format(name=name, body=body).replace("import exit_on_sigterm", "import exit_on_sigterm, held")
    done = run(code)
    assert (done.returncode, done.stdout) == (status, "whole\ncleaned up\n"), done.stderr


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=15)
