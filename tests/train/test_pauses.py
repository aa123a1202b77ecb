"""Signals save a run in mid-epoch and end it, or let it go on; resumed, it ends with an undisturbed run's bits."""

import logging
import signal
from pathlib import Path

import pytest

from common.errors import OptionError
from machine.command import SignalRequests
from model.checkpoint import list_epochs, load_checkpoint
from tests.train.conftest import tiny_options
from tests.train.tiny import metrics
from train.pauses import Position, newest_paused
from train.progress import Progress
from train.training import run_training

pytestmark = pytest.mark.faults


def signalled(monkeypatch, *places, number=signal.SIGTERM):
    """Calls the handler of a signal before the callbacks of these (epoch, batch), both from 0; tests/test_commands.py
    sends real ones."""
    real = Progress.__call__

    def call(self, param):
        if (param.epoch, param.nbatch) in places:
            signal.getsignal(number)(number, None)
        real(self, param)

    monkeypatch.setattr("train.progress.Progress.__call__", call)


def files_of(run):
    last = f"{run.schedule.end_epoch:04}"
    return [Path(f"{run.output.prefix}-{last}.{kind}").read_bytes() for kind in ("params", "optim.params")]


DROPPING = {  # draws random numbers: the residuals that are left out
    "width": 1.0,
    "taps": (),
    "extra_filters": None,
    "anchor_sizes": "",
    "anchor_ratios": "",
    "data_shape": (128,),
    "batch_size": 4,
    "drop_connect": 0.5,
}
DETERMINED = {"augment": "ssd", "mosaic_prob": 0.5, "batch_size": 2, "ema": 0.9}


@pytest.fixture(scope="module")
def undisturbed(records, tmp_path_factory):
    """Gives the options of a finished run with these changes of DETERMINED, one run for each."""
    done = {}

    def run(**changes):
        key = repr(sorted(changes.items()))
        if key not in done:
            done[key] = tiny_options(records, tmp_path_factory.mktemp("plain"), **DETERMINED | changes)
            run_training(done[key])
        return done[key]

    return run


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, (0, 0)),
        ({}, (1, 1)),
        ({"accumulate": 2}, (0, 4)),
        ({"network": "efficientdet_mini", "end_epoch": 1, "val_path": "", **DROPPING}, (0, 2)),
    ],
)
def test_a_run_goes_on_in_mid_epoch_with_the_same_bits(options, undisturbed, monkeypatch, caplog, place, changes):
    wanted = DETERMINED | changes
    plain, paused = undisturbed(**changes), options(**wanted)
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        signalled(patched, place)
        with pytest.raises(SystemExit) as end:
            run_training(paused)
    assert end.value.code == 143
    assert "SIGTERM: the run is saved and ends after this update" in caplog.text
    assert "--resume auto" in caplog.text
    number = newest_paused(paused.output.prefix)
    position = Position.of(load_checkpoint(f"{paused.output.prefix}-paused", number).meta)
    assert position.epoch == place[0]
    assert place[1] < position.batch <= place[1] + 3  # the next whole update
    run_training(options(prefix=paused.output.prefix, resume="auto", **wanted))
    assert files_of(plain) == files_of(paused)
    assert metrics(plain.output.prefix) == metrics(paused.output.prefix)
    assert not list_epochs(f"{paused.output.prefix}-paused")


def test_sigusr1_saves_and_goes_on(options, monkeypatch):
    run = options(**DETERMINED, end_epoch=1)
    signalled(monkeypatch, (0, 2), number=signal.SIGUSR1)
    saved = []
    monkeypatch.setattr("train.pauses.drop_paused", lambda prefix, but=None: saved.append(but))
    run_training(run)
    assert saved[0] == 4
    assert list_epochs(run.output.prefix) == [1]


def test_a_signal_at_the_end_of_an_epoch_needs_no_more_than_its_checkpoint(options, monkeypatch):
    run = options(**DETERMINED)
    signalled(monkeypatch, (0, 10), number=signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a shell's `nohup` ignores it
    try:
        with pytest.raises(SystemExit) as end:
            run_training(run)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 128 + signal.SIGHUP
    assert list_epochs(run.output.prefix) == [1]
    assert not list_epochs(f"{run.output.prefix}-paused")


def test_an_epoch_without_a_checkpoint_is_saved_at_its_end(options, tmp_path, monkeypatch):
    wanted = DETERMINED | {"save_every": 2, "val_path": ""}
    plain, paused = (options(prefix=str(tmp_path / name / "t"), **wanted) for name in ("plain", "paused"))
    run_training(plain)
    with monkeypatch.context() as patched:
        signalled(patched, (0, 10), number=signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run_training(paused)
    assert not list_epochs(paused.output.prefix)
    assert newest_paused(paused.output.prefix) == 11
    with pytest.raises(OptionError, match="was paused in its first epoch; add --resume auto to continue, --overwrite"):
        run_training(options(prefix=paused.output.prefix, **wanted))
    run_training(options(prefix=paused.output.prefix, resume="auto", **wanted))
    assert files_of(plain) == files_of(paused)


def test_a_second_signal_ends_at_once(options, monkeypatch):
    run = options(**DETERMINED)
    signalled(monkeypatch, (0, 1), (0, 1))
    real = SignalRequests.arrive
    monkeypatch.setattr("machine.command._arrived", [])
    monkeypatch.setattr(SignalRequests, "arrive", lambda self, *args: (real(self, *args), real(self, *args)))
    with pytest.raises(SystemExit):
        run_training(run)
    assert newest_paused(run.output.prefix) is None


def test_an_explicit_epoch_leaves_the_pause_behind(options, monkeypatch):
    run = options(**DETERMINED)
    with monkeypatch.context() as patched:
        signalled(patched, (1, 2))
        with pytest.raises(SystemExit):
            run_training(run)
    run_training(options(**DETERMINED, resume="1"))
    assert list_epochs(run.output.prefix) == [1, 2]
    assert newest_paused(run.output.prefix) is None


def test_the_limit_of_updates_is_that_of_the_whole_run(options, tmp_path, monkeypatch):
    wanted = DETERMINED | {"max_iter": 17}
    plain, paused = (options(prefix=str(tmp_path / name / "t"), **wanted) for name in ("plain", "paused"))
    run_training(plain)
    with monkeypatch.context() as patched:
        signalled(patched, (1, 1))
        with pytest.raises(SystemExit):
            run_training(paused)
    run_training(options(prefix=paused.output.prefix, resume="auto", **wanted))
    assert files_of(plain) == files_of(paused)
    assert load_checkpoint(paused.output.prefix, 2).meta.num_update == 17


def test_another_epoch_than_that_of_the_pause_is_refused(options, monkeypatch):
    run = options(**DETERMINED)
    with monkeypatch.context() as patched:
        signalled(patched, (0, 8))
        with pytest.raises(SystemExit):
            run_training(run)
    with pytest.raises(OptionError, match="was paused after batch 10 of an epoch that has 11 batches in groups of 3"):
        run_training(options(**DETERMINED, accumulate=3, resume="auto"))
