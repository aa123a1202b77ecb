"""The recipe's options in whole runs: averaged weights, what is validated, saved and frozen, live curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from dataset.iterator import DetRecordIter
from evaluate.evaluate_net import evaluate_net
from machine.opencv import cv2
from machine.runtime import mx
from model.checkpoint import list_epochs, load_checkpoint, load_optimizer_state
from symbol.layers import matches
from symbol.symbol_factory import freeze_pattern, get_symbol
from tests.train.test_module import make_module, step, weights
from tests.train.test_training import digests, fake_values, stop_in_epoch
from tests.train.tiny import BATCH, metrics
from train.checks import check_early
from train.options import train_options
from train.recipe import Recipe, WeightAverage, decay_at
from train.saving import SavePlan
from train.training import run_training

WHOLE = {
    "ema": 0.9,
    "lr_schedule": "cosine_epochs",
    "warmup_epochs": 2,
    "warmup_factor": 0.1,
    "warmup_momentum": 0.5,
    "warmup_bias_lr": 0.1,
    "accumulate": 2,
    "augment": "ssd",
}


def test_a_resumed_run_with_the_whole_recipe_ends_with_the_same_bits(options, tmp_path, monkeypatch):
    """Also where some epochs are neither validated nor saved."""
    plan = {**WHOLE, "eval_every": "2", "save_every": "2", "end_epoch": 4}
    whole = options(prefix=str(tmp_path / "whole" / "t"), **plan)
    run_training(whole)
    prefix = str(tmp_path / "parts" / "t")
    with monkeypatch.context() as patch:
        patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(3))
        with pytest.raises(RuntimeError):
            run_training(options(prefix=prefix, **plan))
    assert list_epochs(prefix) == [2]
    run_training(options(prefix=prefix, resume="auto", **plan))
    assert list_epochs(prefix) == list_epochs(whole.output.prefix) == [2, 4]
    assert digests(prefix, 4) == digests(whole.output.prefix, 4)
    assert metrics(prefix) == metrics(whole.output.prefix)
    assert [line["num_update"] for line in metrics(prefix)] == [2, 4, 6, 8]  # 3 batches, 2 updates
    assert [bool(line["validation"]) for line in metrics(prefix)] == [False, True, False, True]
    results = [Path(f"{name}-results.txt").read_text() for name in (prefix, whole.output.prefix)]
    assert results[0] == results[1]


def test_the_saved_weights_are_the_averaged_ones_that_were_validated(options):
    run = options(ema=0.99, end_epoch=1)
    run_training(run)
    checkpoint = load_checkpoint(run.output.prefix, 1)
    raw = {k: v for k, v in load_optimizer_state(checkpoint).items() if k.startswith("raw:")}
    name = "conv_12_conv2d_weight"
    assert raw.keys() == {f"raw:{n}" for n in (*checkpoint.arg_params, *checkpoint.aux_params)}
    assert not np.array_equal(raw[f"raw:{name}"], checkpoint.arg_params[name].asnumpy())
    evaluation = evaluate_net(checkpoint, run.data.val_path, [mx.cpu()], workers=0)
    np.testing.assert_equal(evaluation.result.mean_ap, metrics(run.output.prefix)[-1]["validation"]["mAP"])
    started = options(
        prefix=f"{run.output.prefix}-2", pretrained=run.output.prefix, epoch=1, end_epoch=1, lr=0.0, wd=0.0
    )
    run_training(started)
    found = load_checkpoint(started.output.prefix, 1).arg_params[name]
    np.testing.assert_array_equal(found.asnumpy(), checkpoint.arg_params[name].asnumpy())


@pytest.mark.parametrize(("ema", "words"), [(0.99, "without --ema"), (0.0, "with --ema")])
def test_a_run_is_resumed_with_averages_if_it_had_them(options, ema, words):
    run_training(options(ema=0.0 if ema else 0.99, end_epoch=1))
    with pytest.raises(OptionError, match=f"was trained {words}; resume with the same options"):
        run_training(options(ema=ema, resume="auto"))


@pytest.mark.parametrize(
    ("every", "validated"),
    [("2", [2, 4, 5]), ("last", [5]), pytest.param("1", [1, 2, 3, 4, 5], marks=pytest.mark.slow)],
)
def test_which_epochs_are_validated(options, every, validated):
    run = options(eval_every=every, end_epoch=5)
    run_training(run)
    assert [line["epoch"] for line in metrics(run.output.prefix) if line["validation"]] == validated
    assert list_epochs(run.output.prefix) == [1, 2, 3, 4, 5]
    assert load_checkpoint(run.output.prefix, "best").epoch in validated


def test_only_the_best_and_the_last_checkpoint_are_kept(options, monkeypatch):
    scores = iter([0.1, 0.3, 0.2, 0.5, 0.4])
    monkeypatch.setattr("train.epoch_end.finite_values", lambda pairs: fake_values(pairs, scores))
    run = options(end_epoch=5, save_best_only=True)
    run_training(run)
    assert list_epochs(run.output.prefix) == [4, 5]
    assert load_checkpoint(run.output.prefix, "best").epoch == 4


def test_before_the_first_validation_the_newest_checkpoint_is_kept_to_resume_from():
    plan = SavePlan(train_options(save_best_only=True, eval_every="4"), 0)
    assert plan.is_due(1, 10, is_best=False, is_last=False, has_best=False)
    assert not plan.is_due(5, 50, is_best=False, is_last=False, has_best=True)
    assert plan.is_due(6, 60, is_best=True, is_last=False, has_best=True)


def test_a_metric_that_the_validation_cannot_give_is_told_once(options, caplog):
    run_training(options(metrics=("coco",), best_metric="APl", end_epoch=2))  # no object has 96 x 96 pixels
    lines = [line for line in caplog.messages if "nothing to measure APl by: no checkpoint becomes the best" in line]
    assert len(lines) == 1


def test_the_best_alone_needs_a_validation(options):
    with pytest.raises(OptionError, match="--save-best-only needs a validation"):
        run_training(options(save_best_only=True, val_path=""))


def test_snapshots_are_whole_models(options):
    """Updates 1-3 are epoch 1, 4-6 epoch 2, 7-9 epoch 3; the epochs that end after 4 and 8 get checkpoints."""
    run = options(save_every="4i", end_epoch=4, val_path="", keep=2)
    run_training(run)
    snapshots = f"{run.output.prefix}-iter"
    assert list_epochs(snapshots) == [8, 12]  # the newest two of 4, 8, 12
    assert list_epochs(run.output.prefix) == [3, 4]  # of 2, 3, 4
    assert load_checkpoint(snapshots, 8).meta.num_update == 8
    with pytest.raises(OptionError, match="raise --end-epoch"):
        run_training(options(save_every="4i", end_epoch=4, val_path="", resume="auto"))
    run_training(options(prefix=f"{run.output.prefix}-2", pretrained=snapshots, epoch=8, end_epoch=1))


def test_snapshots_of_an_abandoned_run_go(options):
    run_training(options(save_every="2i", val_path=""))
    run = options(save_every="4i", val_path="", overwrite=True)
    assert list_epochs(f"{run.output.prefix}-iter") == [2, 4, 6]
    run_training(run)
    assert list_epochs(f"{run.output.prefix}-iter") == [4]


def test_losses_are_drawn_while_an_epoch_runs(options, drawn_curves, monkeypatch):
    monkeypatch.setattr("train.curves.CURVES_EVERY_SECONDS", -1.0)
    seen = []

    def look(self, param):
        picture = Path(f"{run.output.prefix}-curves.png")
        seen.append((picture.is_file() and cv2.imread(str(picture)) is not None, param.epoch))

    monkeypatch.setattr("train.saving.Snapshots.__call__", look)
    run = options(batch_size=2, end_epoch=1, val_path="")
    run_training(run)
    assert [drawn for drawn, _ in seen[3:]] == [True] * 8
    live = json.loads(Path(f"{run.output.prefix}-live.json").read_text())
    assert set(live["train"]) == {"CrossEntropy", "SmoothL1"}
    assert (live["batch"], live["batches"], live["num_update"]) == (11, 11, 11)


def test_the_results_table(options):
    run = options(eval_every="2", end_epoch=3)
    run_training(run)
    head, *lines = (line.split() for line in Path(f"{run.output.prefix}-results.txt").read_text().splitlines())
    assert head == ["epoch", "CrossEntropy", "SmoothL1", "lr", "P", "R", "red", "green", "blue", "mAP"]
    records = metrics(run.output.prefix)
    assert [int(line[0]) for line in lines] == [1, 2, 3]
    assert lines[0][4:] == ["-"] * 6
    for line, record in zip(lines[1:], records[1:], strict=True):
        values = dict(zip(head, line, strict=True))
        assert float(values["CrossEntropy"]) == pytest.approx(record["train"]["CrossEntropy"], rel=1e-5)
        assert float(values["mAP"]) == pytest.approx(record["validation"]["mAP"], rel=1e-5)
        assert float(values["lr"]) == record["learning_rate"]


def test_obsolete_options_are_told_in_the_log_file(options):
    run = options(num_example=5, end_epoch=1)
    run_training(run)
    assert "--num-example has no effect: the record says" in Path(f"{run.output.prefix}-train.log").read_text()


def test_a_disk_without_room_is_told_before_the_first_batch(options, monkeypatch):
    usage = type("Usage", (), {"free": 1000, "total": 1 << 40})
    monkeypatch.setattr("train.preflight.shutil.disk_usage", lambda folder: usage)
    run = options()
    with pytest.raises(CheckpointError, match=r"a checkpoint takes \d+ MB, but .* has 0 MB left; free space"):
        run_training(run)
    assert not Path(f"{run.output.prefix}-run.json").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"network": "resnet5"}, OptionError, "--network resnet5: unknown (did you mean resnet50?"),
        ({"train_path": "nowhere.rec"}, DataError, "--train-path nowhere.rec: no such file"),
        ({"train_list": "nowhere.lst"}, DataError, "--train-list nowhere.lst: no such file"),
        ({"pretrained": "nowhere", "epoch": 3}, CheckpointError, "nowhere-0003.params: no such file"),
    ],
)
def test_mistakes_that_need_no_mxnet(options, changes, error, words):
    with pytest.raises(error) as caught:
        check_early(options(**changes))
    assert words in str(caught.value)


SMALL = {"mobilenet": 64, "vgg16_reduced": 300, "yolov3_tiny": 64, "yolov3_spp_mini": 64, "inceptionv3": 300}


@pytest.mark.parametrize("network", SMALL)
def test_the_words_of_freeze(network):
    """The body and the heads share nothing; heads are the last convolutions of each map."""
    names = get_symbol(network, SMALL[network], 3).list_arguments()[1:]
    body, others = (freeze_pattern(network, word) for word in ("body", "all-but-heads"))
    in_body = {name for name in names if matches(body, name)}
    heads = {name for name in names if not matches(others, name)}
    assert in_body
    assert heads
    assert not in_body & heads
    assert all(name.endswith(("_weight", "_bias")) for name in heads)
    assert not any(name.startswith(("multi_feat", "head_")) for name in in_body)
    first = next(name for name in names if name.endswith("weight"))
    assert first in in_body
    assert freeze_pattern(network, "conv_1_") == "conv_1_"


@pytest.mark.parametrize("word", ["body", "all-but-heads"])
def test_frozen_parts_and_their_moving_averages_stay(options, finished_run, word):
    run = options(pretrained=str(finished_run / "t"), epoch=3, freeze=word, end_epoch=1, extra_filters=())
    run_training(run)
    before, after = load_checkpoint(run.start.pretrained, 3), load_checkpoint(run.output.prefix)
    for name, array in after.aux_params.items():
        np.testing.assert_array_equal(array.asnumpy(), before.aux_params[name].asnumpy(), err_msg=name)
    changed = {
        n for n, a in after.arg_params.items() if not np.array_equal(a.asnumpy(), before.arg_params[n].asnumpy())
    }
    assert changed == {name for name in after.arg_params if "_pred_conv_" in name}
    assert after.meta.options["freeze"] == word


DECAY = 0.99
RAMP = 5.0


def averages(module):
    return {name: array.asnumpy() for params in module.params_to_save() for name, array in params.items()}


def test_the_decay_rises_to_its_value():
    assert decay_at(0.9999, 1) == pytest.approx(0.9999 * (1 - np.exp(-1 / 2000)))
    assert decay_at(0.9999, 2000) == pytest.approx(0.9999 * (1 - np.exp(-1)))
    assert decay_at(0.9999, 10**6) == pytest.approx(0.9999)
    assert decay_at(0.9, 100, ramp=100) == pytest.approx(0.9 * (1 - np.exp(-1)))


@pytest.mark.parametrize("contexts", [1, 2])
def test_averages_follow_weights_and_moving_averages(batches, contexts):
    """The wide network's backward is long: moving averages read too early would be those of the batch before."""
    batch = batches()[0]
    module = make_module(batch, contexts, width=1.0, freeze="conv_1_", recipe=Recipe(ema=DECAY, ema_ramp=RAMP))
    mx.nd.waitall()
    expected = weights(module)
    assert averages(module).keys() == expected.keys()
    values = [expected]
    for _ in range(6):
        step(module, batch)
        mx.nd.waitall()
        values.append(weights(module))
    for number, current in enumerate(values[1:], start=1):
        d = decay_at(DECAY, number, RAMP)
        expected = {name: d * expected[name] + (1 - d) * array for name, array in current.items()}
    for name, array in averages(module).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_averages_are_the_same_without_waiting(batches):
    """Batches one after the other as in training: bit for bit what a run gives that waits after each."""
    batch, found = batches()[0], []
    for wait in (False, True):
        module = make_module(batch, width=1.0, recipe=Recipe(ema=DECAY))
        for _ in range(6):
            step(module, batch)
            if wait:
                mx.nd.waitall()
        found.append(averages(module))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


