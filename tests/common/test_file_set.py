"""A set of files is the old one or the new one, wherever its writer is killed."""

import os

import pytest

from common.errors import DataError
from common.file_set import clear_leftovers, finish_replacement, replace_set
from common.files import staged

NAMES = ("t.rec", "t.idx", "t.lst")
OLD, NEW = b"old", b"new"


def write_new(folder):
    files = [staged(folder / name, NEW) for name in NAMES]
    replace_set(folder / "t.rec", files, [folder / "t.json"])


@pytest.fixture
def old(tmp_path):
    for name in (*NAMES, "t.json"):
        (tmp_path / name).write_bytes(OLD)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(call, folder):
    """Writes the set in a process that ends at the call-th rename or removal; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(real):
            def call_or_die(*args, **kwargs):
                nonlocal count
                count += 1
                if count > call:
                    os._exit(9)
                return real(*args, **kwargs)

            return call_or_die

        os.replace, os.unlink = dying(os.replace), dying(os.unlink)
        write_new(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("call", range(6))
def test_a_kill_leaves_the_old_set_or_the_new_one(old, call):
    killed_at(call, old)
    finish_replacement(old / "t.rec")
    clear_leftovers(old / "t.rec")
    new = dict.fromkeys(NAMES, NEW)
    assert contents(old) == (dict.fromkeys([*NAMES, "t.json"], OLD) if call == 0 else new)


def test_a_set_is_replaced_and_nothing_else_is_left(old):
    write_new(old)
    assert contents(old) == dict.fromkeys(NAMES, NEW)


def test_leftovers_of_others_and_of_living_processes_stay(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for name in (f".t.rec.{child}.tmp", f".t2.rec.{child}.tmp", f".t.rec.{os.getppid()}.tmp", ".t.rec.tmp", ".t.x.tmp"):
        (tmp_path / name).write_bytes(OLD)
    clear_leftovers(tmp_path / "t.rec")
    assert f".t.rec.{child}.tmp" not in contents(tmp_path)
    assert len(contents(tmp_path)) == 4


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        '{"rename": [], "remove": ["../t.rec"]}',
        '{"rename": [], "remove": ["other.rec"]}',
        '{"rename": [["/etc/passwd", "t.rec"]], "remove": []}',
        '{"rename": [[".other.rec.1.tmp", "t.rec"]], "remove": []}',
    ],
)
def test_a_note_that_is_damaged_or_names_other_files_is_refused(old, note):
    (old / ".t.replacing").write_text(note)
    with pytest.raises(DataError, match=r"t\.rec was being replaced .*pack it again, or delete .*\.t\.replacing"):
        finish_replacement(old / "t.rec")
    assert {name: contents(old)[name] for name in NAMES} == dict.fromkeys(NAMES, OLD)
