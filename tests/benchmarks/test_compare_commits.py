"""What benchmarks/compare_commits.py makes of the files of two commits."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.commit_probe import mxnet
from benchmarks.compare_commits import EQUAL, compare_folders, summary


@pytest.fixture
def sides(tmp_path):
    """Two folders with the same files."""
    for name in ("old", "new"):
        (tmp_path / name / "run").mkdir(parents=True)
        write(tmp_path / name, [1.0, -2.0, 0.0], {"epoch": 2, "options": {"lr": 0.1}, "versions": name})
        np.savez(tmp_path / name / "networks.npz", **{"tiny 96": np.ones(5)})
        (tmp_path / name / "run" / "t-train.log").write_text(name)
    return tmp_path / "old", tmp_path / "new"


def write(side: Path, weights: list[float], meta: dict) -> None:
    mx = mxnet()
    mx.nd.save(str(side / "run" / "t-0002.params"), {"arg:w": mx.nd.array(weights), "arg:b": mx.nd.ones(2)})
    (side / "run" / "t-0002.json").write_text(json.dumps(meta))


def test_equal_files_share_a_line(sides):
    rows = compare_folders(*sides)
    assert all(comparison.is_equal for _, _, comparison in rows)
    assert summary(rows) == [("networks (1 of 1)", "5", EQUAL), ("run (2 of 2)", "5", EQUAL)]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1.0, -1.5, 0.0], "largest difference 0.5 (arg:w)"),
        ([1.0, float("nan"), 0.0], "largest difference inf (arg:w)"),
        ([1.0, -2.0, -0.0], "arg:w has zeros of other signs"),
        ([1.0, -2.0], "arg:w is float32(2,), was float32(3,)"),
    ],
)
def test_weights_that_differ_are_told(sides, weights, told):
    write(sides[1], weights, {"epoch": 2, "options": {"lr": 0.1}, "versions": "new"})
    assert ("run: t-0002.params", "5", told) in summary(compare_folders(*sides))


@pytest.mark.parametrize(
    ("meta", "told", "equal"),
    [
        ({"epoch": 2, "options": {"lr": 0.1, "ema": 0}, "versions": ""}, f"{EQUAL}; gained options.ema", True),
        ({"epoch": 2, "options": {}, "versions": ""}, "options.lr is missing", False),
        ({"epoch": 2, "options": {"lr": 0.2}, "versions": ""}, "options.lr is 0.2, was 0.1", False),
    ],
)
def test_fields_that_files_have_gained_are_no_difference(sides, meta, told, equal):
    write(sides[1], [1.0, -2.0, 0.0], meta)
    rows = compare_folders(*sides)
    assert ("run: t-0002.json", "0", told) in summary(rows)
    assert all(comparison.is_equal for _, _, comparison in rows) == equal


def test_a_missing_file_is_a_difference_and_a_new_one_is_not(sides):
    (sides[0] / "run" / "more.txt").write_text("old")
    (sides[1] / "run" / "other.txt").write_text("new")
    told = {item: comparison for _, item, comparison in compare_folders(*sides)}
    assert (told["more.txt"].is_equal, told["other.txt"].is_equal) == (False, True)
