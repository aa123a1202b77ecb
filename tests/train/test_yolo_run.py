"""A YOLOv3 from training to detection: training, checkpoint, evaluation, model folder, Detector."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from config.options import replace_options
from deploy.main import export
from detect.detector import Detector
from evaluate.evaluate_net import evaluate_net
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from model.folder import model_from_checkpoint
from symbol.darknet_cfg import format_cfg
from symbol.darknet_sections import with_width
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from tests.model.tiny import picture
from tests.train.tiny import CLASSES, metrics, write_record
from train.options import TrainOptions, train_options
from train.training import run_training


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """Options of a finished run of darknet:FILE, whose .cfg is gone."""
    folder = tmp_path_factory.mktemp("yolo")
    cfg = folder / "own.cfg"
    cfg.write_text(format_cfg(with_width(YOLO_NETWORKS["yolov3_tiny"].sections, 0.25), (64, 96)))
    options = train_options(
        network=f"darknet:{cfg}",
        data_shape=(64, 96),
        train_path=records[0],
        val_path=records[1],
        batch_size=8,
        workers=0,
        augment="none",
        prefix=str(folder / "run"),
        end_epoch=2,
        lr=0.01,
        score_threshold=0.001,
        multi_label=False,
    )
    run_training(options)
    cfg.unlink()
    return options


def test_every_loss_is_reported_and_their_sum_falls(run: TrainOptions) -> None:
    first, second = (line["train"] for line in metrics(run.output.prefix))
    assert list(first) == ["box_loss", "obj_loss", "cls_loss"]
    assert 0 < sum(second.values()) < sum(first.values())


def test_evaluation_repeats_the_validation_without_the_cfg(run: TrainOptions) -> None:
    checkpoint = load_checkpoint(run.output.prefix, 2)
    result = evaluate_net(checkpoint, run.data.val_path, [mx.cpu()], workers=0)
    validation = metrics(run.output.prefix)[-1]["validation"]
    assert result.results["voc07"].mean_ap == validation["mAP"]


def test_the_exported_model_detects_as_the_checkpoint_does(run: TrainOptions, tmp_path: Path) -> None:
    manifest = export(run.output.prefix, 2, tmp_path / "model")
    assert manifest.postprocessing.operator == "box_nms"
    detectors = [Detector(path, threshold=0.001, ctx=mx.cpu()) for path in (tmp_path / "model", run.output.prefix)]
    found = [detector.detect(picture(3, 70, 130)) for detector in detectors]
    assert len(found[0])
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)  # batch norms are folded
    assert set(found[0][:, 0]) <= set(range(len(CLASSES)))


@pytest.mark.parametrize("resume", ["auto", "2"])
def test_a_run_is_resumed_without_the_cfg(run: TrainOptions, tmp_path: Path, resume: str) -> None:
    options = copied(run, tmp_path, resume)
    run_training(options)
    assert load_checkpoint(options.output.prefix).epoch == 3


def test_a_cfg_that_has_changed_is_told_and_not_read(run: TrainOptions, tmp_path: Path, caplog) -> None:
    cfg = Path(run.input.network.removeprefix("darknet:"))
    cfg.write_text("[net]\nwhat=ever\n")
    options = copied(run, tmp_path, "auto")
    run_training(options)
    cfg.unlink()
    assert f"{cfg} has changed; the run goes on with the text that its checkpoints keep" in caplog.text
    kept = [load_checkpoint(options.output.prefix, epoch).meta.options["darknet_cfg"] for epoch in (2, 3)]
    assert kept[0] == kept[1]


def test_a_new_run_needs_the_cfg(run: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own\.cfg: cannot be read"):
        run_training(replace_options(run, prefix=str(tmp_path / "new"), resume="auto"))


def copied(run: TrainOptions, folder: Path, resume: str) -> TrainOptions:
    """The options that go on with a copy of the run for one epoch."""
    for path in Path(run.output.prefix).parent.glob("run-*.*"):
        shutil.copy(path, folder)
    return replace_options(run, prefix=str(folder / "run"), resume=resume, end_epoch=3)


def test_two_stages_with_the_loss_of_rectangular_validation(tmp_path: Path) -> None:
    """Wide and tall images; the frozen body's moving averages stay in the first stage."""
    shapes = ((64, 96), (96, 64))
    options = train_options(
        network="yolov3_tiny",
        width=0.125,
        data_shape=(96,),
        train_path=write_record(tmp_path / "train.rec", 8, 1, shapes=shapes),
        val_path=write_record(tmp_path / "val.rec", 6, 2, shapes=shapes),
        batch_size=4,
        freeze_epochs=1,
        freeze_batch_size=2,
        workers=0,
        augment="none",
        resize_mode="letterbox",
        rect_val=True,
        val_loss=True,
        prefix=str(tmp_path / "run"),
        end_epoch=2,
    )
    run_training(options)
    first, second = metrics(options.output.prefix)
    assert [first["num_update"], second["num_update"]] == [4, 6]
    assert list(first["validation_loss"]) == list(second["validation_loss"]) == ["box_loss", "obj_loss", "cls_loss"]
    assert 0 < sum(second["validation_loss"].values()) < sum(first["validation_loss"].values())
    averages = [load_checkpoint(options.output.prefix, epoch).aux_params for epoch in (1, 2)]
    name = next(name for name in averages[0] if name.startswith("body_0_") and name.endswith("mean"))
    assert not averages[0][name].asnumpy().any()  # as initialised
    assert averages[1][name].asnumpy().any()


