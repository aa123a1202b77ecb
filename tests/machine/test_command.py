"""How a command ends: exit status and what it leaves on the terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(body: str, **options) -> subprocess.CompletedProcess:
    """Runs a command whose main(argv) has this body."""
    code = "import os, sys\nfrom common.errors import *\nfrom machine.command import run_command\ndef main(argv):\n"
    code += "".join(f"    {line}\n" for line in body.splitlines()) + "run_command(main)\n"
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("return None", 0, ""),
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        (
            "raise DataError('a.rec: record 3 is cut short; pack it again')",
            2,
            "error: a.rec: record 3 is cut short; pack",
        ),
        ("raise OptionError('a file named x\\ny')", 2, "error: a file named x y\n"),
        ("open('/nowhere/x.rec')", 2, "error: /nowhere/x.rec: No such file or directory\n"),
        ("raise OSError(28, 'No space left on device')", 2, "error: No space left on device\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise KeyboardInterrupt('told')", 130, ""),
        ("sys.exit(0)", 0, ""),
    ],
)
def test_exit_status_and_one_line(body, status, message):
    done = run(body)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == bool(message)


@pytest.mark.parametrize("body", ["raise ValueError('bug')", "raise OSError(5, 'bug')", "raise BrokenPipeError('bug')"])
def test_a_bug_keeps_its_traceback(body):
    done = run(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "bug" in done.stderr


def test_the_traceback_of_a_mistake_can_be_asked_for():
    done = run("raise DataError('x')", env={**os.environ, "DETECTOR_TRACEBACK": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("body", ["print('x')", "print('x')\nsys.exit(0)", "print('x' * 1_000_000)"])
def test_a_reader_that_has_gone_ends_the_command_quietly(body):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(body, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_what_was_printed_before_a_mistake_is_seen():
    done = run("print('packed 3 images')\nraise DataError('x')")
    assert done.stdout == "packed 3 images\n"


SIGNALLED = """
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
    done = run_code(SIGNALLED.format(name=name, body="Dies()"))
    assert (done.returncode, done.stdout) == (status, "cleaned up\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_other_errors_within_del_are_shown():
    done = run_code(SIGNALLED.format(name="SIGINT", body="return") + "\n").stderr
    assert done == ""
    code = "from machine.command import keep_interrupts\nkeep_interrupts()\nclass A:\n def __del__(self): 1 / 0\nA()"
    assert "ZeroDivisionError" in run_code(code).stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_waits_for_the_end_of_held(name, status):
    body = f"with held():\n            os.kill(os.getpid(), signal.{name}); time.sleep(0.1); print('whole')"
    code = SIGNALLED.format(name=name, body=body).replace("import exit_on_sigterm", "import exit_on_sigterm, held")
    done = run_code(code)
    assert (done.returncode, done.stdout) == (status, "whole\ncleaned up\n"), done.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_whose_exception_was_dropped_ends_a_loop(name, status):
    drop = f"try:\n            os.kill(os.getpid(), signal.{name})\n        except BaseException: pass"
    loop = "while True: raise_lost_signal()"
    code = SIGNALLED.format(name=name, body=f"{drop}\n        {loop}")
    done = run_code(code.replace("import exit_on_sigterm", "import exit_on_sigterm, raise_lost_signal"))
    assert (done.returncode, done.stdout) == (status, "cleaned up\n"), done.stderr


def run_code(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=15)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('out'); print('err', file=sys.stderr)", 0),
        ("import logging; log_to_terminal(); logging.info('line'); sys.stderr.flush()", 0),
        ("raise DataError('x')", 2),
        ("raise KeyboardInterrupt", 130),
        ("import argparse; argparse.ArgumentParser().parse_args(['--help'])", 0),
    ],
    ids=["print", "log", "mistake", "interrupt", "help"],
)
def test_closed_streams_end_no_command(body, status, closed, tmp_path):
    code = "from machine.command import run_command, log_to_terminal\nfrom common.errors import *\nimport sys\n"
    code += f"def main(argv):\n    {body}\n    assert open(sys.argv[1], 'w').fileno() > 2\nrun_command(main)\n"
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
