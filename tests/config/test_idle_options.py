"""Options that another option keeps from having an effect are told."""

from dataclasses import replace
from pathlib import Path

import pytest

from config.deploy_options import DeployOptions
from config.idle_options import idle_deploy_options, idle_options
from config.options import PRESET_FOLDER, from_mapping, read_preset
from config.run import TrainOptions


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lr_final": 0.1}, "--lr-final has no effect with --lr-schedule steps"),
        ({"lr_schedule": "cosine", "lr_steps": ("9",)}, "--lr-steps has no effect with --lr-schedule cosine"),
        ({"lr_patience": 3}, "--lr-patience has no effect with --lr-schedule steps"),
        ({"ema_ramp": 100.0}, "--ema-ramp has no effect without --ema"),
        ({"warmup_factor": 0.1}, "--warmup-factor has no effect without --warmup-epochs"),
        ({"freeze_lr": 0.1}, "--freeze-lr has no effect without --freeze-epochs"),
        ({"fill": 114}, "--fill has no effect with --resize-mode force, which draws no borders"),
        ({"val_path": "", "val_loss": True}, "--val-loss has no effect without --val-path"),
        ({"optimizer": "adam", "momentum": 0.5}, "--momentum has no effect with --optimizer adam"),
    ],
)
def test_it_is_told_and_why(given, sentence):
    assert idle_options(replace(TrainOptions(), **given)) == [sentence]


def test_options_of_int8_are_told_with_other_number_formats():
    options = DeployOptions(dtype="bfloat16", num_calib=9, max_loss=0.5, calib_mode="entropy", eval_rec="a.rec")
    assert idle_deploy_options(options) == [
        f"--{name} has no effect with --dtype bfloat16" for name in ("calib-mode", "num-calib", "max-loss")
    ]
    assert idle_deploy_options(replace(options, dtype="int8")) == []


def test_what_has_an_effect_is_not():
    options = TrainOptions(lr_schedule="cosine", lr_final=0.1, ema=0.9, ema_ramp=100.0, resize_mode="letterbox", fill=1)
    assert idle_options(options) == []


@pytest.mark.parametrize("preset", sorted(path.stem for path in Path(PRESET_FOLDER).glob("*.yaml")))
def test_presets_have_none(preset):
    assert idle_options(from_mapping(TrainOptions, read_preset(TrainOptions, preset))) == []
