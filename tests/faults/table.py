"""What a run of `make faults` found, as rows; docs/reliability.md has them as a table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- make faults: begin -->", "<!-- make faults: end -->"
SHOWN = 3  # of what is wrong, for each row


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
    head = "| fault | in | times | told | no effect | unnoticed | lost or wrong |\n|---|---|---|---|---|---|---|\n"
    lines = [
        f"| {row.what} | {row.name} | {row.done:,} | {row.told:,} | {row.without_effect:,} | {row.unnoticed:,} | "
        f"{len(row.wrong):,} |"
        for row in rows
    ]
    return head + "\n".join(lines) + "\n"


def findings(rows: Sequence[Row]) -> str:
    """What is wrong, a few lines for each row; "" if nothing is."""
    shown = [f"{row.what}, {row.name}: {text}" for row in rows for text in row.wrong[:SHOWN]]
    return "\n".join(shown)


def write(rows: Sequence[Row], command: str, path: Path = DOCUMENT) -> None:
    """Puts the table into the document, between its marks, with the command that made it."""
    text = path.read_text("utf-8")
    body = f"{BEGIN}\n`{command}` printed:\n\n{table(rows)}{END}"
    assert text.count(BEGIN) == text.count(END) == 1, f"{path} has no place for the table"
    path.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: body, text, flags=re.DOTALL), "utf-8")
