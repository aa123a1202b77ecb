"""Options that another option keeps from having an effect are told."""

from pathlib import Path

import pytest

from config.options import from_mapping, replace_options
from config.preset import PRESET_FOLDER, read_preset
from deploy.main import DeployOptions, idle_deploy_options
from evaluate.options import EvaluateOptions
from evaluate.options import idle_options as idle_evaluate_options
from symbol.symbol_factory import ineffective_options
from train.checks import idle_options
from train.options import train_options, train_options_class


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lr_final": 0.1}, "--lr-final has no effect with --lr-schedule steps"),
        ({"lr_schedule": "cosine", "lr_steps": ("9",)}, "--lr-steps has no effect with --lr-schedule cosine"),
        ({"lr_patience": 3}, "--lr-patience has no effect with --lr-schedule steps"),
        ({"ema_ramp": 100.0}, "--ema-ramp has no effect without --ema"),
        ({"warmup_factor": 0.1}, "--warmup-factor has no effect without --warmup-epochs or --warmup-updates"),
        ({"warmup_accumulate": 1}, "--warmup-accumulate has no effect without --warmup-epochs or --warmup-updates"),
        ({"rect_multiple": 64}, "--rect-multiple has no effect without --rect or --rect-val"),
        ({"freeze_lr": 0.1}, "--freeze-lr has no effect without --freeze-epochs"),
        ({"fill": 114}, "--fill has no effect with --resize-mode force, which draws no borders"),
        ({"val_path": "", "val_loss": True}, "--val-loss has no effect without --val-path"),
        ({"optimizer": "adam", "momentum": 0.5}, "--momentum has no effect with --optimizer adam"),
        ({"keep_topk": 50}, "--keep-topk has no effect with --post-process multibox"),
        ({"augment": "none", "mosaic_prob": 0.5}, "--mosaic-prob has no effect with --augment none"),
        ({"resume": "3", "begin_epoch": 1}, "--begin-epoch has no effect with --resume"),
        ({"finetune": 3, "begin_epoch": 1}, "--begin-epoch has no effect with --finetune"),
        ({"finetune": 0, "pretrained": "a"}, "--pretrained has no effect with --finetune"),
        ({"epoch": 3}, "--epoch has no effect without --pretrained"),
        ({"save_best_only": True, "keep": 2}, "--keep has no effect with --save-best-only"),
        ({"metrics": ("coco",), "overlap": 0.6}, "--overlap has no effect with --metrics coco, which has its own"),
        ({"pattern": "conv"}, "--pattern has no effect without --monitor"),
        ({"max_iter": 5, "end_epoch": 9}, "--end-epoch has no effect with --max-iter"),
        ({"max_blur": 1.0}, "--max-blur has no effect without --blur-prob"),
        ({"max_noise": 1.0}, "--max-noise has no effect without --noise-prob"),
        ({"min_jpeg_quality": 50}, "--min-jpeg-quality has no effect without --jpeg-prob"),
        ({"close_mosaic": 5}, "--close-mosaic has no effect without --mosaic-prob or --mixup-prob"),
        ({"close_mosaic": 5, "augment": "none"}, "--close-mosaic has no effect with --augment none"),
        (
            {"close_mosaic": 9, "end_epoch": 9, "mosaic_prob": 0.5},
            "--mosaic-prob has no effect with --close-mosaic 9, which all epochs are within",
        ),
        ({"emit_overlap_thresh": 0.5}, "--emit-overlap-thresh has no effect with --crop-emit-mode center"),
    ],
)
def test_it_is_told_and_why(given, sentence):
    assert idle_options(replace_options(train_options(), **given)) == [sentence]


def test_options_of_int8_are_told_with_other_number_formats():
    options = DeployOptions(dtype="bfloat16", num_calib=9, max_loss=0.5, calib_mode="entropy", eval_rec="a.rec")
    assert idle_deploy_options(options) == [
        f"--{name} has no effect with --dtype bfloat16" for name in ("calib-mode", "num-calib", "max-loss")
    ]
    assert idle_deploy_options(replace_options(options, dtype="int8")) == []


def test_it_is_told_of_evaluations_too():
    options = EvaluateOptions(prefix="a", rec_path="b", overlap=0.6, rect_multiple=64)
    one_size, coco = "--rect-multiple has no effect without --rect-val", "--overlap has no effect with --metrics coco"
    assert idle_evaluate_options(options, ("coco",), 0, False, False) == [f"{coco}, which has its own", one_size]
    assert idle_evaluate_options(options, ("coco", "voc"), 64, False, False) == []
    assert idle_evaluate_options(EvaluateOptions(prefix="a", rec_path="b"), ("coco",), 0, False, False) == []


def test_it_is_told_of_checkpoints_too():
    told = ["--keep-topk has no effect with --post-process multibox"]
    assert ineffective_options("mobilenet", {"post_process": "multibox"}, {"keep_topk": 5}) == told
    assert ineffective_options("mobilenet", {"post_process": "multibox"}, {"nms": 0.5}) == []
    assert ineffective_options("mobilenet", {"post_process": "per_class"}, {"keep_topk": 5}) == []
    assert ineffective_options("yolov3_tiny", {}, {"keep_topk": 5}) == []


def test_what_has_an_effect_is_not():
    options = train_options(
        lr_schedule="cosine", lr_final=0.1, ema=0.9, ema_ramp=100.0, resize_mode="letterbox", fill=1
    )
    assert idle_options(options) == []


@pytest.mark.parametrize(
    "given",
    [
        {"keep_topk": 50, "post_process": "per_class"},
        {"keep_topk": 50, "network": "yolov3_tiny"},
        {"keep_topk": 50, "network": "efficientdet_d0"},
        {"keep": 2, "save_best_only": True, "save_every": "100i"},  # of snapshots
        {"begin_epoch": 2, "finetune": 0},
        {"begin_epoch": 2, "resume": "auto"},
        {"overlap": 0.6, "metrics": ("coco", "voc")},
        {"epoch": 3, "pretrained": "a"},
        {"emit_overlap_thresh": 0.5, "crop_emit_mode": "overlap"},
        {"close_mosaic": 5, "mixup_prob": 0.5, "max_blur": 1.0, "blur_prob": 0.1},
        {"close_mosaic": 9, "mosaic_prob": 0.5, "end_epoch": 2, "time_limit": "9m", "lr_schedule": "steps"},
        {"close_mosaic": 9, "mosaic_prob": 0.5, "max_iter": 99},
    ],
)
def test_what_may_have_an_effect_is_not(given):
    assert idle_options(replace_options(train_options(), **given)) == []


@pytest.mark.parametrize("preset", sorted(path.stem for path in Path(PRESET_FOLDER).glob("*.yaml")))
def test_presets_have_none(preset):
    assert idle_options(from_mapping(train_options_class(), read_preset(train_options_class(), preset))) == []
