"""Processes that end together: whichever dies, is killed or stopped, none is left, and a sentence says which it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from machine import jobs
from machine.jobs import Command, run_job

SLEEPS = "import time; time.sleep(60)"
# Leaves a child that would outlive it, says so, and sleeps.
WITH_CHILD = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"
)
SAVES = (
    "import signal, sys, time\n"
    "def save(number, frame):\n    open(sys.argv[1], 'a').write(f'{number} ')\n"
    "    number == signal.SIGUSR1 or sys.exit(128 + number)\n"
    "for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, save)\n"
    "open(sys.argv[1] + '.ready', 'w').close()\ntime.sleep(60)"
)


def python(name, code, *words, matters=False, **more):
    return Command(name, [sys.executable, "-c", code, *map(str, words)], {}, matters, **more)


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def started(monkeypatch):
    """The processes that a job starts, in their order."""
    found = []
    real = jobs.Running.__init__

    def init(self, command):
        real(self, command)
        found.append(self)

    monkeypatch.setattr(jobs.Running, "__init__", init)
    return found


def during(act):
    """Does something while a job runs in the main thread."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_process_ends_all(started, tmp_path, monkeypatch, victim, number):
    monkeypatch.setattr(jobs, "STOPPED_SECONDS", 0.3)
    names = ["the scheduler", "server 0", "worker 0"]
    commands = [python(name, WITH_CHILD, tmp_path / name, matters=name == "worker 0") for name in names]
    files = [tmp_path / name for name in names]

    def act():
        wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
        os.kill(started[victim].pid, number)

    during(act)
    outcome = run_job(commands, grace=5)
    killed = number == signal.SIGKILL
    how = "was killed by SIGKILL" if killed else "has been stopped for 0.3 s"
    assert outcome.sentence == f"{names[victim]} (process {started[victim].pid}) {how}"
    assert outcome.status == (128 + 9 if killed else 1)
    assert outcome.may_go_on
    wait_until(lambda: not any(lives(int(file.read_text())) for file in files))
    assert not any(lives(one.pid) for one in started)


def test_a_mistake_is_not_tried_again_and_told_before_what_follows_from_it():
    both = [python("a", "raise SystemExit(75)", matters=True), python("b", "raise SystemExit(2)", matters=True)]
    slow = python("c", "import time; time.sleep(1); raise SystemExit(3)", matters=True)
    outcome = run_job([both[1], slow], grace=5)
    assert (outcome.status, outcome.may_go_on) == (2, False)
    assert outcome.sentence.startswith("b (process ")
    assert outcome.sentence.endswith("ended with status 2")
    assert run_job([both[0]], grace=5).may_go_on


def test_a_job_lasts_until_all_that_matter_have_ended(tmp_path):
    begun = time.monotonic()
    done = tmp_path / "done"
    worker = python("w", "import sys, time; time.sleep(0.5); open(sys.argv[1], 'w')", done, matters=True)
    helper = python("h", "import time; time.sleep(0.8)")
    assert run_job([helper, worker], grace=5) == jobs.Outcome(0)
    assert done.exists()
    assert time.monotonic() - begun >= 0.8


def test_workers_that_go_on_without_their_server_are_ended(monkeypatch):
    monkeypatch.setattr(jobs, "LAST_SECONDS", 0.3)
    outcome = run_job([python("server", "pass"), python("worker", SLEEPS, matters=True)], grace=5)
    assert outcome.sentence == "server has ended, worker not"
    assert outcome.status == 1


def test_signals_are_handed_on_and_the_job_ends_as_they_say(tmp_path):
    file = tmp_path / "said"
    worker, server = python("worker", SAVES, file, matters=True), python("server", SLEEPS)

    def act():
        wait_until(Path(f"{file}.ready").exists)
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(file.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    jobs_last, jobs.LAST_SECONDS = jobs.LAST_SECONDS, 0.2
    try:
        during(act)
        outcome = run_job([worker, server], grace=30)
    finally:
        jobs.LAST_SECONDS = jobs_last
    assert outcome == jobs.Outcome(143)
    assert file.read_text() == f"{int(signal.SIGUSR1)} {int(signal.SIGTERM)} "
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_to_one_worker_alone_is_no_crash(tmp_path):
    """It tells the others by itself, and they end with the same status."""
    first = python("a", "raise SystemExit(143)", matters=True)
    second = python("b", "import time; time.sleep(0.5); raise SystemExit(143)", matters=True)
    assert run_job([first, second], grace=30) == jobs.Outcome(143)


def test_who_does_not_end_in_time_is_killed(started, tmp_path):
    stubborn = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); " + SLEEPS
    )
    file = tmp_path / "ready"

    def act():
        wait_until(file.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    during(act)
    outcome = run_job([python("worker", stubborn, file, matters=True)], grace=0.3)
    assert outcome.sentence == "worker did not end within 0.3 s of the signal"
    assert not lives(started[0].pid)


@pytest.mark.parametrize("ended", ["killed", "closed"])
def test_on_another_machine_a_broken_connection_ends_the_command(tmp_path, ended):
    """`python -m machine.jobs` reads signals from its input; its end, or its own death, kills what it runs."""
    file = tmp_path / "child"
    words = [sys.executable, "-m", "machine.jobs", sys.executable, "-c", WITH_CHILD, str(file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=Path(jobs.__file__).parents[1]) as agent:
        wait_until(lambda: file.is_file() and file.read_text())
        child = int(Path(f"/proc/{file.read_text()}/stat").read_text().rpartition(") ")[2].split()[1])  # its parent
        agent.kill() if ended == "killed" else agent.stdin.close()
        wait_until(lambda: not lives(child))
    if ended == "closed":
        wait_until(lambda: not lives(int(file.read_text())))
    else:
        os.kill(int(file.read_text()), signal.SIGKILL)


def test_signals_reach_a_command_on_another_machine(tmp_path):
    file = tmp_path / "said"
    words = [sys.executable, "-m", "machine.jobs", sys.executable, "-c", SAVES, str(file)]
    remote = Command("worker on far", words, {}, matters=True, is_remote=True)

    def act():
        wait_until(Path(f"{file}.ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    during(act)
    assert run_job([remote], grace=30) == jobs.Outcome(143)
    assert file.read_text() == f"{int(signal.SIGTERM)} "


def test_a_killed_launcher_takes_its_processes_with_it(tmp_path):
    file = tmp_path / "pid"
    sleeper = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from machine.jobs import Command, run_job; "
        "run_job([Command('w', [sys.executable, '-c', sys.argv[1]], {}, True)], 5)"
    )
    with subprocess.Popen([sys.executable, "-c", code, sleeper], cwd=Path(jobs.__file__).parents[1]) as launcher:
        wait_until(lambda: file.is_file() and file.read_text())
        launcher.kill()
    wait_until(lambda: not lives(int(file.read_text())))
