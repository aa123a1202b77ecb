"""Runs that end before --end-epoch: by --patience and by --time-limit, which is decided once and resumed exactly."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from config.groups import seconds_of
from config.options import from_mapping, replace_options
from model.checkpoint import list_epochs, load_checkpoint, read_meta
from tests.train.conftest import tiny_options
from tests.train.test_training import digests, fake_values, stop_in_epoch
from tests.train.tiny import metrics
from train.checks import check_early, idle_options
from train.options import train_options, train_options_class
from train.schedule import Origin, Pace, make_schedule, shortened
from train.stages import Costs, Patience, updates_within
from train.training import run_training

# Everything that an update and a sample may have of later date; 3 batches an epoch.
EVERYTHING = {
    **{"optimizer": "adamw", "lr": 0.01, "wd": 0.05, "clip_gradient_norm": 1.0, "body_lr": 0.5, "accumulate": 2},
    **{"lr_schedule": "cosine", "warmup_epochs": 1, "ema": 0.9, "patience": 50, "augment": "ssd", "close_mosaic": 2},
    **{"flip_ud_prob": 0.5, "quarter_turn_prob": 0.5, "mixup_prob": 0.5, "mosaic_prob": 0.5, "grey_prob": 0.2},
    **{"blur_prob": 0.3, "noise_prob": 0.3, "jpeg_prob": 0.3, "degrees": 5.0, "hsv_s": 0.3},
}
UPDATES = 9  # 2 an epoch: the run ends in the middle of the fifth


def scored(monkeypatch, *scores):
    found = iter(scores)
    monkeypatch.setattr("train.epoch_end.finite_values", lambda pairs: fake_values(pairs, found))


@pytest.fixture
def measured(monkeypatch):
    """--time-limit means UPDATES; counts how often that is decided."""
    calls = []

    def decide(*given):
        calls.append(given)
        return UPDATES

    monkeypatch.setattr("train.measuring.updates_within", decide)
    return calls


def interrupted(options, epoch):
    """A run that stops in the epoch of this number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(epoch))
        with pytest.raises(RuntimeError):
            run_training(options)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_resumed_run_with_everything_and_a_time_limit_ends_as_one_limited_in_updates(
    options, tmp_path, measured, workers
):
    """The speed is measured before the first update of the run, which then knows its end from there on."""
    whole = options(prefix=str(tmp_path / "whole" / "t"), **EVERYTHING, max_iter=UPDATES)
    run_training(whole)
    parts = options(prefix=str(tmp_path / "parts" / "t"), **EVERYTHING, time_limit="10s", workers=workers)
    for epoch in (2, 4):  # the last one has no mosaics, and neither has the one before
        interrupted(replace_options(parts, resume="auto"), epoch)
        assert list_epochs(parts.output.prefix)[-1] == epoch
    run_training(replace_options(parts, resume="auto"))
    assert len(measured) == 1
    assert list_epochs(parts.output.prefix) == list_epochs(whole.output.prefix) == [1, 2, 3, 4, 5]
    assert digests(parts.output.prefix, 5) == digests(whole.output.prefix, 5)
    assert metrics(parts.output.prefix) == metrics(whole.output.prefix)
    last = metrics(parts.output.prefix)[-1]
    assert last["num_update"] == UPDATES
    assert last["validation"]
    assert last["learning_rate"] == pytest.approx(0.0, abs=1e-5), "the end of the cosine"
    expected = {"seconds": 10, "updates": UPDATES, "end_epoch": 2}
    assert read_meta(parts.output.prefix, 1).time_limit == expected
    assert json.loads(Path(f"{parts.output.prefix}-run.json").read_text())["time_limit"] == expected


ONE_EPOCH = EVERYTHING | {"val_path": "", "end_epoch": 1}


@pytest.fixture(scope="module")
def with_everything(records, tmp_path_factory):
    """Digest of the weights after an epoch."""
    run = tiny_options(records, tmp_path_factory.mktemp("everything"), **ONE_EPOCH)
    run_training(run)
    return digests(run.output.prefix, 1)[0]


