"""What a command does before anything else: a missing package is one sentence, not a traceback.

Imported first, by the commands of the root and by `python -m tools.NAME`. Python's own library alone, in words that
older versions of Python can read: it is they that must be told.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
STATUS, INTERRUPTED = 2, 130
REMEDY = f"run `make venv` in {ROOT} once, then the command with {ROOT}/.venv/bin/python"


def tell_missing_packages() -> None:
    """Ends the process with one sentence where Python is too old; later, where an import finds no such package."""
    if sys.version_info < OLDEST:
        _end(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old: {REMEDY}")
    sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    name = getattr(error, "name", None) or ""
    errors = sys.modules.get("common.errors")
    if os.environ.get("DETECTOR_TRACEBACK"):
        sys.__excepthook__(kind, error, traceback)
    elif errors is not None and issubclass(kind, errors.UserError):  # of a door such as machine.opencv
        _end(" ".join(str(error).split()))
    elif issubclass(kind, KeyboardInterrupt):  # while modules are imported; later it is run_command's
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    elif issubclass(kind, ModuleNotFoundError) and name and not _is_ours(name):
        _end(f"the Python module {name} is missing for {sys.executable}: {REMEDY}")
    else:
        sys.__excepthook__(kind, error, traceback)


def _is_ours(name: str) -> bool:
    """Whether a module would be this project's: then it is a mistake of ours, and its traceback is needed."""
    top = name.partition(".")[0]
    return (ROOT / top).is_dir() or (ROOT / f"{top}.py").is_file()


def _end(sentence: str) -> NoReturn:
    """Status 2, which Python takes from an exception of the hook, too."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(STATUS)


tell_missing_packages()
