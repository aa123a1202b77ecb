"""train.py and evaluate.py as a user runs them: kill -9 and resume, signals, mistakes, exit status."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.options import replace_options
from evaluate.main import main as evaluate_main
from machine.command import run_command
from model.checkpoint import list_epochs, load_checkpoint, optimizer_path, params_path
from tests.train.test_run_ends import EVERYTHING
from tests.train.tiny import NETWORK, flags, metrics, write_record
from train.main import main as train_main
from train.options import train_options

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0  # seconds; a loaded machine must not fail a test
EPOCHS = 10  # two seconds remain for a signal sent after the second


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run of short epochs, with augmentation, workers, a schedule that never rests, accumulated
    gradients and averaged weights."""
    folder = tmp_path_factory.mktemp("commands")
    return train_options(
        **NETWORK,
        train_path=write_record(folder / "train.rec", 90, 1),
        val_path=write_record(folder / "val.rec", 9, 2),
        batch_size=4,
        workers=2,
        prefix=str(folder / "whole" / "t"),
        end_epoch=EPOCHS,
        lr=0.05,
        lr_schedule="cosine",
        warmup_epochs=1.5,
        accumulate=3,
        ema=0.99,
        frequent=2,
    )


def start(script, words):
    """The command as a process of its own group, stderr and stdout together."""
    return subprocess.Popen(
        [sys.executable, script, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(script, words):
    """(exit status, output) of the command."""
    process = start(script, words)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def test_training_with_closed_streams_ends_well(options, tmp_path):
    options = replace_options(options, prefix=str(tmp_path / "t"), end_epoch=1)
    command = ["sh", "-c", 'exec "$0" train.py "$@" <&- >&- 2>&-', sys.executable, *flags(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert list_epochs(options.output.prefix) == [1]


@contextmanager
def running(options, is_ready):
    """A training process once is_ready() holds; whatever is left of it is killed at the end."""
    process = start("train.py", flags(options))
    try:
        end = time.monotonic() + PATIENCE
        while not is_ready():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def worker_pids(process):
    """The processes that the training process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def all_gone(pids):
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(options):
    """The run without interruption."""
    status, output = finish("train.py", flags(options))
    assert status == 0, output
    return options


def assert_same_run(found, expected, last=EPOCHS):
    for path in (params_path, optimizer_path):
        assert digest(path(found.output.prefix, last)) == digest(path(expected.output.prefix, last))
    assert metrics(found.output.prefix) == metrics(expected.output.prefix)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "expected"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_run_killed_and_ended_by_a_signal_gives_the_same_bits(whole, tmp_path, number, expected):
    """Killed after its first epoch; resumed and ended by a signal after another; and continued as that one says."""
    options = replace_options(whole, prefix=str(tmp_path / "with space" / "t"), resume="auto")
    with running(options, lambda: list_epochs(options.output.prefix)) as process:
        workers = worker_pids(process)
        assert len(workers) == 4  # two for each iterator
        process.kill()
        process.wait()
    assert all_gone(workers)
    killed = list_epochs(options.output.prefix)[-1]
    with running(options, lambda: list_epochs(options.output.prefix)[-1] > killed) as process:
        workers = worker_pids(process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == expected, output
    assert all_gone(workers)
    assert "Traceback" not in output
    assert killed < list_epochs(options.output.prefix)[-1] < EPOCHS
    command = re.search(r"continue with: python (train\.py .*--resume auto)$", output, re.MULTILINE)[1]
    assert "continue with" in Path(f"{options.output.prefix}-train.log").read_text()
    continued = subprocess.run(
        f"{sys.executable} {command}", shell=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
        timeout=PATIENCE, capture_output=True, text=True,
    )  # fmt: skip
    assert "continuing" in continued.stderr
    assert f"Epoch {EPOCHS}/{EPOCHS} 4/23 CrossEntropy=" in continued.stderr  # no terminal here: plain lines
    assert_same_run(options, whole)


@pytest.mark.faults
@pytest.mark.slow
def test_two_stages_killed_within_and_between_them_give_the_same_bits(options, tmp_path):
    """Killed within the first stage, after it, within the second."""
    stages = replace_options(options, freeze_epochs=2, freeze_batch_size=5, freeze_lr=0.02)
    whole, killed = (replace_options(stages, prefix=str(tmp_path / name / "t")) for name in ("whole", "killed"))
    status, output = finish("train.py", flags(whole))
    assert status == 0, output
    for epoch in (1, 2, 3):
        again = replace_options(killed, resume="auto")
        with running(again, lambda done=epoch: max(list_epochs(killed.output.prefix), default=0) >= done):
            pass
    status, output = finish("train.py", [*flags(killed), "--resume", "auto"])
    assert status == 0, output
    assert_same_run(killed, whole)


@pytest.mark.faults
@pytest.mark.slow
def test_a_run_with_a_time_limit_and_every_part_of_the_recipe_killed_gives_the_same_bits(options, tmp_path):
    """What the whole run has found of its time is in its first checkpoint, from which the other one goes on."""
    parts = {name: value for name, value in EVERYTHING.items() if name not in ("accumulate", "lr", "patience")}
    whole = replace_options(options, prefix=str(tmp_path / "whole" / "t"), time_limit="20s", patience=99, **parts)
    status, output = finish("train.py", flags(whole))
    assert status == 0, output
    last = list_epochs(whole.output.prefix)[-1]
    assert last > 3, "the machine is too slow for this test"
    killed = replace_options(whole, prefix=str(tmp_path / "killed" / "t"), resume="auto")
    Path(killed.output.prefix).parent.mkdir()
    for name in ("t-0001.json", "t-0001.params", "t-0001.optim.params", "t-symbol.json", "t-metrics.jsonl"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "killed" / name)
    with running(killed, lambda: list_epochs(killed.output.prefix)[-1] > 2):
        pass
    assert list_epochs(killed.output.prefix)[-1] < last
    status, output = finish("train.py", flags(killed))
    assert status == 0, output
    assert_same_run(killed, whole, last)


def test_evaluate_gives_the_numbers_of_the_last_validation(whole, tmp_path):
    result = tmp_path / "result.json"
    words = ["--prefix", whole.output.prefix, "--rec-path", whole.data.val_path, "--json", str(result)]
    status, output = finish("evaluate.py", words)
    assert status == 0, output
    content = json.loads(result.read_text())
    expected = load_checkpoint(whole.output.prefix).meta.scores["validation"]
    assert {**content["AP"], "mAP": content["mAP"]} == expected
    assert "mAP" in output


@pytest.mark.slow
def test_two_cpu_contexts(whole, tmp_path):
    options = replace_options(whole, prefix=str(tmp_path / "two" / "t"), cpus=2, end_epoch=1, lr_schedule="steps")
    status, output = finish("train.py", flags(options))
    assert status == 0, output
    assert list_epochs(options.output.prefix) == [1]
    assert "Epoch 1/1 4/23 CrossEntropy=" in output  # no terminal here: plain lines


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("train.py", ["--train-path", "nowhere.rec"], "nowhere.rec: no such file"),
        ("train.py", ["--lr", "fast"], "--lr takes a number, not 'fast'"),
        ("evaluate.py", ["--prefix", "nowhere/t"], "nowhere/t: no checkpoint there"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(script, words, expected):
    status, output = finish(script, words)
    assert status == 2
    assert output.startswith("error: ")
    assert len(output.splitlines()) == 1
    assert expected in output


def status_and_error(monkeypatch, capsys, main, words):
    """run_command in this process: (exit status, last line of stderr)."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr("machine.command.log_to_terminal", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as end:
        run_command(main)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return end.value.code, error.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_class": 20}, "--num-class 20, but there are 3 class names (red, green, blue)"),
        ({"class_names": ("one", "two")}, "leave the option out"),
        ({"network": "vgg"}, "--network vgg: unknown; known: "),
        ({"gpus": "0"}, "--gpus 0: GPU 0 cannot be used"),
        ({"resume": "99"}, "no checkpoint of epoch 99"),
        ({"prefix": "/proc/x/t"}, "--prefix /proc/x/t: /proc/x cannot be written"),
        ({}, f"has checkpoints up to epoch {EPOCHS}; add --resume auto to continue"),
    ],
)
def test_mistakes_of_training(whole, monkeypatch, capsys, changes, expected):
    status, error = status_and_error(monkeypatch, capsys, train_main, flags(replace_options(whole, **changes)))
    assert status == 2
    assert error.startswith("error: ")
    assert expected in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rec-path", "nowhere.rec"], "nowhere.rec: no such file"),
        (["--epoch", "77"], "no checkpoint of epoch 77 (there are "),
        (["--overlap", "7"], "--overlap is at most 1"),
        (["--mean-r", "1"], "--mean-r 1.0: "),
    ],
)
def test_mistakes_of_evaluating(whole, monkeypatch, capsys, words, expected):
    given = ["--prefix", whole.output.prefix, "--rec-path", whole.data.val_path, *words]
    status, error = status_and_error(monkeypatch, capsys, evaluate_main, given)
    assert status == 2
    assert expected in error


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help(script):
    status, output = finish(script, ["--help"])
    assert status == 0
    assert "--prefix" in output
