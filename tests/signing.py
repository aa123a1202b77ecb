"""Metadata edited in tests: signed again whatever it holds, or made a file of the version before there were digests."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.signed_json import DIGEST, FORMAT, content_digest


def signed(values: Mapping[str, Any]) -> str:
    """The JSON of these values with the digest that belongs to them."""
    values = json.loads(json.dumps(values))
    return json.dumps(values | {DIGEST: content_digest(values)}, indent=1)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Lets `change` edit the values of a file, and signs it."""
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(signed(values), "utf-8")


def earlier(text: str, number: int | None = 1, without: tuple[str, ...] = ()) -> str:
    """A signed text as the version before digests wrote it, `without` later keys; number: its format, None = none."""
    values = json.loads(text)
    values = {name: value for name, value in values.items() if name not in (FORMAT, DIGEST, *without)}
    return json.dumps(values if number is None else {FORMAT: number, **values}, indent=1)


def flips(content: bytes, step: int = 1) -> Iterator[bytes]:
    """The content with each of its bits flipped, one at a time, or each `step`-th: an odd one, so that it meets all
    places in a byte."""
    for place in range(0, 8 * len(content), step):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)
