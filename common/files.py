"""Files: written whole or not at all, checked for whether they can be written, read as text, and their checksums.

A file appears under its final name only when it is complete: temporary name, fsync, rename.
"""

import errno
import glob
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import CheckpointError, DataError, OptionError

_LONGEST = 255  # bytes of a name in most file systems (NAME_MAX)
MAX_NAME = _LONGEST - len("..4194304.tmp")  # which a file has while it is written; the number is a process's, at most
MAX_PREFIX = MAX_NAME - len("-metrics.jsonl.damaged")
MAX_TEXT_BYTES = 64 << 20
_HASH_CHUNK = 1 << 20
NO_FILE = "it is a pipe, a device or a socket, not a file"
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # names of open files, written to in place; not files of /dev/shm
_BUFFER = 1 << 20  # bytes; records come in pieces, and a call of the system for each would cost more than the bytes


# How a page begins that a server sent in place of a file, after a byte order mark and blanks.
_PAGE = re.compile(rb"[\xef\xbb\xbf\xff\xfe\s]*<(!doctype html|html|head|body|\?xml)\b", re.IGNORECASE)
_PAGE_BYTES = 4096


def refuse_page(path: str | Path) -> None:
    """CheckpointError where a file of weights is an HTML page, as failed downloads leave them.

    A file that cannot be read is left to its reader.
    """
    with suppress(OSError), open(path, "rb") as file:
        if _PAGE.match(file.read(_PAGE_BYTES).replace(b"\0", b"")):  # zeros: of UTF-16
            raise CheckpointError(
                f"{path}: an HTML page, not weights: the server sent it in place of the file; open it in a browser to "
                "see why, and download the file again"
            )


class AtomicFile:
    """A binary file written beside `path` under a temporary name; publish() gives it its name, discard() removes it.

    An OSError names `path`, not the temporary file.
    """

    def __init__(self, path: Path) -> None:
        """Creates the temporary file; its folder must exist (OSError otherwise)."""
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with _named(path):
            self.file = open(self.temporary, "wb", buffering=_BUFFER)  # noqa: SIM115 - closed by sync() or discard()

    def sync(self) -> None:
        """Closes the file with its bytes on the disk."""
        if not self.file.closed:
            with _named(self.path):
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()

    def publish(self) -> None:
        """Renames the synced file to its final name, replacing an older one."""
        with _named(self.path):
            os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Removes the temporary file; nothing happens once it has been published."""
        with suppress(OSError):  # close() tries once more to write what could not be written and is not wanted
            self.file.close()
        self.temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Returns when the renames in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def publish_all(files: Sequence[AtomicFile]) -> None:
    """Syncs all the files, then renames them in the order given.

    A failure to write, or a folder that has the name of one of them, leaves the older files as they were and no
    temporary ones.
    """
    try:
        for file in files:
            file.sync()
            if file.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file.path))
        for file in files:
            file.publish()
    except BaseException:
        for file in files:
            file.discard()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file in one go; an older one stays whole until the new one is on the disk (OSError names it).

    A link stays, and the file that it leads to is replaced. Pipes and devices are written to as they are; a pipe waits
    for its reader.
    """
    if _is_stream(path):
        with _named(path), open(path, "ab") as stream:
            stream.write(content)
        return
    publish_all([staged(Path(os.path.realpath(path)) if path.is_symlink() else path, content)])


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Writes small files as write_atomically does, none of them unless there is room for all."""
    files: list[AtomicFile] = []
    try:
        for path, content in contents.items():
            files.append(staged(path, content))
    except BaseException:
        for file in files:
            file.discard()
        raise
    publish_all(files)


def staged(path: Path, content: bytes) -> AtomicFile:
    """A small file, written and not yet published."""
    file = AtomicFile(path)
    try:
        with _named(path):
            file.file.write(content)
    except BaseException:
        file.discard()
        raise
    return file


def _is_stream(path: Path) -> bool:
    """Whether there is something other than a file or a folder, or a name of an open file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    is_other = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return is_other or (stat.S_ISREG(mode) and os.path.abspath(path).startswith(_STREAMS))


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading; OSError for anything else of that name: a pipe would be waited for, a device read
    without end."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(opened).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NO_FILE, str(path))
        return open(opened, "rb")
    except BaseException:
        os.close(opened)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError from within names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_output_file(flag: str, path: str, make_folders: bool = False) -> None:
    """OptionError unless the file `path` of the option `flag` can be written.

    make_folders: the command makes folders that are missing; otherwise a missing folder is refused. Temporary files of
    this one that killed processes left are removed.
    """
    file = Path(os.path.realpath(path)) if os.path.islink(path) and not _is_stream(Path(path)) else Path(path)
    check_name(path, flag)
    folders = [file.parent, *file.parent.parents]
    folder = next((one for one in folders if one.exists()), file.parent) if make_folders else file.parent
    if file.is_dir():
        raise OptionError(f"{flag} {path}: a folder of that name is there; name a file")
    if _is_stream(file):
        _check_stream(flag, path)
        return
    if not folder.exists():
        raise OptionError(f"{flag} {path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise OptionError(f"{flag} {path}: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"{flag} {path}: no file can be written in {folder}; choose another folder")
    _clear_temporary(file)


def _clear_temporary(path: Path) -> None:
    """Removes the temporary files of AtomicFile for this path whose processes have ended."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if number.isdecimal() and left.is_file() and not is_alive(int(number)):
            left.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _check_stream(flag: str, path: str) -> None:
    """OptionError unless a pipe or character device can be written to."""
    mode = os.stat(path).st_mode
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OptionError(f"{flag} {path}: is a {'socket' if stat.S_ISSOCK(mode) else 'disk'}; name a file")
    if not os.access(path, os.W_OK):
        raise OptionError(f"{flag} {path}: cannot be written; name another file")


def is_file(path: Path) -> bool:
    """Whether there is a file, as Path.is_file; not of a name that no file can have, which that would raise for."""
    return _answer(path.is_file)


def exists(path: Path) -> bool:
    """The same as Path.exists."""
    return _answer(path.exists)


def _answer(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def check_prefix(prefix: str, flag: str = "--prefix") -> None:
    """OptionError for a prefix whose last part is empty, as a folder's with a slash at the end."""
    if not os.path.basename(prefix):
        raise OptionError(f"{flag} {prefix}: its files would have no name; add one, as in {prefix}model")


def check_name(path: str, flag: str, most: int = MAX_NAME) -> None:
    """OptionError where the last part of an output's path has more than `most` bytes, which a file system would refuse
    later."""
    count = len(os.fsencode(os.path.basename(path)))
    if count > most:
        raise OptionError(f"{flag} {path:.80}...: its name has {count} bytes, more than {most}; choose a shorter one")


def text_lines(path: Path, limit: int = MAX_TEXT_BYTES) -> list[str]:
    """The lines of a text file; DataError for one that is not there, larger than `limit` or no UTF-8."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise DataError(f"{path}: larger than {limit} bytes, this is not the text that it should be")
        return content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8") from error


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def numbered_files(prefix: str, suffix: str) -> list[int]:
    """The numbers NNNN of the files PREFIX-NNNN.SUFFIX, ascending. What follows the last / begins names, and no other
    part: Path would join `run/.` to run."""
    folder, name = os.path.split(prefix)
    pattern = re.compile(re.escape(name) + rf"-(\d{{4,}})\.{suffix}")
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)
