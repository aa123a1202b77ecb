"""The files beside the checkpoints, the command to continue, the progress bar."""

import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import OptionError
from config.options import replace_options
from evaluate.coco_metric import STAT_NAMES
from train.curves import LiveCurves, draw_curves, live_page, save_curves
from train.metric import LossMetric
from train.options import train_options
from train.progress import Progress
from train.run_files import (
    MetricsFile,
    changed_options,
    command_to_continue,
    lock_prefix,
    log_to_file,
    write_results,
    write_run_file,
)

LINE = {"epoch": 1, "train": {"loss": 2.5}, "validation": {"mAP": 0.5}, "learning_rate": 0.1, "num_update": 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--lr 0.1", "--lr 0.1"),
        ("--resume 3 --lr 0.1", "--lr 0.1"),
        ("--resume=auto --lr 0.1", "--lr 0.1"),
        ("--overwrite --lr 0.1", "--lr 0.1"),
        ("--overwrite true --lr 0.1", "--lr 0.1"),
        ("--lr 0.1 --resume -1", "--lr 0.1"),
        ("--finetune 12 --lr-steps 3,4 --overwrite", "--lr-steps 3,4"),
        ("--anchor-sizes '0.1;0.2'", "--anchor-sizes '0.1;0.2'"),
    ],
)
def test_the_command_to_continue(given, expected):
    argv = ["train.py", *(word.strip("'") for word in given.split())]
    assert command_to_continue(True, argv) == f"python train.py {expected} --resume auto"
    assert command_to_continue(False, argv) == f"python train.py {given}"


def test_metrics_of_later_epochs_are_cut_by_the_next_line(tmp_path):
    prefix = str(tmp_path / "t")
    first = MetricsFile(prefix, 0)
    for epoch in (1, 2, 3):
        first.append({**LINE, "epoch": epoch})
    second = MetricsFile(prefix, 1)
    assert len(first.path.read_text().splitlines()) == 3
    second.append({**LINE, "epoch": 2, "again": True})
    assert [json.loads(line) for line in first.path.read_text().splitlines()] == [
        {**LINE, "epoch": 1}, {**LINE, "epoch": 2, "again": True}
    ]  # fmt: skip
    assert MetricsFile(prefix, 0).records == []


@pytest.mark.parametrize("content", [b"{", b"{}", b"5", b"\xff", b'{"epoch": "x"}', b"[" * 9999, b"9" * 9999])
def test_a_damaged_metrics_file_is_told_moved_and_begun_anew(tmp_path, content):
    path = tmp_path / "t-metrics.jsonl"
    path.write_bytes(content + b"\n")
    file = MetricsFile(str(tmp_path / "t"), 2)
    assert re.match(rf"{re.escape(str(path))}: .*; it becomes t-metrics.jsonl.damaged and is begun anew", file.damage)
    assert path.read_bytes() == content + b"\n"
    file.move_damaged()
    file.append({**LINE, "epoch": 3})
    assert (tmp_path / "t-metrics.jsonl.damaged").read_bytes() == content + b"\n"
    again = MetricsFile(str(tmp_path / "t"), 3)
    assert (again.damage, again.records) == ("", [{**LINE, "epoch": 3}])


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_moved_too(tmp_path, kind):
    path = tmp_path / "t-metrics.jsonl"
    (os.mkdir if kind == "folder" else os.mkfifo)(path)
    file = MetricsFile(str(tmp_path / "t"), 2)
    assert "cannot be read" in file.damage
    file.move_damaged()
    file.append(LINE)
    assert path.is_file()


def _replaced(value, place, new):
    """JSON values with the one at a place, counted through all of them, replaced."""
    count = itertools.count()

    def walk(one):
        if next(count) == place:
            return new
        if isinstance(one, dict):
            return {name: walk(part) for name, part in one.items()}
        return one

    return walk(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5) | st.just(10**400),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), part, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.integers(0, 20), JSON, st.integers(0, 400), st.binary(max_size=3), st.booleans())
def test_no_change_of_the_metrics_file_is_another_error(place, new, begin, bytes_, by_value):
    lines = [json.dumps({**LINE, "epoch": epoch}) for epoch in (1, 2)]
    if by_value:
        lines[1] = json.dumps(_replaced({**LINE, "epoch": 2}, place, new))
    content = "\n".join(lines).encode()
    if not by_value:
        content = content[:begin] + bytes_ + content[begin + len(bytes_) :]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "t-metrics.jsonl").write_bytes(content)
        file = MetricsFile(f"{folder}/t", 2)
        file.move_damaged()
        file.append({**LINE, "epoch": 3})
        write_results(file.records, Path(folder, "t-results.txt"))
        live_page("t", "", {}, file.records, is_over=False)
        assert MetricsFile(f"{folder}/t", 3).damage == ""


