"""Training in mixed precision: gradients beside float32's, the loss scale of float16, resuming, --dtype auto."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from common.errors import OptionError
from dataset.batch_spec import BatchSpec
from dataset.iterator import open_batches
from graph.mixed_precision import BFLOAT16, FLOAT32
from graph.number_formats import supports_bfloat16
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names
from tests.train.tiny import CLASSES, NETWORK, write_record
from train.metric import make_metric
from train.module import DetectionModule
from train.recipe import GROWTH_INTERVAL, LossScaler, Recipe, make_scaler
from train.stages import make_stages, without_det
from train.start import find_start
from train.training import run_training

needs_bfloat16 = pytest.mark.skipif(not supports_bfloat16(), reason="this CPU has no AVX-512")
ROUNDING = 2.0**-8  # of bfloat16: 8 bits of mantissa with the hidden one
SIZE, BATCH = 128, 4
SSD = {name: value for name, value in NETWORK.items() if name not in ("network", "data_shape")} | {"width": 0.5}
FAMILIES = {
    "ssd": ("mobilenet", SSD),
    "classic": ("mobilenet", SSD | {"targets": "mxnet"}),
    "yolo": ("yolov3_spp_mini", {}),
    "efficientdet": ("efficientdet_mini", {}),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("record") / "train.rec", 8)


def network_of(family):
    """Network, size and classes."""
    return FAMILIES[family][0], SIZE, len(CLASSES)


def batch_of(record, family):
    """A batch that is kept."""
    network, options = FAMILIES[family]
    assigner = get_assigner(network, SIZE, len(CLASSES), **options)
    spec = BatchSpec(record, BATCH, SIZE, assigner=assigner, augment=None, workers=0, std=(60, 60, 60))
    batches = open_batches(spec)
    batch = batches.next()
    shapes = batches.provide_data, batches.provide_label
    batches.close()
    return batch, *shapes


def make_module(record, family, parameters=None, frozen=False, **changes):
    """(a bound Module with weights of seed 0, its batch); frozen: batch norms use their moving averages."""
    network, options = FAMILIES[family]
    options = options | ({"freeze": ".*_(gamma|beta)"} if frozen else {})
    batch, data, label = batch_of(record, family)
    module = DetectionModule(
        without_det(get_symbol_train(network, SIZE, len(CLASSES), **options)),
        get_symbol(network, SIZE, len(CLASSES), **options),
        label_names(network, **options),
        [mx.cpu()],
        **changes,
    )
    module.bind(data, label)
    mx.random.seed(0)
    module.init_params(mx.init.Xavier())
    module.init_optimizer("local", "sgd", {"learning_rate": 0.01, "rescale_grad": 1.0, **(parameters or {})})
    return module, batch


def gradients(module, batch):
    module.forward_backward(batch)
    mx.nd.waitall()
    return {
        name: arrays[0].asnumpy()
        for name, arrays in zip(module._exec_group.param_names, module._exec_group.grad_arrays, strict=True)
    }


def arrays_of(params):
    return {name: array.asnumpy() for part in params for name, array in part.items()}


def weights(module):
    return arrays_of(module.get_params())


def distance(found, expected):
    """Of all gradients together, relative to the expected ones' length."""
    squares = [(np.square(found[name] - value).sum(), np.square(value).sum()) for name, value in expected.items()]
    error, length = np.sqrt(np.sum(squares, axis=0))
    return error / length


def rounded(array):
    """To bfloat16, and back."""
    return mx.nd.amp_cast(mx.nd.amp_cast(array, dtype=BFLOAT16), dtype=FLOAT32)


def disturbed_gradients(record, family):
    """float32's gradients where weights and data have been rounded to bfloat16 once."""
    module, batch = make_module(record, family)
    args, aux = module.get_params()
    module.set_params({name: rounded(array) for name, array in args.items()}, aux)
    batch.data = [rounded(array) for array in batch.data]
    return gradients(module, batch)


@needs_bfloat16
@every_family
def test_gradients_are_those_of_float32_to_bfloat16s_rounding(record, family):
    module, batch = make_module(record, family, frozen=True)
    expected = gradients(module, batch)
    found = gradients(*make_module(record, family, frozen=True, dtype=BFLOAT16))
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert distance(found, expected) < 20 * ROUNDING  # measured: 0.002 to 0.06 by family


@needs_bfloat16
@pytest.mark.slow
@every_family
def test_with_statistics_of_the_batch_gradients_move_as_by_rounding_the_weights_once(record, family):
    expected = gradients(*make_module(record, family))
    found = gradients(*make_module(record, family, dtype=BFLOAT16))
    assert distance(found, expected) < 2 * distance(disturbed_gradients(record, family), expected)


@every_family
def test_scaled_losses_have_the_same_outputs_and_gradients_times_the_scale(record, family):
    plain, batch = make_module(record, family, frozen=True)
    scaled, _ = make_module(record, family, frozen=True, scaler=LossScaler(1024.0))
    expected, found = gradients(plain, batch), gradients(scaled, batch)
    outputs = [array.asnumpy() for array in plain.get_outputs()]
    for out, wanted in zip(scaled.get_outputs(), outputs, strict=False):
        np.testing.assert_array_equal(out.asnumpy(), wanted)
    assert distance({name: array / 1024 for name, array in found.items()}, expected) < 1e-5


