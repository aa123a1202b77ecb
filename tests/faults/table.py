"""What a run of `make faults` found, as rows; docs/reliability.md has them as a table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- make faults: begin -->", "<!-- make faults: end -->"
HEAD = "| fault | in | times | told | no effect | unnoticed | lost or wrong |\n|---|---|---|---|---|---|---|\n"
SHOWN = 3  # of what is wrong, for each row
KINDS = ("kill", "bit flip", "input")


@dataclass
class Row:
    """One kind of fault, injected many times.

    Attributes:
        what: kills, flips or inputs.
        name: of the phase, the file or the parser.
        done: how often it was injected.
        told: how often one sentence named it.
        without_effect: how often what was read or left is as if nothing had happened.
        unnoticed: how often something else was read, and no word said of it. Inputs are not counted: a changed text may
            be another sound file.
        wrong: what was lost, tracebacks, and what took too long: sentences.
    """

    what: str
    name: str
    done: int = 0
    told: int = 0
    without_effect: int = 0
    unnoticed: int = 0
    wrong: list[str] = field(default_factory=list)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    return HEAD + "".join(f"{_line(row)}\n" for row in rows)


def _line(row: Row) -> str:
    numbers = (row.done, row.told, row.without_effect, row.unnoticed, len(row.wrong))
    return f"| {row.what} | {row.name} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def findings(rows: Sequence[Row]) -> str:
    """What is wrong, a few lines for each row; "" if nothing is."""
    shown = [f"{row.what}, {row.name}: {text}" for row in rows for text in row.wrong[:SHOWN]]
    return "\n".join(shown)


def write(rows: Sequence[Row], path: Path = DOCUMENT) -> None:
    """Puts the rows into the document, between its marks, in the place of those of the same faults."""
    text = path.read_text("utf-8")
    between = text.partition(BEGIN)[2].partition(END)[0]
    lines = {_key(line): line for line in between.splitlines() if re.match(r"\| (kill|bit flip|input) ", line)}
    lines |= {_key(line): line for line in map(_line, rows)}
    order = sorted(lines, key=lambda key: KINDS.index(key[0]))  # stable: those of a kind as they come
    body = f"{BEGIN}\n{HEAD}" + "".join(f"{lines[key]}\n" for key in order) + END
    assert text.count(BEGIN) == text.count(END) == 1, f"{path} has no place for the table"
    path.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: body, text, flags=re.DOTALL), "utf-8")


def _key(line: str) -> tuple[str, str]:
    """(fault, where) of a line of the table."""
    _, what, name, *_ = (cell.strip() for cell in line.split("|"))
    return what, name