@pytest.mark.parametrize("contexts", [1, 3])
def test_moving_averages_that_do_not_change_stay_bit_for_bit(contexts):
    values = np.random.default_rng(3).normal(0, 10, 5000).astype(np.float32)
    aux = [mx.nd.array(values) for _ in range(contexts)]
    average = WeightAverage(DECAY, {}, {"bn_moving_mean": aux[0]}, ramp=RAMP)
    for number in range(1, 4):
        average.update({}, [[array] for array in aux], [mx.nd.zeros(1)] * contexts, number)
    np.testing.assert_array_equal(average.params()[1]["bn_moving_mean"].asnumpy(), values)


class SumOfScores(mx.metric.EvalMetric):
    """Tells two sets of weights apart."""

    def update(self, labels, preds):
        self.sum_metric += float(np.abs(preds[0]).sum())
        self.num_inst = 1


@pytest.mark.parametrize("contexts", [1, 2])
def test_validation_sees_the_averages_and_training_goes_on_from_its_own(batches, records, contexts):
    train = batches()
    module = make_module(train[0], contexts, recipe=Recipe(ema=DECAY), parameters={"momentum": 0.9})
    for batch in train:
        step(module, batch)
    before = weights(module)
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    found = module.score(val_iter, SumOfScores("s"))
    for name, array in weights(module).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    plain = make_module(train[0], contexts)
    raw = plain.score(val_iter, SumOfScores("s"))
    plain.set_params(*module.params_to_save())
    assert plain.score(val_iter, SumOfScores("s")) == found != raw


