import dataclasses

import pytest

from benchmarks.inference_report import (
    END_TO_END,
    NETWORK,
    Cell,
    Setting,
    merged,
    print_all,
    ratio,
    read,
    to_json,
)

SETTING = Setting(NETWORK, "ssd", 1, 2)
ABOUT = {"cpu": "a CPU", "versions": {"mxnet": "1.9.1"}}


def cell(candidate, *rounds, run=1.0, **fields):
    return Cell(
        fields.pop("setting", SETTING), candidate, rounds=[list(seconds) for seconds in rounds], run=run, **fields
    )


def test_a_ratio_is_paired_by_rounds_with_the_fastest_other():
    ours = cell("mxnet float32", (2.0, 2.0), (6.0,), (2.0,))
    drifting = cell("openvino float32", (1.0,), (3.0, 3.0), (1.0,))
    slow = cell("torch float32", (9.0,), (9.0,), (9.0,))
    assert ratio(ours, [slow, drifting, None]) == 2.0


def test_cells_of_different_runs_or_without_rounds_have_no_ratio():
    ours, other = cell("mxnet int8", (1.0,)), cell("openvino int8", (1.0,))
    assert ratio(ours, [dataclasses.replace(other, run=2.0)]) is None
    assert ratio(ours, [dataclasses.replace(other, rounds=[])]) is None
    assert ratio(None, [other]) is None


def test_new_cells_replace_older_ones_and_a_file_keeps_all(tmp_path):
    old, kept, new = cell("a", (1.0,)), cell("b", (2.0,)), cell("a", (3.0,), run=2.0)
    path = tmp_path / "results.json"
    path.write_text(to_json(merged([old, kept], [new]), ABOUT), "utf-8")
    assert read(path) == [new, kept]
    assert read(tmp_path / "none.json") == []


@pytest.mark.parametrize(("seconds", "word"), [(1.0, "1 of 1 goals met"), (2.0, "0 of 1 goals met")])
def test_the_report_names_failures_and_counts_goals(tmp_path, capsys, seconds, word):
    cells = [
        cell("mxnet float32", (seconds,)),
        cell("openvino float32", (1.0,)),
        cell("torch float32", error="status 1: out of memory"),
    ]
    print_all(cells, tmp_path / "none.json")
    printed = capsys.readouterr().out
    assert word in printed
    assert "torch float32: did not run: status 1: out of memory" in printed


def test_auto_is_compared_with_all_but_the_engine_that_it_chose(tmp_path, capsys):
    setting = Setting(END_TO_END, "ssd", 1, 2)
    cells = [
        cell("Detector auto int8", (1.0,), engine="mxnet", setting=setting),
        cell("Detector mxnet int8", (0.9,), setting=setting),
        cell("openvino int8", (2.0,), setting=setting),
    ]
    print_all(cells, tmp_path / "none.json")
    assert "takes 0.50 times as long as the fastest other, openvino int8 (met: the fastest)" in capsys.readouterr().out
