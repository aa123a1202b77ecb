"""Command lines of zhreshold/mxnet-ssd and apache's example/ssd: every flag is known here, with its meaning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import OptionError
from config.command_line import boolean_flags, parse_options
from config.options import flat_values, from_mapping
from deploy.main import deploy_options_class
from detect.inputs import split_words
from detect.main import DemoOptions
from evaluate.main import evaluate_options_class
from model.manifest import check_model
from tools.prepare_dataset import PrepareOptions
from tools.visualize_net import VisualizeOptions
from train.options import train_options_class

ROOT = Path(__file__).parent.parent
MEANS = "--mean-r 123 --mean-g 117 --mean-b 104"
VOC = "--num-class 2 --class-names aeroplane,bicycle"
# Each line is a flag with a value that both projects accept, and the fields that it sets.
CLASSIC = {
    train_options_class(): [
        ("--train-list data/train.lst --val-list data/val.lst", {"train_list": "data/train.lst"}),
        ("--train-path data/train.rec", {"train_path": "data/train.rec"}),
        ("--val-path data/val.rec", {"val_path": "data/val.rec"}),
        ("--network resnet50", {"network": "resnet50"}),
        ("--batch-size 64", {"batch_size": 64}),
        ("--resume 3", {"resume": "3"}),
        ("--resume -1", {"resume": "-1"}),
        ("--finetune 3", {"finetune": 3}),
        ("--pretrained model/vgg16_reduced", {"pretrained": "model/vgg16_reduced"}),
        ("--epoch 1", {"epoch": "1"}),
        ("--prefix output/exp1/ssd", {"prefix": "output/exp1/ssd"}),
        ("--gpus 0,1", {"gpus": "0,1"}),
        ("--gpu 0", {"gpus": "0"}),
        ("--begin-epoch 0", {"begin_epoch": 0}),
        ("--end-epoch 240", {"end_epoch": 240}),
        ("--frequent 20", {"frequent": 20}),
        ("--data-shape 300", {"data_shape": (300,)}),
        ("--label-width 350", {"label_width": 350}),
        ("--optimizer rmsprop", {"optimizer": "rmsprop"}),
        ("--optimizer adadelta", {"optimizer": "adadelta"}),
        ("--lr 0.002", {"lr": 0.002}),
        ("--momentum 0.9", {"momentum": 0.9}),
        ("--wd 0.0005", {"wd": 0.0005}),
        (MEANS, {"mean_r": 123.0, "mean_g": 117.0, "mean_b": 104.0}),
        ("--lr-steps 80,160", {}),
        ("--lr-factor 0.1", {"lr_factor": 0.1}),
        ("--freeze ^(conv1_|conv2_).*", {"freeze": "^(conv1_|conv2_).*"}),
        ("--log train.log", {"log": "train.log"}),
        ("--monitor 10 --pattern .*weight", {"monitor": 10, "pattern": ".*weight"}),
        (VOC, {"num_class": 2, "class_names": ("aeroplane", "bicycle")}),
        ("--num-classes 2", {"num_class": 2}),
        ("--num-example 16551", {"num_example": 16551}),
        ("--nms 0.45", {"nms": 0.45}),
        ("--nms_topk 400", {"nms_topk": 400}),
        ("--overlap 0.5", {"overlap": 0.5}),
        ("--force False", {"force": False}),
        ("--force", {"force": True}),
        ("--use-difficult", {"use_difficult": True}),
        ("--use-difficult True", {"use_difficult": True}),
        ("--voc07", {"voc07": True}),
        ("--no-voc07", {"voc07": False}),
        ("--tensorboard True", {"tensorboard": True}),
        ("--min_neg_samples 3", {"min_neg_samples": 3}),
        ("--kv-store device", {"kv_store": "device"}),
        ("--kv-store dist_sync", {"kv_store": "dist_sync"}),
        ("--gpus 0,1 --batch-size 64 --lr 0.001", {"gpus": "0,1", "batch_size": 64, "lr": 0.001}),
    ],
    evaluate_options_class(): [
        ("--rec-path data/val.rec", {"rec_path": "data/val.rec"}),
        ("--list-path data/val.lst", {"list_path": "data/val.lst"}),
        (f"--network resnet50 {VOC} {MEANS}", {"network": "resnet50", "num_class": 2, "mean_r": 123.0}),
        ("--data-shape 300", {"data_shape": (300,)}),
        ("--batch-size 32", {"batch_size": 32}),
        ("--epoch 0 --prefix model/ssd_", {"epoch": "0", "prefix": "model/ssd_"}),
        ("--gpus 0", {"gpus": "0"}),
        ("--cpu", {"cpu": True}),
        ("--nms 0.45 --overlap 0.5", {"nms": 0.45, "overlap": 0.5}),
        ("--force --use-difficult --voc07", {"force": True, "use_difficult": True, "voc07": True}),
        ("--no-voc07 --deploy --frequent 20", {"voc07": False, "deploy": True, "frequent": 20}),
        ("--num-batch 5", {"num_batch": 5}),
    ],
    DemoOptions: [
        ("--network resnet50 --images data/demo/dog.jpg", {"network": "resnet50", "images": "data/demo/dog.jpg"}),
        ("--dir photos --ext .jpg", {"dir": "photos", "ext": ".jpg"}),
        ("--epoch 0 --prefix model/ssd_", {"epoch": "0", "model": "model/ssd_"}),
        ("--cpu", {"cpu": True}),
        ("--gpu 0", {"gpus": "0"}),
        (f"--data-shape 512 {MEANS}", {"data_shape": (512,), "mean_g": 117.0}),
        ("--data-shape 320,512", {"data_shape": (320, 512)}),
        ("--thresh 0.6 --nms 0.5", {"thresh": 0.6, "nms": 0.5}),
        ("--force True --timer True", {"force": True, "timer": True}),
        ("--no-force --no-timer --deploy", {"force": False, "timer": False, "deploy": True}),
        ("--class-names aeroplane,bicycle --batch-size 1", {"class_names": ("aeroplane", "bicycle")}),
        ("--camera 0 --frame-resize 640,480", {"camera": "0", "frame_resize": "640,480"}),
    ],
    deploy_options_class(): [
        ("--network vgg16_reduced --num-class 20", {"network": "vgg16_reduced", "num_class": 20}),
        ("--epoch 0 --prefix model/ssd_", {"epoch": "0", "prefix": "model/ssd_"}),
        ("--data-shape 300", {"data_shape": (300,)}),
        ("--nms 0.5 --topk 400", {"nms": 0.5, "nms_topk": 400}),
        ("--force True", {"force": True}),
        ("--no-force", {"force": False}),
    ],
    PrepareOptions: [
        ("--dataset pascal --root data/VOCdevkit", {"dataset": "pascal", "root": "data/VOCdevkit"}),
        ("--year 2007,2012 --set trainval", {"year": ("2007", "2012"), "set": ("trainval",)}),
        ("--target data/train.lst", {"target": "data/train.lst"}),
        ("--shuffle True", {"shuffle": True}),
        ("--shuffle False", {"shuffle": False}),
        ("--no-shuffle --num-thread 2", {"shuffle": False, "num_thread": 2}),
        ("--class-names names.txt --true-negative False", {"class_names": ("names.txt",), "true_negative": False}),
        ("--dataset coco --root data/coco --set train2014,valminusminival2014", {"dataset": "coco"}),
    ],
    VisualizeOptions: [
        ("--network resnet50 --num-classes 20", {"network": "resnet50", "num_classes": 20}),
        ("--num-class 20 --data-shape 300", {"num_classes": 20, "data_shape": (300,)}),
        ("--train --output-dir output --print-net", {"train": True, "output_dir": "output", "print_net": True}),
        ("--print-net False", {"print_net": False}),
    ],
}
LINES = [(cls, line, fields) for cls, lines in CLASSIC.items() for line, fields in lines]
REFUSED = [
    (train_options_class(), "--kv-store dist_async", "updates in an order that no checkpoint keeps"),
    (train_options_class(), "--gradient-compression 2bit", "keeps what it has not sent in each worker"),
]
OBSOLETE = [
    (train_options_class(), "--num-example 16551", "--num-example has no effect: the record says"),
    (evaluate_options_class(), "--deploy", "--deploy has no effect"),
    (evaluate_options_class(), "--frequent 20", "--frequent has no effect"),
    (DemoOptions, "--no-timer", "the seconds are always logged"),
]
MODEL = {"network": "mobilenet", "class_names": ["a", "b"], "data_shape": [320, 512], "mean_pixels": [123, 117, 104]}


def parse(cls, line):
    return parse_options(cls, line.split(), "A classic line.")


@pytest.mark.parametrize(("cls", "line", "fields"), LINES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_classic_flag_is_known(cls, line, fields):
    options = parse(cls, line)
    assert {name: flat_values(options)[name] for name in fields} == fields


def test_the_documentation_names_every_flag_of_every_command():
    parts = (ROOT / "docs/classic.md").read_text("utf-8").split("\n## ")
    for lines, part in zip(CLASSIC.values(), parts[1:], strict=False):
        flags = {word for line, _ in lines for word in line.split() if re.match("--[a-z]", word)}
        assert not [flag for flag in sorted(flags) if f"`{flag}" not in part], part.splitlines()[0]


@pytest.mark.parametrize(("cls", "line", "what"), REFUSED)
def test_what_cannot_be_is_refused_by_name_and_with_the_reason(cls, line, what):
    with pytest.raises(OptionError, match=f"{line.split()[0]} .*{what}.*no run could be resumed exactly"):
        parse(cls, line)


@pytest.mark.parametrize(("cls", "line", "now"), OBSOLETE)
def test_who_gives_an_obsolete_flag_reads_what_happens_now(cls, line, now, caplog):
    parse(cls, line)
    assert [now in record.message for record in caplog.records] == [True]


def test_nothing_is_said_of_flags_that_are_not_given(caplog):
    for cls in CLASSIC:
        parse(cls, "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"network": "vgg16_reduced"}, "--network vgg16_reduced: output/ssd has mobilenet"),
        ({"num_class": 20}, "--num-class 20: output/ssd has 2"),
        ({"class_names": "b,a"}, "--class-names b, a: output/ssd has a, b"),
        ({"data_shape": 300}, "--data-shape 300, 300: output/ssd has 320, 512"),
        ({"mean_b": 0}, "--mean-b 0.0: output/ssd has 104"),
    ],
)
def test_what_is_said_of_a_model_must_be_true(given, words):
    agreeing = {"network": "mobilenet", "num_class": 2, "class_names": "a,b", "data_shape": "320,512", "mean_r": 123}
    for cls in (evaluate_options_class(), DemoOptions):
        check_model(from_mapping(cls, {}), "output/ssd", **MODEL)
        check_model(from_mapping(cls, agreeing), "output/ssd", **MODEL)
        with pytest.raises(OptionError, match=words):
            check_model(from_mapping(cls, given), "output/ssd", **MODEL)


def test_images_stand_between_the_booleans_of_demo():
    booleans = boolean_flags(DemoOptions)
    words = [
        "--cpu",
        "a.jpg",
        "--no-timer",
        "b.jpg",
        "--force",
        "True",
        "c.jpg",
        "--thresh",
        "-1",
        "--no_force",
        "d.jpg",
    ]
    images, flags = split_words(words, booleans)
    assert images == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert flags == [word for word in words if word not in images]


def test_aliases_appear_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse(deploy_options_class(), "--help")
    assert "--topk" in capsys.readouterr().out


def test_gpus_that_are_not_there_are_one_sentence(tmp_path):
    """Before any record is read."""
    (tmp_path / "data").mkdir()
    for name in ("train.rec", "val.rec"):
        (tmp_path / "data" / name).touch()
    line = ["--gpus", "0,1", "--batch-size", "64", "--lr", "0.001"]
    command = [sys.executable, str(ROOT / "train.py"), *line]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --gpus 0,1: GPU 0 cannot be used")
    assert len(done.stderr.splitlines()) == 1
