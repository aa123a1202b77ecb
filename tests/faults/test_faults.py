"""The short form of `make faults`: a few faults of each kind, in a process of their own."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.table import BEGIN, DOCUMENT, END, Row, findings, table, write

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


def injected(*words, seconds=300):
    """(exit status, the table) of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("--only", "kills", "--kills", "1", "--phases", "saving,packing,export,evaluate"), 4),
        (("--only", "flips,inputs", "--flips", "10", "--inputs", "30"), 38),
    ],
    ids=["kills", "flips and inputs"],
)
def test_nothing_is_lost_and_nothing_wrong(words, rows):
    status, output = injected(*words)
    assert status == 0, output
    assert len([line for line in output.splitlines() if line.endswith("| 0 |")]) == rows


def test_what_is_wrong_is_told_and_ends_with_status_1(tmp_path):
    rows = [Row("kill", "saving", 2, 0, 1, 0, ["kill 2: lost"]), Row("bit flip", ".idx", 1000, 999, 1)]
    assert findings(rows) == "kill, saving: kill 2: lost"
    assert "| bit flip | .idx | 1,000 | 999 | 1 | 0 | 0 |" in table(rows)
    document = tmp_path / "d.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write([Row("input", ".csv", 7, 7)], document)
    write([replace(rows[0], done=1), rows[1]], document)
    write(rows[:1], document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:3] for line in lines[1:]] == [
        ["| kill", "saving", "2"], ["| bit flip", ".idx", "1,000"], ["| input", ".csv", "7"]
    ]  # fmt: skip


def test_the_table_of_the_document_says_that_nothing_was_lost():
    lines = DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith(("| kill", "| bit", "| input"))]
    assert len(rows) == 44
    assert [row[1] for row in rows if row[-1].strip() != "0"] == []


def test_a_fault_that_is_not_told_is_found(tmp_path, monkeypatch):
    """Were the digest not compared, the flips would show it."""
    from tests.faults.flips import _read

    row, values = Row("bit flip", "x"), iter([1, 2])
    for _ in range(2):
        _read(row, lambda: next(values), "1", "bit 0", lambda: False)
    assert (row.done, row.without_effect, row.unnoticed) == (2, 1, 1)
    _read(row, lambda: {}["a"], "1", "bit 1", lambda: False)
    assert "KeyError" in row.wrong[0]


def test_an_input_that_is_wrong_is_made_anew_of_its_number(tmp_path):
    from tests.faults.inputs import Parser, _try, _try_one

    path, seen = tmp_path / "f", []

    def read():
        seen.append(path.read_bytes())
        if b"null" in seen[-1]:
            raise ValueError("wrong")

    parser = Parser(path, [b"some text", b"another"], read)
    row = _try("text", parser, 1200, 7)
    assert row.done == 1200
    assert len(set(seen)) > 800
    number = int(re.search(r"--parsers 'text' --input (\d+): b'", row.wrong[0])[1])
    first = next(text for text in seen if b"null" in text)
    assert len(_try_one("text", parser, number).wrong) == 1
    assert seen[-1] == first
    assert _try("text", parser, 1200, 7).wrong == row.wrong
