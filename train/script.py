"""What a script that calls train_net sees: the log on its console, and how it goes on, in the words of the script."""

import logging
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from common.errors import UserError
from machine.command import log_to_terminal

_AUTO = re.compile(r"--resume auto")
_FLAG = re.compile(r"--([a-z][a-z0-9]*(?:[-_][a-z0-9]+)*)")


def log_to_console() -> None:
    """Sends the log to stderr, as logging.basicConfig does: handlers that the script has set stay alone."""
    root = logging.getLogger()
    if not root.handlers:
        log_to_terminal()
    root.setLevel(logging.INFO)


def way_to_continue(is_saved: bool) -> str:
    """How the script goes on: as it is where there is no checkpoint of this run, else with another call."""
    is_file = hasattr(sys.modules["__main__"], "__file__")  # not in a notebook
    script = shlex.join(["python", *sys.argv]) if is_file else "the same call"
    if not is_saved:
        return script
    return f'{script}, once its train_net has resume="auto", and neither finetune nor overwrite'


@contextmanager
def named_by_arguments(names: Mapping[str, str]) -> Iterator[None]:
    """Raises a mistake again with arguments in place of flags: `resume="auto"`, not `--resume auto`.

    names: {option: argument} where the two differ.
    """
    try:
        yield
    except UserError as error:
        text = _AUTO.sub('resume="auto"', str(error))
        text = _FLAG.sub(lambda found: _argument(found[1].replace("-", "_"), names), text)
        raise type(error)(text) from error


def _argument(option: str, names: Mapping[str, str]) -> str:
    return names.get(option, option)
