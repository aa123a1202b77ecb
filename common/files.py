"""Files that appear under their final name only when they are complete: temporary name, fsync, rename."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_BUFFER = 1 << 20  # bytes; records come in pieces, and a call of the system for each would cost more than the bytes


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
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Removes the temporary file; nothing happens once it has been published."""
        with suppress(OSError):  # close() tries once more to write what could not be written and is not wanted
            self.file.close()
        self.temporary.unlink(missing_ok=True)


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
    """Writes a small file in one go; an older one stays whole until the new one is on the disk (OSError names it)."""
    publish_all([staged(path, content)])


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


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError from within names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
