"""The size and shape of this project's code: files, functions, repeated lines, and how many files a command enters.

    python -m benchmarks.code_shape                  everything: trains, exports and detects once, half a minute
    python -m benchmarks.code_shape --no-commands    what can be read from the files alone

A file is entered where one of its functions is called after the imports; importing a file does not enter it. Data
workers are processes of their own and not counted.
"""

import ast
import inspect
import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

from benchmarks.common import print_table
from config.command_line import parse_options
from config.options import option
from machine.command import run_command

ROOT = Path(__file__).resolve().parent.parent
ASIDE = frozenset({"tests", "benchmarks", "examples", "build", "dist", "output", "venv"})
WINDOW = 6  # lines
SHORTEST_LINE = 4  # characters; brackets and else: repeat everywhere
SMALL_FILE, WIDE_LINE = 60, 120
LONGEST_SHOWN = 3
TRACE = "--trace"
IMPORTING = "<module>"
INPUT = ["--network", "mobilenet", "--width", "0.125", "--data-shape", "96"]


@dataclass(frozen=True)
class CodeShapeOptions:
    """What to print."""

    root: str = option(str(ROOT), "checkout to read")
    commands: bool = option(True, "run train.py, deploy.py and demo.py, too, and print what they enter")
    names: bool = option(False, "print the names of the files that the commands enter")


@dataclass(frozen=True)
class CodeShape:
    """What is read from the files of a checkout.

    Attributes:
        files: number of source files, without tests, benchmarks and examples.
        file_lines: {file: its lines}, without __init__.py.
        function_lines: {file:function: its lines without the docstring}, the longest first.
        repeated: share of the lines that stand in a window of six lines that occurs twice or more.
        wide_lines: lines of the Markdown files over 120 columns.
    """

    files: int
    file_lines: Mapping[str, int]
    function_lines: Mapping[str, int]
    repeated: float
    wide_lines: int


@dataclass(frozen=True)
class Entered:
    """What a command calls: its files, and the number of its functions."""

    files: tuple[str, ...]
    functions: int


Row = tuple[str, float, float | None]  # title, value, limit: None = no limit


def main(argv: list[str]) -> None:
    """Prints a table of the figures and their limits."""
    if argv[:1] == [TRACE]:
        trace(Path(argv[1]), argv[2:])
        return
    options = parse_options(CodeShapeOptions, argv, "Size and shape of the project's code.")
    root = Path(options.root).resolve()
    shape = measure(root)
    rows = static_rows(shape)
    entered = entered_by_commands(root) if options.commands else {}
    for command, found in entered.items():
        rows += [(f"files entered by {command}", len(found.files), ENTERED_LIMITS[command])]
        rows += [(f"functions entered by {command}", found.functions, None)]
    print_table(("", "value", "limit", ""), [_cells(row) for row in rows])
    for name, lines in list(shape.function_lines.items())[:LONGEST_SHOWN]:
        print(f"{lines:4d} lines  {name}")
    if options.names:
        for command, found in entered.items():
            print(f"{command}: {' '.join(found.files)}")


ENTERED_LIMITS = {"train.py": 40, "deploy.py": 25, "demo.py": 28}


def measure(root: Path) -> CodeShape:
    """Reads a checkout."""
    texts = {path: path.read_text("utf-8") for path in source_files(root)}
    names = {path: path.relative_to(root).as_posix() for path in texts}
    rooms = {names[path]: len(text.splitlines()) for path, text in texts.items() if path.name != "__init__.py"}
    functions = Counter({f"{names[path]}:{name}": n for path, text in texts.items() for name, n in _functions(text)})
    docs = [path for path in sorted(root.rglob("*.md")) if _is_ours(path, root, frozenset())]
    wide = sum(len(line) > WIDE_LINE for path in docs for line in path.read_text("utf-8").splitlines())
    return CodeShape(len(texts), rooms, dict(functions.most_common()), repeated_share(list(texts.values())), wide)


def source_files(root: Path) -> list[Path]:
    """The Python files of a checkout without tests, benchmarks, examples and hidden folders, sorted."""
    return [path for path in sorted(root.rglob("*.py")) if _is_ours(path, root, ASIDE)]


def repeated_share(texts: Sequence[str]) -> float:
    """The share of code lines in a window of WINDOW lines that the texts hold twice; indents do not count."""
    windows: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    total = 0
    for number, text in enumerate(texts):
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if len(line) >= SHORTEST_LINE and not line.startswith("#")]
        total += len(lines)
        for start in range(len(lines) - WINDOW + 1):
            windows[tuple(lines[start : start + WINDOW])].append((number, start))
    twice = (places for places in windows.values() if len(places) > 1)
    repeated = {(number, start + k) for places in twice for number, start in places for k in range(WINDOW)}
    return len(repeated) / max(1, total)


