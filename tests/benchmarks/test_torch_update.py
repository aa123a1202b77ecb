"""benchmarks.torch_accuracy: PyTorch, in a process of its own, makes the updates that we make.

The tests with PyTorch need TORCH_PYTHON, the Python of an environment with torch and numpy.
"""

import json
import os
import subprocess
from contextlib import closing

import numpy as np
import pytest

from benchmarks.torch_accuracy import (
    TorchTrainer,
    arrays_of,
    parameter_groups,
    ready_module,
    training_of,
)
from dataset.iterator import open_batches
from machine.runtime import mx
from symbol.detector.ssd import LABELS
from tests.train.tiny import BATCH, NETWORK, write_record
from train.batches import batch_specs
from train.options import train_options
from train.preflight import preflight

RATE, DECAY = 0.01, 5e-4
# An update with float64, on the files that the test leaves: given.json, start.npz, batch.npz.
FLOAT64_UPDATE = """
import json, sys
import numpy as np
from benchmarks.torch_trainer import Trainer
folder, rate = sys.argv[1], float(sys.argv[2])
trainer = Trainer(json.load(open(folder + "/given.json")), dict(np.load(folder + "/start.npz")))
trainer.model.double()
data, *targets = np.load(folder + "/batch.npz").values()
losses = trainer.update(rate, [data.astype(np.float64), *targets])
np.savez(folder + "/end.npz", losses=losses, **trainer.weights())
"""


@pytest.fixture(scope="module")
def torch_python():
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        pytest.skip("set TORCH_PYTHON to the Python of an environment with torch and numpy")
    return python


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """(stage, its Module ready to train, its first batch)."""
    folder = tmp_path_factory.mktemp("run")
    record = {"train_path": write_record(folder / "train.rec", BATCH), "val_path": ""}
    plan = preflight(
        train_options(
            **NETWORK,
            **record,
            prefix=str(folder / "run"),
            batch_size=BATCH,
            workers=0,
            cpu=True,
            lr=RATE,
            wd=DECAY,
            optimizer="sgd",
            lr_steps=(),
        )  # fmt: skip
    )
    (stage,) = plan.stages
    with closing(open_batches(batch_specs(stage, plan.sidecars, plan.start)[0])) as batches:
        return stage, ready_module(stage, plan, batches, None), batches.next()


def test_decay_and_rates_are_those_of_our_optimizer(training):
    groups = parameter_groups(training[1]._optimizer)
    found = {name: (group["lr_mult"], group["weight_decay"]) for group in groups for name in group["names"]}
    heads = [name for name in found if "_pred_conv_" in name and name.endswith("_bias")]
    assert heads
    assert {found.pop(name) for name in heads} == {(2.0, 0.0)}
    for name, values in found.items():
        assert values == (1.0, DECAY if name.endswith(("_weight", "_gamma")) else 0.0), name


@pytest.mark.slow
def test_the_first_losses_are_ours(torch_python, training):
    stage, module, batch = training
    with closing(TorchTrainer(torch_python, *training_of(stage, module))) as trainer:
        losses, _ = trainer.update(RATE, arrays_of(batch))
        weights = trainer.weights()
    module.forward(batch, is_train=True)
    np.testing.assert_allclose(losses, [one.asnumpy().sum() for one in module.get_outputs()], rtol=1e-4)
    arg_params, aux_params = module.get_params()
    assert set(weights) == set(arg_params | aux_params)


@pytest.mark.slow
def test_a_float64_update_is_ours(torch_python, training, tmp_path):
    stage, module, batch = training
    (given, weights), arrays = training_of(stage, module), arrays_of(batch)
    losses, gradients, means = float64_gradients(stage, weights, arrays)
    wanted = dict(means)
    for group in given["groups"]:
        for name in group["names"]:
            step = gradients[name] + group["weight_decay"] * weights[name].astype(np.float64)
            wanted[name] = weights[name] - RATE * group["lr_mult"] * step
    (tmp_path / "given.json").write_text(json.dumps(given))
    np.savez(tmp_path / "start.npz", **weights)
    np.savez(tmp_path / "batch.npz", *arrays)
    subprocess.run([torch_python, "-c", FLOAT64_UPDATE, str(tmp_path), str(RATE)], check=True, timeout=300)
    found = dict(np.load(tmp_path / "end.npz"))
    np.testing.assert_allclose(found.pop("losses"), losses, rtol=1e-6)
    for name, values in wanted.items():
        change = np.linalg.norm(values - weights[name])
        assert np.linalg.norm(found[name] - values) <= 1e-4 * change + 1e-12, name


def float64_gradients(stage, weights, arrays):
    """(losses, gradients, moving means after the batch) of our training symbol with float64."""
    symbol, targets = stage.losses, dict(zip(LABELS["paper"], arrays[1:], strict=True))
    inputs = {"data": arrays[0], **targets}
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    shapes = {name: array.shape for name, array in inputs.items()}
    bound = symbol.simple_bind(mx.cpu(), grad_req="write", type_dict=dict.fromkeys(names, np.float64), **shapes)
    for name, array in {**weights, **inputs}.items():
        bound.arg_dict.get(name, bound.aux_dict.get(name))[:] = mx.nd.array(array, dtype=np.float64)
    losses = [float(one.asnumpy().sum()) for one in bound.forward(is_train=True)]
    bound.backward()
    mx.nd.waitall()
    gradients = {name: array.asnumpy() for name, array in bound.grad_dict.items() if name in weights}
    means = {name: array.asnumpy() for name, array in bound.aux_dict.items() if name.endswith("_mean")}
    return losses, gradients, means
