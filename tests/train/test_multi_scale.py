"""Training on several input sizes: gradients, optimizer state and memory survive the switches."""

import os
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from dataset.input_sizes import multi_scale_sizes
from dataset.iterator import DetRecordIter
from machine.runtime import mx
from symbol.symbol_factory import get_assigner
from tests.train.test_module import make_module, step, weights
from tests.train.tiny import BATCH, CLASSES, NETWORK
from train.options import network_options, train_options
from train.training import run_training

SIZES = ((64, 64), (96, 96), (128, 128))
CONTEXTS = 2
PAGES_OF_20_MB = 20 * (1 << 20) // os.sysconf("SC_PAGESIZE")


def assigner_of(sizes=SIZES):
    settings = network_options(train_options(**NETWORK))
    return get_assigner("mobilenet", 64, len(CLASSES), sizes=sizes, **settings)


@pytest.fixture(scope="module")
def batches(records):
    """A batch of each size."""
    kinds = (DetRecordIter(records[0], BATCH, size, augment=None, assigner=assigner_of(), workers=0) for size in SIZES)
    return [iterator.next() for iterator in kinds]


def test_a_switching_module_steps_as_modules_of_one_size_do(batches):
    """Each step by a module that is bound to this size alone and continues weights and momentum."""
    momentum = {"momentum": 0.9}
    switching = make_module(batches[0], CONTEXTS, parameters=momentum)
    state, params = None, None
    for k, batch in enumerate([*batches, *batches[:1]]):
        fixed = make_module(batch, CONTEXTS, state, parameters={**momentum, "begin_num_update": k})
        if params:
            fixed.set_params(*params)
            switching.set_params(*params)  # contexts have moving averages of their own
        step(switching, batch)
        step(fixed, batch)
        expected = weights(fixed)
        for name, array in weights(switching).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
        state = fixed.optimizer_state()
        params = tuple({name: array.copy() for name, array in part.items()} for part in fixed.get_params())


def test_accumulated_gradients_survive_a_switch(batches):
    """Although the iterator does not switch within a group."""
    module = make_module(batches[0], freeze=".*_(gamma|beta)", parameters={"learning_rate": 0.0})
    single = []
    for batch in batches:
        batch.completes_update = True
        step(module, batch)
        single.append(gradients(module))
    for batch in batches:
        batch.completes_update = batch is batches[-1]
        step(module, batch)
    for name, array in gradients(module).items():
        np.testing.assert_allclose(array, sum(part[name] for part in single), rtol=1e-4, atol=1e-5, err_msg=name)


def gradients(module):
    arrays = zip(module._exec_group.param_names, module._exec_group.grad_arrays, strict=True)
    return {name: grads[0].asnumpy() for name, grads in arrays if grads[0] is not None}


def test_memory_is_flat_over_many_switches(batches):
    module = make_module(batches[0])
    resident = []
    for _ in range(20):
        for batch in batches:
            step(module, batch)
        mx.nd.waitall()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert resident[-1] - resident[4] < PAGES_OF_20_MB


def test_a_run_is_resumed_with_the_same_sizes(records, tmp_path):
    common = {"train_path": records[0], "val_path": records[1], "batch_size": BATCH, "workers": 0, "lr": 0.01}
    common |= {**NETWORK, "multi_scale": (1.0, 2.0), "gpus": "", "lr_steps": (), "accumulate": 2}
    for prefix, ends in (("whole", (2,)), ("parts", (1, 2))):
        for end in ends:
            resume = "auto" if end == 2 and len(ends) == 2 else "-1"
            run_training(train_options(**common, prefix=str(tmp_path / prefix), end_epoch=end, resume=resume))
    whole, parts = (mx.nd.load(str(tmp_path / f"{prefix}-0002.params")) for prefix in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(array.asnumpy(), parts[name].asnumpy(), err_msg=name)


def test_an_ssd_has_targets_for_each_size():
    assigner = assigner_of()
    counts = [assigner.shapes(size)["cls_target"][0] for size in SIZES]
    assert counts == sorted(set(counts))


def test_anchors_at_fixed_steps_are_refused():
    sizes = multi_scale_sizes((300, 300), (0.7, 1.3))
    for targets in ("paper", "mxnet"):
        with pytest.raises(OptionError, match=r"vgg16_reduced have fixed steps at data shape 300,300.*--multi-scale"):
            get_assigner("vgg16_reduced", 300, 3, sizes=sizes, targets=targets)
    assert get_assigner("vgg16_reduced", 320, 3, sizes=multi_scale_sizes((320, 320), (1, 1.1)))


def test_a_resumed_run_of_several_inputs_ends_with_the_same_bits(options, tmp_path):
    """With accumulation, whose last group of an epoch is smaller, averages and a warm-up of everything, too."""
    recipe = {
        "multi_scale": (0.67, 1.5), "accumulate": 2, "ema": 0.9, "augment": "ssd", "val_path": "",
        "warmup_epochs": 1.5, "warmup_momentum": 0.5, "warmup_bias_lr": 0.1,
    }  # fmt: skip
    for name, ends in (("whole", (2,)), ("parts", (1, 2))):
        for end in ends:
            resume = "auto" if end > 1 and len(ends) > 1 else "-1"
            run_training(options(prefix=str(tmp_path / name), end_epoch=end, resume=resume, **recipe))
    for kind in ("params", "optim.params"):
        whole, parts = (mx.nd.load(str(tmp_path / f"{name}-0002.{kind}")) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(array.asnumpy(), parts[name].asnumpy(), err_msg=name)
