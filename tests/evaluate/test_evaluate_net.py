"""evaluate_net gives the numbers of the training's own validation, and refuses what does not belong together."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, DataError, OptionError
from config.command_line import parse_options
from evaluate.coco_metric import STAT_NAMES
from evaluate.evaluate_net import evaluate_net
from evaluate.main import evaluate_options_class, main
from machine.runtime import mx
from model.checkpoint import list_epochs, load_checkpoint
from symbol.registry import given_detection
from tests.evaluate.coco_cases import pycocotools_stats
from tests.train.tiny import BATCH, CLASSES, NETWORK, SIDE, write_record
from train.options import train_options
from train.training import run_training

CPU = [mx.cpu()]
IMAGES = 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(prefix, record) of a run that is validated on its own training images, so that it scores well soon."""
    folder = tmp_path_factory.mktemp("trained")
    record = write_record(folder / "shapes.rec", IMAGES, 1)
    options = train_options(
        **NETWORK,
        train_path=record,
        val_path=record,
        allow_same_record=True,
        batch_size=BATCH,
        workers=0,
        prefix=str(folder / "t"),
        end_epoch=14,
        save_every=2,
        lr=0.01,
        optimizer="adam",
        augment="none",
    )
    run_training(options)
    return options.output.prefix, record


def scores(evaluation):
    found = {one.name: one.ap for one in evaluation.result.classes}
    return {name: ap for name, ap in found.items() if np.isfinite(ap)} | {"mAP": evaluation.result.mean_ap}


def test_both_engines_give_the_same_scores(trained):
    """The images are PNG: both decode and resize them to the same pixels."""
    prefix, record = trained
    checkpoint = load_checkpoint(prefix, list_epochs(prefix)[-1])
    native = evaluate_net(checkpoint, record, CPU, data_engine="native")
    assert scores(native) == scores(evaluate_net(checkpoint, record, CPU, workers=0))
    assert native.images == IMAGES


def test_every_checkpoint_scores_what_its_validation_said(trained):
    """To the last digit. Two traps of mxnet 1.9.1 broke this (train/module.py): moving averages read too early, and
    batch norm folded into the weights of an earlier validation."""
    prefix, record = trained
    for epoch in list_epochs(prefix):
        checkpoint = load_checkpoint(prefix, epoch)
        evaluation = evaluate_net(checkpoint, record, CPU, workers=0)
        assert scores(evaluation) == checkpoint.meta.scores["validation"], epoch
        assert evaluation.images == IMAGES
    assert len(list_epochs(prefix)) >= 7
    assert evaluation.result.mean_ap > 0.2


def test_batch_size_and_contexts_change_at_most_rounding(trained):
    prefix, record = trained
    checkpoint = load_checkpoint(prefix)
    expected = scores(evaluate_net(checkpoint, record, CPU, workers=0))
    for batch_size, devices in ((7, CPU), (BATCH, [mx.cpu(0), mx.cpu(1)])):
        found = scores(evaluate_net(checkpoint, record, devices, batch_size=batch_size, workers=0))
        assert found == pytest.approx(expected, abs=0.02)


def test_detection_options_replace_the_checkpoints_own(trained):
    prefix, record = trained
    checkpoint = load_checkpoint(prefix)
    few = evaluate_net(checkpoint, record, CPU, workers=0, score_threshold=0.5)
    many = evaluate_net(checkpoint, record, CPU, workers=0, score_threshold=0.01)
    assert sum(one.num_detections for one in few.result.classes) < sum(
        one.num_detections for one in many.result.classes
    )
    with pytest.raises(OptionError, match="nsm"):
        evaluate_net(checkpoint, record, CPU, workers=0, nsm=0.5)


def test_the_rule_is_chosen_by_option(trained):
    prefix, record = trained
    checkpoint = load_checkpoint(prefix)
    strict = evaluate_net(checkpoint, record, CPU, workers=0, overlap=0.9, metrics=("voc",))
    assert (strict.result.rule.iou_threshold, strict.result.rule.use_07_metric) == (0.9, False)
    assert strict.result.mean_ap < evaluate_net(checkpoint, record, CPU, workers=0, metrics=("voc",)).result.mean_ap


