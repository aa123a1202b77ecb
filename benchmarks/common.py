"""What the benchmarks share: measurements in turns, so that a drift of the machine meets all alike, tables, and what a
process tells another one through its pipes."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from subprocess import Popen
from typing import IO, Any, AnyStr

import numpy as np

Seconds = list[float]


def seconds_of(run: Callable[[], None]) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def in_turns(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Seconds]:
    """Calls every candidate once in each round, every other round in reverse order; each returns seconds."""
    seconds: dict[str, Seconds] = {name: [] for name in candidates}
    names = list(candidates)
    for _ in range(rounds):
        for name in names:
            seconds[name].append(candidates[name]())
        names.reverse()
    return seconds


def median_ratio(numerators: Seconds, denominators: Seconds) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def verdict(value: float, limit: float, *, at_most: bool) -> str:
    """How a measured value compares with its requirement."""
    met = value <= limit if at_most else value >= limit
    return f"required {'<=' if at_most else '>='} {limit:g}: {'met' if met else 'NOT met'}"


def machine() -> str:
    """Threads and load of the machine; figures are worth little when others use it."""
    return f"{os.environ.get('OMP_NUM_THREADS', '?')} threads, load average {os.getloadavg()[0]:.1f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    for line in (header, ["---"] * len(header), *rows):
        print_row(line)


def print_row(cells: Sequence[str]) -> None:
    """A row of a Markdown table, at once."""
    print(f"| {' | '.join(cells)} |", flush=True)


def next_line(process: Popen[AnyStr], name: str) -> AnyStr:
    """The next line that a process prints; RuntimeError where it has ended."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with status {process.wait()}")
    return line


def write_arrays(pipe: IO[bytes], head: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """Sends a head, as JSON has it, and arrays of float32."""
    pipe.write(json.dumps({**head, "shapes": [array.shape for array in arrays]}).encode() + b"\n")
    for array in arrays:
        pipe.write(np.ascontiguousarray(array, np.float32).tobytes())
    pipe.flush()


def read_arrays(pipe: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """The next head and arrays that write_arrays has sent, None at the end; EOFError for an end within arrays."""
    line = pipe.readline()
    if not line:
        return None
    head = json.loads(line)
    return head, [_read_array(pipe, shape) for shape in head.pop("shapes")]


def _read_array(pipe: IO[bytes], shape: Sequence[int]) -> np.ndarray:
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError(f"{len(content)} of the {size} bytes of an array")
    return np.frombuffer(content, np.float32).reshape(shape).copy()