def test_a_restored_average_continues_bit_for_bit(batches):
    first, second, third = batches()
    options = {"parameters": {"momentum": 0.9}}
    whole = make_module(first, recipe=Recipe(ema=DECAY), **options)
    step(whole, first)
    step(whole, second)
    saved = whole.params_to_save()
    state = whole.optimizer_state()
    raw = {name.removeprefix("raw:"): mx.nd.array(array) for name, array in state.items() if name.startswith("raw:")}
    trained = {name: array for name, array in state.items() if not name.startswith("raw:")}
    assert raw.keys() == saved[0].keys() | saved[1].keys()
    step(whole, third)
    options["parameters"] |= {"begin_num_update": 2}
    resumed = make_module(first, state=trained, recipe=Recipe(ema=DECAY, averages=saved), **options)
    resumed.set_params({n: raw[n] for n in saved[0]}, {n: raw[n] for n in saved[1]})
    step(resumed, third)
    for found, expected in ((weights(resumed), weights(whole)), (averages(resumed), averages(whole))):
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_epoch_that_is_not_validated_is_left_out(batches, records):
    module = make_module(batches()[0], recipe=Recipe(validates=lambda epoch: epoch == 3))
    val_iter = DetRecordIter(records[1], BATCH, 64, augment=None, workers=0)
    ended = []
    assert module.score(val_iter, SumOfScores("s"), score_end_callback=ended.append, epoch=2) == []
    assert not ended
    assert module.score(val_iter, SumOfScores("s"), score_end_callback=ended.append, epoch=3)
    assert len(ended) == 1
