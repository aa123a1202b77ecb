"""DetectionModule: labels by name, gradients over contexts, optimizer state, moving averages, padding rows."""

import numpy as np
import pytest

from common.errors import CheckpointError
from dataset.iterator import DetRecordIter
from machine.runtime import mx
from symbol.symbol_factory import get_assigner, get_symbol, get_symbol_train, label_names
from tests.train.tiny import BATCH, CLASSES, NETWORK
from train.metric import make_metric
from train.module import DetectionModule
from train.options import network_options, train_options
from train.recipe import Recipe
from train.schedule import WarmUp, WarmUpOfOthers
from train.stages import without_det

FREEZE_BATCH_NORM = ".*_(gamma|beta)"


def settings_of(**changes):
    """Network options of the tiny network."""
    return network_options(train_options(**(NETWORK | changes)))


def make_module(batch, contexts=1, state=None, optimizer="sgd", parameters=None, recipe=Recipe(), **changes):  # noqa: B008
    """A bound module with weights of seed 0 and an optimizer."""
    settings = settings_of(**changes)
    symbol = without_det(get_symbol_train("mobilenet", 64, len(CLASSES), **settings))
    det = get_symbol("mobilenet", 64, len(CLASSES), **settings)
    devices = [mx.cpu(k) for k in range(contexts)]
    module = DetectionModule(
        symbol, det, label_names("mobilenet", **settings), devices, optimizer_state=state, recipe=recipe
    )
    module.bind(batch.provide_data, batch.provide_label)
    mx.random.seed(0)
    module.init_params(mx.init.Xavier())
    rescale = 1.0 if settings["targets"] == "paper" else 1.0 / contexts
    parameters = {"learning_rate": 0.05, "rescale_grad": rescale, **(parameters or {})}
    module.init_optimizer("local", optimizer, parameters)
    return module


def step(module, batch):
    module.forward_backward(batch)
    module.update()


def weights(module):
    args, aux = module.get_params()
    return {name: array.asnumpy() for name, array in {**args, **aux}.items()}


def gradients(module, batch):
    module.forward_backward(batch)
    names = module._exec_group.param_names
    return {
        n: sum(g.asnumpy() for g in arrays) for n, arrays in zip(names, module._exec_group.grad_arrays, strict=True)
    }


@pytest.mark.parametrize(
    ("targets", "names"), [("paper", {"cls_target", "loc_target", "normaliser"}), ("mxnet", {"label"})]
)
def test_only_the_labels_of_the_graph_are_bound(batches, targets, names):
    batch = batches(targets="paper")[0]  # offers all labels
    module = make_module(batch, targets=targets)
    assert {desc.name for desc in module.label_shapes} == names
    step(module, batch)
    losses = [output.asnumpy() for output in module.get_outputs()]
    assert len(losses) == {"paper": 2, "mxnet": 3}[targets]
    assert all(np.isfinite(loss).all() for loss in losses)


def test_parameters_have_their_own_arrays_where_the_rewritten_graph_has_another_order(monkeypatch):
    """Module pairs them by place."""
    data, first, second = (mx.sym.var(name) for name in ("data", "first_weight", "second_weight"))
    parts = [mx.sym.FullyConnected(data, one, num_hidden=k, no_bias=True) for k, one in ((2, first), (3, second))]
    losses = [mx.sym.make_loss(mx.sym.Concat(*order, dim=1), name="loss") for order in (parts, parts[::-1])]
    monkeypatch.setattr("train.module.suit_training", lambda symbol, shapes: losses[1])
    module = DetectionModule(losses[0], losses[0], (), [mx.cpu()])
    module.bind([("data", (1, 4))])
    module.init_params(mx.init.Xavier())
    assert {name: array.shape for name, array in module.get_params()[0].items()} == {
        "first_weight": (2, 4),
        "second_weight": (3, 4),
    }


