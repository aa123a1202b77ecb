"""What a run says and shows while it goes on and when it ends: lines, TensorBoard, the live page."""

import json
import logging
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import OptionError, TrainingError
from config.groups import pixel_options
from drawing.boxes import CAPTION_HEIGHT, GAP, batch_sheet
from evaluate.coco_metric import STAT_NAMES
from machine.opencv import cv2
from model.checkpoint import list_epochs
from tests.train.tiny import CLASSES, flags, metrics
from tools import browse
from train.curves import BatchPicture
from train.epoch_end import EpochEnd
from train.training import run_training


@pytest.fixture
def seen(monkeypatch):
    """The numbers of the images of each batch; the pixels of the third batch are NaN."""
    from train.module import DetectionModule

    real, indices = DetectionModule.forward, []

    def forward(self, batch, is_train=None):
        indices.append(batch.index)
        if len(indices) == 3:
            batch.data[0][:] = np.nan
        real(self, batch, is_train)

    monkeypatch.setattr(DetectionModule, "forward", forward)
    return indices


def test_the_records_of_a_batch_with_a_loss_that_is_not_finite_are_named(options, seen):
    """The third of six batches is poisoned; it is read one batch late. Its losses are finite: ReLU hides the NaN."""
    with pytest.raises(TrainingError) as caught:
        run_training(options(batch_size=4))
    assert f"epoch 1, batch 3 (images {', '.join(map(str, seen[2]))})" in str(caught.value)
    assert len(seen) == 4


def test_the_images_of_a_padded_batch_are_named_by_their_paths_without_its_padding(options, tmp_path, seen):
    """22 images in batches of 8: the third has two rows of padding, with the number -1."""
    source = Path(options().data.train_path)
    for suffix in (".rec", ".json"):
        (tmp_path / f"r{suffix}").write_bytes(source.with_suffix(suffix).read_bytes())
    (tmp_path / "r.lst").write_text("".join(f"{k}\t0\tphotos/{k}.jpg\n" for k in range(22)))
    with pytest.raises(TrainingError) as caught:
        run_training(options(train_path=str(tmp_path / "r.rec")))
    names = ", ".join(f"{k} (photos/{k}.jpg)" for k in seen[2][:6])
    assert f"epoch 1, batch 3 (images {names})" in str(caught.value)


def test_progress_lines_tell_losses_speed_and_time_left(options, caplog):
    with caplog.at_level(logging.INFO):
        run_training(options(batch_size=2, frequent=5, val_path="", end_epoch=1))
    lines = [line for line in caplog.messages if "images/s" in line]
    batches = [line.split(" Cross")[0] for line in lines]  # every 5 and the last, so that small epochs have a line, too
    assert batches == ["Epoch 1/1 5/11", "Epoch 1/1 10/11", "Epoch 1/1 11/11"]
    assert all("CrossEntropy=" in line and "ends in 0:00:" in line for line in lines)
    assert all(re.search(r"step \d+\.\d+ s, data \d+\.\d+ s, memory \d+ MB", line) for line in lines)


def test_the_time_left_follows_max_iter(options, caplog):
    """Three batches an epoch: the fifth is the last one, and nothing is left after it."""
    with caplog.at_level(logging.INFO):
        run_training(options(max_iter=5, end_epoch=240, val_path=""))
    lines = [line for line in caplog.messages if "images/s" in line]
    assert [line.split()[1:3] for line in lines] == [["1/2", "3/3"], ["2/2", "2/2"]]
    assert "ends in 0:00:00" in lines[-1]


def test_a_rate_that_jumps_when_a_cosine_gets_longer_is_told(options, caplog):
    changes = {"lr_schedule": "cosine", "lr_final": 0.0001, "val_path": ""}
    run_training(options(end_epoch=2, **changes))
    assert "the learning rate jumps" not in caplog.text
    run_training(options(end_epoch=4, resume="auto", **changes))
    assert "the learning rate jumps from 0.0001 to 0.02505: --lr-schedule cosine" in caplog.text
    caplog.clear()
    run_training(options(end_epoch=4, resume="3", **changes))
    assert "the learning rate jumps" not in caplog.text


def test_a_finished_run_goes_on_with_a_larger_end(continued, caplog):
    with pytest.raises(OptionError, match="raise --end-epoch to 4 or more to train further"):
        run_training(continued(resume="auto", end_epoch=2))
    run_training(continued(resume="auto", end_epoch=5))
    assert list_epochs(continued().output.prefix) == [1, 2, 3, 4, 5]


