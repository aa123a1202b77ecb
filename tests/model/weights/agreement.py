"""How near converted weights come to the program that they are from: docs/weights.md has this table, made of tests.

A test measures and calls `record`. agreement.json holds what was measured, doubled and rounded up to 1, 2 or 5 times a
power of ten, as other processors round otherwise; more fails. With RECORD_AGREEMENT=1 the tests that run add rows, or
raise them to what they measure; then `python -m tests.model.weights.agreement` writes the document.
"""

import json
import math
import os
from pathlib import Path

from tests.dataset.layouts import with_table

FILE = Path(__file__).with_name("agreement.json")
DOCUMENT = Path(__file__).parents[3] / "docs" / "weights.md"
MARGIN, LEAST = 2, 1e-6
UNITS = {"pixels": "px", "score": "of a score", "relative": "of the largest value"}


def record(source: str, file: str, compared: str, **largest: float) -> None:
    """Notes the largest difference of a source's file from `compared`, by unit; fails where it was smaller before."""
    key = f"{source} | {file} | {compared}"
    rows = json.loads(FILE.read_text())
    if os.environ.get("RECORD_AGREEMENT"):
        before = rows.get(key, {})
        rows[key] = {unit: max(rounded_up(float(x)), before.get(unit, 0.0)) for unit, x in largest.items()}
        FILE.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    assert key in rows, f"run the test with RECORD_AGREEMENT=1: {key}"
    assert rows[key].keys() == largest.keys()
    worse = {unit: value for unit, value in largest.items() if not value <= rows[key][unit]}
    assert not worse, f"{key}: {worse}, recorded {rows[key]}"


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten from twice the value on; at least LEAST."""
    value = max(MARGIN * value, LEAST)
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(k for k in (1, 2, 5, 10) if k * power >= value * (1 - 1e-9)) * power:.0e}")


def agreement_rows() -> list[str]:
    rows = [
        f"| {key} | {', '.join(f'{value:g} {UNITS[unit]}' for unit, value in found.items())} |"
        for key, found in json.loads(FILE.read_text()).items()
    ]
    return ["| source | file | compared with | largest difference, below |", "|---|---|---|---|", *rows]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8"), "agreement", agreement_rows()), "utf-8")
