"""mx.mon.Monitor as --monitor and --pattern ask for it."""

import re

from config.errors import OptionError
from config.runtime import mx


def make_monitor(interval: int, pattern: str) -> mx.mon.Monitor | None:
    """Logs |x| / sqrt(size) of outputs, weights and gradients whose names match, every `interval` batches; 0 = None.

    OptionError where the pattern is not a regular expression.
    """
    if not interval:
        return None
    try:
        return mx.mon.Monitor(interval, pattern=pattern, sort=True)
    except re.error as error:
        raise OptionError(f"--pattern {pattern!r}: not a regular expression ({error})") from error
