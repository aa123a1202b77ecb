"""benchmarks.code_shape: what is read from the files of a checkout."""

import pytest

from benchmarks.code_shape import ROOT, measure, repeated_share, static_rows

MODULE = '''"""A module."""


def documented(x):
    """Two lines of
    text."""

    def inner():
        return x

    return inner


class A:
    def method(self):
        return 1
'''


@pytest.fixture
def checkout(tmp_path):
    for name, text in {
        "train.py": MODULE,
        "data/__init__.py": "",
        "data/reader.py": "x = 1\n" * 3,
        "tests/test_reader.py": MODULE,
        "benchmarks/speed.py": MODULE,
        "examples/own.py": MODULE,
        ".venv/lib/library.py": MODULE,
        "docs/page.md": "short\n" + "long " * 30 + "\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_files_of_the_project_alone_are_counted(checkout):
    shape = measure(checkout)
    assert shape.files == 3
    assert shape.file_lines == {"data/reader.py": 3, "train.py": 16}
    assert shape.wide_lines == 1


def test_functions_are_measured_without_their_docstrings_the_longest_first(checkout):
    lengths = measure(checkout).function_lines
    assert lengths == {"train.py:4:documented": 6, "train.py:8:inner": 2, "train.py:15:method": 2}
    assert next(iter(lengths)) == "train.py:4:documented"


def test_lines_are_repeated_where_six_in_a_row_occur_twice():
    lines = [f"line number {k}" for k in range(10)]
    text = "\n".join(lines)
    again = "\n".join(f"    {line}" for line in lines[:6])  # at another indent
    assert repeated_share([text]) == 0
    assert repeated_share([text, again]) == 12 / 16
    assert repeated_share([text, "\n".join(lines[:5])]) == 0
    assert repeated_share([text + "\n# a comment\n)\n" + again]) == 12 / 16


def test_this_checkout_is_measured():
    rows = {title: (value, limit) for title, value, limit in static_rows(measure(ROOT))}
    assert rows["source files"][0] > 100
    assert rows["lines of a function, median"][0] <= rows["lines of a function, 90th percentile"][0]
    assert rows["lines of a file, most"][0] <= 450
