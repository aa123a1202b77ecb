"""Lets `python tools/NAME.py` work: starts it again as `python -m tools.NAME` with the project's root importable.

A script in tools/ finds this file beside it, but not the packages of the root. Each tool begins with

    if not __package__:
        importlib.import_module("as_module")

which replaces the process (same id, same arguments, any working directory); the import never returns.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.exit("as_module only starts the tools beside it: run one of them")

_script = Path(sys.argv[0])
_root = str(Path(__file__).resolve().parent.parent)
if sys.version_info < (3, 11):  # noqa: UP036 - it has -P; common.first says the same to the other commands
    print(
        f"error: Python {sys.version_info[0]}.{sys.version_info[1]} is too old: "
        f"run `make venv` in {_root} once, then the command with {_root}/.venv/bin/python",
        file=sys.stderr,
    )
    sys.exit(2)
_at = sys.orig_argv.index(sys.argv[0])
_path = os.pathsep.join(filter(None, [_root, os.environ.get("PYTHONPATH")]))
os.execve(  # noqa: S606 - this very interpreter and script, no shell
    sys.executable,
    [sys.executable, *sys.orig_argv[1:_at], "-P", "-m", f"tools.{_script.stem}", *sys.argv[1:]],
    {**os.environ, "PYTHONPATH": _path},
)
