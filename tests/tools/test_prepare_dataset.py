"""The command line of prepare_dataset, as a module and as a script."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, OptionError, UserError
from dataset.sidecar import read_sidecar
from tests.dataset.coco import annotation, content, image, write_set
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg, xml_object
from tools.prepare_dataset import main

PROJECT = Path(__file__).parents[2]
BY_SCRIPT = [str(PROJECT / "tools" / "prepare_dataset.py")]
CLASSIC = ["--dataset", "pascal", "--year", "2007,2012", "--set", "trainval", "--shuffle", "True"]
BY_MODULE = ["-m", "tools.prepare_dataset"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOCdevkit"
    for year in ("2007", "2012"):
        add(root / f"VOC{year}", "a", CAT, DOG)
        add(root / f"VOC{year}", "b")
        image_set(root / f"VOC{year}", "trainval", "a", "b")
    return root


def command(how, root, target, *more, cwd=PROJECT):
    argv = [sys.executable, *how, "--root", str(root), "--target", str(target), *more]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("how", "cwd"), [(BY_SCRIPT, PROJECT), (BY_MODULE, PROJECT), (BY_SCRIPT, "/")])
def test_classic_line(root, tmp_path, how, cwd):
    target = tmp_path / "data" / "train.lst"
    done = command(how, root, target, *CLASSIC, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in target.parent.iterdir()) == [".idx", ".json", ".lst", ".rec"]
    assert "images: 4, without objects: 2" in done.stdout
    assert "objects: 4, most in one image: 2" in done.stdout
    sidecar = read_sidecar(target)
    assert len(sidecar.class_names) == 20
    assert sidecar.source == "pascal VOCdevkit 2007,2012 trainval, pixel origin 1"


def test_damaged_image_ends_with_status_2_and_its_name(root, tmp_path):
    (root / "VOC2012/JPEGImages/b.jpg").write_bytes(jpeg(400, 300)[:-3000])
    target = tmp_path / "out" / "t.lst"
    done = command(BY_MODULE, root, target)
    assert done.returncode == 2
    assert "VOC2012/JPEGImages/b.jpg: damaged JPEG" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(target.parent.iterdir()) == []
    done = command(BY_MODULE, root, target, "--skip-bad")
    assert done.returncode == 0
    assert "bad images, left out: 1" in done.stdout
    assert "VOC2012/JPEGImages/b.jpg: damaged JPEG" in done.stdout


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--dataset", "kitti"], OptionError, "--dataset is one of auto, pascal, coco, yolo, list, csv, labelme"),
        (["--dataset", "coco"], DataError, "instances_train2017.json is missing"),
        (["--target", "train"], OptionError, "must end in .lst"),
        (["--class-names", "cat,cat"], OptionError, "'cat' is given twice"),
        (["--class-names", "no.json"], OptionError, "no such file"),
        (["--class-names", "cat"], DataError, "class 'dog'"),
        (["--year", "2010"], DataError, "--year can be 2007,2012"),
        (["--set", "test"], DataError, "test.txt is missing"),
        (["--root", "nowhere"], DataError, "nowhere: no such folder"),
        (["--pixel-origin", "2"], OptionError, "--pixel-origin"),
        (["--num-thread", "0"], OptionError, "--num-thread"),
    ],
)
def test_mistake_is_one_sentence(root, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        main(["--root", str(root), *options])


def test_class_names_from_a_file_or_an_earlier_record(root, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("dog\n\ncat\nbird\n")
    common = ["--root", str(root), "--num-thread", "1", "--target"]
    main([*common, str(tmp_path / "a.lst"), "--class-names", str(names)])
    main([*common, str(tmp_path / "b.lst"), "--class-names", str(tmp_path / "a.json")])
    for name in ("a", "b"):
        assert read_sidecar(tmp_path / f"{name}.rec").class_names == ("dog", "cat", "bird")
    assert (tmp_path / "a.rec").read_bytes() == (tmp_path / "b.rec").read_bytes()


def test_images_without_objects_can_be_left_out(root, tmp_path, capsys):
    target = tmp_path / "t.lst"
    main(["--root", str(root), "--num-thread", "1", "--target", str(target), "--true-negative", "False"])
    assert "images: 2, without objects: 0, left out: 2" in capsys.readouterr().out
    assert read_sidecar(target).num_images == 2


def test_the_two_commands_of_prepare_coco(tmp_path, caplog):
    """The classic script on a small tree of COCO 2014: the parts of val2014 share its images."""
    root, name = tmp_path / "coco", "COCO_{}_{:012d}.jpg"
    for number, part, folder in (
        (9, "train2014", "train2014"),
        (3, "valminusminival2014", "val2014"),
        (4, "minival2014", "val2014"),
    ):
        images = [image(number, name.format(folder, number)), image(number + 20, name.format(folder, number + 20))]
        boxes = [annotation(number, 18, [30, 20, 20, 20]), annotation(number, 90, [0, 0, 20, 15], crowd=1)]
        write_set(root, part, content(images, boxes), folder)
    common = ["--dataset", "coco", "--root", str(root), "--num-thread", "1"]
    train, val = tmp_path / "train.lst", tmp_path / "val.lst"
    main([*common, "--set", "train2014,valminusminival2014", "--target", str(train), "--year", "2014"])
    main([*common, "--set", "minival2014", "--target", str(val), "--no-shuffle"])
    assert "--year has no effect" in caplog.text
    sidecar = read_sidecar(train)
    assert (sidecar.class_names, sidecar.num_images) == (("person", "dog", "toothbrush"), 4)
    assert sidecar.source == "coco coco 2014 train2014,valminusminival2014"
    assert read_sidecar(val).class_names == sidecar.class_names
    lines = [line.split("\t") for line in val.read_text().splitlines()]
    assert [line[-1] for line in lines] == [f"val2014/COCO_val2014_{k:012d}.jpg" for k in (4, 24)]
    objects = np.array(lines[0][3:-1], float).reshape(-1, 6)
    np.testing.assert_allclose(objects, [[1, 0.75, 2 / 3, 1, 1, 0], [2, 0, 0, 0.5, 0.5, 1]], rtol=1e-6)
    assert len(lines[1]) == 4  # a label without objects


@pytest.mark.parametrize("suffix", [".lst", ".rec", ".idx", ".json"])
def test_an_earlier_set_is_replaced_only_if_asked_for(root, tmp_path, suffix, capsys):
    target = tmp_path / "t.lst"
    (tmp_path / f"t{suffix}").write_text("mine")
    words = ["--root", str(root), "--target", str(target), "--num-thread", "1"]
    with pytest.raises(OptionError, match=rf"t\{suffix} is there; choose another name, or give --overwrite"):
        main(words)
    assert [path.name for path in tmp_path.glob("t.*")] == [f"t{suffix}"]
    main([*words, "--overwrite"])
    assert read_sidecar(target).num_images == 4


def test_unwritable_target_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        main(["--root", str(root), "--target", str(tmp_path / "file" / "t.lst")])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ended_by_a_signal_it_leaves_no_half_files(root, tmp_path, number, status):
    big = jpeg(1000, 800)
    for k in range(400):
        add(root / "VOC2007", f"n{k}", xml_object("cat", (1, 1, 9, 9)), image=big)
    image_set(root / "VOC2007", "trainval", *[f"n{k}" for k in range(400)])
    target = tmp_path / "out" / "t.lst"
    argv = [sys.executable, *BY_MODULE, "--root", str(root), "--year", "2007", "--target", str(target)]
    process = subprocess.Popen(argv, cwd=PROJECT, stderr=subprocess.PIPE, start_new_session=True)
    while not target.parent.is_dir() or not list(target.parent.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == status
    assert list(target.parent.iterdir()) == []


def test_a_split_of_a_folder_covers_it_whatever_its_image_sets(tmp_path, capsys):
    folder, target = tmp_path / "mine", tmp_path / "out" / "mine.lst"
    for k in range(10):
        add(folder, f"n{k}", *[CAT] * (k % 3), DOG)
    image_set(folder, "trainval", "n0")
    common = ["--num-thread", "1", "--annotation-list", "--class-names", "cat,dog"]
    main(["--root", str(folder), "--split", "0.6,0.2,0.2", "--target", str(target), *common])
    report = capsys.readouterr().out
    parts = {name: target.with_name(f"mine_{name}.rec") for name in ("train", "val", "test")}
    assert [read_sidecar(rec).num_images for rec in parts.values()] == [6, 2, 2]
    assert report.count("  dog ") == 3
    lines = [line for rec in parts.values() for line in rec.with_suffix(".txt").read_text().splitlines()]
    assert sorted(Path(line.split()[0]).stem for line in lines) == [f"n{k}" for k in range(10)]

    again = tmp_path / "again.lst"
    main(["--dataset", "list", "--root", str(parts["train"].with_suffix(".txt")), "--target", str(again), *common])
    sidecar = read_sidecar(again)
    assert (sidecar.num_images, sidecar.class_names) == (6, ("cat", "dog"))
    cats = sum(line.count(",0") for line in parts["train"].with_suffix(".txt").read_text().splitlines())
    assert f"objects: {cats}," in capsys.readouterr().out


def sets_of(folder):
    return {path.stem: path.read_text().split() for path in (folder / "ImageSets/Main").glob("*.txt")}


def test_the_parts_of_a_split_become_image_sets(tmp_path, capsys):
    """Beside the annotations, as voc_annotation's; --set then names what the split has packed."""
    folder, target = tmp_path / "mine", tmp_path / "out" / "mine.lst"
    for k in range(10):
        add(folder, f"n.{k}", CAT)
    shutil.rmtree(folder / "ImageSets")
    words = ["--root", str(folder), "--num-thread", "1", "--target"]
    split = [*words, str(target), "--split", "0.6,0.2,0.2", "--write-sets"]
    main(split)
    found = sets_of(folder)
    assert {name: len(lines) for name, lines in found.items()} == {"train": 6, "val": 2, "trainval": 8, "test": 2}
    assert found["trainval"] == sorted(found["train"] + found["val"])
    assert sorted(found["trainval"] + found["test"]) == [f"n.{k}" for k in range(10)]
    assert f"{folder}/ImageSets/Main/trainval.txt written" in capsys.readouterr().out
    main([*words, str(tmp_path / "again.lst"), "--set", "test"])
    assert (tmp_path / "again.rec").read_bytes() == target.with_name("mine_test.rec").read_bytes()
    main([*split, "--overwrite"])  # the same sets once more


