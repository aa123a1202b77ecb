""".data, .names, lists and YOLO labels: what is read, and mistakes named with file and line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from dataset.darknet_data import DarknetData, read_data, read_names, write_data, write_names
from dataset.labels import parse_label
from dataset.recordio import RecordReader, unpack
from dataset.sidecar import read_sidecar
from dataset.yolo import YoloFolder, label_path
from tests.dataset.voc import jpeg
from tools.prepare_dataset import main


@pytest.fixture
def folder(tmp_path):
    """Images of 40 x 30 pixels: train/a has two objects, train/b none, valid/c one."""
    root = tmp_path / "mine"
    labels = {"train/a": "1 0.5 0.5 0.5 0.2\n\n0 0.1 0.2 0.1 0.1\n", "train/b": None, "valid/c": "0 0.9 0.9 0.4 0.4"}
    for name, text in labels.items():
        image, label = root / "images" / f"{name}.jpg", root / "labels" / f"{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(jpeg())
        if text is not None:
            label.write_text(text)
    (root / "mine.names").write_text("cat\ndog\n")
    (root / "train.txt").write_text("images/train/a.jpg\nmine/images/train/b.jpg\n")
    (root / "valid.txt").write_text(f"{root}/images/valid/c.jpg\n")
    write_data(root / "mine.data", DarknetData(2, "train.txt", "mine/valid.txt", "mine.names"))
    return root


def test_labels_become_corners_in_pixels(folder):
    data = YoloFolder(folder, ["train"])
    assert data.class_names == ("cat", "dog")
    assert [image.name for image in data.images] == ["images/train/a.jpg", "images/train/b.jpg"]
    expected = [[1, 10, 12, 30, 18, 0], [0, 2, 4.5, 6, 7.5, 0]]
    assert np.allclose(data.images[0].objects, expected)
    assert data.images[0].size == (30, 40)
    assert len(data.images[1].objects) == 0


def test_images_without_a_label_file_are_counted(folder, caplog):
    YoloFolder(folder, ["valid"])
    assert "no label file" not in caplog.text
    YoloFolder(folder, ["train"])
    assert "1 of 2 images have no label file" in caplog.text
    assert str(folder / "images/train/b.jpg") in caplog.text


@pytest.mark.parametrize(("sets", "count"), [([], 2), (["train"], 2), (["valid"], 1), (["train", "valid"], 3)])
def test_a_data_file_names_lists_by_any_of_its_paths(folder, sets, count):
    data = YoloFolder(folder / "mine.data", sets)
    assert len(data.images) == count
    assert data.class_names == ("cat", "dog")


def test_a_list_and_a_whole_folder(folder):
    assert len(YoloFolder(folder).images) == 3
    assert [image.name for image in YoloFolder(folder / "train.txt").images] == [
        "images/train/a.jpg",
        "images/train/b.jpg",
    ]


def test_without_names_a_folder_is_refused_and_a_data_file_says_how_many(folder, caplog):
    """The largest id seen is not the number of classes."""
    (folder / "mine.names").unlink()
    with pytest.raises(DataError, match=r"mine: its classes have no names: .* classes\.txt .* --class-names"):
        YoloFolder(folder)
    write_data(folder / "mine.data", DarknetData(3, "train.txt"))
    assert YoloFolder(folder / "mine.data").class_names == ("class0", "class1", "class2")
    assert "no names: they are called class0 to class2; --class-names names them" in caplog.text


def test_boxes_without_area_are_dropped_and_listed(folder):
    (folder / "labels/valid/c.txt").write_text("0 0.5 0.5 0 0.1\n0 0.5 0.5 0.1 0.1\n")
    data = YoloFolder(folder, ["valid"])
    assert len(data.images[0].objects) == 1
    assert data.dropped[0].endswith("valid/c.txt:1: the object has no area")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .1 .1\n0 .5 .5 .1\n", r"c\.txt:2: '0 \.5 \.5 \.1' is not `class cx cy w h`"),
        ("cat .5 .5 .1 .1\n", r"c\.txt:1: .* is not `class cx cy w h`"),
        ("\n2 .5 .5 .1 .1\n", r"c\.txt:2: .*the class is not one of 0 to 1"),
        ("0.5 .5 .5 .1 .1\n", r"c\.txt:1: .*the class is not one of"),
        ("0 nan .5 .1 .1\n", r"c\.txt:1: .*not finite"),
        ("0 100 50 20 20\n", r"c\.txt:1: .*fractions of the image"),
        ("0 .5 .5 .1 -.1\n", r"c\.txt:1: .*fractions of the image"),
    ],
)
def test_a_wrong_label_is_named_with_its_line(folder, text, message):
    (folder / "labels/valid/c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        YoloFolder(folder)


def test_wrong_lists_and_data_files_are_named(folder):
    (folder / "train.txt").write_text("\nimages/train/z.jpg\n")
    with pytest.raises(DataError, match=r"train\.txt:2: 'images/train/z\.jpg' is missing"):
        YoloFolder(folder / "mine.data")
    with pytest.raises(DataError, match=r"has no list `test`; --set can be train, valid"):
        YoloFolder(folder / "mine.data", ["test"])
    with pytest.raises(DataError, match=r"images/test is no folder .*: train, valid"):
        YoloFolder(folder, ["test"])
    with pytest.raises(DataError, match="is no folder"):
        YoloFolder(folder, ["../.."])
    with pytest.raises(DataError, match="has no folder images/"):
        YoloFolder(folder / "labels")
    write_data(folder / "mine.data", DarknetData(3, "valid.txt", "", "mine.names"))
    with pytest.raises(DataError, match=r"classes = 3, but mine\.names has 2 names"):
        YoloFolder(folder / "mine.data")
    write_data(folder / "mine.data", DarknetData(2))
    with pytest.raises(DataError, match=r"mine\.data: has no list `train`; add a line like `train = train\.txt`"):
        YoloFolder(folder / "mine.data")


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\ndog\ncat\n", "'cat' is listed twice; rename one"), ("\n", "no class names; write one")],
)
def test_wrong_names_are_told_with_the_remedy(tmp_path, text, message):
    path = tmp_path / "my.names"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"my\.names: .*{message}"):
        read_names(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes=2\ntrain\n", r"x\.data:2: 'train'"),
        ("classes=2\nexec=rm\n", r"x\.data:2: 'exec=rm': expected one of classes"),
        ("classes=2\nclasses=3\n", r"x\.data:2: .* is given twice"),
        ("train=a\n", r"x\.data: classes = ''"),
        ("classes=many\n", r"x\.data: classes = 'many'"),
        ("classes=0000000019999\n", r"x\.data: classes = '0000000019999' is not the number of classes, 1 to 10000"),
    ],
)
def test_a_wrong_data_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "x.data"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_data(path)


def test_comments_and_darknets_other_keys_are_read_over(tmp_path):
    path = tmp_path / "x.data"
    path.write_text("# mine\nclasses= 2\n; old\ntrain  = a/b c.txt\nbackup = backup/\n")
    assert read_data(path) == DarknetData(2, "a/b c.txt")


WORD = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=12)


@given(st.lists(WORD, min_size=1, max_size=8, unique=True), st.integers(1, 999), WORD)
def test_what_is_written_is_read_back(tmp_path_factory, names, classes, path):
    folder = tmp_path_factory.mktemp("darknet")
    write_names(folder / "x.names", names)
    assert read_names(folder / "x.names") == tuple(names)
    data = DarknetData(classes, path, "", "x.names")
    write_data(folder / "x.data", data)
    assert read_data(folder / "x.data") == data


@pytest.mark.parametrize("name", ["a\nb", " a", ""])
def test_a_name_that_would_not_come_back_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="does not fit on a line"):
        write_names(tmp_path / "x.names", [name])


def test_label_path_changes_the_last_images_folder(tmp_path):
    assert label_path(tmp_path / "images/images/a.b.jpg") == tmp_path / "images/labels/a.b.txt"
    assert label_path(tmp_path / "a.jpg") == tmp_path / "a.txt"


def test_prepare_dataset_packs_them(folder, tmp_path, capsys):
    target = tmp_path / "out.lst"
    words = ["--dataset", "yolo", "--root", str(folder / "mine.data"), "--target", str(target), "--num-thread", "1"]
    main([*words, "--no-shuffle"])
    assert "images: 2, without objects: 1" in capsys.readouterr().out
    assert read_sidecar(target).class_names == ("cat", "dog")
    objects = parse_label(unpack(RecordReader(target.with_suffix(".rec")).read(0), "").label, "")
    assert np.allclose(objects[0], [1, 0.25, 0.4, 0.75, 0.6, 0])


def test_images_of_other_formats_in_a_folder_are_named_as_in_a_list(folder, tmp_path, capsys):
    for name in ("train/d.bmp", "train/e.WEBP", "valid/f.tif"):
        (folder / "images" / name).write_bytes(b"pixels")
        (folder / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.1 0.1")
    (folder / "images/train/notes.txt").write_text("no image")
    words = ["--dataset", "yolo", "--root", str(folder), "--target", str(tmp_path / "t.lst"), "--num-thread", "1"]
    with pytest.raises(
        DataError, match=r"cannot be used: 3 .*images/train/d\.bmp: none of JPEG, PNG, BMP, WEBP, TIFF; convert it"
    ):
        main([*words, "--no-shuffle"])
    main([*words, "--skip-bad"])
    assert "images: 3, without objects: 1, left out: 3" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["absolute", "dots", "link"])
def test_a_list_names_nothing_outside_unless_it_may(tmp_path, way):
    """Its folder and the one above are its own."""
    secret, folder = tmp_path / "secret", tmp_path / "set" / "lists"
    secret.mkdir()
    folder.mkdir(parents=True)
    (secret / "a.png").write_bytes(jpeg())
    (secret / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "classes.txt").write_text("one\n")
    (folder / "link").symlink_to(secret)
    written = {"absolute": f"{secret}/a.png", "dots": "../../secret/a.png", "link": "link/a.png"}[way]
    (folder / "train.txt").write_text(f"{written}\n")
    with pytest.raises(DataError, match=r"train\.txt:1: '.*a\.png' lies outside .*set; --allow-outside reads it"):
        YoloFolder(folder / "train.txt")
    assert len(YoloFolder(folder / "train.txt", outside=True).images) == 1
