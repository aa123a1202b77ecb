"""Files that are written whole or not at all, alone or as a group, and the prefixes of their names."""

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.errors import DataError, OptionError
from common.files import check_output_file, check_prefix, text_lines, write_all, write_atomically
from dataset.image_check import file_header
from dataset.image_pool import or_reason
from dataset.image_pool import read_image as read_packed
from engines.preprocess import read_image
from model.folder import check_replaceable
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


def test_names_that_no_file_can_have_are_refused_before_the_work(tmp_path):
    """The longest that pass can be written with all that belongs to them."""
    name = "é" * 120
    check_output_file("--json", str(tmp_path / name))
    write_atomically(tmp_path / name, b"x")
    with pytest.raises(OptionError, match="--json .*: its name has 244 bytes, more than 242; choose a shorter one"):
        check_output_file("--json", str(tmp_path / f"{name}.jpg"))
    with pytest.raises(OptionError, match="--prefix .*: its name has 221 bytes, more than 220"):
        check_early(train_options(prefix=str(tmp_path / ("a" * 221))))
    with pytest.raises(OptionError, match="--output .*: its name has 300 bytes"):
        check_replaceable(tmp_path / ("a" * 300))


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "link", tmp_path / "far" / "file"
    link.symlink_to(file)
    for content in (b"new", b"newer"):
        check_output_file("--json", str(link))
        write_atomically(link, content)
        assert link.is_symlink()
        assert file.read_bytes() == content
    assert os.listdir(tmp_path / "far") == ["file"]
    link.unlink()
    link.symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(OptionError, match="there is no folder"):
        check_output_file("--json", str(link))


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_output_file("--json", str(pipe))
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_atomically(pipe, b"result")
        assert reader.communicate()[0] == b"result"
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_a_device_is_written_to(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for path in ("/dev/null", str(link)):
        check_output_file("--json", path)
        write_atomically(Path(path), b"x")
    assert stat.S_ISCHR(os.stat(link).st_mode)


@pytest.mark.parametrize("is_file", [True, False])
def test_the_name_of_standard_output_is_written_to(tmp_path, is_file):
    code = "from pathlib import Path; from common.files import *; print('head', flush=True)\n"
    code += "check_output_file('--json', '/dev/stdout'); write_atomically(Path('/dev/stdout'), b'body')"
    with open(tmp_path / "out", "w") as file:
        done = subprocess.run([sys.executable, "-c", code], stdout=file if is_file else subprocess.PIPE, check=True)
    assert ((tmp_path / "out").read_bytes() if is_file else done.stdout) == b"head\nbody"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm")
def test_a_file_in_shared_memory_is_replaced_and_not_added_to():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for content in (b"old and longer", b"new"):
            check_output_file("--json", f"{folder}/a.json")
            write_atomically(Path(folder, "a.json"), content)
            assert Path(folder, "a.json").read_bytes() == content


def test_what_a_killed_process_left_of_an_output_is_cleared(tmp_path):
    """Not what is being written, and no other file."""
    code = "import os, sys; from pathlib import Path; from common.files import *\n"
    code += "staged(Path(sys.argv[1]), b'x' * (2 << 20)); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"])
    (left,) = tmp_path.iterdir()
    stays = {f".a.json.{os.getpid()}.tmp", ".a.json.old.tmp", left.name.replace("a.json", "b.json")}
    for name in stays:
        (tmp_path / name).touch()
    check_output_file("--json", str(tmp_path / "a.json"))
    assert {path.name for path in tmp_path.iterdir()} == stays


def test_a_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s"))
        with pytest.raises(OptionError, match="is a socket; name a file"):
            check_output_file("--json", str(tmp_path / "s"))


READERS = {
    "list": text_lines,
    "packing": lambda path: or_reason(lambda: read_packed(path), _raise),
    "size": file_header,
    "demo": lambda path: read_image(path, ""),
}


def _raise(reason):
    raise DataError(reason)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_or_device_is_not_waited_for(tmp_path, read):
    pipe = tmp_path / "a.jpg"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises((DataError, OSError), match="it is a pipe, a device or a socket, not a file"):
            read(path)
    with pytest.raises((DataError, OSError), match="Is a directory"):
        read(tmp_path)