def test_the_log_file_is_appended_to_and_ends_with_the_error(tmp_path):
    path = tmp_path / "deep" / "x.log"
    for text in ("one", "two"):
        with log_to_file(path):
            logging.getLogger("train.x").info(text)
    with pytest.raises(ValueError, match="why"), log_to_file(path):
        raise ValueError("why it ended")
    lines = path.read_text().splitlines()
    assert [line.split(" ", 3)[-1] for line in lines] == ["one", "two", "ValueError: why it ended"]
    assert lines[-1].split(" ")[2] == "ERROR"
    logging.getLogger("train.x").info("not any more")
    assert len(path.read_text().splitlines()) == 3


def test_the_lock_ends_with_its_holder(tmp_path):
    prefix = str(tmp_path / "run" / "t")
    with lock_prefix(prefix), pytest.raises(OptionError, match="another run"):
        lock_prefix(prefix)
    lock_prefix(prefix).close()
    lock_prefix(str(tmp_path / "run" / "other")).close()


def record(epoch, train, validation):
    return {"epoch": epoch, "train": train, "validation": validation, "learning_rate": 0.1}


@pytest.mark.parametrize(
    "records",
    [
        [record(1, {"CrossEntropy": 0.0, "SmoothL1": 0.0}, {})],
        [
            record(1, {"CrossEntropy": 1.0}, {"mAP": 0.5}),
            record(2, {"CrossEntropy": 0.5, "late": 1.0}, {"mAP": 0.6, "late": 0.1}),
        ],
        [record(1, {"CrossEntropy": 1.0}, {"mAP": 0.5}), record(2, {"CrossEntropy": 1.0}, {})],
        [record(1, {"CrossEntropy": 1.0}, {"mAP": 0.5}) | {"validation_loss": {"CrossEntropy": 2.0}}],
    ],
)
def test_curves_are_drawn_whatever_was_measured(tmp_path, records):
    save_curves(records, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_scores_can_be_told_apart_beside_their_legend():
    """No two lines have one colour and one kind of line; those of COCO's recall are left out."""
    names = [*STAT_NAMES, *(f"class {k}" for k in range(14))]
    figure = draw_curves([record(k, {"loss": 1.0}, dict.fromkeys(names, 0.5)) for k in (1, 2)])
    axes = next(one for one in figure.axes if "precision" in one.get_title())
    looks = [(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in axes.lines]
    assert [line.get_label() for line in axes.lines] == [*STAT_NAMES[:6], *names[12:]]
    assert len(set(looks)) == len(looks)
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1
    many = draw_curves([record(1, {"loss": 1.0}, {f"class {k}": 0.5 for k in range(80)})])
    legends = [one.get_legend() for one in many.axes if one.get_legend()]
    assert "80 classes" in [text.get_text() for text in legends[-1].get_texts()]


def test_a_picture_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    (tmp_path / "c.png").write_bytes(b"older")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        save_curves([record(1, {"CrossEntropy": 1.0}, {})], tmp_path / "c.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"c.png": b"older"}


@pytest.mark.parametrize(("prefix", "name"), [("absent/t", "CrossEntropy"), ("t", "$^$")])
def test_training_goes_on_without_curves(drawn_curves, tmp_path, caplog, prefix, name):
    curves = LiveCurves(str(tmp_path / prefix), LossMetric([name]), None, [record(1, {name: 1.0}, {})], 1)
    curves.draw()
    curves.draw()
    assert caplog.text.count("cannot be written") == 1


def test_no_curves_without_records(tmp_path):
    save_curves([], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_shows_loss_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = shown_on_a_terminal(monkeypatch, 80)
    assert "Epoch 2/3 6/6 CrossEntropy=1.25 SmoothL1=0.5 " in shown[-1]
    assert re.search(r"images/s ends in \d:\d\d:\d\d", shown[-1])


def shown_on_a_terminal(monkeypatch, columns, **changes):
    """What an epoch of six batches draws, a line at a time."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr("train.progress.REDRAWN_SECONDS", 0.0)
    progress = Progress(**{"batch_size": 4, "frequent": 20, "batches": 6, "end_epoch": 3} | changes)
    values = [("CrossEntropy", 1.25), ("SmoothL1", 0.5)]
    metric = SimpleNamespace(totals=lambda: (1.0, 1.0), get_name_value=lambda: values)
    for batch in range(6):
        progress(SimpleNamespace(epoch=1, nbatch=batch, eval_metric=metric))
    return [line.rstrip() for line in sys.stderr.getvalue().split("\r") if "Epoch" in line]


@pytest.mark.parametrize("columns", [120, 80, 60, 45])
def test_the_line_on_a_terminal_fits_and_never_loses_the_time_left(monkeypatch, columns):
    """From the second batch on, although --frequent is more than an epoch has."""
    lines = shown_on_a_terminal(monkeypatch, columns)
    assert len(lines) >= 6
    assert all(len(line) < columns for line in lines)
    assert lines[0].endswith("ends in ?")
    lines = lines[-5:]  # from the second batch on
    assert all(re.search(r"ends in \d:\d\d:\d\d$", line) for line in lines)
    assert all("CrossEntropy=1.25" in line for line in lines if columns >= 60)
    assert all("images/s" in line for line in lines if columns >= 80)


def test_where_a_terminal_shows_a_line_the_log_has_it_too(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        shown_on_a_terminal(monkeypatch, 80, frequent=3)
    assert [record.getMessage().split()[2] for record in caplog.records] == ["3/6", "6/6"]
    assert all("images/s ends in" in line and " step " in line and " MB" in line for line in caplog.messages)
    assert all(record.shown_otherwise for record in caplog.records)


@pytest.mark.parametrize(("last", "left"), [(None, 14), (2, 10)])
def test_the_time_left_counts_the_batches_of_the_last_epoch(monkeypatch, last, left):
    """One image a batch and a second; the second of six batches in the first of three epochs."""
    clock = iter(range(100))
    monkeypatch.setattr("train.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = Progress(batch_size=1, frequent=1, batches=6, end_epoch=3, last_batches=last)
    metric = SimpleNamespace(totals=lambda: (1.0, 1.0), get_name_value=lambda: [("loss", 1.25)])
    for batch in range(2):
        progress(SimpleNamespace(epoch=0, nbatch=batch, eval_metric=metric))
    assert progress.state()["run ends in"] == f"0:00:{left + 2:02d}"


def test_an_epoch_of_one_batch_has_a_speed(caplog):
    progress = Progress(batch_size=4, frequent=20, batches=1, end_epoch=3)
    metric = SimpleNamespace(totals=lambda: (1.0, 1.0), get_name_value=lambda: [("loss", 1.25)])
    with caplog.at_level(logging.INFO):
        progress(SimpleNamespace(epoch=0, nbatch=0, eval_metric=metric))
    assert progress.images_per_second > 0
    assert re.search(r"Epoch 1/3 1/1 loss=1.25 .* images/s ends in \d", caplog.messages[0])


def test_a_long_epoch_has_lines_although_it_has_few_batches(monkeypatch, caplog):
    monkeypatch.setattr("train.progress.QUIET_SECONDS", 0.0)
    progress = Progress(batch_size=4, frequent=20, batches=3, end_epoch=3)
    metric = SimpleNamespace(totals=lambda: (1.0, 1.0), get_name_value=lambda: [("loss", 1.25)])
    with caplog.at_level(logging.INFO):
        for batch in range(3):
            progress(SimpleNamespace(epoch=0, nbatch=batch, eval_metric=metric))
    assert [line.split()[2] for line in caplog.messages] == ["2/3", "3/3"]


def test_a_resumed_run_tells_which_options_it_changes(tmp_path):
    prefix = str(tmp_path / "run")
    options = train_options(prefix=prefix, lr=0.01)
    assert changed_options(prefix, replace_options(options, resume="auto")) == []
    write_run_file(prefix, options)
    other = replace_options(options, lr=0.1, end_epoch=999, workers=7)
    assert changed_options(prefix, other) == []
    assert changed_options(prefix, replace_options(other, resume="auto")) == [
        "--lr is now 0.1, was 0.01 in the run so far"
    ]
    plateau = replace_options(options, lr_schedule="plateau", resume="auto", eval_every="2")
    assert (
        len(changed_options(prefix, plateau))
        == len(changed_options(prefix, replace_options(plateau, eval_every="1"))) + 1
    )
    assert "--cpus is now 3" in changed_options(prefix, replace_options(options, cpus=3, resume="auto"))[0]
    Path(f"{prefix}-run.json").write_text("[]")
    assert changed_options(prefix, replace_options(other, resume="auto")) == []