def test_the_scale_halves_when_an_update_overflows_and_doubles_after_many_that_did_not():
    scaler = LossScaler(1024.0, good=GROWTH_INTERVAL - 2)
    scaler.note(True)
    assert scaler.state() == {"scale": 1024.0, "good": GROWTH_INTERVAL - 1, "skipped": 0}
    scaler.note(True)
    assert scaler.state() == {"scale": 2048.0, "good": 0, "skipped": 0}
    scaler.note(True)
    scaler.note(False)
    assert scaler.state() == {"scale": 1024.0, "good": 0, "skipped": 1}


def test_the_scale_stays_finite():
    scaler = LossScaler(1e308, good=GROWTH_INTERVAL - 1)
    scaler.note(True)
    assert scaler.state() == {"scale": 1e308, "good": 0, "skipped": 0}


@pytest.mark.parametrize("parameters", [{}, {"clip_norm": 0.01}, {"ema": 0.9}])
def test_scaled_updates_are_those_of_unscaled_ones(record, parameters):
    recipe = Recipe(**parameters)
    trained = []
    for scaler in (None, LossScaler(256.0)):
        module, batch = make_module(record, "ssd", {"momentum": 0.9}, frozen=True, scaler=scaler, recipe=recipe)
        for _ in range(3):
            module.forward_backward(batch)
            module.update()
        trained.append(arrays_of(module.params_to_save()))
    for name, array in trained[0].items():
        np.testing.assert_allclose(trained[1][name], array, rtol=1e-5, atol=1e-7)


def test_an_update_that_overflows_is_skipped_counted_and_told(record, caplog):
    scaler = LossScaler(3e38)
    module, batch = make_module(record, "ssd", {"momentum": 0.9}, scaler=scaler, recipe=Recipe(ema=0.9))
    metric = make_metric(without_det(get_symbol_train("mobilenet", SIZE, len(CLASSES), **SSD)))
    before = weights(module)
    with caplog.at_level(logging.INFO, "train.recipe"):
        module.forward_backward(batch)
        module.update()
        module.update_metric(metric, batch.label)
    metric.flush()
    after = weights(module)
    trained = [name for name in before if "moving" not in name]
    assert all((before[name] == after[name]).all() for name in trained)
    assert not any(np.any(array) for array in module.optimizer_state().values() if array.shape == (1,))
    assert (scaler.scale, scaler.skipped, module.num_update) == (1.5e38, 1, 1)
    assert metric.first_bad is None
    assert "an update is skipped" in caplog.text
    scaler.scale = 1.0
    module.forward_backward(batch)
    module.update()
    assert module.num_update == 2
    assert any((weights(module)[name] != after[name]).any() for name in trained)


def test_every_batch_of_an_accumulated_update_is_looked_at(record):
    scaler = LossScaler(3e38)
    module, batch = make_module(record, "ssd", scaler=scaler)
    batch.completes_update = False
    module.forward_backward(batch)
    module.update()
    scaler.scale = 1.0  # of the second batch only
    module._exec_group.set_states(value=1.0)
    batch.completes_update = True
    module.forward_backward(batch)
    module.update()
    assert scaler.skipped == 1


@needs_bfloat16
def test_a_resumed_run_in_bfloat16_ends_with_the_same_bits(options, tmp_path):
    whole, part = options(end_epoch=3, dtype=BFLOAT16), {"dtype": BFLOAT16, "prefix": str(tmp_path / "part")}
    run_training(whole)
    run_training(options(end_epoch=1, **part))
    run_training(options(end_epoch=3, resume="auto", **part))
    found, expected = (load_checkpoint(prefix, 3) for prefix in (part["prefix"], whole.output.prefix))
    assert found.meta.precision == {"dtype": BFLOAT16}
    for name, array in (found.arg_params | found.aux_params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.asnumpy(), (expected.arg_params | expected.aux_params)[name].asnumpy())


@needs_bfloat16
def test_a_run_goes_on_in_its_own_number_format(options, monkeypatch, caplog):
    speeds = iter((0.2, 0.1))
    monkeypatch.setattr("train.measuring.seconds_a_batch", lambda *args: next(speeds))
    with caplog.at_level(logging.INFO):
        run_training(options(end_epoch=1, dtype="auto"))
    assert "--dtype auto: bfloat16 (a batch takes: float32 0.200 s, bfloat16 0.100 s)" in caplog.text
    run_training(options(end_epoch=2, dtype="auto", resume="auto"))  # measures nothing
    last = options(end_epoch=3, dtype=FLOAT32, resume="auto")
    assert load_checkpoint(last.output.prefix, 2).meta.precision == {"dtype": BFLOAT16}
    with pytest.raises(OptionError, match="was trained in bfloat16; resume with --dtype bfloat16"):
        run_training(last)