def test_contexts_give_the_gradient_of_the_whole_batch(batches):
    batch = batches()[0]
    one, two = (make_module(batch, contexts, freeze=FREEZE_BATCH_NORM) for contexts in (1, 2))
    for _ in range(2):
        step(one, batch)
        step(two, batch)
    expected, found = weights(one), weights(two)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


OPTIMIZERS = {
    "sgd": ("sgd", {"momentum": 0.9}),
    "plain": ("sgd", {}),
    "nag": ("nag", {"momentum": 0.9}),
    "adam": ("adam", {}),
    "adamw": ("adamw", {"wd": 0.1}),
}


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_optimizer_continues_bit_for_bit(batches, kind, contexts):
    optimizer, parameters = OPTIMIZERS[kind]
    first, second, third = batches()
    whole = make_module(first, contexts, optimizer=optimizer, parameters=parameters)
    step(whole, first)
    step(whole, second)
    state = whole.optimizer_state()
    names = {"sgd": 1, "plain": 0, "nag": 1, "adam": 2, "adamw": 2}
    assert len(state) == names[kind] * len(whole._exec_group.param_names)
    args, aux = ({name: array.copy() for name, array in params.items()} for params in whole.get_params())
    whole.set_params(args, aux)  # as fit does after each epoch: contexts have moving averages of their own
    step(whole, third)
    parameters = {**parameters, "begin_num_update": 2}
    resumed = make_module(first, contexts, state, optimizer, parameters)
    resumed.set_params(args, aux)
    step(resumed, third)
    assert resumed.num_update == whole.num_update == 3
    expected = weights(whole)
    for name, array in weights(resumed).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "missing"),
        (lambda state: dict(list(state.items())[1:]), "missing"),
        (lambda state: {name: array[:1] for name, array in state.items()}, "another shape"),
        (lambda state: {**state, "conv_1_conv2d_weight:1": np.zeros(1)}, "conv_1_conv2d_weight:1 has no place"),
        (lambda state: {**state, "fc_weight:0": np.zeros(1)}, "fc_weight:0 has no place"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_refused(batches, change, message):
    batch = batches()[0]
    module = make_module(batch, parameters={"momentum": 0.9})
    step(module, batch)
    with pytest.raises(CheckpointError, match=message):
        make_module(batch, state=change(module.optimizer_state()), parameters={"momentum": 0.9})


def test_adam_with_weight_decay_takes_the_published_steps(batches):
    """Adam (Kingma, Ba 2015, the last form of section 2) of the gradient plus decay times weight, as in PyTorch but for
    the place of epsilon; mxnet leaves biases and batch norm's beta undecayed."""
    rate, decay, beta1, beta2 = 0.01, 5e-4, 0.9, 0.999
    module = make_module(batches()[0], optimizer="adam", parameters={"learning_rate": rate, "wd": decay})
    name = "conv_12_conv2d_weight"
    index = module._exec_group.param_names.index(name)
    weight = weights(module)[name].astype(np.float64)
    mean, variance = np.zeros_like(weight), np.zeros_like(weight)
    for step_number, batch in enumerate(batches(), start=1):
        step(module, batch)
        gradient = module._exec_group.grad_arrays[index][0].asnumpy() + decay * weight
        mean = beta1 * mean + (1 - beta1) * gradient
        variance = beta2 * variance + (1 - beta2) * gradient**2
        unbiased_rate = rate * np.sqrt(1 - beta2**step_number) / (1 - beta1**step_number)
        weight = weight - unbiased_rate * mean / (np.sqrt(variance) + 1e-8)
        found = weights(module)[name]
        np.testing.assert_allclose(found, weight, atol=1e-4 * rate, rtol=1e-4)
        weight = found.astype(np.float64)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("bn_decay", [True, False])
def test_batch_norm_decays_if_it_is_to(batches, bn_decay, contexts):
    rate, decay = 0.01, 0.1
    batch = batches()[0]
    module = make_module(
        batch, contexts, parameters={"learning_rate": rate, "wd": decay}, recipe=Recipe(bn_decay=bn_decay)
    )
    before, found = weights(module), gradients(module, batch)
    module.update()
    after = weights(module)
    for suffix, decays in (("_weight", True), ("_gamma", bn_decay), ("_beta", False)):
        names = [name for name in found if name.endswith(suffix)]
        assert names
        for name in names:
            expected = before[name] - rate * (found[name] + decay * decays * before[name])
            np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_nag_takes_the_steps_of_nesterov_in_pytorch(batches):
    """v = momentum v + g, w = w - rate (g + momentum v), g with weight decay (torch.optim.SGD with nesterov)."""
    rate, momentum, decay = 0.01, 0.9, 5e-4
    module = make_module(
        batches()[0], optimizer="nag", parameters={"learning_rate": rate, "momentum": momentum, "wd": decay}
    )
    name = "conv_12_conv2d_weight"
    weight, velocity = weights(module)[name].astype(np.float64), 0.0
    for batch in batches():
        gradient = gradients(module, batch)[name] + decay * weight
        module.update()
        velocity = momentum * velocity + gradient
        weight = weight - rate * (gradient + momentum * velocity)
        np.testing.assert_allclose(weights(module)[name], weight, rtol=1e-4, atol=1e-6)


def test_moving_averages_are_read_after_the_batch_that_changed_them(batches):
    """mxnet 1.9.1 updates them in BatchNorm's backward behind the engine's back."""
    batch = batches()[0]
    module = make_module(batch, width=1.0)
    for _ in range(5):
        step(module, batch)
        first = {name: array.asnumpy() for name, array in module.get_params()[1].items()}
        mx.nd.waitall()
        for name, arrays in zip(module._aux_names, module._exec_group.aux_arrays, strict=True):
            np.testing.assert_array_equal(first[name], arrays[0].asnumpy(), err_msg=name)


@pytest.mark.parametrize("changes", [{}, {"min_neg_samples": 4}, {"targets": "mxnet"}])
def test_padding_rows_change_no_gradient(batches, changes):
    """Whatever they show; batch norm, which mixes the rows, is frozen here."""
    last = batches(**changes)[-1]
    assert last.pad == 2
    module = make_module(last, freeze=FREEZE_BATCH_NORM, **changes)
    expected = gradients(module, last)
    assert all(np.isfinite(array).all() for array in expected.values())
    assert any(array.any() for array in expected.values())
    last.data[0][-last.pad :] = mx.nd.random.normal(0, 80, (last.pad, 3, 64, 64))
    for name, array in gradients(module, last).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


class CountRows(mx.metric.EvalMetric):
    """Counts the images it is given."""

    def update(self, labels, preds):
        assert len(labels[0]) == len(preds[0])
        self.sum_metric += len(labels[0])
        self.num_inst = 1


def test_validation_hands_over_no_padding_row_and_leaves_training_alone(batches, records):
    batch = batches()[0]
    module = make_module(batch)
    step(module, batch)
    before = weights(module)
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    ended = []
    for _ in range(2):
        pairs = module.score(val_iter, CountRows("rows"), score_end_callback=ended.append, epoch=3)
        assert pairs == [("rows", val_iter.num_examples)]
    assert [param.epoch for param in ended] == [3, 3]
    for name, array in weights(module).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    step(module, batch)


def test_score_stops_after_the_batches_asked_for(batches, records):
    module = make_module(batches()[0])
    ended = []
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    assert module.score(val_iter, CountRows("rows"), num_batch=1, score_end_callback=[ended.append]) == [
        ("rows", BATCH)
    ]
    assert [param.nbatch for param in ended] == [1]


def test_a_warm_up_from_momentum_0_ends_with_momentum(batches):
    batch = batches()[0]
    recipe = Recipe(before_update=WarmUpOfOthers(WarmUp(3, 0.5), 0.0, 0.9, None))
    module = make_module(batch, parameters={"momentum": 0.9}, recipe=recipe)
    for _ in range(4):
        step(module, batch)
    assert module._optimizer.momentum == 0.9
    assert len(module.optimizer_state()) == len(module._exec_group.param_names)
    assert all(np.abs(array).max() > 0 for array in module.optimizer_state().values())


def read(records, size, **changes):
    assigner = get_assigner("mobilenet", 64, len(CLASSES), **settings_of(**changes))
    return list(DetRecordIter(records[0], size, 64, augment=None, assigner=assigner, workers=0))


def grouped(batches, size):
    """Batches that make one update together: the last completes it, all hold the normaliser of all."""
    for begin in range(0, len(batches), size):
        group = batches[begin : begin + size]
        names = [desc.name for desc in group[0].provide_label]
        if "normaliser" in names:
            place = names.index("normaliser")
            total = sum(batch.label[place].asnumpy()[0] for batch in group)
            for batch in group:
                batch.label[place][:] = mx.nd.array(np.broadcast_to(total, batch.label[place].shape))
        for batch in group:
            batch.completes_update = batch is group[-1]
    return batches


@pytest.mark.parametrize("contexts", [1, 2])
def test_an_accumulated_update_is_that_of_the_large_batch(records, contexts):
    """Batch norm, which sees one batch alone, is frozen here. The second update has a smaller group."""
    large, small = read(records, 16), grouped(read(records, 8), 2)
    assert [batch.completes_update for batch in small] == [False, True, True]
    options = {"freeze": FREEZE_BATCH_NORM, "parameters": {"momentum": 0.9, "wd": 1e-3}}
    whole, parts = make_module(large[0], **options), make_module(small[0], contexts, **options)
    for batch in large * 2:
        step(whole, batch)
    for batch in small * 2:
        step(parts, batch)
    assert parts.num_update == whole.num_update == 4
    expected = weights(whole)
    for name, array in weights(parts).items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_means_over_batches_are_averaged(records):
    """Two equal batches of the classic target rule make the update of one of them."""
    first = read(records, 8, targets="mxnet")[0]
    options = {"freeze": FREEZE_BATCH_NORM, "targets": "mxnet"}
    one = make_module(first, **options)
    both = make_module(first, recipe=Recipe(means=True), **options)
    step(one, first)
    for completes in (False, True):
        first.completes_update = completes
        step(both, first)
    expected = weights(one)
    for name, array in weights(both).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_losses_of_a_group_are_those_of_the_large_batch(records):
    values = []
    for batches in (read(records, 16), grouped(read(records, 8), 2)):
        module = make_module(batches[0], freeze=FREEZE_BATCH_NORM, parameters={"learning_rate": 1e-9})
        metric = make_metric(module.symbol)
        for batch in batches:
            step(module, batch)
            module.update_metric(metric, batch.label)
        values.append([value for _, value in metric.get_global_name_value()])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_seen_in_mid_group_and_in_its_last_batch(records):
    for poisoned in (0, 1):
        batches = grouped(read(records, 8), 2)
        module = make_module(batches[0])
        metric = make_metric(module.symbol)
        batches[poisoned].data[0][:] = np.nan
        for batch in batches[:2]:
            step(module, batch)
            module.update_metric(metric, batch.label)
        metric.flush()
        assert metric.first_bad == poisoned


def test_an_update_waits_for_nothing(records, monkeypatch):
    batches = grouped(read(records, 8), 2)
    module = make_module(batches[0], recipe=Recipe(ema=0.9))

    def refuse(*_):
        raise AssertionError("the engine is waited for")

    with monkeypatch.context() as patch:
        patch.setattr(mx.nd, "waitall", refuse)
        patch.setattr(mx.nd.NDArray, "asnumpy", refuse)
        patch.setattr(mx.nd.NDArray, "wait_to_read", refuse)
        for batch in batches:
            step(module, batch)
