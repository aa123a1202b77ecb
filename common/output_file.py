"""Files that a command writes when its work is done: whether it can is told before it."""

import os
from pathlib import Path

from common.errors import OptionError


def check_output_file(flag: str, path: str, make_folders: bool = False) -> None:
    """OptionError unless the file `path` of the option `flag` can be written.

    make_folders: the command makes folders that are missing; otherwise a missing folder is refused.
    """
    file = Path(path)
    folders = [file.parent, *file.parent.parents]
    folder = next((one for one in folders if one.exists()), file.parent) if make_folders else file.parent
    if file.is_dir():
        raise OptionError(f"{flag} {path}: a folder of that name is there; name a file")
    if not folder.exists():
        raise OptionError(f"{flag} {path}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise OptionError(f"{flag} {path}: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"{flag} {path}: no file can be written in {folder}; choose another folder")