def test_an_interrupt_is_told_once(options, monkeypatch, caplog):
    def interrupt(self, param):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.callbacks.FiniteGuard.__call__", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_training(options())
    assert caplog.text.count("interrupted; continue with: ") == 1
    assert caught.value.args  # which run_command takes as told


def test_tensorboard_without_its_package_is_refused(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(OptionError, match="pip install"):
        run_training(options(tensorboard=True))


def test_tensorboard_scalars(options, monkeypatch):
    written = {}

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_scalar(self, name, value, epoch):
            written[name, epoch] = value

        def add_image(self, name, picture, epoch, dataformats):
            written[name, epoch] = picture

        def add_text(self, name, text):
            written[name] = text

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=SummaryWriter))
    run = options(tensorboard=True, frequent=2, metrics=("voc07", "coco"))
    run_training(run)
    assert written["folder"] == f"{run.output.prefix}-tensorboard"
    for line in metrics(run.output.prefix):
        assert written["train/CrossEntropy", line["epoch"]] == line["train"]["CrossEntropy"]
        assert written["validation/mAP", line["epoch"]] == line["validation"]["mAP"]
        assert written["learning_rate", line["epoch"]] == 0.05
        assert written["train/loss", line["epoch"]] == sum(line["train"].values())
        assert {f"validation/{name}" for name in line["validation"] if name in STAT_NAMES}
        for name, value in line["validation"].items():
            assert written[f"validation/{name}", line["epoch"]] == value
        pairs = written["validation/truth_and_detections", line["epoch"]]
        assert pairs.shape == (320 * 4, 320 * 4, 3)  # eight images of the first batch, each twice
    assert written["train/first_batch", 0].shape == (320 * 2 + GAP, 320 * 4 + 3 * GAP, 3)
    losses = [written["batch/CrossEntropy", 2], written["batch/SmoothL1", 2]]
    assert written["batch/loss", 2] == sum(losses)
    assert written["batch/learning_rate", 5] == 0.05  # of the second epoch, of three batches
    assert "| lr | 0.05 |" in written["options"]