def test_each_year_gets_sets_of_its_own(root, tmp_path):
    for path in root.glob("*/ImageSets/Main/*"):
        path.unlink()
    main(["--root", str(root), "--target", str(tmp_path / "t.lst"), "--split", "0.5,0.5", "--write-sets"])
    found = {
        f"{year}/{name}": lines for year in ("2007", "2012") for name, lines in sets_of(root / f"VOC{year}").items()
    }
    assert found["2007/trainval"] == found["2012/trainval"] == ["a", "b"]
    assert len([name for key, lines in found.items() if key.endswith(("/train", "/val")) for name in lines]) == 4


def test_an_image_set_that_is_there_is_never_replaced(root, tmp_path):
    before = sets_of(root / "VOC2012")
    target = tmp_path / "out" / "t.lst"
    words = ["--root", str(root), "--target", str(target), "--split", "0.25,0.25,0.5", "--write-sets"]
    with pytest.raises(OptionError, match=r"--write-sets: .*trainval\.txt holds other names and is not replaced"):
        main(words)
    assert sets_of(root / "VOC2012") == before
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [([], "give that, too"), (["--split", "0.5,0.5", "--dataset", "list"], "only pascal folders have image sets")],
)
def test_image_sets_are_those_of_a_split_voc_folder(root, more, message):
    with pytest.raises(OptionError, match=f"--write-sets: .*{message}"):
        main(["--root", str(root), "--write-sets", *more])


