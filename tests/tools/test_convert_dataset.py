"""convert_dataset: what it writes is packed by prepare_dataset --dataset auto as the source is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, OptionError
from dataset.imdb import AnnotatedImage
from dataset.labels import parse_label
from dataset.recordio import RecordReader
from dataset.sidecar import read_sidecar
from dataset.writers import FORMATS, NAMES
from tests.dataset import layouts
from tests.dataset.coco import annotation, content, image, write_set
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg, xml_object
from tests.tools.test_check_dataset import BOX, bytes_of, write_record
from tools.convert_dataset import main
from tools.prepare_dataset import main as prepare

PROJECT = Path(__file__).parents[2]
FORMS = tuple(FORMATS)
CELL, DOT = xml_object("cell", (1, 1, 20, 15)), xml_object("dot", (21, 16, 40, 30), difficult=1)


@pytest.fixture
def mine(tmp_path):
    """A VOC folder with the sets train and val, an image without objects, and a PNG."""
    root = tmp_path / "mine"
    add(root, "a", CELL, DOT)
    add(root, "b", image=jpeg(seed=1))
    add(root, "c", xml_object("dot", (3.25, 4, 30.125, 20)), image=jpeg(seed=2))
    image_set(root, "train", "a", "b")
    image_set(root, "val", "c")
    return root


def convert(root, form, output, *more):
    roots = root if isinstance(root, list) else [root]
    main([*map(str, roots), "--to", form, "--output", str(output), *map(str, more)])
    return output


def packed(root, target, *more):
    """{image bytes: objects} of the record that prepare_dataset makes, and its class names."""
    words = ["--root", root, "--target", target, "--no-shuffle", "--num-thread", 1, "--overwrite", *more]
    prepare([str(word) for word in words])
    reader = RecordReader(target.with_suffix(".rec"))
    records = [reader.record(k) for k in range(len(reader))]
    return {one.image: parse_label(one.label, "it").tolist() for one in records}, read_sidecar(target).class_names


def without_difficult(records):
    return {one: [row[:5] for row in rows] for one, rows in records.items()}


def names_of(root, form):
    return [] if form in ("coco", "yolo") else ["--class-names", root / NAMES]


@pytest.mark.parametrize("form", FORMS)
def test_the_sets_are_packed_as_those_of_the_source(mine, tmp_path, form, capsys):
    before = bytes_of(mine)
    output = convert(mine, form, tmp_path / "out", "--class-names", "dot,cell")
    assert bytes_of(mine) == before
    assert ("difficult objects, which yolo does not know, written as the others: 1" in capsys.readouterr().out) == (
        form == "yolo"
    )
    for part in ("train", "val"):
        expected = packed(mine, tmp_path / "a.lst", "--set", part, "--class-names", "dot,cell")
        found = packed(output, tmp_path / "b.lst", "--set", part, *names_of(output, form))
        assert found[1] == expected[1]
        if form == "yolo":
            assert without_difficult(found[0]) == without_difficult(expected[0])
        else:
            assert found[0] == expected[0]
    packed(output, tmp_path / "c.lst")  # without an option


@pytest.mark.parametrize("form", FORMS)
def test_a_record_becomes_a_folder_and_the_same_record_again(tmp_path, form):
    boxes = [[[*BOX[:5], 0], [1, 0.3333333, 0, 1, 0.7654321, 0]], []]
    rec = write_record(tmp_path / "made.rec", boxes, names=("cell", "dot"))
    (tmp_path / "made.lst").write_text("0\t0\tfilm/one frame.bmp\n1\t0\tfilm/two.JPG\n")
    output = convert(rec, form, tmp_path / "out")
    assert {path.name for path in output.rglob("*") if path.suffix.lower() == ".jpg"} == {"one frame.jpg", "two.JPG"}
    found, names = packed(output, tmp_path / "again.lst", *names_of(output, form))
    reader = RecordReader(rec)
    assert found == {one.image: parse_label(one.label, "it").tolist() for one in map(reader.record, range(2))}
    assert names == ("cell", "dot")


def test_whole_pixels_of_a_record_are_whole(tmp_path):
    width = 40
    rec = write_record(tmp_path / "made.rec", [[[0, 7 / width, 11 / 30, 13 / width, 29 / 30, 0]]])
    output = convert(rec, "voc", tmp_path / "out")
    text = next(output.rglob("*.xml")).read_text()
    assert "<xmin>8</xmin><ymin>12</ymin><xmax>13</xmax><ymax>29</ymax>" in text
    assert Path(text.partition("<filename>")[2].partition("<")[0]).name == "000000.jpg"


def test_a_record_without_names_and_one_with_a_wrong_label(tmp_path, caplog):
    rec = write_record(tmp_path / "made.rec", [[BOX], [[1, *BOX[1:]]]])
    (tmp_path / "made.json").unlink()
    output = convert(rec, "yolo", tmp_path / "one")
    assert "classes of records without names are called class0" in caplog.text
    assert '  - "class0"\n  - "class1"' in (output / "data.yaml").read_text()
    assert (
        '  - "x"\n  - "y"' in (convert(rec, "yolo", tmp_path / "two", "--class-names", "x,y") / "data.yaml").read_text()
    )
    with pytest.raises(OptionError, match="1 names for 2 classes"):
        convert(rec, "yolo", tmp_path / "three", "--class-names", "x")
    rec = write_record(tmp_path / "wrong.rec", [[BOX], [[0, 0.5, 0.5, 0.1, 0.9, 0]]])
    with pytest.raises(DataError, match="wrong.rec, record 1, object 0"):
        convert(rec, "yolo", tmp_path / "three")
    assert len(list((convert(rec, "voc", tmp_path / "four", "--skip-bad") / "JPEGImages").iterdir())) == 1


def test_several_records_are_sets_of_one_folder(tmp_path):
    for part in ("train", "val"):
        write_record(tmp_path / f"made_{part}.rec", [[BOX]], image=jpeg(seed=len(part)))
    output = convert([tmp_path / "made_train.rec", tmp_path / "made_val.rec"], "yolo", tmp_path / "out")
    assert 'val: "images/made_val"' in (output / "data.yaml").read_text()
    write_record(tmp_path / "other.rec", [[BOX]], names=("x", "y"))
    with pytest.raises(DataError, match="different classes"):
        convert([tmp_path / "made_train.rec", tmp_path / "other.rec"], "yolo", tmp_path / "two")


@pytest.mark.parametrize("layout", layouts.LAYOUTS[:-1], ids=lambda layout: layout.name)
def test_each_layout_is_converted(tmp_path, layout):
    layout.build(tmp_path / "set")
    words = [word.replace("FOLDER", str(tmp_path / "set")) for word in layout.words.split()]
    words.remove("--root")
    main([*words, "--to", "coco", "--output", str(tmp_path / "out")])
    entries = [json.loads(path.read_text()) for path in (tmp_path / "out/annotations").glob("*.json")]
    boxes = {tuple(one["bbox"]) for content in entries for one in content["annotations"]}
    assert boxes == {(0, 0, 20, 15), (20, 15, 20, 15)}


STRANGE = [
    "a b.jpg", "a.png", "A.JPG", "a.jpg.png", "café ü.jpg", "#x.jpg", "-y.jpg", "images/a.jpg", "cam1/a.jpg",
    "labels/annotations/q'\"uo,te;.jpg", "image 1.jpg", "classes.jpg", "x\u00a0y.jpg", " z .jpg", "no_suffix",
    "back\\slash.jpg", "n" * 180 + "/" + "m" * 180 + ".jpg", "._mac.jpg",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_strange_names_of_files_and_classes(tmp_path, form, monkeypatch):
    names = ['#1, "two"', "Cell", "cell", "<b> & 'c'", "1e3", "shapes"]
    some = []
    for seed, name in enumerate(STRANGE):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed=seed))
        objects = np.array([[seed % len(names), seed, 1, 40, 20 + seed / 3, 0]], float)
        some.append(AnnotatedImage(name, path, objects, (30, 40)))
    one = type("Read", (), {"class_names": names, "images": some, "dropped": (), "bad": (), "sources": ()})
    monkeypatch.setattr("tools.convert_dataset.read_sets", lambda wanted: ({"": one}, "made"))
    output = convert(tmp_path / "in", form, tmp_path / "out")
    found, classes = packed(output, tmp_path / "t.lst", *names_of(output, form))
    assert list(classes) == names
    for image_ in some:
        expected = image_.objects[:, 1:5] / (40, 30, 40, 30)
        row = found[image_.path.read_bytes()][0]
        assert row[0] == image_.objects[0, 0]
        np.testing.assert_array_equal(np.float32(row[1:5]), expected[0].astype(np.float32))
    assert not any(path.name == "no_suffix" for path in output.rglob("*"))


def test_the_years_of_a_devkit_are_one_data_set(tmp_path):
    for year in ("2007", "2012"):
        add(tmp_path / f"in/VOC{year}", "a", CAT if year == "2007" else DOG, image=jpeg(seed=int(year)))
        image_set(tmp_path / f"in/VOC{year}", "train", "a")
    output = convert(tmp_path / "in", "yolo", tmp_path / "out")
    assert sorted(path.name for path in (output / "labels/train").iterdir()) == ["VOC2007_a.txt", "VOC2012_a.txt"]
    assert (output / "data.yaml").read_text().startswith('train: "images/train"\nnc: 20\n')


def test_an_image_of_two_sets_is_one_file_of_voc(mine, tmp_path):
    image_set(mine, "val", "c", "a")
    output = convert(mine, "voc", tmp_path / "voc")
    assert len(list((output / "JPEGImages").iterdir())) == 3
    assert (output / "ImageSets/Main/val.txt").read_text() == "c\na\n"
    assert (output / "ImageSets/Main/trainval.txt").read_text() == "a\nb\nc\n"
    output = convert(mine, "coco", tmp_path / "coco")
    assert sorted(path.name for path in (output / "images/val").iterdir()) == ["a.jpg", "c.jpg"]


def test_equal_names_of_two_sets_stay_apart_in_voc(tmp_path):
    for seed, part in enumerate(("train", "val")):
        layouts.write(tmp_path / f"in/images/{part}/a.jpg", jpeg(seed=seed))
        layouts.write(tmp_path / f"in/labels/{part}/a.txt", f"{seed} 0.5 0.5 0.5 0.5\n")
    layouts.write(tmp_path / "in/classes.txt", "cell\ndot\n")
    output = convert(tmp_path / "in", "voc", tmp_path / "out")
    assert sorted(path.name for path in (output / "Annotations").iterdir()) == ["a.xml", "val_a.xml"]
    assert "<name>dot</name>" in (output / "Annotations/val_a.xml").read_text()


def test_classes_of_the_sets_are_those_of_all(tmp_path):
    add(tmp_path / "in", "a", DOT)
    add(tmp_path / "in", "b", CELL)
    image_set(tmp_path / "in", "train", "a")
    image_set(tmp_path / "in", "val", "b")
    output = convert(tmp_path / "in", "yolo", tmp_path / "out")
    assert (output / "labels/train/a.txt").read_text().split()[0] == "1"
    assert (output / "labels/val/b.txt").read_text().split()[0] == "0"


def test_trainval_is_a_set_where_train_and_val_are_not(tmp_path):
    add(tmp_path / "in", "a", CAT)
    add(tmp_path / "in", "b", DOG)
    image_set(tmp_path / "in", "trainval", "a")
    image_set(tmp_path / "in", "test", "b")
    output = convert(tmp_path / "in", "yolo", tmp_path / "out")
    text = (output / "data.yaml").read_text()
    assert 'train: "images/trainval"\ntest: "images/test"' in text
    image_set(tmp_path / "in", "odd", "b")
    with pytest.raises(DataError, match="neither train, val nor test"):
        convert(tmp_path / "in", "yolo", tmp_path / "two", "--set", "trainval,odd")
    assert not (tmp_path / "two").exists()


def test_boxes_of_another_size_are_scaled_as_in_packing(tmp_path, capsys):
    add(tmp_path / "in", "a", xml_object("cell", (1, 1, 40, 30)), width=80, height=60)
    output = convert(tmp_path / "in", "coco", tmp_path / "out")
    found = json.loads((output / "annotations/instances_train.json").read_text())
    assert found["annotations"][0]["bbox"] == [0, 0, 20, 15]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (40, 30)
    assert "their boxes were scaled: 1" in capsys.readouterr().out
    add(tmp_path / "in", "b", CELL, width=80, height=30)
    with pytest.raises(DataError, match="of other proportions"):
        convert(tmp_path / "in", "coco", tmp_path / "two")


def test_bad_images_and_labels_are_refused_or_left_out(mine, tmp_path, capsys):
    (mine / "JPEGImages/b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images that cannot be used: 1 .*JPEGImages/b.jpg: damaged"):
        convert(mine, "yolo", tmp_path / "out")
    (mine / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="a.xml: not well-formed"):
        convert(mine, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    convert(mine, "voc", tmp_path / "out", "--skip-bad", "--set", "val,train")
    out = capsys.readouterr().out
    assert "bad annotations, left out: 1" in out
    assert "bad images, left out: 1" in out
    assert [path.name for path in (tmp_path / "out/Annotations").iterdir()] == ["c.xml"]


def test_pictures_are_linked(mine, tmp_path, monkeypatch, capsys):
    output = convert(mine, "voc", tmp_path / "linked", "--pictures", "link")
    assert (output / "JPEGImages/a.jpg").samefile(mine / "JPEGImages/a.jpg")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    output = convert(mine, "voc", tmp_path / "copied", "--pictures", "link")
    assert (output / "JPEGImages/a.jpg").read_bytes() == (mine / "JPEGImages/a.jpg").read_bytes()
    assert "pictures copied, as they cannot be linked there: 3" in capsys.readouterr().out
    with pytest.raises(OptionError, match="--pictures link"):
        convert(write_record(tmp_path / "made.rec", [[BOX]]), "voc", tmp_path / "x", "--pictures", "link")


ALONE = {
    "voc": [], "coco": ["--set", "train"], "yolo": ["--annotations", "OUT/labels/train"], "csv": ["--set", "train"],
    "labelme": ["--set", "train"],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_annotations_alone_go_with_the_pictures_where_they_are(mine, tmp_path, form):
    output = convert(mine, form, tmp_path / "out", "--pictures", "none")
    assert not [path for path in output.rglob("*") if path.suffix == ".jpg"]
    words = [word.replace("OUT", str(output)) for word in ALONE[form]]
    found, _ = packed(output, tmp_path / "t.lst", "--images", mine / "JPEGImages", *words)
    assert sorted(map(len, found.values()))[-1] == 2


def test_annotations_alone_need_the_names_of_the_pictures(tmp_path):
    for name in ("one/a", "two/a"):
        layouts.write(tmp_path / f"in/Annotations/{name}.xml", f"<annotation>{CELL}</annotation>")
        layouts.write(tmp_path / f"in/JPEGImages/{name}.jpg", jpeg())
    with pytest.raises(OptionError, match="one/a.jpg: one_a.jpg"):
        convert(tmp_path / "in", "voc", tmp_path / "out", "--pictures", "none")


def test_no_file_of_the_user_is_replaced(mine, tmp_path):
    (tmp_path / "out").mkdir()
    convert(mine, "csv", tmp_path / "out")  # empty folders are fine
    before = bytes_of(tmp_path)
    for output, words in (("out", "holds files"), ("mine/new", "lies in"), ("mine/Annotations/a.xml", "is a file")):
        with pytest.raises(OptionError, match=words):
            convert(mine, "csv", tmp_path / output)
    assert bytes_of(tmp_path) == before
    for words in (["--to", "csv"], [str(mine), "--output", "x"], [str(mine), "--to", "csv"], [str(mine), str(mine)]):
        with pytest.raises(OptionError):
            main([*words, *(["--to", "csv", "--output", "x"] if words == [str(mine), str(mine)] else [])])


def test_only_the_chosen_classes_are_written(mine, tmp_path, capsys):
    output = convert(mine, "yolo", tmp_path / "out", "--class-names", "dot", "--only-class-names")
    assert (output / "labels/train/a.txt").read_text() == "0 0.75 0.75 0.5 0.5\n"
    assert "objects left out, as --only-class-names says: cell 1" in capsys.readouterr().out


def test_sets_of_a_data_file_and_of_coco(tmp_path):
    coco = tmp_path / "coco"
    for part in ("train2017", "val2017", "captions_val2017"):
        write_set(coco, part, content([image(1, f"{part}.jpg")], [annotation(1, 1, [0, 0, 9, 9])]))
    output = convert(coco, "yolo", tmp_path / "one")
    assert sorted(path.name for path in (output / "images").iterdir()) == ["train2017", "val2017"]
    layouts._darknet(tmp_path / "darknet")
    with (tmp_path / "darknet/mine.data").open("a") as file:
        file.write("valid = valid.txt\n")
    layouts.write(tmp_path / "darknet/valid.txt", "images/a.jpg\n")
    output = convert(tmp_path / "darknet/mine.data", "coco", tmp_path / "two")
    assert sorted(path.name for path in (output / "annotations").iterdir()) == [
        "instances_train.json", "instances_valid.json",
    ]  # fmt: skip


def test_a_killed_run_leaves_nothing_under_the_name(mine, tmp_path):
    code = (
        "import sys, time; from tools import convert_dataset as c; c._write_picture = lambda *a: time.sleep(60); "
        "c.main(sys.argv[1:])"
    )
    words = [str(mine), "--to", "voc", "--output", str(tmp_path / "out")]
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=PROJECT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.wait()
        assert not (tmp_path / "out").exists()
        assert len(list(tmp_path.glob(".out.*"))) == left
    convert(mine, "voc", tmp_path / "out")
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_supervision_reads_what_is_written(mine, tmp_path, form):
    reader = pytest.importorskip("supervision").DetectionDataset
    out = convert(mine, form, tmp_path / "out", "--set", "train")
    read = {
        "voc": lambda: reader.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations")),
        "coco": lambda: reader.from_coco(str(out / "images/train"), str(out / "annotations/instances_train.json")),
        "yolo": lambda: reader.from_yolo(str(out / "images/train"), str(out / "labels/train"), str(out / "data.yaml")),
    }[form]()
    boxes = {Path(path).name: found.xyxy.tolist() for path, found in read.annotations.items()}
    assert boxes == {"a.jpg": [[0, 0, 20, 15], [20, 15, 40, 30]], "b.jpg": []}
    names = [read.classes[k] for found in read.annotations.values() for k in found.class_id]
    assert sorted(names) == ["cell", "dot"]


def test_options_without_effect_are_told(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        convert(write_record(tmp_path / "a.rec", [[BOX]]), "coco", tmp_path / "o", "--set", "x", "--output-origin", 0)
    assert "--set has no effect for records" in caplog.text
    assert "--output-origin has no effect with --to coco" in caplog.text


def test_annotations_without_any_class_are_refused(tmp_path):
    layouts.write(tmp_path / "in/boxes.csv", "filename,xmin,ymin,xmax,ymax,class\na.jpg,,,,,\n")
    layouts.images(tmp_path / "in", "a.jpg")
    with pytest.raises(DataError, match="no objects and so no classes"):
        convert(tmp_path / "in", "yolo", tmp_path / "out")


def test_coco_and_yolo_of_bccd_give_the_record_of_voc(bccd_dir, tmp_path):
    for form in ("coco", "yolo", "voc", "csv", "labelme"):
        convert(bccd_dir, form, tmp_path / form)
    for part in ("train", "test"):
        expected = packed(bccd_dir, tmp_path / "source.lst", "--set", part)
        record = (tmp_path / "source.rec").read_bytes()
        for form in ("coco", "yolo", "voc", "csv", "labelme"):
            assert packed(tmp_path / form, tmp_path / "other.lst", "--set", part) == expected
            assert (tmp_path / "other.rec").read_bytes() == record  # the sets of BCCD are sorted, as folders are
