"""Files that appear under their final name only when they are complete: temporary name, fsync, rename."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_BUFFER = 1 << 20  # bytes; records come in pieces, and a call of the system for each would cost more than the bytes


class AtomicFile:
    """A binary file written beside `path` under a temporary name; publish() gives it its name, discard() removes it."""

    def __init__(self, path: Path) -> None:
        """Creates the temporary file; its folder must exist (OSError otherwise)."""
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file = open(self.temporary, "wb", buffering=_BUFFER)  # noqa: SIM115 - closed by sync() or discard()

    def sync(self) -> None:
        """Closes the file with its bytes on the disk."""
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def publish(self) -> None:
        """Renames the synced file to its final name, replacing an older one."""
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
    """Syncs all the files, then renames them in the order given; a failure to write leaves none of them behind."""
    try:
        for file in files:
            file.sync()
        for file in files:
            file.publish()
    except BaseException:
        for file in files:
            file.temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file in one go; an older one stays whole until the new one is on the disk.

    An OSError names `path`, not the temporary file.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Writes small files as write_atomically does, none of them unless there is room for all.

    An OSError names the file, or the last one where the group could not be published.
    """
    files: list[AtomicFile] = []
    path = None
    try:
        try:
            for path, content in contents.items():
                files.append(AtomicFile(path))
                files[-1].file.write(content)
            publish_all(files)
        except BaseException:
            for file in files:
                file.discard()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