def split_in(target, root, *words):
    """Draws parts, writes the sets, and packs the part `val` once more by its set."""
    words = ["--num-thread", "1", "--root", str(root), *words]
    main([*words, "--target", str(target), "--split", "0.5,0.5", "--write-sets"])
    main([*words, "--target", str(target.with_name("again.lst")), "--set", "val", "--no-shuffle"])


def test_each_of_several_roots_gets_sets_of_its_own(tmp_path):
    """`two` lies in `one`, whose images it does not share."""
    one, two = tmp_path / "one", tmp_path / "one/more/two"
    for root in (one, two):
        for k in range(6):
            add(root, f"{root.name}{k}", CAT)
        shutil.rmtree(root / "ImageSets")
    split_in(tmp_path / "t.lst", f"{one},{two}", "--no-shuffle")
    for root in (one, two):
        found = sets_of(root)
        assert found["trainval"] == [f"{root.name}{k}" for k in range(6)]
        assert sorted(found["train"] + found["val"]) == found["trainval"]
    assert (tmp_path / "again.rec").read_bytes() == (tmp_path / "t_val.rec").read_bytes()


def test_sets_of_folders_that_are_named_go_to_the_root(tmp_path):
    root = tmp_path / "set"
    for k in range(6):
        add(root / "made", f"n{k}", CAT)
    words = ["--annotations", str(root / "made/Annotations"), "--images", str(root / "made/JPEGImages")]
    split_in(tmp_path / "t.lst", root, *words, "--no-shuffle")
    assert sets_of(root)["trainval"] == [f"n{k}" for k in range(6)]
    assert not (root / "made/ImageSets/Main/val.txt").exists()
    assert (tmp_path / "again.rec").read_bytes() == (tmp_path / "t_val.rec").read_bytes()
    for wrong in (f"{root},{tmp_path}", str(tmp_path / "none")):
        with pytest.raises(
            OptionError, match=r"--write-sets with --annotations or --images: .* is not one folder; name"
        ):
            main(["--root", wrong, *words, "--split", "0.5,0.5", "--write-sets"])


