"""benchmarks.torch_accuracy: what the other process is given, and what becomes of its weights."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest

from benchmarks import torch_accuracy
from benchmarks.common import read_arrays, write_arrays
from common.errors import OptionError
from config.command_line import parse_options
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from symbol.detector.ssd import LABELS
from symbol.losses import multibox_loss
from symbol.symbol_factory import get_symbol_train
from tests.train.tiny import BATCH, CLASSES, NETWORK, TRAIN, VAL, flags, write_record
from train.options import train_options
from train.stages import without_det
from train.training import run_training

ANCHORS = 8 * 8 * 4 + 4 * 4 * 4  # of the tiny network: two maps, four boxes a cell
UPDATES = 3  # of an epoch


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Builds options of a run of two epochs, with changes."""
    folder = tmp_path_factory.mktemp("records")
    records = {"train_path": write_record(folder / "a.rec", TRAIN, 1), "val_path": write_record(folder / "b.rec", VAL)}
    common = {"batch_size": BATCH, "workers": 0, "end_epoch": 2, "lr": 0.05, "lr_steps": ("1",), "cpu": True}
    return lambda prefix, **changes: train_options(**NETWORK, **(records | common | {"prefix": str(prefix)} | changes))


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    """(prefix, what the other process was told, the weights with which it began, what was printed)."""
    folder, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(torch_accuracy, "TRAINER", "tests.benchmarks.stand_in_trainer")
        patch.setenv("NOTES", str(folder / "notes.json"))
        torch_accuracy.main(flags(options(folder / "t")))
    with np.load(folder / "notes.npz") as start:
        return str(folder / "t"), json.loads((folder / "notes.json").read_text()), dict(start), printed.getvalue()


def test_the_other_process_gets_the_batches_and_rates_of_training(trained):
    _, told, _, _ = trained
    assert [update["rate"] for update in told["updates"]] == pytest.approx([0.05] * UPDATES + [0.005] * UPDATES)
    for update in told["updates"]:
        shapes = [[BATCH, 3, 64, 64], [BATCH, ANCHORS], [BATCH, ANCHORS, 4], [BATCH, 1]]
        assert update["shapes"] == shapes
        assert update["positives"] > 0


def test_the_weights_are_those_that_training_begins_with(trained, options, tmp_path):
    _, _, start, _ = trained
    run_training(options(tmp_path / "still", lr=0.0, end_epoch=1))
    checkpoint = load_checkpoint(str(tmp_path / "still"), 1)
    moving = set(checkpoint.aux_params)
    assert set(start) == moving | set(checkpoint.arg_params)
    for name, array in checkpoint.arg_params.items():
        np.testing.assert_array_equal(start[name], array.asnumpy(), name)


def test_parameters_have_the_rates_and_the_decay_of_training(trained):
    _, told, _, _ = trained
    found = {name: (one["lr_mult"], one["weight_decay"]) for one in told["groups"] for name in one["names"]}
    assert found["conv_1_conv2d_weight"] == found["conv_1_batchnorm_gamma"] == (1, 0.0005)
    assert found["conv_1_batchnorm_beta"] == (1, 0)
    assert found["conv_6_relu_cls_pred_conv_bias"] == (2, 0)


def test_the_trained_weights_become_a_checkpoint_that_is_measured(trained):
    prefix, _, start, printed = trained
    checkpoint = load_checkpoint(prefix)
    assert checkpoint.epoch == 2
    assert checkpoint.meta.num_update == 2 * UPDATES
    for name, array in {**checkpoint.arg_params, **checkpoint.aux_params}.items():
        np.testing.assert_array_equal(array.asnumpy(), start[name] + 1, name)
    assert checkpoint.meta.scores["train"] == {"CrossEntropy": 2, "SmoothL1": 1}
    assert f"mAP: {checkpoint.meta.scores['validation']['mAP']:.4f}\n" in printed
    assert "median of an epoch: 1.5 s in PyTorch's updates" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--network", "yolov3_spp"], "is no SSD"),
        (["--targets", "mxnet"], "with paper alone"),
        (["--optimizer", "nag"], "with sgd, adam, adamw alone"),
        (["--ema", "0.99"], "--ema 0.99: .* leave it out"),
    ],
)
def test_what_it_does_not_train_is_refused(words, told):
    with pytest.raises(OptionError, match=told):
        torch_accuracy.check_known(parse_options(torch_accuracy.options_class(), words, ""))


