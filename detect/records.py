"""Detections as JSON: a list when all are there, or a line for each picture as it comes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from common.files import write_atomically

LINES = ".jsonl"

Record = dict[str, Any]


class Records:
    """Takes records; `pictures` and `detections` count them. A list is written by close(), with what is there then."""

    def __init__(self, path: str = "") -> None:
        """The file, or '' for none; JSON lines if its name ends in LINES."""
        self.pictures = self.detections = 0
        self._path, self._by_lines = path, path.lower().endswith(LINES)
        self._lines: TextIO | None = None
        self._list: list[Record] = []

    def add(self, record: Record) -> None:
        """Adds one picture's record."""
        self.pictures += 1
        self.detections += len(record["detections"])
        if self._by_lines:
            self._lines = self._lines or open(self._path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - close()
            self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        elif self._path:
            self._list.append(record)

    def discard(self) -> None:
        """Leaves an older list as it is; lines that are written already stay."""
        self._path = ""

    def close(self) -> None:
        """Completes the file."""
        if self._lines:
            self._lines.close()
        elif self._path:
            text = "" if self._by_lines else json.dumps(self._list, indent=1, ensure_ascii=False) + "\n"
            write_atomically(Path(self._path), text.encode("utf-8"))


def make_record(head: Record, picture: np.ndarray, detections: np.ndarray, names: Sequence[str]) -> Record:
    """`head`, the size of the picture (h, w, 3), and detections (n, 6) in its pixels, with names of classes."""
    return {
        **head,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "detections": [
            {
                "class": names[int(row[0])],
                "id": int(row[0]),
                "score": round(float(row[1]), 6),
                "box": [round(float(value), 3) for value in row[2:]],
            }
            for row in detections
        ],
    }


def summary(record: Record) -> str:
    """What a record holds, for the log."""
    counts = Counter(detection["class"] for detection in record["detections"])
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"
