"""Files of a data set's folders, and paths as lists and annotations have them.

macOS leaves a file `._NAME` beside each NAME on foreign disks and in archives: no picture and no text. These are
skipped and counted.
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path

from common.errors import DataError

MAC_PREFIX, MAC_FOLDER = "._", "__MACOSX"
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
logger = logging.getLogger(__name__)


def files_in(folder: Path, suffixes: Collection[str], below: bool = False) -> list[Path]:
    """The files of a folder with these suffixes (in lower case), sorted; below: those of its folders, too.

    A folder that is not there has none. What macOS left is skipped, and the number logged as a warning.
    """
    found = folder.rglob("*") if below else folder.glob("*")
    files = [path for path in found if path.suffix.lower() in suffixes]
    kept = [path for path in files if not path.name.startswith(MAC_PREFIX) and MAC_FOLDER not in path.parts]
    if len(kept) < len(files):
        logger.warning("%s: %d files ._* that macOS left there were skipped", folder, len(files) - len(kept))
    return sorted(kept)


def holds(folder: Path, suffix: str) -> bool:
    """Whether a folder holds a file with this suffix itself, but for what macOS left there."""
    return any(path.suffix.lower() == suffix and not path.name.startswith(MAC_PREFIX) for path in folder.glob("*"))


def find_file(written: str, folder: Path, where: str | Path) -> Path:
    r"""A path as written in a file of `folder`: relative to that folder or to its parent.

    `images\a.jpg` is images/a.jpg; of `data/...`, as CVAT exports it, what follows may lie in the folder itself.
    DataError, which begins with `where`, for what is not there.
    """
    if "\0" in written:
        raise DataError(f"{where}: {written!r:.80} is not a path")
    slashed = written if WINDOWS_PATH.match(written) else written.replace("\\", "/")
    candidates = [folder / written, folder.parent / written, folder / slashed, folder.parent / slashed]
    if slashed.startswith("data/"):
        candidates.append(folder / slashed.removeprefix("data/"))
    found = next((path for path in candidates if path.is_file()), None)
    if found is None and WINDOWS_PATH.match(written):
        raise DataError(
            f"{where}: {written!r:.200} is a path of a Windows machine; write paths relative to {folder}, with /"
        )
    if found is None:
        raise DataError(f"{where}: {written!r:.200} is missing (looked in {folder} and its parent)")
    return found
