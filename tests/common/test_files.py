"""Files that are written whole or not at all, alone or as a group."""

import errno

import pytest

from common.files import write_all


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
