"""Records are known: the same one or the same images twice, a changed one and another one are refused or told."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from common.files import file_sha256
from dataset.packing import pack_dataset
from dataset.pascal_voc import PascalVoc
from dataset.sidecar import read_sidecar, same_images
from evaluate.evaluate_net import evaluate_net
from evaluate.sets import check_record
from machine.runtime import mx
from model.checkpoint import load_checkpoint, read_meta
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg
from train.training import run_training

CPU = [mx.cpu()]


def packed(folder, name, seeds):
    root = folder / name
    for seed in seeds:
        add(root, f"{seed:02}", CAT, DOG, image=jpeg(seed=seed))
    image_set(root, "trainval", *[f"{seed:02}" for seed in seeds])
    target = folder / f"{name}.lst"
    pack_dataset(PascalVoc(root, class_names=["cat", "dog"]), target, seed=1, workers=1)
    return str(target.with_suffix(".rec"))


def test_one_record_for_both_is_refused_by_its_content_too(options, records, tmp_path):
    copy = tmp_path / "copy.rec"
    for suffix in (".rec", ".idx", ".json"):
        shutil.copy(Path(records[0]).with_suffix(suffix), copy.with_suffix(suffix))
    for path in (records[0], str(copy)):
        with pytest.raises(OptionError, match=r"--val-path .*\.rec is the training record.*--allow-same-record"):
            run_training(options(val_path=path))
    assert not (tmp_path / "run").exists()


def test_images_in_both_records_are_counted(options, tmp_path, caplog):
    train, val = packed(tmp_path, "train", range(8)), packed(tmp_path, "val", range(5, 15))
    assert same_images(read_sidecar(train), read_sidecar(val)) == 3
    run = options(train_path=train, val_path=val, end_epoch=1, batch_size=2)
    run_training(run)
    assert f"3 of the 10 images of {val} are in {train}, too" in caplog.text


def test_a_checkpoint_knows_its_records_and_resuming_tells_others(continued, records, tmp_path, caplog):
    run = continued(resume="auto", end_epoch=4)
    before = read_meta(run.output.prefix, 3).records
    assert before == {"train": file_sha256(records[0]), "validation": file_sha256(records[1])}
    other = packed(tmp_path, "other", range(8))
    run_training(continued(resume="auto", end_epoch=4))
    assert "record of the run so far" not in caplog.text
    with pytest.raises((OptionError, DataError)):  # of other classes
        run_training(continued(resume="auto", end_epoch=5, train_path=other))
    run_training(continued(resume="auto", end_epoch=5, val_path=records[0], allow_same_record=True))
    assert f"{records[0]}: not the validation record of the run so far (sha256); it goes on with it" in caplog.text


def test_a_changed_record_is_not_evaluated(finished_run, records, tmp_path, caplog):
    """39 changed bytes gave another mAP without a word."""
    checkpoint, copy = load_checkpoint(str(finished_run / "t")), tmp_path / "val.rec"
    for suffix in (".rec", ".idx", ".json"):
        shutil.copy(Path(records[1]).with_suffix(suffix), copy.with_suffix(suffix))
    content = np.fromfile(copy, np.uint8)
    content[-80:-41] ^= 1
    content.tofile(copy)
    with pytest.raises(DataError, match=r"val\.rec: its sha256 is not that of val\.json"):
        evaluate_net(checkpoint, str(copy), CPU, workers=0)
    with pytest.raises(DataError, match="its sha256 is not that of"):
        check_record(str(copy), checkpoint.meta, "t", "--calib-rec")


def test_the_training_record_and_a_strange_one_are_told(finished_run, records, caplog):
    meta = load_checkpoint(str(finished_run / "t")).meta
    caplog.set_level(logging.INFO)
    check_record(records[1], meta, "t")
    check_record(records[0], meta, "t", "--calib-rec")
    assert not caplog.text
    check_record(records[0], meta, "t")
    assert "is the record that t was trained on; the values promise too much" in caplog.text


def test_a_model_folder_is_no_prefix(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a model folder of deploy\.py; give the prefix"):
        load_checkpoint(str(tmp_path / "model"))
