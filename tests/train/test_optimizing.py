"""AdamW, gradients clipped by their length, the body's learning rate: beside numpy, over batches and contexts."""

import numpy as np
import pytest

from common.errors import OptionError
from config.options import replace_options
from machine.runtime import mx
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern
from tests.train.test_module import FREEZE_BATCH_NORM, gradients, make_module, step, weights
from tests.train.tiny import NETWORK
from train.checks import idle_options
from train.options import train_options
from train.recipe import Recipe
from train.schedule import Rates, WarmUp, WarmUpOfOthers
from train.stages import make_stages

BODY = freeze_pattern(NETWORK["network"], "body")


def gradients_of(module):
    """{name: array} that the newest update used, of the first context."""
    names = module._exec_group.param_names
    return {n: arrays[0].asnumpy() for n, arrays in zip(names, module._exec_group.grad_arrays, strict=True)}


def length(arrays):
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays.values())))


def test_adamw_takes_the_published_steps(batches):
    """Algorithm 2 of Loshchilov, Hutter 2019 in the form of torch.optim.AdamW; biases and beta have no decay."""
    rate, decay, beta1, beta2, epsilon = 0.01, 0.5, 0.9, 0.999, 1e-8
    module = make_module(batches()[0], optimizer="adamw", parameters={"learning_rate": rate, "wd": decay})
    names = {"conv_12_conv2d_weight": decay, "conv_6_batchnorm_beta": 0.0}
    expected = {name: weights(module)[name].astype(np.float64) for name in names}
    state = {name: (0.0, 0.0) for name in names}
    for number, batch in enumerate(batches(), start=1):
        step(module, batch)
        found = gradients_of(module)
        for name, wd in names.items():
            mean, variance = state[name]
            mean = beta1 * mean + (1 - beta1) * found[name]
            variance = beta2 * variance + (1 - beta2) * found[name].astype(np.float64) ** 2
            state[name] = mean, variance
            expected[name] *= 1 - rate * wd
            adam = (mean / (1 - beta1**number)) / (np.sqrt(variance / (1 - beta2**number)) + epsilon)
            expected[name] -= rate * adam
    for name in names:
        np.testing.assert_allclose(weights(module)[name], expected[name], rtol=1e-4, atol=2e-6, err_msg=name)


def test_tiny_gradients_of_adamw_meet_the_same_epsilon_as_in_torch():
    """Where the gradient is as small as epsilon, its place decides the step."""
    optimizer = mx.optimizer.create("adamw", learning_rate=1.0, wd=0.0, epsilon=1e-3)
    weight, gradient = mx.nd.zeros((1,)), mx.nd.array([1e-3])
    state = optimizer.create_state(0, weight)
    optimizer.update(0, weight, gradient, state)
    np.testing.assert_allclose(weight.asnumpy(), [-0.5], rtol=1e-5)  # g / (|g| + epsilon) of unbiased moments


@pytest.mark.parametrize("contexts", [1, 2])
def test_a_long_gradient_is_shortened_to_the_limit_over_all_parameters(batches, contexts):
    batch, settings = batches()[0], {"freeze": FREEZE_BATCH_NORM}
    whole = gradients(make_module(batch, contexts, **settings), batch)
    limit = length(whole) / 10
    module = make_module(batch, contexts, recipe=Recipe(clip_norm=limit), **settings)
    step(module, batch)
    found = gradients_of(module)
    assert length(found) == pytest.approx(limit, rel=1e-4)
    for name, array in whole.items():
        np.testing.assert_allclose(found[name], array / 10, rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_length_is_that_of_an_update_of_several_batches(batches):
    first, second, _ = batches()
    first.completes_update = False
    plain = make_module(first)
    step(plain, first)
    step(plain, second)
    limit = length(gradients_of(plain)) / 2
    module = make_module(first, recipe=Recipe(clip_norm=limit))
    step(module, first)
    step(module, second)
    assert length(gradients_of(module)) == pytest.approx(limit, rel=1e-4)


def test_the_length_is_that_of_the_rescaled_gradient(batches):
    """The classic outputs are means over a context: of two contexts, the update takes half of the sum."""
    batch, settings = batches(targets="mxnet")[0], {"targets": "mxnet", "freeze": FREEZE_BATCH_NORM}
    plain = make_module(batch, 2, **settings)
    step(plain, batch)
    summed = length(gradients_of(plain))
    for limit, factor in ((summed / 4, 0.5), (summed * 0.75, 1.0)):  # 0.75 is above the half
        module = make_module(batch, 2, recipe=Recipe(clip_norm=limit), **settings)
        step(module, batch)
        assert length(gradients_of(module)) == pytest.approx(summed * factor, rel=1e-3)


def test_a_gradient_within_the_limit_stays_bit_for_bit(batches):
    plain, limited = (make_module(batches()[0], recipe=Recipe(clip_norm=limit)) for limit in (0.0, 1e6))
    for batch in batches():
        step(plain, batch)
        step(limited, batch)
    for name, array in weights(plain).items():
        np.testing.assert_array_equal(weights(limited)[name], array, err_msg=name)


def test_the_body_changes_by_its_part_of_the_rate(batches):
    batch = batches()[0]
    before = weights(make_module(batch))
    plain, slow = make_module(batch), make_module(batch, recipe=Recipe(body=BODY, body_lr=0.25))
    step(plain, batch)
    step(slow, batch)
    body = [name for name in plain._exec_group.param_names if matches(BODY, name)]
    heads = [name for name in plain._exec_group.param_names if name not in body]
    assert body
    assert heads
    for names, part in ((body, 0.25), (heads, 1.0)):
        for name in names:
            change = weights(slow)[name] - before[name]
            np.testing.assert_allclose(change, part * (weights(plain)[name] - before[name]), atol=1e-6, err_msg=name)


def test_the_rate_of_the_bodys_biases_warms_up_to_its_part(batches):
    """From 0.1 to 0.05 within two updates, where the others rise to 0.05; the body has a quarter of either."""
    warm_up = WarmUp(2, 0.5)
    others = WarmUpOfOthers(warm_up, None, 0.0, bias_lr=0.1)
    recipe = Recipe(body=BODY, body_lr=0.25, before_update=others)
    rates = Rates(0.05, lambda update: 0.05, warm_up)
    module = make_module(batches()[0], recipe=recipe, parameters={"lr_scheduler": rates})
    beta = "conv_12_batchnorm_beta"
    assert matches(BODY, beta)
    for batch, rate in zip(batches(), (0.1, 0.05, 0.05), strict=True):
        step(module, batch)
        mult = module._optimizer.lr_mult
        assert mult[beta] * module.learning_rate == pytest.approx(0.25 * rate)
        assert mult["conv_12_conv2d_weight"] == 0.25


def test_a_network_without_a_body_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr("train.stages.freeze_pattern", lambda network, freeze: freeze)
    with pytest.raises(OptionError, match="--body-lr: --network mobilenet has no body apart; leave it out"):
        make_stages(train_options(**NETWORK, body_lr=0.1), ("a",))


def test_the_rate_of_a_frozen_body_is_told():
    told = "--body-lr has no effect with --freeze body"
    given = replace_options(train_options(), body_lr=0.1, freeze="body")
    assert told in idle_options(given)
    assert told not in idle_options(replace_options(given, freeze_epochs=3))