@pytest.mark.parametrize("change", ["close_mosaic", "body_lr", "clip_gradient_norm", "flip_ud_prob", "jpeg_prob"])
def test_each_of_them_changes_the_weights(options, with_everything, change):
    """Otherwise the test above would prove nothing of it."""
    default = getattr(train_options().schedule, change, 0.0)
    run = options(**(ONE_EPOCH | {change: type(EVERYTHING[change])(default)}))
    run_training(run)
    assert digests(run.output.prefix, 1)[0] != with_everything


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_mosaics_end_before_the_last_epochs_however_these_are_found(options, tmp_path, workers):
    """Two epochs of three updates; that the second has no mosaics shows beside a run that has them."""
    recipe = {"augment": "ssd", "mosaic_prob": 1.0, "lr_steps": (), "val_path": "", "workers": workers}
    ends = {"epoch": {"end_epoch": 2}, "updates": {"max_iter": 6}, "open": {"end_epoch": 2, "close_mosaic": 0}}
    for name, end in ends.items():
        run_training(options(prefix=str(tmp_path / name / "t"), **({"close_mosaic": 1} | recipe | end)))
    by_epoch, by_updates, open_ones = (digests(str(tmp_path / name / "t"), 2) for name in ends)
    assert by_epoch == by_updates
    assert by_epoch != open_ones


def test_a_run_ends_about_when_its_time_does(options):
    limit, begun = 5, time.monotonic()
    run = options(time_limit=f"{limit}s", lr_schedule="cosine", frequent=10**6)
    run_training(run)
    taken = time.monotonic() - begun
    updates = read_meta(run.output.prefix, list_epochs(run.output.prefix)[-1]).num_update
    assert updates == json.loads(Path(f"{run.output.prefix}-run.json").read_text())["time_limit"]["updates"]
    assert metrics(run.output.prefix)[-1]["validation"]
    assert taken < 3 * limit, "a loaded machine may be slower than it was when it was measured"
    assert not list(Path(run.output.prefix).parent.glob(".*")), "nothing is left of the measuring"


def test_a_run_whose_time_is_over_is_not_resumed_but_with_more_updates(options, measured):
    run = options(time_limit="10s", val_path="")
    run_training(run)
    again = replace_options(run, resume="auto")
    with pytest.raises(OptionError, match=r"the 9 updates that --time-limit 10s was found to mean; give --max-iter 10"):
        run_training(again)
    with pytest.raises(OptionError, match=r"fitted to 10 s and ends with update 9; resume with --time-limit 10s"):
        run_training(replace_options(again, time_limit="2h"))
    run_training(replace_options(again, time_limit="", max_iter=UPDATES + 1))
    assert metrics(run.output.prefix)[-1]["num_update"] == UPDATES + 1


def test_steps_stay_where_they_were_put_whatever_end_epoch_is_now(options, tmp_path, measured):
    recipe = {"time_limit": "10s", "val_path": "", "lr_schedule": "step_epochs", "lr_factor": 0.5, "end_epoch": 6}
    whole, parts = (options(prefix=str(tmp_path / name / "t"), **recipe) for name in ("whole", "parts"))
    run_training(whole)
    rates = [line["learning_rate"] for line in metrics(whole.output.prefix)]
    assert rates == pytest.approx([0.05 / 2, 0.05 / 8, 0.05 / 32]), "9 updates: 1.5 to a step; it falls after each"
    interrupted(parts, 1)
    run_training(replace_options(parts, resume="auto", end_epoch=60))
    assert metrics(parts.output.prefix) == metrics(whole.output.prefix)


def test_a_run_that_gets_its_limit_when_it_is_resumed_has_that_time_from_there_on(continued, measured):
    run = continued(resume="auto", time_limit="10s", val_path="")
    run_training(run)
    assert [given[-1] for given in measured] == [3], "epochs of the stage that are done"
    assert metrics(run.output.prefix)[-1]["num_update"] == 3 * 3 + UPDATES
    assert list_epochs(run.output.prefix)[-1] == 6