def test_a_process_that_ends_is_told(options, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_accuracy, "TRAINER", "tests.benchmarks.not_there")
    with pytest.raises(RuntimeError, match="not_there ended with status 1"):
        torch_accuracy.main(flags(options(tmp_path / "t")))


def test_arrays_come_through_a_pipe_as_they_are():
    pipe = io.BytesIO()
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 1), np.float32), np.zeros((0, 4), np.float32)]
    write_arrays(pipe, {"rate": 0.25}, arrays)
    pipe.seek(0)
    head, found = read_arrays(pipe)
    assert head == {"rate": 0.25}
    for one, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    assert read_arrays(pipe) is None
    with pytest.raises(EOFError):
        read_arrays(io.BytesIO(pipe.getvalue()[:-8]))


# With torch


def random_targets(rng, images):
    """cls_target, loc_target, normaliser; some anchors are ignored, the last image has no objects."""
    cls_target = rng.choice([-1, 0, 0, 0, 0, 0, 0, 1, 2, 3], (images, ANCHORS)).astype(np.float32)
    cls_target[-1] = np.minimum(cls_target[-1], 0)
    loc_target = rng.normal(0, 2, (images, ANCHORS, 4)).astype(np.float32)
    return cls_target, loc_target, np.full((images, 1), (cls_target > 0).sum(), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "minimum"), [(3.0, 0), (1.5, 7)])
def test_the_losses_of_given_predictions_are_ours(ratio, minimum):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_peers import multibox_loss as torch_loss

    rng = np.random.default_rng(0)
    predictions = [rng.normal(0, 2, (4, ANCHORS, values)).astype(np.float32) for values in (len(CLASSES) + 1, 4)]
    arrays = [*predictions, *random_targets(rng, 4)]
    names = ("cls_pred", "loc_pred", *LABELS["paper"])
    losses = multibox_loss(*map(mx.sym.var, names), negative_ratio=ratio, minimum_negatives=minimum)
    given = {name: mx.nd.array(array) for name, array in zip(names, arrays, strict=True)}
    ours = mx.sym.Group(losses).bind(mx.cpu(), given).forward()
    cls_pred, loc_pred, cls_target, loc_target, normaliser = map(torch.from_numpy, arrays)
    theirs = torch_loss(cls_pred, loc_pred, cls_target.long(), loc_target, normaliser[0, 0], ratio, minimum)
    for one, other in zip(ours, theirs, strict=True):
        assert other.item() == pytest.approx(one.sum().asscalar(), rel=1e-5)


@pytest.mark.slow
def test_losses_and_gradients_are_ours_in_double_precision(trained):
    """In float32 rounding errors grow in the batch norms of random weights, in both."""
    torch = pytest.importorskip("torch")
    from benchmarks.torch_trainer import Trainer, multibox_loss

    _, told, start, _ = trained
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 60, (BATCH, 3, 64, 64)), *random_targets(rng, BATCH)]
    ours, gradients = in_double_precision(arrays, start)
    model = Trainer(told, start).model.double()
    data, cls_target, loc_target, normaliser = (torch.from_numpy(array).double() for array in arrays)
    theirs = multibox_loss(*model(data), cls_target.long(), loc_target, normaliser[0, 0])
    sum(theirs).backward()
    assert [loss.item() for loss in theirs] == pytest.approx(ours, rel=1e-9)
    for name, tensor in model.by_name().items():
        if tensor.grad is not None:
            largest = max(np.abs(gradients[name]).max(), 1e-6)
            np.testing.assert_allclose(
                tensor.grad.numpy(), gradients[name], rtol=1e-6, atol=1e-6 * largest, err_msg=name
            )


def in_double_precision(arrays, weights):
    """(losses, gradients by name) of the tiny network by MXNet."""
    options = {name: value for name, value in NETWORK.items() if name not in ("network", "data_shape")}
    symbol = without_det(get_symbol_train("mobilenet", 64, len(CLASSES), **options))
    given = dict(zip(("data", *LABELS["paper"]), arrays, strict=True)) | weights
    kinds = dict.fromkeys(given, np.float64)
    executor = symbol.simple_bind(mx.cpu(), "write", kinds, **{name: array.shape for name, array in given.items()})
    for name, array in given.items():
        (executor.arg_dict | executor.aux_dict)[name][:] = mx.nd.array(array, dtype=np.float64)
    losses = [loss.asnumpy().sum() for loss in executor.forward(is_train=True)]
    executor.backward()
    mx.nd.waitall()
    return losses, {name: array.asnumpy() for name, array in executor.grad_dict.items()}
