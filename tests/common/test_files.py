"""Files that are written whole or not at all, alone or as a group, and the prefixes of their names."""

import errno

import pytest

from common.errors import OptionError
from common.files import check_prefix, write_all
from train.checks import check_early
from train.options import train_options


def test_a_group_replaces_older_files(tmp_path):
    (tmp_path / "a").write_text("old")
    write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("fails", ["open", "sync"])
def test_a_failure_leaves_none_of_a_group_and_names_the_file(tmp_path, monkeypatch, fails):
    synced = []

    def second_fails(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    last = tmp_path / ("nowhere/b" if fails == "open" else "b")
    if fails == "sync":
        monkeypatch.setattr("common.files.os.fsync", second_fails)
    with pytest.raises(OSError, match="No ") as caught:
        write_all({tmp_path / "a": b"1", last: b"2"})
    assert caught.value.filename == str(last)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("prefix", ["", "/", "run/", "a/b/"])
def test_one_without_name_is_refused(prefix):
    with pytest.raises(OptionError, match="--prefix .*: its files would have no name"):
        check_prefix(prefix)
    with pytest.raises(OptionError, match="--prefix .*: its files would have no name"):
        check_early(train_options(prefix=prefix))


def test_others_are_taken():
    for prefix in ("run", "a/run", "./run", "a/."):
        check_prefix(prefix)