COSTS = Costs(batch=2.0, validation=30.0, checkpoint=5.0)


@pytest.mark.parametrize(
    ("seconds", "every", "updates"),
    [
        (35.0 + 3 * (20 * 2 + 35), 1, 30),
        (35.0 + 3.5 * (20 * 2 + 35), 1, 35),
        (35.0 + 3 * (20 * 2 + 5 + 15), 2, 30),
        (35.0 + 3 * (20 * 2 + 5), 0, 30),
        (10.0, 1, 1),
    ],
)
def test_what_fits_into_a_time(seconds, every, updates):
    """20 batches an epoch, two an update."""
    assert updates_within(seconds, COSTS, Pace(10), batches=20, every=every, begin=0) == updates


def test_early_epochs_have_updates_of_their_own():
    pace = Pace(10, early_epochs=2, early=20)
    assert updates_within(35 + 3.5 * 75, COSTS, pace, batches=20, every=1, begin=0) == 20 + 20 + 10 + 5
    assert updates_within(35 + 1.5 * 75, COSTS, pace, batches=20, every=1, begin=1) == 20 + 5


SCHEDULES = {
    "steps": {"lr_schedule": "steps", "lr_steps": ("20", "45i", "80"), "end_epoch": 100},
    "step_epochs": {"lr_schedule": "step_epochs", "lr_step_epochs": 7, "lr_factor": 0.9, "end_epoch": 100},
    "cosine": {"lr_schedule": "cosine", "lr_final": 0.001, "end_epoch": 100},
}


@pytest.mark.parametrize("first_epoch", [0, 30])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("updates", [100, 450, 3000])
def test_a_schedule_is_shortened_in_proportion(name, updates, first_epoch):
    options = train_options(lr=1.0, **SCHEDULES[name]).schedule
    pace, origin = Pace(10), Origin(first_epoch)
    fitted = replace_options(options, **shortened(options, pace, first_epoch, updates))
    rates = [_rate(make_schedule(one, 10, origin)) for one in (options, fitted)]
    whole = 10 * (100 - first_epoch)
    for share in (0.05, 0.23, 0.5, 0.77, 0.99):
        there, here = (np.ceil(share * length) for length in (whole, updates))
        near = [rates[0](there + k * whole / updates) for k in (-1, 1)]
        assert min(near) * 0.85 - 0.01 <= rates[1](here) <= max(near) * 1.15 + 0.01, share
    assert rates[1](updates) == pytest.approx(rates[0](whole), rel=0.2, abs=1e-3)


@pytest.mark.parametrize("name", ["cosine_epochs", "plateau"])
def test_other_schedules_end_as_with_max_iter(name):
    options = train_options(lr_schedule=name, end_epoch=100, lr_steps=("50",)).schedule
    assert shortened(options, Pace(10), 0, 123) == {"max_iter": 123}


def _rate(schedule):
    rate, scheduler = schedule
    return (lambda update: scheduler(max(1, round(update)))) if scheduler else (lambda update: rate)


def test_all_steps_are_made_even_where_there_are_more_than_updates():
    options = train_options(lr=1.0, lr_schedule="step_epochs", lr_factor=0.5, end_epoch=21).schedule
    fitted = replace_options(options, **shortened(options, Pace(10), 0, 5))
    rate = _rate(make_schedule(fitted, 10))
    assert rate(6) == pytest.approx(0.5**20)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("1h5s", 3605), ("", 0)]
)
def test_times(text, seconds):
    given = from_mapping(train_options_class(), {"time_limit": text})
    assert seconds_of(given.schedule.time_limit) == seconds


