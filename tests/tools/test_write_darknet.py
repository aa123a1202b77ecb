"""Darknet's files to a checkpoint and back: the same bytes, the same network, the same names."""

import numpy as np
import pytest

from config.errors import CheckpointError
from dataset.darknet_data import read_names
from symbol.darknet_sections import with_classes
from tests.train.weights.formula import formula
from tools import convert_weights, write_darknet
from train.checkpoint import load_checkpoint
from train.weights import darknet

WIDTH = {"width": 0.125}


@pytest.fixture
def weights(tmp_path):
    sections = with_classes(darknet._sections("yolov3_tiny", WIDTH), 3)
    path = tmp_path / "tiny.weights"
    darknet.write(path, sections, {name: formula(name, shape) for name, shape in darknet.file_order(sections)}, seen=0)
    return path


def test_there_and_back(weights, tmp_path, capsys):
    prefix, out = str(tmp_path / "converted"), tmp_path / "out" / "tiny"
    to_tiny = ["--network", "yolov3_tiny", "--width", "0.125", "--class-names", "cat,dog,hen", "--data-shape", "64,96"]
    convert_weights.main(["--from", "darknet", str(weights), *to_tiny, "--prefix", prefix])
    assert "nothing is missing" in capsys.readouterr().out
    meta = load_checkpoint(prefix, 0).meta
    assert (meta["std"], meta["mean_pixels"], meta["resize_mode"]) == ([255.0] * 3, [0.0] * 3, "letterbox")
    write_darknet.main(["--prefix", prefix, "--epoch", "0", "--output", str(out)])
    assert out.with_suffix(".weights").read_bytes() == weights.read_bytes()
    assert read_names(out.with_suffix(".names")) == ("cat", "dog", "hen")
    again = str(tmp_path / "again")
    network = ["--network", f"darknet:{out}.cfg", "--data-shape", "64,96"]
    convert_weights.main(["--from", "darknet", f"{out}.weights", *network, "--prefix", again])
    first, second = (load_checkpoint(p, 0) for p in (prefix, again))
    assert set(first.arg_params) == set(second.arg_params)
    assert all(np.array_equal(a.asnumpy(), second.arg_params[n].asnumpy()) for n, a in first.arg_params.items())
    out.with_suffix(".cfg").unlink()
    write_darknet.main(["--prefix", again, "--epoch", "0", "--output", str(out)])  # the checkpoint has the .cfg
    assert out.with_suffix(".weights").read_bytes() == weights.read_bytes()


def test_another_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "train.checkpoint.load_checkpoint", lambda *_: type("C", (), {"meta": {"network": "mobilenet"}})
    )
    with pytest.raises(CheckpointError, match="its network is mobilenet"):
        write_darknet.main(["--prefix", str(tmp_path / "x")])
