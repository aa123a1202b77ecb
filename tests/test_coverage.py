"""docs/coverage.md: each object, flag, command and test that it names exists, and each row has both."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.test_docs import ROOT, Call, Parsed, check, flags_of, split, stopped_main, text_of
from tests.train.tiny import write_record

PAGE = ROOT / "docs" / "coverage.md"
TO_COME = "to come: "
# Rows that may say so: work with an issue of its own.
STILL_TO_COME = {
    "amp.autocast, GradScaler",
    "get_world_size, all_gather, synchronize, reduce_dict",
}
CLASSIC_VALUES = {
    "nms_thresh": 0.45,
    "force_suppress": False,
    "nms_topk": 400,
    "label_pad_width": 350,
    "path_imglist": "",
}
OBJECT = re.compile(r"([\w/]+\.py):([\w.]+)(?:\((\*\*cfg\.train|\w+=)\))?")
TEST = re.compile(r"([\w/]+): (\w+)")


@dataclass(frozen=True)
class Row:
    """A row of a table: what a document has, code that stands for it here, code that shows it."""

    place: str
    there: str
    here: str
    shown: str


def rows() -> list[Row]:
    """The rows of all tables."""
    found = []
    for number, line in enumerate(split(PAGE)[0].splitlines(), 1):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] != "there" and not set(line) <= set("|-"):
            found.append(Row(f"coverage.md:{number}", *cells))
    return found


def code(cell: str) -> list[str]:
    """The words between backticks, and nothing but commas between them."""
    assert re.sub(r"`[^`]+`", "", cell).strip(", ") == "", f"{cell}: is no list of `code`"
    return re.findall(r"`([^`]+)`", cell)


def named(column: str) -> list[Any]:
    found = [(row, text) for row in rows() for text in code_of(row, column)]
    return [pytest.param(row, text, id=f"{row.place} {text}") for row, text in found]


def code_of(row: Row, column: str) -> list[str]:
    cell = getattr(row, column)
    return [] if row.here.startswith(TO_COME) else code(cell)


def test_each_row_says_where_it_is_and_what_shows_it() -> None:
    for row in rows():
        if row.here.startswith(TO_COME):
            assert (row.there, row.shown) in {(name, "") for name in STILL_TO_COME}, row
        else:
            assert code(row.here), row
            assert code(row.shown), row


def test_the_lists_name_rows_of_the_page() -> None:
    assert {row.there for row in rows()} >= STILL_TO_COME


@pytest.mark.parametrize(("row", "text"), named("here"))
def test_what_is_named_is_there(row: Row, text: str, tmp_path, monkeypatch) -> None:
    check_named(row.place, text, tmp_path, monkeypatch)


@pytest.mark.parametrize(("row", "text"), named("shown"))
def test_the_test_that_shows_it_is_there(row: Row, text: str) -> None:
    name, words = TEST.fullmatch(text).groups()  # type: ignore[union-attr]
    folder, _, file = name.rpartition("/")
    tests = [
        node.name
        for node in ast.parse(text_of(ROOT / "tests" / folder / f"test_{file}.py")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert f"test_{words}" in tests or sum(words in test for test in tests) == 1, f"{row.place}: no or several {words}"


def check_named(place: str, text: str, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That an object, a file, a flag or a command exists."""
    found = OBJECT.fullmatch(text)
    if found:
        path, name, argument = found.groups()
        check_argument(resolved(path, name), argument, folder)
    elif re.fullmatch(r"[\w/]+\.py", text):
        assert (ROOT / text).is_file(), f"{place}: no file {text}"
    else:
        check_command(place, text, folder, monkeypatch)


def resolved(path: str, name: str) -> Any:
    """The object NAME of a file."""
    assert (ROOT / path).is_file(), f"no file {path}"
    value = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        value = getattr(value, part)
    return value


def check_argument(target: Callable[..., Any], argument: str | None, folder: Any) -> None:
    """That a function or class takes `NAME=` or `**cfg.train`; those that hand their arguments on are called."""
    if not argument:
        return
    from config.config import cfg

    given = dict(cfg.train) if argument.startswith("**") else {argument[:-1]: CLASSIC_VALUES.get(argument[:-1])}
    parameters = inspect.signature(target).parameters
    if given.keys() <= parameters.keys():
        return
    if target.__name__ == "get_symbol_train":
        target("mobilenet", 96, 2, width=0.125, **given)
        return
    assert target.__name__ == "DetRecordIter", f"{target.__name__} does not take {argument}"
    more = {} if argument.startswith("**") else {"augment": None}
    target(write_record(folder / "t.rec", 2, 1), 2, (3, 64, 64), **more, **given).close()


def check_command(place: str, text: str, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag of train.py, `COMMAND.py --flag`, or either with values: the command's own options take the words."""
    words = shlex.split(text)
    script = words.pop(0) if words[0].endswith(".py") else "train.py"
    if len(words) == 1:
        seen: list[type] = []
        with monkeypatch.context() as patch:
            main = stopped_main(ROOT / script, patch, seen)
            with pytest.raises(Parsed):
                main([])
        known = {"--config", "--hyp", *flags_of(seen[0])}
        assert words[0] in known, f"{place}: {script} has no {words[0]}"
        return
    check(Call(place, ("python", script, *words)), folder, monkeypatch)
