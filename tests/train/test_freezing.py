"""What --freeze means for each start: nothing from scratch, and on resuming what the run began with."""

import logging

import numpy as np
import pytest

from common.errors import OptionError
from config.options import replace_options
from model.checkpoint import load_checkpoint
from tests.train.tiny import CLASSES
from train.checks import idle_options
from train.freezing import settle_freeze
from train.training import run_training

PATTERN = "conv_[1-4]_"


def settled(options):
    return settle_freeze(options, CLASSES).net.freeze


def changed(before, after):
    """Names of the weights that differ."""
    return {name for name in before if not np.array_equal(before[name].asnumpy(), after[name].asnumpy())}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def frozen_lines(log):
    return [line for line in log.messages if line.startswith("frozen: ")]


def test_from_scratch_nothing_is_frozen_and_a_resumed_run_goes_on_so(options, log):
    """The same options all the time; an uninterrupted run ends with the same weights."""
    run = options(freeze=PATTERN, end_epoch=2)
    run_training(run)
    assert "--freeze conv_[1-4]_ has no effect: this run starts from scratch" in log.text
    assert load_checkpoint(run.output.prefix).meta.options["freeze"] == ""
    parts = options(freeze=PATTERN, end_epoch=1, prefix=run.output.prefix + "2")
    run_training(parts)
    run_training(replace_options(parts, end_epoch=2, resume="auto"))
    assert "the run goes on as it began, with nothing frozen" in log.text
    assert frozen_lines(log) == ["frozen: nothing"] * 3
    whole, again = (load_checkpoint(one.output.prefix).arg_params for one in (run, parts))
    assert not changed(whole, again)
    assert any(
        name.startswith("conv_1_") for name in changed(load_checkpoint(parts.output.prefix, 1).arg_params, again)
    )


def test_a_wrong_pattern_is_told_from_scratch_too(options):
    with pytest.raises(OptionError, match="matches no parameter"):
        run_training(options(freeze="conv9_"))


def test_weights_are_frozen_and_stay_so(options, finished_run, log):
    run = options(pretrained=str(finished_run / "t"), epoch=3, freeze=PATTERN, end_epoch=1)
    run_training(run)
    run_training(replace_options(run, resume="auto", end_epoch=2))
    before, after = load_checkpoint(str(finished_run / "t")).arg_params, load_checkpoint(run.output.prefix).arg_params
    assert not any(name.startswith(("conv_1_", "conv_4_")) for name in changed(before, after))
    lines = frozen_lines(log)
    assert len(lines) == 2
    assert all("parameters: conv_1_conv2d_weight" in line for line in lines)


def test_classic_finetuning_trains_the_predictions_alone(continued, log):
    run = continued(finetune=3, finetune_freeze="classic", end_epoch=4)
    run_training(run)
    run_training(replace_options(run, finetune=-1, resume="auto", end_epoch=5))
    before, after = (load_checkpoint(run.output.prefix, epoch).arg_params for epoch in (3, 5))
    assert changed(before, after) == {name for name in before if "pred" in name}
    assert len(frozen_lines(log)) == 2
    assert not idle_options(replace_options(run, finetune=-1, resume="auto"))


def test_classic_finetuning_trains_what_the_checkpoint_has_not(continued):
    pattern = settled(continued(finetune=3, finetune_freeze="classic", width=0.25))
    assert "conv_1_conv2d_weight" not in pattern  # 8 channels at both widths: taken over
    assert "conv_12_conv2d_weight" in pattern


def test_both_ways_to_freeze_exclude_each_other(continued):
    with pytest.raises(OptionError, match="--freeze and --finetune-freeze classic exclude each other"):
        settled(continued(finetune=3, finetune_freeze="classic", freeze=PATTERN))


def test_classic_without_finetuning_is_told(options):
    assert idle_options(options(finetune_freeze="classic")) == ["--finetune-freeze has no effect without --finetune"]


def test_two_stages_from_scratch_are_told(options, log):
    assert settled(options(freeze=PATTERN, freeze_epochs=1)) == PATTERN
    assert "the first stage keeps layers as they are that begin with random weights" in log.text
