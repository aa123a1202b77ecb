"""Files that are replaced as one: after a kill at any moment there is the old set or the new one, never a mixture.

The new files are written under temporary names. Then a note beside them (`.NAME.replacing`) says what is to become of
them: from the moment it is there the new set holds. What a kill leaves to be renamed is renamed by whoever reads or
writes the set next (finish_replacement); temporary files without a note are those of an old set that stayed, and are
cleared (clear_leftovers).
"""

import errno
import glob
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.errors import DataError
from common.files import AtomicFile, is_alive, sync_folder, write_atomically

_MAX_NOTE_BYTES = 1 << 16
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")
logger = logging.getLogger(__name__)


def replace_set(main: Path, files: Sequence[AtomicFile], gone: Sequence[Path] = ()) -> None:
    """Gives all the files their names, and removes those that are `gone` from the set of `main`: all of it or nothing.

    All lie in one folder. A failure to write, or a folder that has the name of one of them, leaves the older files as
    they were and no temporary ones.
    """
    try:
        for file in files:
            file.sync()
        for path in (*(file.path for file in files), *gone):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        moves = [[file.temporary.name, file.path.name] for file in files]
        note = {"rename": moves, "remove": [path.name for path in gone if path.exists()]}
        write_atomically(_note(main), json.dumps(note).encode("utf-8"))
    except BaseException:
        for file in files:
            file.discard()
        raise
    finish_replacement(main)


def finish_replacement(main: Path) -> None:
    """Renames what a killed process left to be renamed of the set of `main`; nothing without a note of it.

    DataError where that cannot be done.
    """
    note = _note(main)
    if not note.exists():
        return
    try:
        with open(note, "rb") as file:
            content = json.loads(file.read(_MAX_NOTE_BYTES))
        moves, gone = _checked(content, main)
        for name in gone:
            (main.parent / name).unlink(missing_ok=True)
        for temporary, name in moves:
            with suppress(FileNotFoundError):  # renamed before the kill, or by another process now
                os.replace(main.parent / temporary, main.parent / name)
        sync_folder(main.parent)
        note.unlink(missing_ok=True)
    except FileNotFoundError:  # another process has finished it
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{main} was being replaced when its packer ended, and that cannot be finished ({error}); "
            f"pack it again, or delete {note}"
        ) from error


def _checked(content: dict, main: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """The renames and removals of a note; ValueError unless they are of this set and folder alone."""
    moves, gone = [(str(a), str(b)) for a, b in content["rename"]], [str(name) for name in content["remove"]]
    for name in (*(b for _, b in moves), *gone):
        if os.path.basename(name) != name or Path(name).stem != main.stem:
            raise ValueError(f"{name!r:.80} is no file of this set")
    for temporary, name in moves:
        found = _TEMPORARY.fullmatch(temporary)
        if not found or found["name"] != name:
            raise ValueError(f"{temporary!r:.80} is no temporary file of this set")
    return moves, gone


def clear_leftovers(main: Path) -> None:
    """Removes the temporary files of the set of `main` whose processes have ended, after finish_replacement."""
    finish_replacement(main)
    pattern = f".{glob.escape(main.stem)}.*.tmp"
    for path in (*main.parent.glob(pattern), *main.parent.glob(f".{pattern}")):
        found = _TEMPORARY.fullmatch(path.name)
        is_own = found and (Path(found["name"]).stem == main.stem or found["name"] == _note(main).name)
        if found and is_own and not is_alive(int(found["process"])):
            logger.info("%s, left by a process that was killed, is removed", path)
            path.unlink(missing_ok=True)


def _note(main: Path) -> Path:
    return main.with_name(f".{main.stem}.replacing")