def test_a_checkpoint_that_names_a_file_in_place_of_its_cfg_is_refused(run: TrainOptions, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not show\n")
    checkpoint = load_checkpoint(run.output.prefix, 2)
    options = {**checkpoint.meta.options, "darknet_cfg": ""}
    meta = replace(checkpoint.meta, network=f"darknet:{secret}", options=options)
    with pytest.raises(CheckpointError, match="its options hold no darknet_cfg"):
        model_from_checkpoint(replace(checkpoint, meta=meta))


def test_a_run_on_rectangles_is_resumed_with_the_same_bits(tmp_path: Path) -> None:
    """Accumulated over batches of different inputs, the last batch padded; the warm-up's epoch has updates of one."""
    common = {
        "network": "yolov3_tiny", "width": 0.125, "data_shape": (96,), "batch_size": 2, "workers": 0, "val_path": "",
        "train_path": write_record(tmp_path / "train.rec", 9, 1, shapes=((64, 96), (96, 64), (96, 96))),
        "resize_mode": "letterbox", "rect": True, "accumulate": 2, "warmup_updates": 9, "warmup_accumulate": 1,
    }  # fmt: skip
    for name, ends in (("whole", (3,)), ("parts", (1, 2, 3))):
        for end in ends:
            resume = "auto" if end > 1 and len(ends) > 1 else "-1"
            run_training(train_options(**common, prefix=str(tmp_path / name), end_epoch=end, resume=resume))
    assert [line["num_update"] for line in metrics(str(tmp_path / "whole"))] == [5, 8, 11]
    for kind in ("params", "optim.params"):
        whole, parts = (mx.nd.load(str(tmp_path / f"{name}-0003.{kind}")) for name in ("whole", "parts"))
        for name, array in whole.items():
            np.testing.assert_array_equal(array.asnumpy(), parts[name].asnumpy(), err_msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize_mode": "force"}, "--rect needs --resize-mode letterbox"),
        ({"multi_scale": (1.5,)}, "--rect and --multi-scale exclude each other"),
        ({"mosaic_prob": 1.0}, "--rect and --mosaic-prob exclude each other: .* give --mosaic-prob 0"),
    ],
)
def test_what_rectangles_exclude_is_named(records, tmp_path: Path, changes, words) -> None:
    options = {"network": "yolov3_tiny", "data_shape": (96,), "train_path": records[0], "val_path": records[1]}
    options |= {"resize_mode": "letterbox", "rect": True, "prefix": str(tmp_path / "run")}
    with pytest.raises(OptionError, match=words):
        run_training(train_options(**options | changes))
