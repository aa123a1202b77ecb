"""Checkpoint sets exist completely or not at all, whatever happens while they are written."""

import errno
import json
import logging
import os
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from machine.runtime import mx
from model.checkpoint import (
    BEST_FILE,
    META_FILE,
    CheckpointMeta,
    best_epoch,
    drop_after,
    list_epochs,
    load_checkpoint,
    load_optimizer_state,
    meta_path,
    optimizer_path,
    params_path,
    read_meta,
    remove_checkpoint,
    save_checkpoint,
    symbol_path,
    write_best,
)
from tests.signing import earlier, edit, flips

META = CheckpointMeta(
    epoch=1,
    num_update=10,
    learning_rate=0.1,
    scores={},
    seed=1,
    class_names=("a",),
    mean_pixels=(1.0, 2.0, 3.0),
    data_shape=(64, 64),
    network="mobilenet",
    options={},
    batch_size=8,
    symbol_sha256="0",
)
LATER = "std resize_mode fill rect metrics overlap use_difficult freeze_epochs earlier_updates plateau origin begun"


def save(prefix, epoch, value=None, size=1000):
    """A set whose weights all have one value, by default its epoch's number."""
    array = mx.nd.full((size,), epoch if value is None else value)
    state = {"w:0": np.full(size, epoch, np.float32)}
    save_checkpoint(str(prefix), "{}", {"w": array}, {"m": array}, state, replace(META, epoch=epoch))


@pytest.fixture
def prefix(tmp_path):
    """A prefix with sound sets of epochs 1, 2, 3."""
    for epoch in (1, 2, 3):
        save(tmp_path / "x" / "net", epoch)
    return str(tmp_path / "x" / "net")


