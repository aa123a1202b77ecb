"""The errors that a user can cause, and how a command reports them: one sentence, exit status 2, no traceback."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend; its text names the file, record or option and the remedy."""


class OptionError(UserError):
    """A wrong option, or options that do not fit together."""


class DataError(UserError):
    """A damaged or unsuitable file of the user's: annotation, image, list, record, sidecar."""


class CheckpointError(UserError):
    """A missing, damaged or unsuitable checkpoint or model folder."""


class InstallError(UserError):
    """A library that is not installed, or that cannot run on this machine."""


class TrainingError(UserError):
    """Training cannot go on, for instance because the loss is no longer finite."""


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Runs main(argv) and ends the process: 0 or main's value, 2 for a UserError, 130 for Ctrl-C.

    Set DETECTOR_TRACEBACK=1 to see the traceback of a UserError.
    """
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("DETECTOR_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `train.py --help | head`: the reader has gone, nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
