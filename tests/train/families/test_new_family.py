"""A family that only the tests register does all that the others do, and is refused by name where it cannot."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from boxes.anchor_sets import PixelAnchors
from common.errors import CheckpointError, OptionError
from config.command_line import parse_options
from config.options import joined_options, option, replace_options
from deploy.main import main as deploy_main
from detect.detector import Detector
from evaluate.main import main as evaluate_main
from model.manifest import MANIFEST_FILE
from symbol import registry
from symbol.detector.ssd import SSD
from symbol.detector.ssd_rows import SSDRow
from symbol.layers import Tap
from symbol.network_options import CommonOptions
from symbol.registry import list_networks
from symbol.symbol_factory import get_assigner, get_symbol
from tests.train.families.retina import Retina
from tests.train.families.retina_assigner import RetinaAssigner
from tests.train.tiny import BATCH, CLASSES, SIDE, draw, metrics, objects_of
from tools import anchors, convert_weights, visualize_net
from tools import list_networks as list_tool
from train.checks import check_early, idle_options
from train.options import train_options, train_options_class
from train.training import run_training

NETWORK = "retina_toy"


@pytest.fixture(autouse=True, scope="module")
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_families", list(registry.families()))
        registry.register_family(Retina({NETWORK: (8, 16, 16, 24)}))
        yield


@pytest.fixture(scope="module")
def command(records, tmp_path_factory):
    """The words of train.py's command line."""
    folder = tmp_path_factory.mktemp("retina")
    return [
        "--network=retina_toy", "--retina-side=20", "--data-shape=64", f"--prefix={folder / 'run'}",
        f"--train-path={records[0]}", f"--val-path={records[1]}", f"--batch-size={BATCH}", "--end-epoch=2",
        "--workers=1", "--lr=0.005", "--cpu", "--std-r=60", "--std-g=60", "--std-b=60",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(command):
    """Options of a finished run."""
    options = parse_options(train_options_class(), command, "")
    check_early(options)
    run_training(options)
    return options


def digest(prefix: str) -> str:
    return hashlib.sha256(Path(f"{prefix}-0002.params").read_bytes()).hexdigest()


def test_it_is_trained_and_validated(run):
    lines = metrics(run.output.prefix)
    losses = [line["train"] for line in lines]
    assert set(losses[0]) == {"retina_cls_loss", "retina_box_loss"}
    assert losses[1]["retina_cls_loss"] < losses[0]["retina_cls_loss"]
    assert all("mAP" in line["validation"] for line in lines)
    assert run.net.retina_side == 20
    assert json.loads(Path(f"{run.output.prefix}-run.json").read_text())["options"]["retina_side"] == 20


def test_a_resumed_run_equals_it(run, command, tmp_path, caplog):
    again = replace_options(run, prefix=str(tmp_path / "again"))
    run_training(replace_options(again, end_epoch=1))
    run_training(replace_options(again, resume="auto"))
    assert digest(again.output.prefix) == digest(run.output.prefix)
    run_training(replace_options(again, resume="2", end_epoch=3, retina_side=25.0))
    assert "--retina-side is now 25.0, was 20.0 in the run so far" in caplog.text


def test_it_is_evaluated_as_in_training(run, records, tmp_path, capsys):
    evaluate_main(
        [f"--prefix={run.output.prefix}", f"--rec-path={records[1]}", f"--json={tmp_path / 'found.json'}", "--cpu"]
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["mAP"] == metrics(run.output.prefix)[-1]["validation"]["mAP"]
    with pytest.raises(OptionError, match="--rect-val: the anchors of retina_toy are for one size; leave it out"):
        evaluate_main([f"--prefix={run.output.prefix}", f"--rec-path={records[1]}", "--rect-val"])


def test_it_is_exported_and_runs_from_onnx(run, tmp_path):
    folder = tmp_path / "folder"
    deploy_main([f"--prefix={run.output.prefix}", f"--output={folder}", "--onnx"])
    manifest = MANIFEST_FILE.read(folder / "manifest.json")
    assert (manifest.network, manifest.postprocessing.operator) == (NETWORK, "box_nms of retina")
    rng = np.random.default_rng(3)
    picture = draw(objects_of(rng, len(CLASSES)), rng)
    rows = Detector(folder, engine="mxnet", threshold=0.05).detect(picture)
    assert len(rows) > 0
    for other in (Detector(folder, engine="onnxruntime", threshold=0.05), Detector(run.output.prefix, threshold=0.05)):
        np.testing.assert_allclose(other.detect(picture), rows, atol=1e-3 * SIDE)


def test_it_is_listed_and_described(tmp_path, capsys, monkeypatch):
    assert NETWORK in list_networks()
    assert list_tool.sizes_of(NETWORK) == (64,)
    assert list_tool.describe(NETWORK, 64)[:3] == (("only",), (4,), 16)
    visualize_net.main([f"--network={NETWORK}", "--retina-side=9", "--data-shape=64", f"--output-dir={tmp_path}"])
    assert "head_box" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_options(train_options_class(), ["--help"], "")
    assert "--retina-side FLOAT" in capsys.readouterr().out


def test_its_words_of_freeze_and_its_sizes(run):
    symbol = get_symbol(NETWORK, 64, 3, freeze="body")
    assert symbol.list_arguments()[1] == "body_0_conv_weight" or symbol.list_arguments()[1].startswith("body_0")
    assert get_assigner(NETWORK, 64, 3, retina_side=20.0) == RetinaAssigner(20.0)
    assert idle_options(train_options(network=NETWORK, keep_topk=3)) == []
    with pytest.raises(OptionError, match="data shape 80,80: retina_toy needs sides that are multiples of 32"):
        get_symbol(NETWORK, 80, 3)


class SquareRetina(Retina):
    """Its one anchor is an option that can be fitted."""

    name = "SquareRetina"

    def anchor_set(self, network, row, size, options):
        return PixelAnchors(size, 0.5, np.full((1, 2), options.retina_side), "retina_side")


def test_anchors_of_any_family_are_fitted_where_it_gives_them(records, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_families", [*registry.families(), SquareRetina({"square_toy": (8, 16, 16, 24)})])
    anchors.main(
        [f"--train-path={records[0]}", "--network=square_toy", "--data-shape=64", "--generations=3", "--seed=1"]
    )
    printed = capsys.readouterr().out
    assert "input 64,64 (force), 1 anchors" in printed
    assert '--retina-side "' in printed


def test_what_it_cannot_do_is_refused_by_name(run, records, tmp_path):
    with pytest.raises(OptionError, match=r"--network retina_toy: the anchors of Retina are fixed by the family"):
        anchors.main([f"--train-path={records[0]}", f"--network={NETWORK}", "--data-shape=64"])
    with pytest.raises(OptionError, match=r"--width 0.5: retina_toy does not use it; leave it out, or give 1.0"):
        get_symbol(NETWORK, 64, 3, width=0.5)
    with pytest.raises(OptionError, match=r"--retina-side 9.0: mobilenet does not use it"):
        get_symbol("mobilenet", 64, 3, retina_side=9.0)
    weights = tmp_path / "a.weights"
    weights.write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match="--network retina_toy: Darknet's weights are for"):
        convert_weights.main(["--from=darknet", f"--network={NETWORK}", str(weights), "--data-shape=64"])


@dataclass(frozen=True)
class OtherNMS:
    nms: float = option(0.6, "another default")


def test_options_that_contradict_another_family_and_taken_names_are_errors():
    with pytest.raises(ValueError, match="retina_toy is a network of another family"):
        registry.register_family(Retina({NETWORK: ()}))
    with pytest.raises(ValueError, match="yolov3 is a network already"):
        registry.register_network(SSD, "yolov3", ())
    with pytest.raises(ValueError, match="option --nms is declared twice, and differently"):
        joined_options("Both", CommonOptions, OtherNMS)


def toy_body(data, layers, options):
    """A backbone is one function ..."""
    net = data
    for k, channels in enumerate((8, 16, 16, 24)):
        net = layers.conv_relu(net, f"toy_{k}", channels, 3, stride=2, pad=1)
    return [Tap(net, "toy_relu", 24, 16)]


def test_a_backbone_is_one_function_and_one_row(run, tmp_path, monkeypatch):
    family = registry.family_of("mobilenet")
    monkeypatch.setattr(family, "rows", dict(family.rows))
    row = SSDRow(toy_body, ("toy_relu",), ((16, 2, 1),), ((0.2, 0.3), (0.5, 0.6)), ((1.0, 2.0), (1.0, 2.0)))
    registry.register_network(SSD, "toy", ((0, row),))  # ... and one row
    toy = replace_options(run, network="toy", retina_side=24.0, prefix=str(tmp_path / "toy"), end_epoch=1)
    run_training(toy)
    assert len(Detector(toy.output.prefix, threshold=0.02).detect(np.zeros((50, 70, 3), np.uint8))) > 0
    assert "toy" in list_networks()
    assert list_tool.describe("toy", 64).taps == ("toy_relu",)
    with pytest.raises(OptionError, match="--width 0.5: toy does not use it"):
        get_symbol("toy", 64, 3, width=0.5)