@pytest.mark.parametrize("text", ["15", "m", "0m", "1.5h", "1m30", "30m1h", "-5m", "1d", "0h0m0s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(OptionError, match="--time-limit takes a time above 0 such as 90s, 15m, 2h or 1h30m, not"):
        from_mapping(train_options_class(), {"time_limit": text})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_iter": 5}, "--time-limit and --max-iter exclude each other"),
        ({"freeze_epochs": 1}, "--freeze-epochs and --time-limit exclude each other; end the run by --end-epoch"),
    ],
)
def test_ends_that_exclude_each_other_are_refused_before_mxnet_is_imported(options, changes, words):
    with pytest.raises(OptionError, match=words):
        check_early(options(time_limit="1m", **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patience": 3, "val_path": ""}, ["--patience has no effect without --val-path"]),
        ({"patience": 3, "eval_every": "last"}, ["--patience has no effect with --eval-every last"]),
        (
            {"time_limit": "1m", "end_epoch": 9, "lr_schedule": "cosine"},
            ["--end-epoch has no effect with --time-limit"],
        ),
        ({"time_limit": "1m", "end_epoch": 9}, []),
    ],
)
def test_what_has_no_effect_is_told(changes, told):
    assert idle_options(replace_options(train_options(), **changes)) == told


def test_a_run_ends_when_its_score_does_not_rise(options, monkeypatch, caplog):
    caplog.set_level("INFO")
    scored(monkeypatch, 0.1, 0.3, 0.2, 0.3, 0.25, 0.9)
    run = options(patience=3, end_epoch=10, save_best_only=True)
    run_training(run)
    assert [line["epoch"] for line in metrics(run.output.prefix)] == [1, 2, 3, 4, 5]
    assert list_epochs(run.output.prefix) == [2, 5], "the best and the last"
    assert load_checkpoint(run.output.prefix, "best").epoch == 2
    told = "the run ends with epoch 5: mAP has not been above the 0.3000 of epoch 2 since (--patience 3)"
    assert caplog.text.count(told) == 1
    assert "newest: checkpoint 5" in caplog.text
    with pytest.raises(OptionError, match=r"not become better for 3 epochs; raise --patience to 4 or more"):
        run_training(replace_options(run, resume="auto"))


def test_patience_goes_on_where_a_run_is_resumed(options, monkeypatch):
    scored(monkeypatch, 0.1, 0.3, 0.2)
    run = options(patience=3, end_epoch=10)
    interrupted(run, 3)
    scored(monkeypatch, 0.3, 0.25, 0.9)
    run_training(replace_options(run, resume="auto"))
    assert list_epochs(run.output.prefix)[-1] == 5


def test_a_run_that_was_given_up_goes_on_with_more_patience(options, monkeypatch):
    scored(monkeypatch, 0.5, 0.1, 0.2, 0.6, 0.1, 0.1, 0.1)
    run = options(patience=1, end_epoch=10)
    run_training(run)
    assert list_epochs(run.output.prefix)[-1] == 2
    run_training(replace_options(run, patience=3, resume="auto"))
    assert list_epochs(run.output.prefix)[-1] == 7, "three after the 0.6 of the fourth"


def test_only_validated_epochs_end_a_run(options, monkeypatch):
    scored(monkeypatch, 0.5, 0.5, 0.5)
    run = options(patience=3, eval_every="2", end_epoch=10)
    run_training(run)
    assert [bool(line["validation"]) for line in metrics(run.output.prefix)] == [False, True, False, True, False, True]


def test_of_two_stages_the_second_may_end_early(options, monkeypatch):
    scored(monkeypatch, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1)
    run = options(patience=1, freeze_epochs=3, end_epoch=10)
    run_training(run)
    assert list_epochs(run.output.prefix)[-1] == 5, "the first score of the second stage is the one to beat"


def test_patience_without_a_score_ends_nothing():
    patience = Patience(1, {})
    for epoch in (1, 2, 3):
        patience.observe(epoch, None)
    assert not patience.is_over
    assert patience.state() == {}


@pytest.mark.parametrize("state", [{"best": "x"}, {"epoch": 1}, {"best": 1.0, "epoch": "x"}])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(CheckpointError, match="state of --patience is damaged"):
        Patience(1, state)
