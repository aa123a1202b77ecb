"""Darknet's files to a checkpoint and back: the same bytes, the same network, the same names."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from dataset.darknet_data import read_names
from model.checkpoint import load_checkpoint, save_checkpoint
from model.weights import darknet
from symbol.darknet_sections import with_classes
from symbol.symbol_factory import get_symbol
from tests.model.tiny import save_tiny
from tests.model.weights.formula import body, formula, outputs
from tools import convert_weights, write_darknet

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
    assert (meta.std, meta.mean_pixels, meta.resize_mode) == ((255.0,) * 3, (0.0,) * 3, "letterbox")
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
    write_darknet.main(["--prefix", again, "--epoch", "0", "--output", str(out), "--overwrite"])  # has the .cfg
    assert out.with_suffix(".weights").read_bytes() == weights.read_bytes()


@pytest.fixture
def own_cfg(weights, tmp_path, monkeypatch):
    """The current folder: cells.cfg, and a checkpoint `cells` of darknet:cells.cfg."""
    monkeypatch.chdir(tmp_path)
    network = ["--data-shape", "64,96", "--prefix"]
    tiny = ["--network", "yolov3_tiny", "--width", "0.125", "--class-names", "cat,dog,hen"]
    convert_weights.main(["--from", "darknet", str(weights), *tiny, *network, "first"])
    write_darknet.main(["--prefix", "first", "--epoch", "0", "--output", "made"])
    (tmp_path / "made.cfg").rename("cells.cfg")
    convert_weights.main(["--from", "darknet", str(weights), "--network", "darknet:cells.cfg", *network, "cells"])
    return tmp_path / "cells.cfg"


def written(folder):
    """Content of the files that are not a checkpoint's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".weights", ".cfg", ".names")}


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--output", "./cells", "--overwrite"]])
def test_the_networks_own_cfg_is_never_overwritten(own_cfg, more):
    before = written(own_cfg.parent)
    with pytest.raises(OptionError, match=r"the network was made of (\./)?cells.cfg; choose another --output"):
        write_darknet.main(["--prefix", "cells", "--epoch", "0", *more])
    assert written(own_cfg.parent) == before


@pytest.mark.parametrize("suffix", ["weights", "cfg", "names"])
def test_other_files_are_overwritten_only_where_it_is_asked_for(own_cfg, suffix):
    mine = own_cfg.parent / f"export.{suffix}"
    mine.write_text("mine")
    before, words = written(own_cfg.parent), ["--prefix", "cells", "--epoch", "0", "--output", "export"]
    with pytest.raises(OptionError, match=f"export.{suffix} is there already; .* add --overwrite to lose it"):
        write_darknet.main(words)
    assert written(own_cfg.parent) == before
    write_darknet.main([*words, "--overwrite"])
    assert mine.read_bytes() != b"mine"
    assert len(written(own_cfg.parent)) == len(before) + 2


def test_a_class_name_that_fits_on_no_line_is_told_before_anything_is_written(own_cfg):
    checkpoint = load_checkpoint("cells", 0)
    meta = replace(checkpoint.meta, class_names=("a ", "b", "c"), epoch=1)
    save_checkpoint("odd", "{}", checkpoint.arg_params, checkpoint.aux_params, {}, meta)
    before = written(own_cfg.parent)
    with pytest.raises(DataError, match=r"odd.names: the class name 'a ' does not fit on a line of its own"):
        write_darknet.main(["--prefix", "odd", "--epoch", "1"])
    assert written(own_cfg.parent) == before


def test_a_folder_as_output_and_one_that_cannot_be_written_are_refused(own_cfg):
    with pytest.raises(OptionError, match="--output export/: its files would have no name"):
        write_darknet.main(["--prefix", "cells", "--epoch", "0", "--output", "export/"])
    with pytest.raises(DataError, match=r"cells.cfg.* cannot be written \(.+\); free space or change --output"):
        write_darknet.main(["--prefix", "cells", "--epoch", "0", "--output", "cells.cfg/export"])


@dataclass
class Trained:
    """A checkpoint, and what its network makes of images in [0, 255]."""

    prefix: str
    epoch: int

    def outputs(self, images, layer):
        checkpoint = load_checkpoint(self.prefix, self.epoch)
        meta = checkpoint.meta
        symbol = get_symbol(meta.network, (64, 96), len(meta.class_names), **meta.options)
        mean, std = (np.array(values)[:, None, None] for values in (meta.mean_pixels, meta.std))
        arrays = (
            {name: array.asnumpy() for name, array in p.items()} for p in (checkpoint.arg_params, checkpoint.aux_params)
        )
        return outputs(body(symbol, layer) if layer else symbol, *arrays, ((images - mean) / std).astype(np.float32))


