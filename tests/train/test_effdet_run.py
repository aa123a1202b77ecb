"""An EfficientDet from training to detection: training, checkpoint, evaluation, model folder, Detector."""

from pathlib import Path

import numpy as np
import pytest

from config.options import replace_options
from deploy.main import export
from detect.detector import Detector
from evaluate.evaluate_net import evaluate_net
from machine.runtime import mx
from model.checkpoint import load_checkpoint
from tests.model.tiny import picture
from tests.train.tiny import CLASSES, metrics
from train.options import TrainOptions, train_options
from train.training import run_training


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """Options of a finished run."""
    options = train_options(
        network="efficientdet_mini",
        data_shape=(128, 128),
        train_path=records[0],
        val_path=records[1],
        batch_size=8,
        workers=0,
        augment="none",
        prefix=str(tmp_path_factory.mktemp("effdet") / "run"),
        end_epoch=2,
        lr=0.01,
        score_threshold=0.001,
    )
    run_training(options)
    return options


def test_both_losses_are_reported_and_their_sum_falls(run: TrainOptions) -> None:
    first, second = (line["train"] for line in metrics(run.output.prefix))
    assert list(first) == ["cls_loss", "reg_loss"]
    assert 0 < sum(second.values()) < sum(first.values())


def test_evaluation_repeats_the_validation(run: TrainOptions) -> None:
    result = evaluate_net(load_checkpoint(run.output.prefix, 2), run.data.val_path, [mx.cpu()], workers=0)
    assert result.results["voc07"].mean_ap == metrics(run.output.prefix)[-1]["validation"]["mAP"]


def test_evaluation_repeats_a_validation_with_losses_and_averaged_weights(run: TrainOptions, tmp_path: Path) -> None:
    """Both run the network rewritten, the one beside its losses, the other on two devices."""
    again = replace_options(run, prefix=str(tmp_path / "again"), end_epoch=1, ema=0.9, val_loss=True)
    run_training(again)
    result = evaluate_net(
        load_checkpoint(again.output.prefix, 1), again.data.val_path, [mx.cpu(0), mx.cpu(1)], workers=0
    )
    line = metrics(again.output.prefix)[-1]
    # After one epoch scores are so near that rounding changes the order of some.
    assert result.results["voc07"].mean_ap == pytest.approx(line["validation"]["mAP"], rel=0.05)
    assert line["validation_loss"]["cls_loss"] > 0


def test_the_exported_model_detects_as_the_checkpoint_does(run: TrainOptions, tmp_path: Path) -> None:
    manifest = export(run.output.prefix, 2, tmp_path / "model")
    assert manifest.postprocessing.operator == "box_nms"
    detectors = [Detector(path, threshold=0.001, ctx=mx.cpu()) for path in (tmp_path / "model", run.output.prefix)]
    found = [detector.detect(picture(3, 70, 130)) for detector in detectors]
    assert len(found[0])
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)  # batch norms are folded
    assert set(found[0][:, 0]) <= set(range(len(CLASSES)))


def test_several_input_sizes(run: TrainOptions, tmp_path: Path) -> None:
    """Their sides are multiples of 128, whatever --multi-scale says of 32."""
    sizes = replace_options(
        run, prefix=str(tmp_path / "sizes"), multi_scale=(1.0, 2.4), batch_size=2, max_iter=3, val_path=""
    )
    run_training(sizes)
    assert all(np.isfinite(list(metrics(sizes.output.prefix)[0]["train"].values())))
