import numpy as np
import pytest

from common.errors import OptionError
from machine.runtime import mx
from symbol.layers import Layers, l2_normalise, max_pool


def test_l2_normalise_gives_every_pixel_the_norm_of_the_scale() -> None:
    data = np.random.default_rng(0).normal(0, 5, (2, 8, 3, 4))
    symbol = l2_normalise(mx.sym.var("data"), "tap", 8, 20.0)
    output = symbol.eval(data=mx.nd.array(data), tap_scale=mx.nd.full((1, 8, 1, 1), 20.0))[0].asnumpy()
    np.testing.assert_allclose(np.sqrt((output**2).sum(axis=1)), 20.0, rtol=1e-5)


def test_l2_normalise_keeps_an_empty_pixel_at_zero_with_a_finite_gradient() -> None:
    symbol = l2_normalise(mx.sym.var("data"), "tap", 4, 20.0)
    executor = symbol.simple_bind(mx.cpu(), data=(1, 4, 1, 2))
    executor.arg_dict["tap_scale"][:] = 20.0
    executor.arg_dict["data"][:] = np.array([[0.0, 1.0]] * 4).reshape(1, 4, 1, 2)
    output = executor.forward(is_train=True)[0].asnumpy()
    executor.backward(mx.nd.ones((1, 4, 1, 2)))
    np.testing.assert_array_equal(output[..., 0], 0)
    np.testing.assert_allclose(output[..., 1], 10, rtol=1e-5)
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in executor.grad_dict.values())


@pytest.mark.parametrize(("ceil_mode", "side"), [(True, 38), (False, 37)])
def test_pooling_rounds_up_only_in_ceil_mode(ceil_mode: bool, side: int) -> None:
    pooled = max_pool(mx.sym.var("data"), "pool", 2, 2, ceil_mode=ceil_mode)
    assert pooled.infer_shape(data=(1, 1, 75, 75))[1] == [(1, 1, side, side)]


@pytest.mark.parametrize(("freeze", "frozen"), [("", False), ("bn", True), (".*_gamma", True), ("gamma", False)])
def test_a_frozen_batch_norm_keeps_its_statistics(freeze: str, frozen: bool) -> None:
    symbol = Layers(freeze=freeze).batch_norm(mx.sym.var("data"), "bn")
    executor = symbol.simple_bind(mx.cpu(), data=(4, 2, 3, 3))
    executor.arg_dict["data"][:] = np.random.default_rng(0).normal(7, 2, (4, 2, 3, 3))
    executor.arg_dict["bn_gamma"][:] = 1
    executor.aux_dict["bn_moving_var"][:] = 1
    output = executor.forward(is_train=True)[0].asnumpy()
    executor.backward(mx.nd.ones((4, 2, 3, 3)))
    mx.nd.waitall()
    assert (executor.aux_dict["bn_moving_mean"].asnumpy() == 0).all() == frozen
    assert (abs(output.mean()) > 5) == frozen


def test_a_malformed_freeze_pattern_is_named() -> None:
    with pytest.raises(OptionError, match=r"--freeze '\(' is not a regular expression"):
        Layers(freeze="(").is_frozen("conv1_weight")