def value_of(checkpoint):
    return float(checkpoint.arg_params["w"][0].asscalar())


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_set_comes_back_as_it_was_saved(prefix):
    assert list_epochs(prefix) == [1, 2, 3]
    found = load_checkpoint(prefix, 2)
    assert (found.epoch, value_of(found), found.meta.class_names) == (2, 2.0, ("a",))
    np.testing.assert_array_equal(found.aux_params["m"].asnumpy(), np.full(1000, 2, np.float32))
    np.testing.assert_array_equal(load_optimizer_state(found)["w:0"], np.full(1000, 2, np.float32))
    assert load_checkpoint(prefix, "auto").epoch == 3
    assert not [path for path in Path(prefix).parent.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("name", ["x/net", "x/./net", "x//net", "net", "x/.", "x/[a]"])
def test_sets_are_found_under_any_prefix(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(name, 1)
    assert list_epochs(name) == [1]
    assert load_checkpoint(name).epoch == 1


def test_a_prefix_without_name_is_refused(tmp_path):
    with pytest.raises(OptionError, match="x/: its files would have no name; add one, as in .*x/model"):
        load_checkpoint(f"{tmp_path}/x/")


def test_a_failing_save_leaves_the_symbol(prefix, monkeypatch):
    monkeypatch.setattr("model.checkpoint.stage_arrays", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CheckpointError, match="not written"):
        save_checkpoint(prefix, "another", {}, {}, {}, replace(META, epoch=4))
    assert symbol_path(prefix).read_text() == "{}"


def test_a_set_without_its_json_does_not_exist(prefix):
    meta_path(prefix, 3).unlink()
    assert load_checkpoint(prefix).epoch == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of epoch 3 \(there are 1, 2\)"):
        load_checkpoint(prefix, 3)


@pytest.mark.parametrize("path_of", [params_path, optimizer_path])
def test_a_changed_file_is_refused_by_name(prefix, path_of):
    flip_a_bit(path_of(prefix, 3))
    with pytest.raises(CheckpointError, match=f"{path_of(prefix, 3).name}: damaged"):
        load_checkpoint(prefix, 3)
    path_of(prefix, 2).unlink()
    with pytest.raises(CheckpointError, match=f"{path_of(prefix, 2).name}: missing"):
        load_checkpoint(prefix, 2)


def test_auto_falls_back_to_the_newest_sound_set_and_says_so(prefix, caplog):
    flip_a_bit(params_path(prefix, 3))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(prefix, "auto").epoch == 2
    assert "0003.params: damaged" in caplog.text
    for epoch in (1, 2):
        flip_a_bit(params_path(prefix, epoch))
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        load_checkpoint(prefix, "auto")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xff", b"null", b'{"epoch": 3}', b"[" * 100_000, b"9" * 5000]
)
def test_a_damaged_json_is_refused_by_name(prefix, content):
    meta_path(prefix, 3).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net-0003\.json: damaged"):
        load_checkpoint(prefix, 3)
    assert load_checkpoint(prefix).epoch == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data_shape", ["x"], "checkpoint.data_shape is not of type int: 'x'"),
        ("data_shape", [64], "field data_shape is wrong"),
        ("data_shape", [0, 64], "field data_shape is wrong"),
        ("scores", {"validation": [1]}, r"checkpoint.scores.validation is not of type dict: \[1\]"),
        ("class_names", [["a"], None], "checkpoint.class_names is not of type str"),
        ("class_names", [], "field class_names is wrong"),
        ("mean_pixels", [1.0], "field mean_pixels is wrong"),
        ("mean_pixels", [{}, 1, 1], "checkpoint.mean_pixels is not of type float"),
        ("std", [True, 1, 1], "checkpoint.std is not of type float"),
        ("num_update", 1.5, "checkpoint.num_update is not of type int"),
        ("resize_mode", "fit", "field resize_mode is wrong: 'fit'"),
        ("precision", {"dtype": "int4"}, "field precision is wrong"),
        ("precision", {"dtype": "bfloat16", "scale": 2.0}, "field precision is wrong"),
        ("precision", {"dtype": "float16", "scale": 2.0}, "field precision is wrong"),
        ("precision", {"dtype": "float16", "scale": -2.0, "good": 0, "skipped": 0}, "field precision is wrong"),
        ("precision", {"dtype": "bfloat16", "gradients": {"conv": "guessed"}}, "field precision is wrong"),
        ("files", {"a": {"size": 1}}, "sha256 is missing in checkpoint.files.a"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(prefix, field, value, message):
    edit(meta_path(prefix, 3), lambda values: values.update({field: value}))
    with pytest.raises(CheckpointError, match=r"net-0003\.json: damaged \(" + message):
        load_checkpoint(prefix, 3)


def test_values_that_are_no_numbers_yet_come_back(prefix):
    meta = replace(META, epoch=3, plateau={"best": float("inf")}, scores={"validation": {"cat": None}})
    save_checkpoint(prefix, "{}", {}, {}, {}, meta)
    assert replace(load_checkpoint(prefix, 3).meta, files={}) == meta


@pytest.mark.parametrize("content", ['{"epoch": Infinity}', '{"epoch": 1e999}', '{"epoch": "2"}', "[" * 100_000, "\0"])
def test_a_damaged_note_of_the_best_is_one_sentence(prefix, content, monkeypatch):
    Path(f"{prefix}-best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"net-best.json: damaged \(.*\); name an epoch"):
        best_epoch(prefix)
    monkeypatch.setattr("model.checkpoint.BEST_FILE", replace(BEST_FILE, max_bytes=10))
    Path(f"{prefix}-best.json").write_text('{"epoch": 2} ')
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        best_epoch(prefix)


def test_a_renamed_set_is_refused(prefix):
    for path in (params_path, optimizer_path, meta_path):
        path(prefix, 3).rename(path(prefix, 9))
    with pytest.raises(CheckpointError, match="field epoch is wrong: 3"):
        load_checkpoint(prefix, 9)


@pytest.mark.parametrize("epoch", [-1, "x", "²", "1.5", ""])
def test_an_epoch_that_is_none_is_refused(prefix, epoch):
    with pytest.raises(CheckpointError, match="epoch"):
        load_checkpoint(prefix, epoch)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_checkpoint(str(tmp_path / "absent" / "net"))


def test_best_is_the_recorded_epoch(prefix):
    with pytest.raises(CheckpointError, match="no best epoch is recorded"):
        load_checkpoint(prefix, "best")
    write_best(prefix, 2, "mAP", 0.5)
    assert best_epoch(prefix) == load_checkpoint(prefix, "best").epoch == 2
    Path(f"{prefix}-best.json").write_text("[]")
    with pytest.raises(CheckpointError, match="best"):
        load_checkpoint(prefix, "best")


def test_removing_a_set_leaves_nothing_of_it(prefix):
    remove_checkpoint(prefix, 2)
    assert list_epochs(prefix) == [1, 3]
    assert not list(Path(prefix).parent.glob("*0002*"))


def test_dropping_later_sets_clears_what_a_killed_run_left(prefix):
    folder = Path(prefix).parent
    (folder / ".net-0003.params.123.tmp").write_bytes(b"half")
    (folder / ".other-0003.params.123.tmp").write_bytes(b"another run's")
    assert drop_after(prefix, 1) == [2, 3]
    assert list_epochs(prefix) == [1]
    assert load_checkpoint(prefix).epoch == 1
    assert sorted(path.name for path in folder.glob(".*")) == [".other-0003.params.123.tmp"]
    assert drop_after(prefix, 1) == []


def test_a_set_just_saved_is_not_dropped(prefix):
    assert drop_after(prefix, 1, saved=2) == [3]
    assert list_epochs(prefix) == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(prefix, value):
    with pytest.raises(CheckpointError, match=r"arg:w holds values that are not finite"):
        save(prefix, 4, value)
    assert list_epochs(prefix) == [1, 2, 3]


def assert_old_sets_are_whole(prefix):
    folder = Path(prefix).parent
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert [value_of(load_checkpoint(prefix, epoch)) for epoch in (1, 2, 3)] == [1, 2, 3]
    assert load_checkpoint(prefix).epoch == 3


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("function", ["fsync", "replace", "stat"])
def test_a_failing_disk_leaves_the_old_sets(prefix, monkeypatch, function, call):
    """Whichever system call of a save fails first."""
    real, count = getattr(os, function), 0

    def failing(*args, **options):
        nonlocal count
        count += 1
        if count > call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(os, function, failing)
    try:
        save(prefix, 4)
        failed = False
    except CheckpointError as error:
        failed = True
        assert "net-0004.params: not written (No space left" in str(error)  # noqa: PT017
    monkeypatch.undo()
    if failed and 4 in list_epochs(prefix):  # the failure came after the set was complete
        assert value_of(load_checkpoint(prefix, 4)) == 4
        remove_checkpoint(prefix, 4)
    elif not failed:
        remove_checkpoint(prefix, 4)
    assert_old_sets_are_whole(prefix)


def test_a_limit_of_the_file_size_leaves_the_old_sets(prefix):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(CheckpointError, match=r"net-0004.params: not written \(File too large\)"):
            save(prefix, 4, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_old_sets_are_whole(prefix)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not written"):
        save(tmp_path / "file" / "net", 1)


class FakeArray:
    """What save_checkpoint needs of an NDArray; a forked process must keep away from mxnet."""

    def __init__(self, array):
        self.array = array

    def asnumpy(self):
        return self.array


def save_without_end(prefix, first, pipe):
    for epoch in range(first, 10_000):
        array = np.full(200_000, epoch, np.float32)
        save_checkpoint(prefix, "{}", {"w": FakeArray(array)}, {}, {"w:0": array}, replace(META, epoch=epoch))
        os.write(pipe, epoch.to_bytes(4, "little"))


def test_kill_while_saving_loses_no_saved_set(tmp_path):
    """The newest set that was reported saved, or a later one, always loads."""
    prefix, newest, rng = str(tmp_path / "net"), 0, random.Random(1)
    for _ in range(20):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_without_end(prefix, newest + 1, write_end)
            finally:
                os._exit(1)
        os.close(write_end)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        reported = os.read(read_end, 1 << 20)
        os.close(read_end)
        if reported:
            newest = int.from_bytes(reported[-4:], "little")
        if newest:
            checkpoint = load_checkpoint(prefix)
            assert checkpoint.epoch >= newest
            assert value_of(checkpoint) == checkpoint.epoch
            newest = checkpoint.epoch
            drop_after(prefix, newest)
    assert newest > 5
    assert not list(tmp_path.glob(".*"))


def test_the_json_can_be_read_by_anybody(prefix):
    values = json.loads(meta_path(prefix, 1).read_text())
    assert (values["format"], values["epoch"], values["class_names"]) == (2, 1, ["a"])
    assert set(values["files"]) == {"net-0001.params", "net-0001.optim.params"}
    assert values["files"]["net-0001.params"]["size"] == params_path(prefix, 1).stat().st_size
    assert list(values)[-1] == "digest"


def test_a_json_without_digest_is_read_as_its_version_did_and_told_once(prefix, caplog):
    """Without the newest fields, too: images were stretched, std was 1."""
    path, current = meta_path(prefix, 1), read_meta(prefix, 1)
    path.write_text(earlier(path.read_text(), without=tuple(LATER.split())).replace('"format"', '"x": 0, "format"'))
    for _ in range(3):
        assert read_meta(prefix, 1) == load_checkpoint(prefix, 1).meta == current
    assert (current.resize_mode, current.std, current.rect) == ("force", (1.0, 1.0, 1.0), 0)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: of an earlier version, without a digest")
    assert "python tools/sign_metadata.py" in record.getMessage()
    path.write_text(earlier(path.read_text(), without=("files",)))
    with pytest.raises(CheckpointError, match="files is missing in checkpoint"):
        read_meta(prefix, 1)


def test_no_flipped_bit_of_a_json_is_taken_for_another_checkpoint(prefix):
    path, known = meta_path(prefix, 1), read_meta(prefix, 1)
    refused = 0
    for content in flips(path.read_bytes(), 5):
        path.write_bytes(content)
        try:
            assert read_meta(prefix, 1) == known
        except CheckpointError as error:
            assert "net-0001.json: damaged (" in str(error)  # noqa: PT017
            assert "use another epoch" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0.98 * 8 * len(content) / 5


def test_no_flipped_bit_of_the_note_of_the_best_is_taken_for_another_epoch(prefix):
    write_best(prefix, 2, "mAP", 0.5)
    path = Path(f"{prefix}-best.json")
    for content in flips(path.read_bytes()):
        path.write_bytes(content)
        try:
            assert best_epoch(prefix) == 2
        except CheckpointError as error:
            assert "net-best.json: damaged (" in str(error)  # noqa: PT017


def test_an_edit_is_refused_with_its_remedy(prefix):
    path = meta_path(prefix, 3)
    path.write_text(path.read_text().replace('"resize_mode"', '"rerize_mode"'))
    edited = (
        r"net-0003.json: damaged \(its digest is not that of its content: if it was edited on purpose, sign it with "
    )
    with pytest.raises(CheckpointError, match=edited + r"python tools/sign_metadata.py\); use another epoch"):
        load_checkpoint(prefix, 3)
    edit(path, lambda values: None)
    with pytest.raises(
        CheckpointError, match="checkpoint has the unknown key 'rerize_mode', written by a later version"
    ):
        load_checkpoint(prefix, 3)
    edit(path, lambda values: values.pop("rerize_mode"))
    assert load_checkpoint(prefix, 3).meta.resize_mode == "force"  # a missing key is one that was not yet there
    edit(path, lambda values: values.update(format=3))
    with pytest.raises(CheckpointError, match="format is 3, this version reads 1 to 2 only"):
        load_checkpoint(prefix, 3)
    path.write_text(path.read_text().replace('"digest"', '"digezt"'))
    with pytest.raises(CheckpointError, match="its digest is missing"):
        load_checkpoint(prefix, 3)


def test_a_path_that_is_no_utf8_comes_back(prefix):
    meta = replace(META, network="darknet:\udcff.cfg")
    assert META_FILE.from_json(META_FILE.to_json(meta), "x") == meta