def test_the_rule_of_the_trainings_validation_is_the_default(trained, tmp_path):
    prefix, record = trained
    other = str(tmp_path / "o")
    words = {"overlap": 0.3, "voc07": False, "use_difficult": True, "nms": 0.3, "force": True}
    options = train_options(
        **NETWORK, **words, train_path=record, val_path=record, allow_same_record=True, batch_size=BATCH, workers=0,
        prefix=other, augment="none", pretrained=prefix, epoch=list_epochs(prefix)[-1], end_epoch=1, lr=1e-5,
    )  # fmt: skip
    run_training(options)
    known = load_checkpoint(other).meta.scores["validation"]
    main(["--prefix", other, "--rec-path", record, "--cpu", "--workers", "0", "--json", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["mAP"] == known["mAP"] > 0.3
    assert (found["iou_threshold"], found["voc07"], list(found["metrics"])) == (0.3, False, ["voc"])


def test_records_of_other_classes_are_refused(trained, tmp_path):
    checkpoint = load_checkpoint(trained[0])
    other = write_record(tmp_path / "other.rec", 3, names=("blue", "green", "red"))
    with pytest.raises(OptionError, match="holds the classes blue, green, red"):
        evaluate_net(checkpoint, other, CPU, workers=0)
    with pytest.raises(DataError, match="--rec-path nowhere.rec: no such file"):
        evaluate_net(checkpoint, "nowhere.rec", CPU, workers=0)


def test_a_record_without_objects_has_no_score(trained, tmp_path):
    empty = write_record(tmp_path / "empty.rec", 3, empty=True)
    evaluation = evaluate_net(load_checkpoint(trained[0]), empty, CPU, workers=0)
    assert np.isnan(evaluation.result.mean_ap)
    assert evaluation.images == 3


def command(trained, *words):
    prefix, record = trained
    return main(["--prefix", prefix, "--rec-path", record, "--workers", "0", *words])


def test_the_command_prints_a_table_and_writes_json_and_curves(trained, tmp_path, capsys):
    result, curves = tmp_path / "result.json", tmp_path / "curves.png"
    assert command(trained, "--epoch", "best", "--json", str(result), "--curves", str(curves)) == 0
    table = capsys.readouterr().out
    content = json.loads(result.read_text())
    expected = load_checkpoint(trained[0], "best")
    assert {**content["AP"], "mAP": content["mAP"]} == expected.meta.scores["validation"]
    assert content["epoch"] == expected.epoch
    assert (content["images"], content["rec_path"], content["iou_threshold"], content["voc07"]) == (
        IMAGES, trained[1], 0.5, True
    )  # fmt: skip
    assert content["seconds"] > 0
    assert f"epoch {expected.epoch}" in table
    assert all(name in table for name in (*CLASSES, "mAP", f"{IMAGES} images"))
    assert curves.read_bytes().startswith(b"\x89PNG")


def test_a_class_without_objects_is_null_in_json(trained, tmp_path):
    empty = write_record(tmp_path / "empty.rec", 3, empty=True)
    result = tmp_path / "result.json"
    assert main(["--prefix", trained[0], "--rec-path", empty, "--workers", "0", "--json", str(result)]) == 0
    content = json.loads(result.read_text())
    assert content["AP"] == dict.fromkeys(CLASSES)
    assert content["mAP"] is None


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--epoch", "99"], CheckpointError, "no checkpoint of epoch 99"),
        (["--json", "/nowhere/x.json"], OptionError, "--json /nowhere/x.json: there is no folder /nowhere"),
        (["--curves", "x.svg"], OptionError, "ends with .png"),
        (["--nms", "2"], OptionError, "--nms"),
        (["--batch-size", "0"], OptionError, "--batch-size"),
        (["--gpus", "7"], OptionError, "--gpus 7"),
        (["--rect-val"], OptionError, "--rect-val: the anchors of mobilenet"),
    ],
)
def test_mistakes_of_the_command(trained, words, error, message):
    with pytest.raises(error) as caught:
        command(trained, *words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--json", "--coco-json", "--coco-truth", "--curves"])
def test_files_that_could_not_be_written_are_refused_before_the_work(trained, tmp_path, monkeypatch, flag):
    """As root every folder can be written: what os.access says is made up."""
    monkeypatch.setattr("evaluate.evaluate_net.evaluate_net", lambda *_, **__: pytest.fail("it was evaluated"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OptionError, match=f"{flag} .*/a.png: no file can be written in {tmp_path}; choose another"):
        command(trained, flag, f"{tmp_path}/a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OptionError, match=f"{flag} .*/folder.png: a folder of that name is there"):
        command(trained, flag, f"{tmp_path}/folder.png")


def test_all_metrics_in_one_pass(trained, tmp_path, capsys):
    result = tmp_path / "result.json"
    assert command(trained, "--metrics", "coco,voc,voc07", "--json", str(result)) == 0
    content, table = json.loads(result.read_text()), capsys.readouterr().out
    assert list(content["metrics"]) == ["coco", "voc", "voc07"]
    assert content["metrics"]["coco"].keys() == {"class_AP", *STAT_NAMES}
    assert content["mAP"] == content["metrics"]["voc"]["mAP"]
    assert content["voc07"] is False
    for kind in ("voc", "voc07"):
        alone = evaluate_net(load_checkpoint(trained[0]), trained[1], CPU, workers=0, metrics=(kind,))
        assert scores(alone) == {**content["metrics"][kind]["AP"], "mAP": content["metrics"][kind]["mAP"]}
    assert content["metrics"]["coco"]["AP50"] == pytest.approx(content["mAP"], abs=0.05)
    assert all(word in table for word in ("coco:", "voc07:", "AR100"))


@pytest.mark.parametrize("named", [False, True])
def test_pycocotools_reads_the_files_and_agrees(trained, tmp_path, named):
    """By the record's own ids, and by those of the annotation file that the record was packed from."""
    record, found, truth = tmp_path / "shapes.rec", tmp_path / "found.json", tmp_path / "truth.json"
    for suffix in (".rec", ".idx", ".json"):
        record.with_suffix(suffix).write_bytes(Path(trained[1]).with_suffix(suffix).read_bytes())
    words = ["--coco-json", str(found), "--coco-truth", str(truth), "--metrics", "coco"]
    if named:
        lines = [f"{k}\t2\t6\tval2017/{k}.png\n" for k in range(IMAGES)]
        record.with_suffix(".lst").write_text("".join(lines))
        images = [{"id": 1000 + k, "file_name": f"{k}.png"} for k in range(IMAGES)]
        categories = [{"id": 10 * k, "name": name} for k, name in enumerate(CLASSES, 1)]
        annotations = {"images": images, "categories": categories, "annotations": []}
        (tmp_path / "instances.json").write_text(json.dumps(annotations))
        words += ["--coco-annotations", str(tmp_path / "instances.json")]
    result = tmp_path / "result.json"
    main(["--prefix", trained[0], "--rec-path", str(record), "--workers", "0", "--json", str(result), *words])
    detections, truths = json.loads(found.read_text()), json.loads(truth.read_text())
    assert truths["images"][1] == {
        "id": 1001 if named else 1, "file_name": "1.png" if named else "1", "height": SIDE, "width": SIDE
    }  # fmt: skip
    assert {one["category_id"] for one in detections} <= ({10, 20, 30} if named else {1, 2, 3})
    ours = json.loads(result.read_text())["metrics"]["coco"]
    expected = pycocotools_stats(truths, detections)
    np.testing.assert_allclose(
        [np.nan if ours[n] is None else ours[n] for n in STAT_NAMES], expected, rtol=0, atol=1e-9
    )
    assert expected[0] > 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "coco", "--curves", "x.png"], "add voc07 or voc to --metrics"),
        (["--metrics", "voc07", "--no-voc07"], "--no-voc07 contradicts --metrics voc07"),
        (["--metrics", "coco17"], "--metrics is one of voc07, voc, coco"),
        (["--coco-annotations", "none.json"], "none.json: no such file"),
        (["--coco-annotations", "others.json", "--coco-json", "d.json"], "there is no category 'red'"),
        (["--coco-annotations", "no_images.json", "--coco-json", "d.json"], "record 0: the .lst beside the record"),
        (["--coco-json", "/nowhere/x.json"], "--coco-json /nowhere/x.json: there is no folder"),
    ],
)
def test_mistakes_about_metrics(trained, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name, classes in (("others", ["dog"]), ("no_images", CLASSES)):
        categories = [{"id": k, "name": one} for k, one in enumerate(classes)]
        content = {"images": [], "annotations": [], "categories": categories}
        Path(f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(OptionError) as caught:
        command(trained, *words)
    assert message in str(caught.value)


def test_a_prefix_without_checkpoints(trained, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        main(["--prefix", str(tmp_path / "none"), "--rec-path", trained[1]])
    assert not list(Path(tmp_path).iterdir())


def test_a_few_batches(trained):
    prefix, record = trained
    evaluation = evaluate_net(load_checkpoint(prefix), record, CPU, workers=0, num_batch=2)
    whole = evaluate_net(load_checkpoint(prefix), record, CPU, workers=0)
    assert evaluation.images == 2 * BATCH
    assert sum(one.npos for one in evaluation.result.classes) < sum(one.npos for one in whole.result.classes)


def test_classic_flags_must_agree_with_the_checkpoint(trained, capsys):
    prefix, record = trained
    words = ["--prefix", prefix, "--rec-path", record, "--workers", "0", "--cpu", "--num-batch", "1"]
    main([*words, "--network", "mobilenet", "--num-class", "3", "--data-shape", "64", "--mean-r", "123", "--deploy"])
    assert f"{BATCH} images" in capsys.readouterr().out
    with pytest.raises(OptionError, match="--network vgg16_reduced: .* has mobilenet"):
        main([*words, "--network", "vgg16_reduced"])


def test_a_list_replaces_the_labels(trained, tmp_path):
    prefix, record = trained
    path = tmp_path / "red.lst"
    path.write_text("".join(f"{k}\t2\t6\t0\t0.1\t0.1\t0.9\t0.9\t0\t{k}.png\n" for k in range(IMAGES)))
    evaluation = evaluate_net(load_checkpoint(prefix), record, CPU, workers=0, list_path=str(path))
    assert [one.npos for one in evaluation.result.classes] == [IMAGES, 0, 0]


def test_a_checkpoint_runs_in_mxnet_alone(trained):
    with pytest.raises(OptionError, match="engine openvino: .* is no model folder.*deploy.py --onnx"):
        command(trained, "--engine", "openvino")


def test_filters_of_yolo_can_be_given_when_it_is_evaluated():
    words = ["--no-multi-label", "--only-classes", "0,2", "--min-box", "4"]
    given = given_detection(parse_options(evaluate_options_class(), words, ""))
    assert given == {"multi_label": False, "only_classes": (0, 2), "min_box": 4.0}