def test_auto_is_float32_where_it_is_the_faster_one_or_the_only_one(options, monkeypatch):
    monkeypatch.setattr("train.measuring.supports_bfloat16", lambda: False)
    chosen = options(end_epoch=1, dtype="auto")
    run_training(chosen)
    assert load_checkpoint(chosen.output.prefix, 1).meta.precision == {}


@pytest.mark.parametrize(
    ("dtype", "supported", "sentence"),
    [("float16", True, "is a format for GPUs; give --dtype bfloat16"), (BFLOAT16, False, "this CPU has no AVX-512")],
)
def test_a_format_that_the_device_does_not_have_is_refused(options, monkeypatch, dtype, supported, sentence):
    monkeypatch.setattr("train.preflight.supports_bfloat16", lambda: supported)
    with pytest.raises(OptionError, match=sentence):
        run_training(options(end_epoch=1, dtype=dtype))


def test_a_run_is_not_resumed_in_a_format_that_the_device_does_not_have(options, monkeypatch):
    """As after --dtype auto has found bfloat16 on another machine: the start of the run is made up."""
    run_training(options(end_epoch=1, dtype="auto"))
    resumed = options(end_epoch=2, dtype="auto", resume="auto")
    found = find_start(make_stages(resumed, CLASSES))
    monkeypatch.setattr("train.preflight.find_start", lambda stages: replace(found, precision={"dtype": BFLOAT16}))
    monkeypatch.setattr("train.preflight.supports_bfloat16", lambda: False)
    with pytest.raises(OptionError, match="was trained in bfloat16, which the devices here do not have.* --epoch 1$"):
        run_training(resumed)


def test_the_loss_scale_goes_on_where_a_checkpoint_left_it():
    assert make_scaler(BFLOAT16, {}) is None
    state = {"scale": 512.0, "good": 7, "skipped": 2}
    scaler = make_scaler("float16", {"dtype": "float16", **state})
    assert scaler.state() == state
    assert make_scaler("float16", {}).state() == {"scale": 65536.0, "good": 0, "skipped": 0}


@needs_bfloat16
@every_family
@pytest.mark.parametrize("way", [pytest.param("float32", marks=pytest.mark.slow), "products"])
def test_weight_gradients_beside_the_graph_are_those_of_float32(record, family, way):
    module, batch = make_module(record, family, frozen=True)
    expected = gradients(module, batch)
    everywhere = dict.fromkeys(graph_names(module), way)
    module, batch = make_module(record, family, frozen=True, dtype=BFLOAT16, gradient_ways=everywhere)
    ways = module.precision["gradients"]
    assert set(ways.values()) == {way}
    assert distance(gradients(module, batch), expected) < 20 * ROUNDING
    assert set(weights(module)) == set(weights(make_module(record, family)[0]))
    assert len(module.get_outputs()) > len(make_module(record, family)[0].get_outputs())
    module.update()
    module.update_metric(
        make_metric(without_det(get_symbol_train(*network_of(family), **FAMILIES[family][1]))), batch.label
    )


def graph_names(module):
    return [name.removesuffix("_weight") for name in module._exec_group.param_names if name.endswith("_weight")]


@needs_bfloat16
def test_a_run_keeps_the_ways_of_its_weight_gradients(options, monkeypatch, caplog):
    monkeypatch.setattr("train.measuring.has_amx", lambda: True)
    monkeypatch.setattr("train.measuring.fastest_ways", lambda layers: dict.fromkeys(layers, "products"))
    with caplog.at_level(logging.INFO):
        run_training(options(end_epoch=1, dtype=BFLOAT16, width=0.5))
    assert "0 by float32" in caplog.text
    monkeypatch.setattr("train.measuring.fastest_ways", None)  # is not asked again
    last = options(end_epoch=2, dtype=BFLOAT16, width=0.5, resume="auto")
    run_training(last)
    found = [load_checkpoint(last.output.prefix, epoch).meta.precision for epoch in (1, 2)]
    assert found[0]["gradients"]
    assert found[0] == found[1]


@needs_bfloat16
@pytest.mark.parametrize(
    "changes",
    [
        {"monitor": 1},
        {"multi_scale": (0.8, 1.2)},
        {"cpus": 2, "accumulate": 2, "clip_gradient_norm": 1.0},
        {"val_loss": True, "ema": 0.9},
        pytest.param({"freeze_epochs": 1, "end_epoch": 2, "dtype": "auto"}, marks=pytest.mark.slow),  # measures
        {"rewrite_graph": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_bfloat16_goes_with_other_options(options, changes, caplog):
    chosen = options(**{"end_epoch": 1, "dtype": BFLOAT16, "width": 0.5, **changes})
    with caplog.at_level(logging.INFO):
        run_training(chosen)
    checkpoint = load_checkpoint(chosen.output.prefix, chosen.schedule.end_epoch)
    assert checkpoint.meta.precision in ({}, {"dtype": BFLOAT16})
    assert all(np.isfinite(array.asnumpy()).all() for array in checkpoint.arg_params.values())
