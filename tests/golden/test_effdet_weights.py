"""Weights of the PyTorch EfficientDet trainers, and of EfficientNet, through tools/convert_weights.py."""

import numpy as np
import pytest

from common.errors import CheckpointError
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.params_file import read_params
from model.weights import pytorch
from model.weights.fit import expected_shapes
from symbol.backbone.efficientnet import efficientnet
from symbol.detector.efficientdet import BATCH_NORM_EPS, predictions
from symbol.detector.efficientdet import ROWS as EFFDET_NETWORKS
from symbol.layers import Layers
from symbol.network_options import EffDetOptions
from tests.golden.effdet import network_of, stored_parameters
from tests.golden.loader import IS_OWN, Case, assert_close, cases, largest_difference
from tests.golden.test_yolo_network import run
from tests.model.weights.agreement import record
from tools import convert_weights

Arrays = dict[str, np.ndarray]


def with_counters(state: Arrays) -> Arrays:
    """As torch saves it, with a counter in every batch norm."""
    counters = {n.replace("running_var", "num_batches_tracked"): np.array(7) for n in state if "running_var" in n}
    return state | counters


def as_efficientnet(state: Arrays) -> Arrays:
    """A body under the names of efficientnet_pytorch, with its classifier."""
    body = {
        name.removeprefix("backbone_net.model.").replace(".conv.", "."): array
        for name, array in state.items()
        if name.startswith("backbone_net.")
    }
    return body | {"_conv_head.weight": np.zeros((4, 4, 1, 1)), "_bn1.weight": np.zeros(4), "_fc.bias": np.zeros(9)}


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """Runs the command on a state_dict in place of a file; returns the prefix."""

    def run_on(state: Arrays, *flags: str) -> str:
        monkeypatch.setattr(pytorch, "read", lambda path: state)
        prefix = str(tmp_path / "out")
        convert_weights.main(["--from", "efficientdet.pytorch", "file.pth", "--prefix", prefix, *flags])
        return prefix

    return run_on


def heads_of(case: Case, arrays: Arrays) -> Arrays:
    """Outputs of the network of a forward case with these arrays."""
    network, size = network_of(case), tuple(case.args["input_hw"])
    heads = predictions(network, EFFDET_NETWORKS[network], size, case.args["num_classes"], EffDetOptions())
    cls, box = run(mx.sym.Group([heads.cls, heads.box]), arrays | {"data": case.formula_input("input")})
    return {"regression": box[:, case["rows"]], "classification": 1 / (1 + np.exp(-cls[:, case["rows"]]))}


@pytest.mark.parametrize("case", cases("effdet_d0_forward"), ids=str)
def test_a_whole_network_becomes_a_checkpoint_with_the_outputs_of_the_original(case, convert, capsys):
    prefix = convert(with_counters(stored_parameters(case)), "--network", network_of(case))
    text = capsys.readouterr().out
    assert "missing (0): none" in text
    assert "unused (0): none" in text
    checkpoint = load_checkpoint(prefix, 0)
    arrays = {name: array.asnumpy() for name, array in {**checkpoint.arg_params, **checkpoint.aux_params}.items()}
    heads = heads_of(case, arrays)
    for role, values in heads.items():
        assert_close(case, role, values)
    if IS_OWN:
        relative = largest_difference(case, heads)
        record("efficientdet.pytorch", network_of(case), "PyTorch (tests/golden)", relative=relative)
    meta, side = checkpoint.meta, EFFDET_NETWORKS[network_of(case)].input_size
    assert (len(meta.class_names), meta.data_shape) == (case.args["num_classes"], (side, side))
    np.testing.assert_allclose(meta.mean_pixels, 255 * np.array((0.485, 0.456, 0.406)))
    np.testing.assert_allclose(meta.std, 255 * np.array((0.229, 0.224, 0.225)))
    assert (meta.resize_mode, meta.fill) == ("letterbox", 128)


@pytest.mark.parametrize("case", cases("effdet_backbone"), ids=str)
def test_an_efficientnet_becomes_a_body_to_start_from(case, convert, capsys):
    network = network_of(case)
    prefix = convert(as_efficientnet(stored_parameters(case)), "--network", network)
    text = capsys.readouterr().out
    assert "unused (3): _conv_head.weight, _bn1.weight, _fc.bias" in text
    arg, aux = read_params(f"{prefix}-0000.params")
    wanted = expected_shapes(network, 256, 1)
    assert {*arg, *aux} == {name for shapes in wanted for name in shapes if name.startswith("body_")}
    taps = efficientnet(mx.sym.var("data"), Layers(batch_norm_eps=BATCH_NORM_EPS), EFFDET_NETWORKS[network].body)
    arrays = {name: array.asnumpy() for name, array in {**arg, **aux}.items()}
    found = run(mx.sym.Group([t.symbol for t in taps]), arrays | {"data": case.formula_input("input")})
    outputs = dict(zip(case.args["outputs"], found, strict=True))
    assert outputs.keys() & case.keys.keys()
    for role, values in outputs.items():
        if role in case:
            assert_close(case, role, values)


@pytest.mark.parametrize("case", cases("effdet_d0_forward"), ids=str)
def test_names_with_the_prefix_of_data_parallel_and_plain_convolutions(case):
    state = stored_parameters(case)
    wanted = pytorch.rename_effdet(state, network_of(case), {})
    for other in (
        {f"module.{name}": array for name, array in state.items()},
        {name.replace(".conv.", "."): array for name, array in state.items()},
    ):
        found = pytorch.rename_effdet(other, network_of(case), {})
        assert [list(arrays) for arrays in found] == [list(arrays) for arrays in wanted]


def test_heads_of_other_classes_are_missing_with_their_shapes(convert, capsys):
    stem = np.zeros((EFFDET_NETWORKS["efficientdet_mini"].body.stem, 3, 3, 3))
    state = {"_conv_stem.weight": stem, "classifier.header.pointwise_conv.conv.bias": np.zeros(63)}
    convert(state, "--network", "efficientdet_mini", "--num-class", "3")
    assert "cls_pred_pointwise_bias (shape (63,) in the file, (27,) in the network)" in capsys.readouterr().out
    convert(state, "--network", "efficientdet_mini", "--overwrite")
    assert "loaded (2): body_stem_conv_weight, cls_pred_pointwise_bias" in capsys.readouterr().out


def test_mistakes_are_named(convert):
    with pytest.raises(CheckpointError, match="--network vgg16_ssd_voc: these weights are for efficientdet_d0"):
        convert({"_conv_stem.weight": np.zeros((32, 3, 3, 3))})
    with pytest.raises(CheckpointError, match="no _conv_stem.weight: it is neither an EfficientDet nor"):
        convert({"features.0.weight": np.zeros((32, 3, 3, 3))}, "--network", "efficientdet_d0")
