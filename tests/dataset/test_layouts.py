"""Every layout of the table is packed with its objects where they are, by a root as a user gives it."""

import os
import shlex

import numpy as np
import pytest

from common.errors import DataError
from dataset.csv_boxes import CsvBoxes
from dataset.labels import parse_label
from dataset.layouts import sets_of
from dataset.recordio import RecordReader
from dataset.sidecar import read_sidecar
from tests.dataset import layouts
from tests.dataset.layouts import LAYOUTS, images, voc, write, yolo
from tools.prepare_dataset import main

QUARTERS = {"cat": [0, 0, 0.5, 0.5, 0], "dog": [0.5, 0.5, 1, 1, 0]}


def pack(tmp_path, words):
    target = tmp_path / "out" / "t.lst"
    main([*words, "--target", str(target), "--num-thread", "1"])
    return target


def objects_of(target):
    """[{class: box and difficult}] of a record."""
    names, reader = read_sidecar(target).class_names, RecordReader(target.with_suffix(".rec"))
    labels = [parse_label(reader.record(k).label, "") for k in range(len(reader))]
    return [{names[int(row[0])]: row[1:].tolist() for row in label} for label in labels]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_is_recognised_and_packed(tmp_path, layout, caplog, monkeypatch):
    caplog.set_level("INFO")
    layout.build(tmp_path / "set")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    target = pack(tmp_path, shlex.split(layout.words.replace("FOLDER", "../set")))
    found = objects_of(target)
    assert len(found) == layout.count
    for objects in found:
        assert set(objects) == set(QUARTERS)
        for name, box in QUARTERS.items():
            np.testing.assert_allclose(objects[name], box, atol=1e-6)
    for kind in layout.kind.split("+"):
        assert f"is read as --dataset {kind}: " in caplog.text
    assert read_sidecar(target).source.startswith(layout.kind)


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if "+" not in one.kind], ids=lambda layout: layout.name)
def test_auto_and_the_kind_by_name_pack_the_same(tmp_path, layout):
    layout.build(tmp_path / "set")
    words = shlex.split(layout.words.replace("FOLDER", str(tmp_path / "set")))
    contents = [pack(tmp_path / kind, [*words, "--dataset", kind]) for kind in ("auto", layout.kind)]
    assert len({path.with_suffix(".rec").read_bytes() for path in contents}) == 1