LISTS = {
    "train.txt": "{}\n",
    "boxes.txt": "{} 1,1,20,15,0\n",
    "boxes.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n{},40,30,cat,1,1,20,15\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_windows_paths_in_lists(tmp_path, name):
    folder = tmp_path / "set"
    for path, text in {"images/a.jpg": jpeg(), "labels/a.txt": b"0 0.25 0.25 0.5 0.5", "classes.txt": b"cat\n"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)
    words = ["--root", str(folder / name), "--target", str(tmp_path / "t.lst"), "--num-thread", "1", "--overwrite"]
    for path in ("images\\a.jpg", ".\\images\\a.jpg"):
        (folder / name).write_text(LISTS[name].format(path))
        main(words)
        assert read_sidecar(tmp_path / "t.rec").num_objects == 1
    for path in ("D:\\set\\images\\a.jpg", "D:/set/images/a.jpg", "\\\\host\\share\\a.jpg"):
        (folder / name).write_text(LISTS[name].format(path))
        with pytest.raises(
            DataError, match=rf"{name}:\d: .* is a path of a Windows machine; write paths relative to .*, w"
        ):
            main(words)


def test_the_annotation_list_holds_what_was_packed(tmp_path):
    folder, target = tmp_path / "mine", tmp_path / "t.lst"
    add(folder, "a", CAT, xml_object("cat", (41, 1, 50, 15)))
    add(folder, "bad", CAT, image=b"no image")
    add(folder, "empty")
    image_set(folder, "trainval", "a", "bad", "empty")
    words = ["--root", str(folder), "--target", str(target), "--num-thread", "1", "--annotation-list", "--skip-bad"]
    main([*words, "--no-true-negative", "--class-names", "cat"])
    assert target.with_suffix(".txt").read_text() == f"{folder}/JPEGImages/a.jpg 1,1,20,15,0\n"


def test_a_path_that_no_list_can_hold_is_told_before_anything_is_written(tmp_path):
    add(tmp_path / "my folder", "a", CAT)
    image_set(tmp_path / "my folder", "trainval", "a")
    target = tmp_path / "out" / "t.lst"
    with pytest.raises(DataError, match="blanks"):
        main(["--root", str(tmp_path / "my folder"), "--target", str(target), "--num-thread", "1", "--annotation-list"])
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("dataset", "root", "target", "lost"),
    [
        ("yolo", "train.txt", "train.lst", "train.txt"),
        ("yolo", "mine.data", "train.lst", "train.txt"),
        ("yolo", "mine.data", "labels/a.lst", "labels/a.txt"),
        ("yolo", "mine.data", "link.lst", "link.txt"),
        ("list", "boxes.txt", "boxes.lst", "boxes.txt"),
        ("list", "boxes.lst", "boxes.lst", "boxes.lst"),
        ("pascal", "voc", "voc/ImageSets/Main/trainval.lst", "voc/ImageSets/Main/trainval.txt"),
        ("coco", "", "annotations/train2017.lst", "annotations/train2017.json"),
    ],
)
def test_what_is_read_is_never_written(tmp_path, dataset, root, target, lost):
    for path, text in {
        "train.txt": "images/a.jpg\n",
        "mine.data": "classes = 1\ntrain = train.txt\n",
        "labels/a.txt": "0 0.5 0.5 0.5 0.5\n",
        "boxes.txt": "images/a.jpg 1,1,20,15,0\n",
        "boxes.lst": "images/a.jpg 1,1,20,15,0\n",
        "annotations/train2017.json": json.dumps(content([image(1, "a.jpg")], [])),
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "link.txt").symlink_to("train.txt")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(jpeg())
    add(tmp_path / "voc", "a", CAT)
    image_set(tmp_path / "voc", "trainval", "a")
    before = (tmp_path / lost).read_bytes()
    (tmp_path / "classes.txt").write_text("cat\n")
    words = ["--dataset", dataset, "--root", str(tmp_path / root), "--target", str(tmp_path / target)]
    with pytest.raises(OptionError, match=f"{lost} would replace .*, which is read; choose another"):
        main([*words, "--annotation-list", "--num-thread", "1"])
    assert (tmp_path / lost).read_bytes() == before
    assert not list(tmp_path.rglob("*.rec"))


