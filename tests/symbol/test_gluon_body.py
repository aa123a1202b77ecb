"""Classifiers of gluoncv as bodies: which maps are read, parameter names, weights, and what cannot be a body."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import OptionError
from machine.runtime import mx
from symbol.backbone.gluon_body import gluoncv_body, parameter_name, trace
from symbol.layers import Layers
from symbol.network_options import SSDOptions
from symbol.symbol_factory import get_symbol

ROOT = Path(__file__).parents[2]
NETWORK = "gluoncv:mobilenetv2_0.25"


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("resnet50_v1b", (512, 1024, 2048)),  # ends of the stages, not the narrow maps of the next stage's first block
        ("resnet50_v2", (512, 1024, 2048)),
        ("densenet121", (512, 1024, 1024)),  # ends of the dense blocks, not the halved maps of the transitions
        ("inceptionv3", (288, 768, 2048)),  # mixed_2, mixed_7 and mixed_10
        ("vgg16", (512, 512, 512)),
        ("mobilenetv2_1.0", (192, 576, 1280)),  # as in SSDLite: inside the bottlenecks
        ("se_resnext50_32x4d", (512, 1024, 2048)),
    ],
)
def test_the_last_maps_of_the_strides_are_read(model: str, channels: tuple[int, ...]) -> None:
    taps = gluoncv_body(model)(mx.sym.var("data"), Layers(), SSDOptions())
    assert [(tap.name, tap.stride) for tap in taps] == [("stride8", 8), ("stride16", 16), ("stride32", 32)]
    for tap, count in zip(taps, channels, strict=True):
        shape = tap.symbol.infer_shape(data=(1, 3, 512, 512))[1][0]
        assert shape[1] == tap.channels == count
        assert shape[2] == pytest.approx(512 / tap.stride, abs=3)  # inceptionv3 has no padding


def test_a_body_computes_what_the_classifier_computes_with_its_parameters() -> None:
    from gluoncv.model_zoo import get_model

    block = get_model("mobilenetv2_0.25", pretrained=False)
    mx.random.seed(0)
    block.initialize(mx.init.Xavier())
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, (1, 3, 64, 96)))
    expected = block.features[:-1](data).asnumpy()  # all but the pooling
    tap = gluoncv_body("mobilenetv2_0.25")(mx.sym.var("data"), Layers(), SSDOptions())[-1].symbol
    arrays = {parameter_name(path): value for path, value in block._collect_params_with_prefix().items()}
    executor = tap.bind(
        mx.cpu(),
        args={"data": data} | {name: arrays[name].data() for name in tap.list_arguments() if name != "data"},
        aux_states={name: arrays[name].data() for name in tap.list_auxiliary_states()},
        grad_req="null",
    )
    np.testing.assert_allclose(executor.forward()[0].asnumpy(), expected, rtol=1e-4, atol=1e-5)


SCRIPT = f"""
import sys, hashlib
from symbol.symbol_factory import get_symbol
get_symbol("mobilenet", 64, 3)
assert "gluoncv" not in sys.modules
get_symbol("gluoncv:mobilenetv2_0.5", 64, 3)
print(hashlib.sha256(get_symbol({NETWORK!r}, 64, 3).tojson().encode()).hexdigest())
"""


def test_names_are_the_same_in_any_process_and_gluoncv_is_imported_for_its_models_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = get_symbol(NETWORK, 64, 3).tojson()
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()
    names = [node["name"] for node in json.loads(text)["nodes"]]
    assert len(set(names)) == len(names)
    assert "body_features_0_weight" in names


def test_freezing_the_body_leaves_the_heads() -> None:
    symbol = get_symbol("gluoncv:resnet18_v1b", 64, 3, freeze="body_layer1_")
    nodes = {name: node.get("use_global_stats") for name, node in symbol.attr_dict().items()}
    assert {name for name, value in nodes.items() if value == "True"} == {
        f"body_layer1_{block}_bn{k}_batchnorm" for block in (0, 1) for k in (1, 2)
    }
    assert not [name for name in symbol.list_arguments() if name.startswith("body_") and "pred" in name]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet50_v1x", "no classifier of that name .did you mean resnet50_v1"),
        ("ssd_300_vgg16_atrous_voc", "no classifier of that name"),
        ("yolo3_darknet53_coco", "no classifier of that name"),
        ("", "take a name of gluoncv's classification model zoo"),
        ("cifar_resnet20_v1", "no map of stride 16 or 32"),
    ],
)
def test_what_cannot_be_a_body_is_refused_by_name(model: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"--network gluoncv:{model}.*{message}"):
        get_symbol(f"gluoncv:{model}", 300, 3)


@pytest.mark.parametrize("model", ["squeezenet1.1", "hrnet_w18_small_v1_c"])
@pytest.mark.parametrize("size", [320, 512])
def test_a_classifier_with_fewer_maps_gets_more_extra_layers(model: str, size: int) -> None:
    symbol = get_symbol(f"gluoncv:{model}", size, 3)
    assert len([name for name in symbol.list_arguments() if name.endswith("cls_pred_conv_weight")]) == 6


def test_an_input_that_the_classifier_cannot_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="data shape 300,300: the body of gluoncv:hrnet.* multiples of 32"):
        get_symbol("gluoncv:hrnet_w18_small_v1_c", 300, 3)
    assert capsys.readouterr().out == ""


def small_classifier() -> Any:
    """A user's own block of three convolutions."""
    block = mx.gluon.nn.HybridSequential()
    block.add(
        mx.gluon.nn.Conv2D(4, 3, strides=2, padding=1, activation="relu"),
        mx.gluon.nn.Conv2D(8, 3, strides=8, padding=1, activation="relu"),
        mx.gluon.nn.Conv2D(8, 3, strides=2, padding=1),
        mx.gluon.nn.BatchNorm(),
        mx.gluon.nn.Activation("relu"),
        mx.gluon.nn.GlobalAvgPool2D(),
        mx.gluon.nn.Dense(5),
    )
    return block


def test_any_gluon_block_can_be_traced() -> None:
    body = trace(small_classifier())
    assert body.taps == (("stride16", 8, 16), ("stride32", 8, 32))
    assert body == trace(small_classifier())  # a second instance has other counters
    assert "body_2_weight" in mx.sym.load_json(body.graph).list_arguments()
