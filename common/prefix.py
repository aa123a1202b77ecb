"""The prefix of a checkpoint or a run: what begins the paths of all its files."""

import os

from common.errors import OptionError


def check_prefix(prefix: str, flag: str = "--prefix") -> None:
    """OptionError for a prefix whose last part is empty, as a folder's with a slash at the end."""
    if not os.path.basename(prefix):
        raise OptionError(f"{flag} {prefix}: its files would have no name; add one, as in {prefix}model")