def static_rows(shape: CodeShape) -> list[Row]:
    """The figures of a checkout's files."""
    rooms, lengths = sorted(shape.file_lines.values()), sorted(shape.function_lines.values())
    return [
        ("source files", shape.files, 200),
        ("lines of a file, median (at least)", statistics.median(rooms), 100),
        ("lines of a file, most", rooms[-1], 450),
        (f"files of at most {SMALL_FILE} lines", sum(lines <= SMALL_FILE for lines in rooms), None),
        ("functions", len(lengths), None),
        ("lines of a function, median", statistics.median(lengths), 8),
        ("lines of a function, 90th percentile", lengths[int(0.9 * len(lengths))], 35),
        ("lines of a function, most", lengths[-1], 80),
        (f"% of lines repeated ({WINDOW} in a row)", round(100 * shape.repeated, 2), 1),
        (f"lines of the docs over {WIDE_LINE} columns", shape.wide_lines, None),
    ]


def entered_by_commands(root: Path) -> dict[str, Entered]:
    """What train.py, deploy.py and demo.py enter for a training, an export and a detection on a few drawn images."""
    with tempfile.TemporaryDirectory() as folder:
        shapes, prefix, record = f"{folder}/shapes", f"{folder}/run/tiny", f"{folder}/train"
        _run(root, ["tools/make_shapes.py", "--output", shapes, "--train", "16", "--test", "1", "--size", "96"])
        _run(root, ["tools/prepare_dataset.py", "--root", shapes, "--set", "trainval", "--target", f"{record}.lst"])
        records = ["--train-path", f"{record}.rec", "--val-path", f"{record}.rec", "--allow-same-record"]
        data = [*records, "--batch-size", "8"]
        commands = {
            "train.py": [*INPUT, *data, "--end-epoch", "1", "--prefix", prefix],
            "deploy.py": ["--prefix", prefix, "--output", f"{folder}/model"],
            "demo.py": ["--model", f"{folder}/model", "--images", f"{shapes}/JPEGImages/test_00000.jpg",
                        "--output", f"{folder}/pictures"],
        }  # fmt: skip
        return {script: _entered(root, script, words, Path(folder)) for script, words in commands.items()}


def trace(result: Path, words: list[str]) -> None:
    """Runs a script with its arguments in this process and writes what it enters to `result`, as JSON."""
    codes: set[CodeType] = set()

    def profile(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code not in codes and code.co_filename.startswith(str(Path.cwd())) and _is_call(frame):
            codes.add(code)

    sys.argv = words
    sys.path.insert(0, "")
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.setprofile(None)
        places = {(code.co_filename, code.co_qualname) for code in codes}
        result.write_text(json.dumps(sorted(places)))


def _is_call(frame: FrameType) -> bool:
    """Whether a function runs that no import has called; class bodies run as they are imported."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return False
    caller: FrameType | None = frame
    while caller:
        if caller.f_code.co_name == IMPORTING and caller.f_globals.get("__name__") != "__main__":
            return False
        caller = caller.f_back
    return True


def _entered(root: Path, script: str, words: list[str], folder: Path) -> Entered:
    result = folder / f"{script}.json"
    _run(root, ["-m", "benchmarks.code_shape", TRACE, str(result), script, *words])
    ours = {path.as_posix() for path in source_files(root)}
    places = [(file, name) for file, name in json.loads(result.read_text()) if file in ours]
    files = sorted({Path(file).relative_to(root).as_posix() for file, _ in places})
    return Entered(tuple(files), len({place for place in places if "<" not in place[1].rsplit(".", 1)[-1]}))


def _run(root: Path, words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


def _functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines without docstring) of every function, also of those inside of classes and functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield f"{node.lineno}:{node.name}", lines - (docstring.count("\n") + 1 if docstring else 0)


def _is_ours(path: Path, root: Path, aside: frozenset[str]) -> bool:
    parts = path.relative_to(root).parts
    return not aside.intersection(parts) and not any(part.startswith(".") for part in parts)


def _cells(row: Row) -> list[str]:
    title, value, limit = row
    if limit is None:
        return [title, f"{value:g}", "", ""]
    met = value >= limit if "at least" in title else value <= limit
    return [title, f"{value:g}", f"{limit:g}", "met" if met else "NOT met"]


if __name__ == "__main__":
    run_command(main)