@pytest.mark.parametrize("option", ["--set", "--year"])
def test_a_list_has_no_sets(tmp_path, option):
    with pytest.raises(OptionError, match=f"{option}: a list has no"):
        main(["--dataset", "list", "--root", str(tmp_path / "x.txt"), option, "2007"])


def test_skip_bad_leaves_out_damaged_annotations_too(root, tmp_path, capsys):
    target, damaged = tmp_path / "t.lst", root / "VOC2007/Annotations/a.xml"
    damaged.write_text("<annotation><object>")
    words = ["--root", str(root), "--target", str(target), "--num-thread", "1"]
    with pytest.raises(DataError, match=r"VOC2007/Annotations/a\.xml: not well-formed"):
        main(words)
    main([*words, "--skip-bad"])
    shown = capsys.readouterr().out
    assert f"{damaged}: not well-formed" in shown
    assert "images: 3, without objects: 2, left out: 1" in shown
    for path in root.glob("*/Annotations/*.xml"):
        path.write_text("")
    with pytest.raises(DataError, match="no annotation can be used: .*VOC2007"):
        main([*words, "--skip-bad"])


def test_an_image_that_pillow_cannot_read_is_named(tmp_path):
    for path, text in {"images/a.jpg": b"DDS |\0\0\0" + bytes(200), "labels/a.txt": b"0 0.5 0.5 0.1 0.1"}.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(text)
    (tmp_path / "classes.txt").write_text("cat\n")
    words = ["--dataset", "yolo", "--root", str(tmp_path), "--target", str(tmp_path / "t.lst"), "--num-thread", "1"]
    with pytest.raises(DataError, match=r"images that cannot be used: 1 .*a\.jpg: none of JPEG, PNG, BMP, WEBP, TIFF"):
        main(words)


