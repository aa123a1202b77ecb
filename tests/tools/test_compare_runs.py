"""tools/compare_runs.py: what is told of several runs, and runs that cannot be read."""

import json

import pytest

from common.errors import DataError, OptionError
from tools.compare_runs import differing_options, main, read_run, table


@pytest.fixture
def write_run(tmp_path):
    def write(name, scores, options=None):
        prefix = str(tmp_path / name)
        lines = [
            json.dumps({"epoch": k, "train": {"CrossEntropy": 2 / k, "SmoothL1": 1 / k}, "validation": {"mAP": score}})
            for k, score in enumerate(scores, 1)
        ]
        (tmp_path / f"{name}-metrics.jsonl").write_text("\n".join(lines) + "\n")
        if options is not None:
            (tmp_path / f"{name}-run.json").write_text(json.dumps({"options": {"prefix": prefix, **options}}))
        return prefix

    return write


def test_options_that_differ_table_and_picture(write_run, tmp_path, capsys):
    words = [
        write_run("a", [0.1, 0.5, 0.4], {"lr": 0.1, "nms": 0.45}),
        write_run("b_$1", [0.2, 0.3], {"lr": 0.01, "nms": 0.45}),
    ]
    picture = tmp_path / "runs.png"
    main([*words, "--output", str(picture)])
    told = capsys.readouterr().out
    assert "--lr: 0.1, 0.01\n" in told
    assert "nms" not in told
    assert "prefix" not in told.replace(str(tmp_path), "")
    first = next(line for line in told.splitlines() if line.startswith(words[0]) and "0.5000" in line)
    assert first.split()[1:] == ["3", "1.0000", "0.4000", "0.5000", "2"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_options_or_the_metric(write_run):
    run = read_run(write_run("a", [0.1]))
    assert "options are not known" in differing_options([run, run])[0]
    assert table([run], "AP")[1].split()[1:] == ["1", "3.0000", "-", "-", "-"]


def test_what_is_no_run_is_refused_by_name(write_run, tmp_path):
    with pytest.raises(DataError, match="none-metrics.jsonl: cannot be read"):
        read_run(str(tmp_path / "none"))
    prefix = write_run("a", [0.1])
    with pytest.raises(OptionError, match="1 runs are named"):
        main([prefix])
    with pytest.raises(OptionError, match="no run has it.*mAP"):
        main([prefix, prefix, "--metric", "mAQ", "--output", str(tmp_path / "x.png")])
    (tmp_path / "bad-metrics.jsonl").write_text('[1]\n{"epoch": 1}\n')
    with pytest.raises(DataError, match="line 1: is no line"):
        read_run(str(tmp_path / "bad"))
