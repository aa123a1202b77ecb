"""Whole runs in this process: what they leave, that they resume exactly, and how they stop."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError, OutOfMemoryError, TrainingError
from config.options import replace_options
from dataset.sidecar import read_sidecar
from evaluate.coco_metric import STAT_NAMES
from evaluate.evaluate_net import evaluate_net
from machine.opencv import cv2
from machine.runtime import mx
from model.checkpoint import (
    BEST_FILE,
    Best,
    list_epochs,
    load_checkpoint,
    load_optimizer_state,
    optimizer_path,
    params_path,
    read_meta,
)
from symbol.layers import matches
from tests.train.tiny import CLASSES, metrics, write_record
from train.preflight import objects_missing
from train.run_files import lock_prefix
from train.training import run_training


def digests(prefix, epoch):
    paths = (params_path(prefix, epoch), optimizer_path(prefix, epoch))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def losses(prefix):
    return [value for line in metrics(prefix) for value in line["train"].values()]


def test_what_a_run_leaves(finished_run, records):
    prefix = str(finished_run / "t")
    assert list_epochs(prefix) == [1, 2, 3]
    assert [(line["epoch"], line["num_update"], line["learning_rate"]) for line in metrics(prefix)] == [
        (1, 3, 0.05), (2, 6, 0.05), (3, 9, 0.05)
    ]  # fmt: skip
    for line in metrics(prefix):
        assert set(line["train"]) == {"CrossEntropy", "SmoothL1"}
        assert set(line["validation"]) == {*CLASSES, "mAP"}
    run = json.loads((finished_run / "t-run.json").read_text())
    assert run["options"]["train_path"] == records[0]
    assert {"mxnet", "trainer", "python"} <= set(run["versions"])
    log = (finished_run / "t-train.log").read_text()
    for words in ("running on the CPU", "Epoch[1] Train-CrossEntropy", "Epoch[3] Validation-mAP", "best so far"):
        assert words in log
    assert "22 images are few to start from random weights; ImageNet's mostly" in log
    assert log.count("the most usual box of each class: Validation-mAP=") == 1
    assert cv2.imread(str(finished_run / "t-curves.png")).shape[2] == 3
    scores = [line["validation"]["mAP"] for line in metrics(prefix)]
    assert load_checkpoint(prefix, "best").epoch == 1 + int(np.argmax(scores))
    assert not list(finished_run.glob("*.tmp*")) + list(finished_run.glob(".*"))


def test_mxnet_loads_the_checkpoint_by_itself(finished_run):
    symbol, args, aux = mx.model.load_checkpoint(str(finished_run / "t"), 3)
    assert set(symbol.list_outputs()) >= {"cls_loss_loss", "loc_loss_loss"}
    assert set(aux) == set(symbol.list_auxiliary_states())
    assert set(args) <= set(symbol.list_arguments())


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "ssd", "lr_schedule": "cosine", "warmup_epochs": 1.5, "workers": 1},
        pytest.param(
            {"optimizer": "adam", "lr": 0.01, "begin_epoch": 1, "lr_steps": (3.0,), "lr_factor": 0.5},
            marks=pytest.mark.slow,
        ),
        {"targets": "mxnet", "optimizer": "nag", "val_path": "", "freeze": "conv_1_"},
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(options, tmp_path, changes):
    whole = options(prefix=str(tmp_path / "whole" / "t"), end_epoch=4, **changes)
    run_training(whole)
    part = {**changes, "prefix": str(tmp_path / "parts" / "t")}
    if changes.get("lr_schedule") == "cosine":  # its length is that of the run: stop it by an error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.callbacks.FiniteGuard.__call__", stop_in_epoch(2))
            with pytest.raises(RuntimeError):
                run_training(options(end_epoch=4, **part))
    else:
        run_training(options(end_epoch=2, **part))
    assert list_epochs(part["prefix"])[-1] == 2
    run_training(options(resume="auto", end_epoch=4, **part))
    assert digests(part["prefix"], 4) == digests(whole.output.prefix, 4)
    assert metrics(part["prefix"]) == metrics(whole.output.prefix)


def test_a_resumed_run_with_longer_updates_goes_on_along_its_schedule(options, caplog):
    changes = {"lr_schedule": "cosine", "batch_size": 2, "val_path": ""}
    run_training(options(end_epoch=2, **changes))
    first = metrics(options().output.prefix)[-1]["num_update"]
    run_training(options(end_epoch=4, resume="auto", accumulate=4, **changes))
    lines = metrics(options().output.prefix)
    assert f"before it had {first // 2}: the schedule goes on by epochs" in caplog.text
    assert lines[-1]["num_update"] - first == 2 * -(-first // 2 // 4)
    assert lines[1]["learning_rate"] < lines[0]["learning_rate"]
    assert lines[2]["learning_rate"] > 0.1 * lines[0]["learning_rate"]


def stop_in_epoch(epoch):
    def stop(self, param):
        if param.epoch == epoch:
            raise RuntimeError("stopped")

    return stop


def test_a_line_of_metrics_without_its_checkpoint_is_made_again(continued, finished_run):
    """As after a kill between the two."""
    options = continued(resume="auto", end_epoch=3)
    for path in Path(options.output.prefix).parent.glob("t-0003*"):
        path.unlink()
    run_training(options)
    assert metrics(options.output.prefix) == metrics(str(finished_run / "t"))
    assert digests(options.output.prefix, 3) == digests(str(finished_run / "t"), 3)


def test_frozen_weights_stay_to_the_bit(options, finished_run):
    pattern = "conv_[1-5]_"
    run = options(pretrained=str(finished_run / "t"), epoch=3, freeze=pattern)
    run_training(run)
    before, after = load_checkpoint(run.start.pretrained, 3), load_checkpoint(run.output.prefix)
    for old, new in ((before.arg_params, after.arg_params), (before.aux_params, after.aux_params)):
        for name, array in new.items():
            same = np.array_equal(array.asnumpy(), old[name].asnumpy())
            assert same == matches(pattern, name), name
    frozen = {name for name in after.arg_params if matches(pattern, name)}
    assert {"conv_3_dw_batchnorm_gamma", "conv_5_conv2d_weight"} <= frozen
    assert {name.split(":")[0] for name in load_optimizer_state(after)} == set(after.arg_params) - frozen


def test_a_diverging_run_stops_and_keeps_its_checkpoints(continued):
    options = continued(resume="auto", end_epoch=9, lr=100.0, wd=1.0)
    before = digests(options.output.prefix, 3)
    with pytest.raises((TrainingError, CheckpointError), match="not finite.*--lr"):
        run_training(options)
    assert digests(options.output.prefix, 3) == before
    assert "Error: " in Path(f"{options.output.prefix}-train.log").read_text()
    for epoch in list_epochs(options.output.prefix):
        assert all(
            np.isfinite(a.asnumpy()).all() for a in load_checkpoint(options.output.prefix, epoch).arg_params.values()
        )


def test_exhausted_memory_is_told_with_its_remedy(options, monkeypatch):
    def exhausted(*_, **__):
        raise mx.base.MXNetError("cudaMalloc retry failed: out of memory")

    monkeypatch.setattr(mx.mod.Module, "fit", exhausted)
    with pytest.raises(OutOfMemoryError, match="lower --batch-size .*--accumulate.*--data-shape; checkpoints are kept"):
        run_training(options())


@pytest.mark.parametrize("changes", [{}, {"targets": "mxnet"}, {"min_neg_samples": 5}])
def test_images_without_objects_train_without_nan(options, tmp_path, changes):
    empty = write_record(tmp_path / "empty.rec", 10, empty=True)
    run = options(train_path=empty, val_path=empty, allow_same_record=True, **changes)
    run_training(run)
    found = losses(run.output.prefix)
    assert len(found) == 4
    assert all(np.isfinite(found))
    if changes != {"min_neg_samples": 5}:
        assert found == [0.0] * 4
    elif not changes.get("targets"):
        assert found[0] > 0
    assert [line["validation"] for line in metrics(run.output.prefix)] == [{}, {}]


def test_without_validation_every_epoch_is_saved(options, drawn_curves):
    run = options(val_path="")
    run_training(run)
    assert list_epochs(run.output.prefix) == [1, 2]
    assert Path(f"{run.output.prefix}-curves.png").stat().st_size > 0
    assert not Path(f"{run.output.prefix}-best.json").exists()


def test_a_run_may_lose_its_validation_when_it_is_resumed(continued):
    options = continued(resume="auto", end_epoch=4, val_path="")
    run_training(options)
    assert list_epochs(options.output.prefix) == [1, 2, 3, 4]
    assert metrics(options.output.prefix)[-1]["validation"] == {}
    assert load_checkpoint(options.output.prefix, "best").epoch <= 3


def test_which_checkpoints_are_kept(options, monkeypatch):
    """The newest two, the best one, and the last one although no other rule asks for it."""
    scores = iter([0.1, 0.6, 0.2, 0.3, 0.4, 0.5, 0.3])
    monkeypatch.setattr("train.epoch_end.finite_values", lambda pairs: fake_values(pairs, scores))
    run = options(end_epoch=7, save_every=2, keep=2)
    run_training(run)
    assert list_epochs(run.output.prefix) == [2, 6, 7]
    assert load_checkpoint(run.output.prefix, "best").epoch == 2
    assert read_meta(run.output.prefix, 2).scores["validation"] == {"mAP": 0.6}


def test_best_by_any_metric(options, drawn_curves, monkeypatch):
    """All are in metrics.jsonl, the log and the curves; the best checkpoint follows the one that is asked for."""
    ranked = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(
        "train.epoch_end.finite_values",
        lambda pairs: {name: next(ranked) if name == "AP75" else 0.1 for name, _ in pairs},
    )
    run = options(end_epoch=3, metrics=("voc", "coco", "voc07"), best_metric="AP75")
    run_training(run)
    expected = {*CLASSES, "mAP", "mAP_voc07", *STAT_NAMES}
    assert all(set(line["validation"]) == expected for line in metrics(run.output.prefix))
    assert BEST_FILE.read(Path(f"{run.output.prefix}-best.json")) == Best(2, "AP75", 0.7)
    log = Path(f"{run.output.prefix}-train.log").read_text()
    assert "Validation-AR100=" in log
    assert "checkpoint 2 is the best so far: AP75=0.7000" in log
    assert Path(f"{run.output.prefix}-curves.png").is_file()


def test_a_best_metric_that_is_not_measured_is_refused_at_once(options):
    run = options(best_metric="AP75")
    with pytest.raises(OptionError, match="--best-metric AP75: the validation gives red, green, blue, mAP"):
        run_training(run)
    assert not Path(f"{run.output.prefix}.lock").exists()


def fake_values(pairs, scores):
    values = dict(pairs)
    return {"mAP": next(scores)} if "mAP" in values else values


def test_an_equal_score_does_not_replace_the_best(options, monkeypatch):
    monkeypatch.setattr("train.epoch_end.finite_values", lambda pairs: fake_values(pairs, iter([0.5])))
    run = options(end_epoch=3, save_every=3)
    run_training(run)
    assert load_checkpoint(run.output.prefix, "best").epoch == 1


def test_the_native_engine_trains_and_validates_as_the_other_does(options):
    native = options(data_engine="native", augment="ssd")
    run_training(native)
    lines = metrics(native.output.prefix)
    assert len(lines) == 2
    assert all(np.isfinite(value) for line in lines for value in line["train"].values())
    evaluation = evaluate_net(load_checkpoint(native.output.prefix, 2), native.data.val_path, [mx.cpu()], workers=0)
    np.testing.assert_equal(evaluation.result.mean_ap, lines[-1]["validation"]["mAP"])


def test_two_contexts_train(options):
    run = options(cpus=2, batch_size=5)
    run_training(run)
    assert list_epochs(run.output.prefix) == [1, 2]
    assert all(np.isfinite(losses(run.output.prefix)))


def test_a_second_run_under_the_same_prefix_is_refused(options):
    run = options()
    with lock_prefix(run.output.prefix), pytest.raises(OptionError, match="another run is writing there"):
        run_training(run)
    run_training(options(end_epoch=1))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train_path": "nowhere.rec"}, DataError, "--train-path nowhere.rec: no such file"),
        ({"val_path": "nowhere.rec"}, DataError, "--val-path nowhere.rec: no such file"),
        ({"num_class": 4}, OptionError, "--num-class 4, but there are 3 class names"),
        ({"class_names": ("a", "b")}, OptionError, "red,green,blue"),
        ({"class_names": ("green", "red", "blue")}, OptionError, "red,green,blue"),
        ({"label_width": 8}, OptionError, "--label-width 8 has room for 1 objects, but an image of the records has 3"),
        ({"cpus": 4, "batch_size": 3}, OptionError, "--batch-size 3 is too small for 4 devices"),
        ({"gpus": "9"}, OptionError, "--gpus 9"),
        ({"network": "resnet"}, OptionError, "resnet"),
        ({"freeze": "("}, OptionError, "--freeze"),
        ({"resize_mode": "letterbox", "data_engine": "native"}, OptionError, "--data-engine python"),
        ({"rect_val": True}, OptionError, "--rect-val needs --resize-mode letterbox; give it, or leave"),
        ({"network": "darknet:"}, DataError, "--network darknet: names no file; add that of the network"),
        ({"resize_mode": "letterbox", "rect_val": True}, OptionError, "--rect-val: the anchors of mobilenet"),
        ({"freeze": ".*"}, OptionError, "--freeze '.*' matches every parameter"),
        ({"freeze": "^(conv1_|conv2_).*"}, OptionError, "matches no parameter (there is conv_1_conv2d_weight)"),
        ({"taps": ("conv_99", "conv_12_relu")}, OptionError, "conv_99"),
        ({"log": "/dev/null/log"}, OptionError, "--log /dev/null/log"),
        ({"prefix": "/dev/null/t"}, OptionError, "--prefix /dev/null/t"),
        ({"multi_scale": (33, 34)}, OptionError, "--multi-scale"),
        ({"augment": "ssd", "mosaic_prob": 0.5, "data_engine": "native"}, OptionError, "--data-engine python"),
        ({"train_list": "nowhere.lst"}, DataError, "nowhere.lst"),
        ({"iou_t": 1.0}, OptionError, "--iou-t"),
        ({"tensorboard": True, "log": "/dev/null/log"}, OptionError, "--log /dev/null/log"),
    ],
)
def test_mistakes_are_found_before_the_first_batch(options, changes, error, words):
    run = options(**changes)
    with pytest.raises(error) as caught:
        run_training(run)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(run.output.prefix).parent.is_dir()  # nothing has been written


def test_records_of_different_classes_are_refused(options, tmp_path):
    other = write_record(tmp_path / "other.rec", 3, names=("red", "blue", "green"))
    with pytest.raises(DataError, match="hold different classes"):
        run_training(options(val_path=other))


def test_records_without_sidecars_need_the_number_of_classes(options, tmp_path):
    train = write_record(tmp_path / "a.rec", 9, names=None)
    val = write_record(tmp_path / "b.rec", 9, 3, names=None)
    with pytest.raises(OptionError, match="--class-names or --num-class"):
        run_training(options(train_path=train, val_path=val))
    run = options(train_path=train, val_path=val, num_class=3, end_epoch=1)
    run_training(run)
    assert load_checkpoint(run.output.prefix).meta.class_names == ("class0", "class1", "class2")


def test_a_damaged_record_is_named(options, tmp_path):
    path = Path(write_record(tmp_path / "bad.rec", 9))
    content = bytearray(path.read_bytes())
    middle = content.index(b"\x89PNG", len(content) // 2)
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.rec, record \d"):
        run_training(options(train_path=str(path), verify_data=False))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "clip_gradient_norm": 0.1, "body_lr": 0.5}])
def test_the_loop_reads_once_a_batch_and_waits_for_nothing_else(options, monkeypatch, changes):
    """Every other read in mid-epoch would make the engine run dry; what a batch brings is on the host already."""
    counts = {"reads": 0, "waits": 0, "batches": 0}
    real_read, real_wait = mx.nd.NDArray.asnumpy, mx.nd.waitall
    within, brought = [], []

    def asnumpy(array):
        counts["reads"] += len(within) and not any(array is own for own in brought)
        return real_read(array)

    def waitall():
        counts["waits"] += len(within)
        real_wait()

    def note_batch(self, param):
        counts["batches"] += 1
        brought[:] = [*param.locals["data_batch"].data, *param.locals["data_batch"].label]
        within[:] = [] if param.locals["end_of_batch"] else [True]

    monkeypatch.setattr(mx.nd.NDArray, "asnumpy", asnumpy)
    monkeypatch.setattr(mx.nd, "waitall", waitall)
    monkeypatch.setattr(mx.nd.NDArray, "wait_to_read", lambda array: waitall())
    monkeypatch.setattr("train.callbacks.FiniteGuard.__call__", note_batch)
    run_training(options(batch_size=2, end_epoch=1, val_path="", frequent=3, **changes))
    assert counts["batches"] == 11
    assert 0 < counts["reads"] <= 11
    assert counts["waits"] == 0


def test_a_record_that_has_changed_is_named(options, tmp_path):
    source = Path(options().data.train_path)
    for suffix in (".rec", ".idx", ".json"):
        (tmp_path / f"r{suffix}").write_bytes(source.with_suffix(suffix).read_bytes())
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "r.rec").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.rec: its sha256 is not that of r\.json: damaged or changed"):
        run_training(options(train_path=str(tmp_path / "r.rec")))


@pytest.mark.parametrize(
    ("counts", "said"),
    [((3, 2, 1), None), ((3, 0, 0), "no object of {1}, {2}, which"), ((0, 0, 0), "no object of any class, which")],
)
def test_classes_without_objects_are_told(options, counts, said):
    run = options()
    sidecar = replace(read_sidecar(run.data.train_path), objects_per_class=counts)
    lines = objects_missing(run, sidecar.class_names, sidecar)
    assert bool(lines) == bool(said)
    assert not lines or said.format(*sidecar.class_names) in lines[0]
    assert objects_missing(replace_options(run, train_list="a.lst"), sidecar.class_names, sidecar) == []
