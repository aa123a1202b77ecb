"""How a command ends: exit status, and one sentence for a mistake of the user."""

import errno
import os
import select
import sys
from collections.abc import Callable

from common.errors import UserError
from machine.signals import keep_interrupts


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Runs main(argv) and ends the process: 0 or main's value, 2 for a mistake of the user, 130 for Ctrl-C.

    A mistake is a UserError, a file that the system refuses (OSError with a file name) or a full disk. Status 141 when
    the reader of the output has gone (`train.py --help | head`). DETECTOR_TRACEBACK=1 shows a mistake's traceback.
    """
    keep_interrupts()
    try:
        status = _run(main)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (UserError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("DETECTOR_TRACEBACK"):
            raise
        print(f"error: {sentence}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _run(main: Callable[[list[str]], int | None]) -> int | str:
    try:
        return main(sys.argv[1:]) or 0
    except SystemExit as end:  # --help has been printed
        return end.code or 0
    finally:
        sys.stdout.flush()


def _sentence(error: Exception) -> str | None:
    """The text for the user on one line; None for an OSError that no user can have caused."""
    if isinstance(error, OSError):
        if error.filename is None and error.errno != errno.ENOSPC:
            return None
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return " ".join(str(error).split())


def _reader_is_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads (and not some other pipe of this process)."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