def test_a_live_page_has_the_curves_in_it_and_ends_with_the_run(options):
    run = options(live=True)
    run_training(run)
    page = Path(f"{run.output.prefix}-live.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "training losses" in page
    assert "<td>2</td>" in page
    assert 'http-equiv="refresh"' not in page, "a page that is over does not load itself again"
    assert not re.search(r"(src|href)=.https?:", page)
    assert "epoch <b>2/2</b>" in page


def test_the_report_of_the_last_validation_has_its_numbers(options, caplog):
    run = options(report=True)
    run_training(run)
    folder = Path(f"{run.output.prefix}-report")
    last, numbers = metrics(run.output.prefix)[-1], json.loads((folder / "report.json").read_text())
    assert numbers["mAP_voc07"] == last["validation"]["mAP"]
    assert f"epoch {last['epoch']}," in (folder / "index.html").read_text()
    assert f"what the last validation got wrong: {folder}" in caplog.messages
    assert not list(folder.glob(".*"))


def test_training_goes_on_without_a_report(options, caplog):
    run = options(report=True)
    Path(run.output.prefix).parent.mkdir()
    Path(f"{run.output.prefix}-report").write_text("a file")
    run_training(run)
    assert caplog.text.count("-report cannot be written") == 1


def test_without_live_there_is_no_page(finished_run):
    assert not list(finished_run.glob("*.html"))


def test_what_is_there_is_said_after_the_last_validation(options, caplog):
    run_training(options(end_epoch=2))
    lines = [line for line in caplog.messages if line.startswith(("Epoch[1] Validation-mAP", "best: ", "newest: "))]
    assert [line.split()[0] for line in lines] == ["Epoch[1]", "best:", "newest:"]


@pytest.mark.parametrize(("epoch", "words"), [(1, ["--epoch", "best"]), (2, [])])
def test_the_command_to_export_can_be_run(options, tmp_path, caplog, monkeypatch, epoch, words):
    monkeypatch.setattr(EpochEnd, "_is_best", lambda self, record: record["epoch"] == epoch)
    prefix = str(tmp_path / "with blank" / "t")
    run_training(options(prefix=prefix, end_epoch=2))
    line = next(line for line in caplog.messages if "python deploy.py" in line)
    command = ["python", "deploy.py", "--prefix", prefix, *words, "--output", f"{prefix}-model"]
    assert shlex.split(line.split("with: ")[1]) == command


def test_the_first_batches_are_drawn_as_the_network_gets_them(options, monkeypatch, caplog):
    """A line of text and a row for three training batches and one of the validation."""
    given = []
    real = BatchPicture._add
    monkeypatch.setattr(
        BatchPicture, "_add", lambda self, rows, name, batch: (given.append(batch), real(self, rows, name, batch))
    )
    run = options(augment="ssd", mosaic_prob=1.0, std_r=2.0, std_g=3.0, end_epoch=2)
    with caplog.at_level(logging.INFO):
        run_training(run)
    picture = cv2.imread(f"{run.output.prefix}-batches.png")[..., ::-1]
    assert len(given) == 4
    assert picture.shape == (4 * (CAPTION_HEIGHT + 320), 4 * 320 + 3 * GAP, 3)
    pixels = pixel_options(run.input)
    for k, batch in enumerate(given):
        assert [desc.name for desc in batch.provide_label][0] == "label"
        data, objects = batch.data[0].asnumpy()[:4], batch.label[0].asnumpy()[:4]
        assert (objects[..., 0] >= 0).any()
        row = batch_sheet(data, objects, np.array(pixels["mean_pixels"]), np.array(pixels["std"]), CLASSES)
        top = k * (CAPTION_HEIGHT + 320) + CAPTION_HEIGHT
        assert np.array_equal(picture[top : top + 320], row)
    assert f"the first batches: {run.output.prefix}-batches.png" in caplog.text


def test_the_picture_of_the_batches_changes_nothing_of_the_run(options, monkeypatch, tmp_path):
    changes = {"mosaic_prob": 0.5, "augment": "ssd"}
    drawn, plain = (options(prefix=str(tmp_path / name / "t"), **changes) for name in ("drawn", "plain"))
    real, drawings = BatchPicture._add, []

    def add(self, rows, name, batch):
        arrays, state = [array.asnumpy() for array in [*batch.data, *batch.label]], np.random.get_state()[1:3]
        real(self, rows, name, batch)
        drawings.append(name)
        for before, after in zip(arrays, [*batch.data, *batch.label], strict=True):
            assert np.array_equal(before, after.asnumpy())
        assert all(np.array_equal(*pair) for pair in zip(state, np.random.get_state()[1:3], strict=True))

    monkeypatch.setattr(BatchPicture, "_add", add)
    run_training(drawn)
    assert len(drawings) == 4
    monkeypatch.setattr(BatchPicture, "_add", lambda *_: None)
    run_training(plain)
    assert Path(f"{drawn.output.prefix}-batches.png").is_file()
    assert not Path(f"{plain.output.prefix}-batches.png").exists()
    for name in ("0002.params", "0002.optim.params"):
        one, other = (Path(f"{run.output.prefix}-{name}").read_bytes() for run in (drawn, plain))
        assert one == other


def test_a_picture_of_the_batches_that_cannot_be_written_is_a_warning(options, caplog):
    run = options(end_epoch=1)
    Path(f"{run.output.prefix}-batches.png").mkdir(parents=True)
    run_training(run)
    assert caplog.text.count("-batches.png cannot be written") == 1
    assert "the first batches:" not in caplog.text
    assert list_epochs(run.output.prefix) == [1]


def test_browse_draws_the_first_batches_as_a_run_leaves_them(options, tmp_path, capsys):
    """The same bytes, and nothing else is written."""
    run = options(end_epoch=1, mosaic_prob=0.5, augment="ssd")
    run_training(run)
    out, before = tmp_path / "seen.png", set(tmp_path.rglob("*"))
    browse.main(["--train", *flags(run), "--output", str(out)])
    assert out.read_bytes() == Path(f"{run.output.prefix}-batches.png").read_bytes()
    assert set(tmp_path.rglob("*")) - before == {out}
    assert f"{out} written" in capsys.readouterr().out
    for words in (["--output", "x.html"], ["--output=x.html"]):
        with pytest.raises(OptionError, match=r"--output x.html must end in .png"):
            browse.main(["--train", *flags(run), *words])
    for words in (["--output"], ["--output="], ["--output", "--cpu"]):
        with pytest.raises(OptionError, match="--output needs a value"):
            browse.main(["--train", *words])
