"""The records of a file that cannot be read and are left out, as --bad-records allows it."""

import logging
from collections.abc import Mapping

from common.errors import DataError
from dataset.recordio import RecordReader

STOP = "stop"  # of --bad-records
SHOWN = 10  # of the records in a sentence

logger = logging.getLogger(__name__)


def left_out_limit(bad_records: str) -> int:
    """How many records of a file --bad-records allows to be left out: 0 of `stop`, N of `skip:N`."""
    return 0 if bad_records == STOP else int(bad_records.removeprefix("skip:"))


class LeftOut:
    """The records of a file that are left out so far, at most `limit`; each is logged once."""

    def __init__(self, reader: RecordReader, limit: int) -> None:
        """limit: 0 = none may be left out."""
        self._reader, self.limit = reader, limit
        self._reasons: dict[int, str] = {}  # by position in the file

    def note(self, position: int, reason: str) -> None:
        """Takes in a record, by its position; DataError naming all of them where they are more than the limit."""
        if position in self._reasons:
            return
        self._reasons[position] = reason
        self._check()
        logger.warning(
            "left out (--bad-records skip:%d, %d so far): %s", self.limit, len(self._reasons), reason
        )  # fmt: skip

    def resume(self, before: Mapping[str, str]) -> None:
        """Takes in, without a line, what state() gave in an earlier part of the run; DataError where it is too much."""
        if self.limit:
            known = {int(number): reason for number, reason in before.items()}
            self._reasons = known | self._reasons
            self._check()

    def state(self) -> dict[str, str]:
        """{position in the file: why it cannot be read}, in the order of the file."""
        return {str(position): self._reasons[position] for position in sorted(self._reasons)}

    def _check(self) -> None:
        count = len(self._reasons)
        if count <= self.limit:
            return
        shown = "; ".join(list(self._reasons.values())[-SHOWN:])
        more = f"; and {count - SHOWN} earlier ones, which the log names" if count > SHOWN else ""
        raise DataError(
            f"{self._reader.path}: {count} of {len(self._reader)} records cannot be read, more than --bad-records "
            f"skip:{self.limit} leaves out: repair them, or raise the number ({shown}{more})"
        )