SETS = {
    "VOCdevkit": ["trainval"],
    "Roboflow's VOC": ["train", "valid", "test"],
    "VOC, with sets": ["trainval"],
    "COCO": ["train2017"],
    "Roboflow's COCO": ["train", "valid"],
    "YOLO, with sets": ["train", "val"],
    "Roboflow's YOLO": ["train", "val"],
    "ultralytics' YOLO": ["train", "val"],
    "CVAT's YOLO": ["train"],
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_parts_of_a_layout_are_its_sets(tmp_path, layout):
    layout.build(tmp_path)
    assert sets_of(tmp_path, layout.kind) == SETS.get(layout.name, [])


def test_trainval_is_no_part_beside_train_and_val(tmp_path):
    for name in ("test", "train", "trainval", "val", "cat_train"):
        write(tmp_path / f"ImageSets/Main/{name}.txt", "a\n")
    assert sets_of(tmp_path, "pascal") == ["train", "val", "test"]
    for name in ("VOC2007/ImageSets/Main/test", "VOC2007/ImageSets/Main/train", "VOC2012/ImageSets/Main/train"):
        write(tmp_path / f"devkit/{name}.txt", "a\n")
    assert sets_of(tmp_path / "devkit", "pascal") == ["train"]
    assert sets_of(tmp_path / "devkit", "pascal", ["2007"]) == ["train", "test"]


def test_the_document_has_the_table():
    text = layouts.DOCUMENT.read_text("utf-8")
    assert text == layouts.with_table(text, "layouts", layouts.layout_rows()), "python -m tests.dataset.layouts"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: images(root, "images/a.jpg"), "holds no annotations that are known here"),
        (lambda root: (voc(root, "xml/a.xml"), yolo(root, "labels/a.txt"), images(root, "images/a.jpg")),
         "several kinds .pascal: XML files in xml/; yolo: labels/ and images/.; choose one with --dataset"),
        (lambda root: (voc(root, "annotations/a.xml"), images(root, "images/b.jpg")), r"a\.jpg: the image is missing"),
    ],
)  # fmt: skip
def test_a_folder_that_is_none_or_several_is_refused(tmp_path, build, message):
    build(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        pack(tmp_path, ["--root", str(tmp_path / "set")])


def test_a_folder_without_sets_names_split(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in "abcde":
        voc(tmp_path, f"set/annotations/{name}.xml")
        images(tmp_path, f"set/images/{name}.jpg")
    words = ["--root", str(tmp_path / "set")]
    pack(tmp_path, words)
    assert "has no ImageSets: all its 5 annotations are taken; --split 0.8,0.2 draws" in caplog.text
    with pytest.raises(DataError, match=r"val\.txt is missing: there are no ImageSets; leave out --set, and --split 0"):
        pack(tmp_path, [*words, "--set", "val"])
    main([*words, "--split", "0.8,0.2", "--target", str(tmp_path / "parts.lst"), "--num-thread", "1"])
    assert [read_sidecar(tmp_path / f"parts_{part}.rec").num_images for part in ("train", "val")] == [4, 1]


def test_names_still_cannot_leave_a_root_with_dots(tmp_path, monkeypatch):
    voc(tmp_path, "set/Annotations/a.xml", "secret.xml")
    images(tmp_path, "set/JPEGImages/a.jpg")
    write(tmp_path / "set/ImageSets/Main/trainval.txt", "../../secret\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="lies outside"):
        pack(tmp_path, ["--root", "../set"])


def test_a_data_yaml_leads_nowhere_else(tmp_path):
    images(tmp_path, "other/images/a.jpg")
    yolo(tmp_path, "other/labels/a.txt")
    write(tmp_path / "set/data.yaml", f"path: {tmp_path}/other\ntrain: images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"'images' leads out of its folder, to .*other/images; give --root that"):
        pack(tmp_path, ["--root", str(tmp_path / "set")])
    words = ["--root", str(tmp_path / "other"), "--class-names", str(tmp_path / "set/data.yaml")]
    assert len(objects_of(pack(tmp_path, words))) == 1


@pytest.mark.parametrize("key", ["train", "path"])
def test_a_data_yaml_with_a_path_that_no_file_can_have(tmp_path, key):
    images(tmp_path, "images/a.jpg")
    yolo(tmp_path, "labels/a.txt")
    values = {"path": ".", "train": "images", key: "9" * 300}
    write(tmp_path / "data.yaml", "".join(f"{k}: '{v}'\n" for k, v in values.items()) + "names: [cat, dog]\n")
    if key == "path":
        assert len(objects_of(pack(tmp_path, ["--root", str(tmp_path)]))) == 1
    else:
        with pytest.raises(DataError, match=r"'9{190,}.* is missing \(looked in"):
            pack(tmp_path, ["--root", str(tmp_path)])


def test_the_same_image_in_two_roots_is_refused(tmp_path):
    layouts._csv(tmp_path / "one")
    with pytest.raises(DataError, match=r"a\.jpg is in two of the roots"):
        pack(tmp_path, ["--root", f"{tmp_path}/one,{os.path.relpath(tmp_path / 'one')}"])


def test_a_root_with_a_comma_in_its_name_is_one(tmp_path):
    layouts._csv(tmp_path / "one,two")
    assert len(objects_of(pack(tmp_path, ["--root", str(tmp_path / "one,two")]))) == 1


def test_a_csv_of_strangers_leads_nowhere_else(tmp_path):
    images(tmp_path, "secret/a.jpg", "set/b.jpg")
    for path in (f"{tmp_path}/secret/a.jpg", "../secret/a.jpg"):
        write(tmp_path / "deep/set/boxes.csv", f"{path},1,1,9,9,cat\n")
        with pytest.raises(DataError, match="lies outside|is missing"):
            pack(tmp_path, ["--root", str(tmp_path / "deep/set")])
    write(tmp_path / "deep/set/boxes.csv", f"{tmp_path}/secret/a.jpg,1,1,9,9,cat\n")
    words = ["--root", str(tmp_path / "deep/set"), "--images", str(tmp_path / "secret")]
    assert len(objects_of(pack(tmp_path, words))) == 1


@pytest.mark.parametrize("text", [b"a.jpg,1,1,9,9,cat\rb.jpg,1,1,9,9,cat\r", b'a.jpg,1,1,9,9,"' + b"c" * 200_000])
def test_what_is_no_csv_is_named(tmp_path, text):
    """Lines that end with carriage returns alone, and a quotation mark that nothing closes."""
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(DataError, match="a.csv:1: is no line of a CSV file"):
        CsvBoxes(tmp_path / "a.csv")


def test_names_that_disagree_are_decided_by_the_user(tmp_path):
    layouts._yolo_beside(tmp_path / "set")
    write(tmp_path / "set/my.names", "dog\ncat\n")
    words = ["--root", str(tmp_path / "set")]
    with pytest.raises(DataError, match=r"names of the classes differ: .*my\.names, .*classes\.txt; choose one"):
        pack(tmp_path, words)
    assert len(objects_of(pack(tmp_path, [*words, "--class-names", str(tmp_path / "set/images/classes.txt")]))) == 1
