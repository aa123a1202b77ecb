"""mx.mon.Monitor as --monitor and --pattern ask for it."""

import re

from common.errors import OptionError
from machine.runtime import mx


def make_monitor(interval: int, pattern: str) -> mx.mon.Monitor | None:
    """Logs |x| / sqrt(size) of the arrays whose names match, every `interval` batches; 0 gives None.

    The arrays are outputs of layers, weights and moving averages; a name matches if it begins with the pattern.

    OptionError where the pattern is not a regular expression.
    """
    if not interval:
        return None
    try:
        return mx.mon.Monitor(interval, pattern=pattern, sort=True)
    except re.error as error:
        raise OptionError(f"--pattern {pattern!r}: not a regular expression ({error})") from error
