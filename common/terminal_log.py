"""The log on the terminal, above progress bars."""

import logging
import sys

from tqdm import tqdm


class _BarHandler(logging.Handler):
    """Writes log lines to stderr above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """Sends the log to stderr, above progress bars; called by the commands."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler = _BarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