def yolo(folder, names="cat\ndog\n"):
    """An image with a cat and a dog; the names of the classes."""
    for path, text in {
        "images/a.jpg": jpeg(),
        "labels/a.txt": b"0 0.2 0.2 0.1 0.1\n1 0.5 0.5 0.2 0.2\n",
        "my.names": names.encode(),
        "my.data": b"classes = 2\ntrain = my.txt\nnames = my.names\n",
        "my.txt": b"images/a.jpg\n",
        "boxes.txt": b"images/a.jpg 1,1,20,15,0 21,16,40,30,1\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)


def sources(folder):
    """{--dataset: --root} of folders that hold a cat and a dog in an image."""
    add(folder / "voc", "a", CAT, DOG)
    image_set(folder / "voc", "trainval", "a")
    boxes = [annotation(1, 3, [0, 0, 20, 15]), annotation(1, 7, [21, 16, 19, 14])]
    write_set(
        folder, "train2017", content([image(1)], boxes, [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]), "images"
    )
    yolo(folder)
    return {"pascal": "voc", "coco": "", "yolo": "my.data", "list": "boxes.txt"}


@pytest.mark.parametrize("dataset", ["pascal", "coco", "yolo", "list"])
def test_objects_of_other_classes_are_left_out_and_counted_if_asked_for(tmp_path, capsys, dataset):
    target = tmp_path / "t.lst"
    root = tmp_path / sources(tmp_path)[dataset]
    words = ["--dataset", dataset, "--root", str(root), "--target", str(target), "--num-thread", "1"]
    main([*words, "--class-names", "dog", "--only-class-names"])
    shown = capsys.readouterr().out
    assert "objects left out, as --only-class-names says: cat 1\n" in shown
    assert "objects: 1, most in one image: 1" in shown
    sidecar = read_sidecar(target)
    assert (sidecar.class_names, sidecar.objects_per_class) == (("dog",), (1,))
    assert float(target.read_text().split("\t")[4]) > 0.3  # the dog's, not the cat's


@pytest.mark.parametrize("dataset", ["pascal", "coco"])
def test_an_object_of_another_class_is_refused_with_the_option_that_leaves_it_out(tmp_path, dataset):
    root = tmp_path / sources(tmp_path)[dataset]
    words = ["--dataset", dataset, "--root", str(root), "--target", str(tmp_path / "t.lst")]
    with pytest.raises(DataError, match="'cat' is not among the 1 class names.*out with --only-class-names"):
        main([*words, "--class-names", "dog"])


def test_only_class_names_needs_names(root):
    with pytest.raises(OptionError, match="--only-class-names: name the classes to keep with --class-names"):
        main(["--root", str(root), "--only-class-names"])


@pytest.mark.parametrize("source", ["my.data", "", "boxes.txt"])
@pytest.mark.parametrize(("given", "told"), [("cat,dog", False), ("dog,cat", True), ("cat,dog,cow", True)])
def test_other_names_than_those_beside_the_labels_are_told(tmp_path, caplog, source, given, told):
    yolo(tmp_path)
    words = ["--dataset", "list" if source == "boxes.txt" else "yolo", "--root", str(tmp_path / source)]
    main([*words, "--target", str(tmp_path / "t.lst"), "--num-thread", "1", "--class-names", given])
    message = f"its class ids are named by --class-names ({given}), not by its own names (cat,dog); --only-class-names"
    assert (message in caplog.text) == told
    assert read_sidecar(tmp_path / "t.rec").class_names == tuple(given.split(","))


def test_names_for_classes_without_are_no_contradiction(tmp_path, caplog):
    yolo(tmp_path)
    (tmp_path / "my.data").write_text("classes = 2\ntrain = my.txt\n")
    words = ["--dataset", "yolo", "--root", str(tmp_path / "my.data"), "--num-thread", "1"]
    main([*words, "--target", str(tmp_path / "t.lst"), "--class-names", "x,y"])
    assert "its own names" not in caplog.text


def test_parts_keep_groups_of_names_together(tmp_path, capsys):
    folder = tmp_path / "set"
    for name in (f"{film}_{frame:03}" for film in "abcd" for frame in range(3)):
        add(folder, name, CAT)
    words = ["--root", str(folder), "--target", str(tmp_path / "t.lst"), "--num-thread", "1", "--split", "0.5,0.5"]
    main([*words, "--group-by", r"(.*)_\d+"])
    assert "groups by name: 4, images whose names give none: 0" in capsys.readouterr().out
    films = [
        {line.split("\t")[-1].split("_")[0] for line in (tmp_path / f"t_{part}.lst").read_text().splitlines()}
        for part in ("train", "val")
    ]
    assert [len(some) for some in films] == [2, 2]
    assert not films[0] & films[1]
    for more, says in ((["--group-by", "("], "no regular expression"), (["--group-by", "zz"], "matches no name")):
        with pytest.raises(UserError, match=says):
            main([*words, "--overwrite", *more])
    with pytest.raises(UserError, match="give that, too"):
        main([*words[:-2], "--overwrite", "--group-by", "a"])
