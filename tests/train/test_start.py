"""Where a run starts, what it loads, and what it refuses before anything is lost."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, OptionError
from config.options import replace_options
from model.checkpoint import best_epoch, list_epochs, load_checkpoint, params_path
from tests.train.tiny import metrics, write_record
from train.run_files import write_run_file
from train.stages import make_stages
from train.start import find_start
from train.training import run_training


def refused(options, *words, error=OptionError):
    """run_training raises one sentence with these words and leaves the checkpoints as they are."""
    folder = Path(options.output.prefix).parent
    before = {path: path.read_bytes() for path in folder.glob("*.params")}
    with pytest.raises(error) as caught:
        run_training(options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    assert {path: path.read_bytes() for path in folder.glob("*.params")} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "vgg16_reduced", "taps": (), "width": 1.0}, ["network mobilenet, not vgg16_reduced"]),
        ({"batch_size": 4}, ["batch_size 8, not 4"]),
        ({"data_shape": (96,)}, ["data_shape [64, 64], not [96, 96]"]),
        ({"seed": 1}, ["seed 233, not 1"]),
        ({"mean_r": 0.0}, ["mean_pixels"]),
        ({"std_b": 57.0}, ["std [1.0, 1.0, 1.0], not [1.0, 1.0, 57.0]"]),
        ({"resize_mode": "letterbox"}, ["resize_mode force, not letterbox"]),
        ({"fill": 114}, ["fill 127, not 114"]),
        ({"width": 0.25}, ["other network options (--width", "not 0.25)"]),
        ({"targets": "mxnet"}, ["other network options (--targets paper, not mxnet)"]),
        ({"end_epoch": 3}, ["trained up to epoch 3", "--end-epoch"]),
        ({"resume": "7"}, ["no checkpoint of epoch 7 (there are 1, 2, 3)"]),
        ({"resume": "x"}, ["--resume 'x'", "auto"]),
        ({"resume": "²"}, ["--resume '²'"]),
        ({"finetune": 1}, ["exclude each other"]),
        ({"optimizer": "adam"}, ["optimizer state", "resume with the same options"]),
        ({"momentum": 0.0}, ["optimizer state", "resume with the same options"]),
    ],
)
def test_resuming_another_run_is_refused(continued, changes, words):
    options = continued(**({"resume": "auto", "end_epoch": 5} | changes))
    refused(options, *words, error=(OptionError, CheckpointError))


def test_resume_auto_without_checkpoints_starts_anew(options, caplog):
    with caplog.at_level(logging.INFO):
        run_training(options(resume="auto", end_epoch=1))
    assert "starting from the beginning" in caplog.text
    assert list_epochs(options().output.prefix) == [1]


def test_resume_auto_skips_a_damaged_checkpoint_and_makes_it_again(continued, finished_run, caplog):
    options = continued(resume="auto", end_epoch=3)
    expected = params_path(options.output.prefix, 3).read_bytes()
    params_path(options.output.prefix, 3).write_bytes(expected[:-9])
    with caplog.at_level(logging.INFO):
        run_training(options)
    assert "0003.params: damaged" in caplog.text
    assert "continuing" in caplog.text
    assert params_path(options.output.prefix, 3).read_bytes() == expected
    assert metrics(options.output.prefix) == metrics(str(finished_run / "t"))


def test_resuming_an_earlier_epoch_drops_what_came_after(continued):
    options = continued(resume="1", end_epoch=2, lr=0.01)
    run_training(options)
    assert list_epochs(options.output.prefix) == [1, 2]
    assert [line["epoch"] for line in metrics(options.output.prefix)] == [1, 2]
    assert load_checkpoint(options.output.prefix, "best").epoch <= 2


@pytest.mark.parametrize("changes", [{}, {"pretrained": "t", "epoch": 1}, {"begin_epoch": 1}])
def test_overwriting_is_refused_unless_asked_for(continued, changes):
    options = continued(end_epoch=4, **changes)
    if options.start.pretrained:
        options = replace_options(options, pretrained=options.output.prefix)
    refused(options, "has checkpoints up to epoch 3", "--resume auto", "--overwrite")


@pytest.mark.parametrize("name", ["t-0001.params", "t-0012.params", "t-symbol.json"])
def test_files_of_other_trainers_are_not_overwritten_unless_asked_for(options, name):
    run = options(end_epoch=1)
    file = Path(run.output.prefix).with_name(name)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"classic")
    refused(run, f"{name} is there already", "another --prefix", "--overwrite")
    assert file.read_bytes() == b"classic"
    write_run_file(
        run.output.prefix, replace_options(run, overwrite=True)
    )  # of such a run, killed before it saved anything
    refused(run, f"{name} is there already")
    run_training(replace_options(run, overwrite=True))
    assert list_epochs(run.output.prefix) == [1]


@pytest.mark.parametrize("left", [["t-0001.params"], ["t-symbol.json"], ["t-symbol.json", "t-0001.params"]])
def test_what_a_killed_run_left_stops_no_run(options, left):
    run = options(end_epoch=1)
    Path(run.output.prefix).parent.mkdir(parents=True)
    write_run_file(run.output.prefix, run)
    for name in left:
        Path(run.output.prefix).with_name(name).write_bytes(b"half a set")
    run_training(run)
    assert list_epochs(run.output.prefix) == [1]


def test_overwriting_loses_nothing_before_there_is_something_new(continued, monkeypatch):
    options = continued(overwrite=True, end_epoch=1, seed=7)
    monkeypatch.setattr("model.checkpoint.stage_arrays", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CheckpointError, match="not written"):
        run_training(options)
    assert list_epochs(options.output.prefix) == [1, 2, 3]
    assert load_checkpoint(options.output.prefix, "best").meta.seed == 233


def test_overwriting_waits_for_the_first_save(continued):
    options = continued(overwrite=True, end_epoch=2, seed=7, save_every="2", val_path="")
    run_training(options)
    assert list_epochs(options.output.prefix) == [2]
    assert load_checkpoint(options.output.prefix).meta.seed == 7


def test_overwriting_leaves_nothing_of_the_old_run(continued):
    options = continued(overwrite=True, end_epoch=1, seed=7)
    run_training(options)
    assert list_epochs(options.output.prefix) == [1]
    assert load_checkpoint(options.output.prefix).meta.seed == 7
    assert [line["epoch"] for line in metrics(options.output.prefix)] == [1]
    assert load_checkpoint(options.output.prefix, "best").meta.seed == 7


@pytest.fixture
def two_classes(tmp_path):
    return write_record(tmp_path / "two.rec", 8, names=("cell", "blob"), classes=2)


def test_pretrained_weights_with_another_number_of_classes(options, finished_run, two_classes, caplog):
    source = str(finished_run / "t")
    changes = {
        "train_path": two_classes,
        "val_path": two_classes,
        "allow_same_record": True,
        "pretrained": source,
        "epoch": 2,
        "end_epoch": 1,
    }
    run = options(lr=0.0, freeze="conv_1_", **changes)
    with caplog.at_level(logging.INFO):
        run_training(run)
    text = caplog.text
    assert "0002.params:" in text
    assert "parameters loaded" in text
    fresh = next(line for line in text.splitlines() if "initialised anew" in line)
    assert "conv_6_relu_cls_pred_conv_weight" in fresh
    assert "loc_pred" not in fresh
    assert "conv_1_conv2d_weight" in next(line for line in text.splitlines() if "frozen" in line)
    before, after = load_checkpoint(source, 2).arg_params, load_checkpoint(run.output.prefix).arg_params
    assert after["conv_6_relu_cls_pred_conv_weight"].shape != before["conv_6_relu_cls_pred_conv_weight"].shape
    np.testing.assert_array_equal(  # with a learning rate of 0 the weights are still those that were loaded
        after["conv_12_conv2d_weight"].asnumpy(), before["conv_12_conv2d_weight"].asnumpy()
    )


def test_finetuning_goes_on_counting_and_keeps_its_source(continued, finished_run, two_classes):
    run = continued(finetune=3, end_epoch=5, train_path=two_classes, val_path=two_classes, allow_same_record=True)
    run_training(run)
    assert list_epochs(run.output.prefix) == [1, 2, 3, 4, 5]
    assert load_checkpoint(run.output.prefix).meta.class_names == ("cell", "blob")
    assert params_path(run.output.prefix, 3).read_bytes() == params_path(str(finished_run / "t"), 3).read_bytes()


def test_the_best_of_a_finetuned_run_is_its_own(continued, finished_run, two_classes):
    path = finished_run / "t-metrics.jsonl"
    assert max(json.loads(line)["validation"]["mAP"] for line in path.read_text().splitlines()) > 0
    run = continued(
        finetune=3,
        end_epoch=4,
        train_path=two_classes,
        val_path=two_classes,
        allow_same_record=True,
        lr=0.0,
        freeze="all-but-heads",
    )
    run_training(run)
    assert best_epoch(run.output.prefix) == 4
    run_training(replace_options(run, finetune=-1, resume="auto", end_epoch=5))
    assert best_epoch(run.output.prefix) == 4  # the same weights: not better


def test_a_damaged_metrics_file_does_not_stop_a_resumed_run(continued, caplog):
    run = continued(resume="auto", end_epoch=4)
    path = Path(f"{run.output.prefix}-metrics.jsonl")
    before = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(path.read_text().replace('"train"', '"trane"', 1))
    run_training(run)
    (line,) = [one.getMessage() for one in caplog.records if "is begun anew" in one.getMessage()]
    assert line.startswith(f"{path}: damaged (line 1: no 'train'); it becomes t-metrics.jsonl.damaged")
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["epoch"] for one in after] == [1, 2, 3, 4]
    for old, new in zip(before, after, strict=False):
        assert (old["train"], old["validation"]) == (new["train"], new["validation"])
    assert '"trane"' in Path(f"{path}.damaged").read_text()


def test_weights_of_other_pixels_and_classes_are_told(options, finished_run, tmp_path, caplog):
    names = ("blue", "red", "green")
    record = write_record(tmp_path / "other.rec", 8, names=names)
    source = str(finished_run / "t")
    run = options(pretrained=source, epoch=2, end_epoch=1, train_path=record, val_path="", std_r=2.0, fill=1)
    run_training(run)
    told = [line for line in caplog.messages if "t-0002.params was trained" in line]
    assert [line.split(" was trained ")[1].split(":")[0] for line in told] == [
        "with std [1.0, 1.0, 1.0], this run has [2.0, 1.0, 1.0]",
        "on the classes red, green, blue, this run has blue, red, green",
    ]
    assert f"{source} has checkpoints up to epoch 3; --epoch chooses one" in caplog.messages


def test_finetuning_loses_later_checkpoints_only_if_asked_to(continued):
    refused(continued(finetune=1, end_epoch=5), "checkpoints up to epoch 3", "after epoch 1", "--overwrite")
    run = continued(finetune=1, end_epoch=2, overwrite=True)
    run_training(run)
    assert list_epochs(run.output.prefix) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": "nowhere/net"}, ["nowhere/net-0001.params: no such file; check --pretrained and --epoch"]),
        ({"finetune": 4}, ["t-0004.params: no such file"]),
        ({"begin_epoch": 2}, ["the first epoch, 2, is not before --end-epoch 2"]),
        ({"finetune": 2}, ["the first epoch, 2, is not before --end-epoch 2"]),
    ],
)
def test_a_start_that_is_none(options, changes, words):
    end = {"end_epoch": 9} if changes == {"finetune": 4} else {}
    refused(options(**changes, **end), *words, error=(CheckpointError, OptionError))


def test_weights_of_another_network_are_refused(options, finished_run):
    # ssd's own extra layers alone would fit nothing
    other = options(network="vgg16_reduced", width=1.0, taps=(), extra_filters=None, anchor_sizes="", anchor_ratios="",
                    data_shape=(300,), pretrained=str(finished_run / "t"), epoch=1)  # fmt: skip
    with pytest.raises(CheckpointError, match="none of its .* parameters fits --network vgg16_reduced"):
        find_start(make_stages(other, ("a", "b", "c")))


def test_pretrained_weights_start_a_run_with_the_other_matching_rule(options, finished_run):
    run = options(pretrained=str(finished_run / "t"), epoch=2, targets="mxnet")
    start = find_start(make_stages(run, ("red", "green", "blue")))
    assert start.arg_params.keys() == load_checkpoint(run.start.pretrained, 2).arg_params.keys()