def trained_and_again(weights, tmp_path, **pixels):
    """A checkpoint whose training had these pixels, and what is left after Darknet's files."""
    prefix, trained, again = (str(tmp_path / name) for name in ("converted", "trained", "again"))
    network = ["--network", "yolov3_tiny", "--width", "0.125", "--data-shape", "64,96"]
    convert_weights.main(["--from", "darknet", str(weights), *network, "--prefix", prefix])
    first = load_checkpoint(prefix, 0)
    args = {name: array * 0.01 if name == "body_0_conv_weight" else array for name, array in first.arg_params.items()}
    save_checkpoint(trained, "{}", args, first.aux_params, {}, replace(first.meta, epoch=1, **pixels))
    write_darknet.main(["--prefix", trained, "--output", str(tmp_path / "export")])
    convert_weights.main(["--from", "darknet", str(tmp_path / "export.weights"), *network, "--prefix", again])
    return Trained(trained, 1), Trained(again, 0)


TWO_READERS = (("trained", 1), ("again", 0))
IMAGES = np.random.default_rng(7).uniform(0, 255, (2, 3, 64, 96))


def test_a_model_trained_with_another_std_detects_the_same(weights, tmp_path, caplog):
    first, second = trained_and_again(weights, tmp_path, std=(60.0, 50.0, 1.0))
    for layer in ("pred_15_conv", ""):
        np.testing.assert_allclose(second.outputs(IMAGES, layer), first.outputs(IMAGES, layer), rtol=1e-3, atol=1e-4)
    assert not caplog.records


def test_means_are_folded_but_for_the_border(weights, tmp_path, caplog):
    first, second = trained_and_again(weights, tmp_path, mean_pixels=(123.0, 117.0, 104.0), std=(60.0,) * 3)
    a, b = (one.outputs(IMAGES, "body_0_bn") for one in (first, second))
    np.testing.assert_allclose(b[..., 1:-1, 1:-1], a[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    gamma = load_checkpoint(first.prefix, 1).arg_params["body_0_bn_gamma"].asnumpy()
    error = (np.abs(a - b).max(axis=(0, 2, 3)) / gamma).max()
    assert error > 1e-3
    (record,) = caplog.records
    assert "trained with means 123, 117, 104, and Darknet has none" in record.getMessage()
    assert f"up to {error:.2g} standard deviations; train with --mean-r 0" in record.getMessage()


def test_stretched_images_are_told(weights, tmp_path, caplog):
    trained_and_again(weights, tmp_path, resize_mode="force")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "train with --resize-mode letterbox" in caplog.text


def test_scores_of_one_class_are_those_of_the_training(tmp_path):
    """Darknet multiplies the objectness by the probability of the class, which one class does not learn."""
    sections = with_classes(darknet._sections("yolov3_tiny", WIDTH), 1)
    arrays = {name: formula(name, shape) for name, shape in darknet.file_order(sections)}
    darknet.write(tmp_path / "one.weights", sections, arrays, seen=0)
    network = ["--network", "yolov3_tiny", "--width", "0.125", "--data-shape", "64,96", "--prefix"]
    convert_weights.main(["--from", "darknet", str(tmp_path / "one.weights"), *network, str(tmp_path / "first")])
    first = load_checkpoint(str(tmp_path / "first"), 0)
    assert first.meta.options["one_class"] == "product"
    trained = {**first.meta.options, "one_class": "objectness", "batch_norm_eps": 1e-5}
    meta = replace(first.meta, epoch=1, options=trained)
    save_checkpoint(str(tmp_path / "trained"), "{}", first.arg_params, first.aux_params, {}, meta)
    write_darknet.main(["--prefix", str(tmp_path / "trained"), "--output", str(tmp_path / "export")])
    convert_weights.main(["--from", "darknet", str(tmp_path / "export.weights"), *network, str(tmp_path / "again")])
    found = [Trained(str(tmp_path / name), epoch).outputs(IMAGES, "") for name, epoch in TWO_READERS]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert (found[0][..., 1] > 0).any()
    assert not np.allclose(found[0], Trained(str(tmp_path / "first"), 0).outputs(IMAGES, ""), atol=1e-3)


def test_a_checkpoint_that_names_a_file_in_place_of_its_cfg_is_refused(tmp_path):
    prefix = save_tiny(tmp_path / "odd", 1, network=f"darknet:{__file__}", options={})
    with pytest.raises(CheckpointError, match="its options hold no darknet_cfg"):
        write_darknet.main(["--prefix", prefix, "--epoch", "1"])


def test_another_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="its network is mobilenet"):
        write_darknet.main(["--prefix", save_tiny(tmp_path / "x")])
