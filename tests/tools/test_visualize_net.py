"""The table of layers and the picture of a network."""

import json
import os
from pathlib import Path

import pytest

from common.errors import OptionError
from symbol.symbol_factory import get_symbol, get_symbol_train
from tools.list_networks import summarise, totals
from tools.visualize_net import main

SMALL = ["--network", "mobilenet", "--width", "0.25", "--data-shape", "64,96", "--num-classes", "3"]


@pytest.fixture
def no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_layers_have_shapes_parameters_and_arithmetic() -> None:
    layers = {layer.name: layer for layer in summarise(get_symbol("mobilenet", 64, 3), {"data": (2, 3, 64, 96)})}
    first = layers["conv_1_conv2d"]
    assert (first.operator, first.shape, first.parameters) == ("Convolution", (2, 32, 32, 48), 32 * 3 * 9)
    assert first.flops == 2 * (2 * 32 * 32 * 48) * (3 * 9)
    depthwise = layers["conv_2_dw_conv2d"]
    assert depthwise.flops == 2 * (2 * 32 * 32 * 48) * 9
    assert layers["conv_1_batchnorm"].parameters == 2 * 32  # gamma and beta, not the moving statistics
    assert layers["conv_1_relu"].parameters == layers["conv_1_relu"].flops == 0


def test_vgg_has_the_arithmetic_that_is_known_of_it() -> None:
    """SSD300 on VGG16: 26.3 M parameters, 31.4 G multiply-adds."""
    parameters, gigaflops = totals(summarise(get_symbol("vgg16_reduced", 300, 20), {"data": (1, 3, 300, 300)}))
    assert parameters == 26285486
    assert gigaflops == pytest.approx(2 * 31.4, abs=0.2)


@pytest.mark.usefixtures("no_dot")
@pytest.mark.parametrize("extra", [[], ["--train"], ["--train", "--targets", "mxnet"]], ids=str)
def test_the_table_ends_with_the_sums_and_the_missing_program_is_one_sentence(
    extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *extra]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["layer", "operator", "output", "parameters", "GFLOP"]
    assert "GFLOP an image" in lines[-1]
    assert ("det_out" in shown.out) == bool(extra)
    assert all(len(line.split()) >= 3 for line in lines)  # every layer has a shape
    assert shown.err == "No picture of the graph: it needs the program `dot` (apt-get install graphviz).\n"


@pytest.mark.usefixtures("no_dot")
@pytest.mark.parametrize(("extra", "make"), [([], get_symbol), (["--train"], get_symbol_train)])
def test_print_net_prints_the_symbol_and_nothing_else(
    extra: list[str], make: object, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*SMALL, "--print-net", *extra])
    text = capsys.readouterr().out
    assert json.loads(text)["heads"]
    assert text == f"{make('mobilenet', (64, 96), 3, width=0.25).tojson()}\n"  # type: ignore[operator]


def test_the_graph_is_drawn_by_graphviz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `dot` that keeps its input in place of the picture."""
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\nfor last; do :; done\ncp "$last" "$last.pdf"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    main([*SMALL, "--output-dir", str(tmp_path / "new")])
    picture = tmp_path / "new" / "ssd_mobilenet_64x96.pdf"
    assert capsys.readouterr().err == f"Picture of the graph: {picture}\n"
    assert "conv_14_relu" in picture.read_text()
    main([*SMALL, "--train", "--output-dir", str(tmp_path / "train")])
    assert "det_out" in (tmp_path / "train" / picture.name).read_text()
    capsys.readouterr()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="--output-dir .*file/in: cannot be made"):
        main([*SMALL, "--output-dir", str(tmp_path / "file" / "in")])
