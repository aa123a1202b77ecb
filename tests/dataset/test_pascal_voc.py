"""VOC annotations: layouts, the pixel convention, and every mistake named with its file."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import DataError
from dataset.packing import pack_dataset
from dataset.pascal_voc import VOC_CLASSES, PascalVoc
from tests.dataset.voc import CAT, DOG, add, image_set, xml, xml_object


@pytest.fixture
def bare(tmp_path):
    add(tmp_path, "a", CAT, DOG)
    add(tmp_path, "b")
    image_set(tmp_path, "trainval", "a", "b")
    image_set(tmp_path, "test", "b")
    return tmp_path


def devkit(root):
    for year in ("2007", "2012"):
        add(root / f"VOC{year}", "same", CAT)
        add(root / f"VOC{year}", f"only{year}")
        image_set(root / f"VOC{year}", "trainval", "same", f"only{year}")
        image_set(root / f"VOC{year}", "val", f"only{year}")
    return root


def names(voc):
    return [image.name for image in voc.images]


def test_boxes_are_pixel_edges(bare):
    image, empty = PascalVoc(bare).images
    np.testing.assert_array_equal(image.objects[:, 1:], [[0, 0, 20, 15, 0], [20, 15, 40, 30, 1]])
    assert image.objects[:, 0].tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    assert image.size == (30, 40)
    objects, kept = image.normalised((30, 40))
    np.testing.assert_array_equal(objects[:, 1:5], np.float32([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]))
    assert kept.all()
    assert empty.objects.shape == (0, 6)


def test_pixel_origin_0_takes_edges_as_they_stand(bare):
    image = PascalVoc(bare, pixel_origin=0).images[0]
    np.testing.assert_array_equal(image.objects[0, 1:5], [1, 1, 20, 15])


def test_devkit_years_and_sets(tmp_path):
    root = devkit(tmp_path)
    voc07 = ["VOC2007/JPEGImages/same.jpg", "VOC2007/JPEGImages/only2007.jpg"]
    assert names(PascalVoc(root, ["2007"])) == voc07
    assert names(PascalVoc(root))[:3] == [*voc07, "VOC2012/JPEGImages/same.jpg"]
    assert names(PascalVoc(root, ["2007", "2012"], ["val", "trainval"]))[0] == voc07[1]
    assert names(PascalVoc(root, ["2007"], ["val", "trainval"])) == voc07[::-1]


@pytest.mark.parametrize(
    ("years", "sets", "message"),
    [
        (["2008"], [], "VOC2008/Annotations is missing; --year can be 2007,2012"),
        (["2007"], ["test"], r"test.txt is missing; sets that are there \(--set\): trainval, val"),
        (["2007", "2012"], ["val", "val", "val"], "3 names for 2 years"),
        (["2007"], ["../Main/val"], "outside"),
    ],
)
def test_wrong_year_or_set_is_named(tmp_path, years, sets, message):
    with pytest.raises(DataError, match=message):
        PascalVoc(devkit(tmp_path), years, sets)


def test_bare_folder_without_sets_takes_all(bare):
    shutil.rmtree(bare / "ImageSets")
    assert names(PascalVoc(bare)) == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    with pytest.raises(DataError, match="trainval.txt is missing"):
        PascalVoc(bare, image_sets=["trainval"])


def test_bare_folder_has_no_years(bare):
    with pytest.raises(DataError, match="leave out --year"):
        PascalVoc(bare, ["2007"])


def test_class_names(bare):
    add(bare, "b", xml_object("zebra", (1, 1, 9, 9)), CAT)
    assert PascalVoc(bare).class_names == ("cat", "dog", "zebra")
    assert PascalVoc(bare, class_names=["zebra", "dog", "cat"]).images[1].objects[:, 0].tolist() == [0, 2]
    with pytest.raises(DataError, match=r"b\.xml: class 'zebra' .*did you mean zebu\?"):
        PascalVoc(bare, class_names=["cat", "dog", "zebu"])


def test_boxes_without_area_are_dropped_and_reported(bare, caplog):
    boxes = [(5, 5, 5, 9), (9, 9, 5, 12), (3, 3, 4, 4)]
    add(bare, "b", *[xml_object("cat", box) for box in boxes])
    voc = PascalVoc(bare)
    assert len(voc.images[1].objects) == 1
    assert len(voc.dropped) == 2
    assert "b.xml: object 0 (cat) [5 5 5 9]" in voc.dropped[0]
    assert "2 boxes without area" in caplog.text


def test_boxes_are_clipped_and_those_outside_left_out(bare):
    add(bare, "b", xml_object("cat", (-3, 0, 60, 20)), xml_object("cat", (50, 1, 60, 9)))
    objects, kept = PascalVoc(bare).images[1].normalised((30, 40))
    np.testing.assert_allclose(objects[:, 1:5], [[0, 0, 1, 2 / 3]], rtol=1e-6)
    assert kept.tolist() == [True, False]


def test_origin_that_does_not_fit_is_hinted_at(bare, caplog):
    add(bare, "b", xml_object("cat", (0, 0, 20, 20)))
    PascalVoc(bare)
    assert "--pixel-origin 0" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<html></html>",
        "\0",
        xml("<object><name>cat</name></object>"),
        xml("<object><bndbox/></object>"),
        xml(xml_object("cat", ("", 1, 2, 3))),
        xml(xml_object("cat", ("nan", 1, 2, 3))),
        xml(xml_object("cat", ("1e999", 1, 2, 3))),
        xml(xml_object("cat", (1, 1, 2, 3), difficult="maybe")),
        '<?xml version="1.0" encoding="nonsense"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
    ],
)
def test_malformed_annotation_is_named(bare, text):
    (bare / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(DataError, match=r"Annotations/b\.xml"):
        PascalVoc(bare)


def test_huge_annotation_is_refused(bare):
    (bare / "Annotations" / "b.xml").write_text("<annotation>" + " " * (9 << 20) + "</annotation>")
    with pytest.raises(DataError, match="larger than"):
        PascalVoc(bare)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_gives_no_other_error(bare, data):
    content = bytearray(xml(CAT, DOG), "ascii")
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    (bare / "Annotations" / "b.xml").write_bytes(content)
    try:
        assert len(PascalVoc(bare).images) == 2
    except DataError as error:
        assert "b.xml" in str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "../Annotations/a"])
def test_names_cannot_leave_the_folder(bare, name):
    image_set(bare, "trainval", name)
    with pytest.raises(DataError, match="outside"):
        PascalVoc(bare)


def test_links_cannot_leave_the_folder(bare, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "x.xml"
    secret.write_text(xml())
    (bare / "Annotations" / "c.xml").symlink_to(secret)
    image_set(bare, "trainval", "c")
    with pytest.raises(DataError, match="outside"):
        PascalVoc(bare)


@pytest.mark.parametrize("suffix", [".Jpg", ".jpeg", ".JPEG", ".PnG", ".png"])
def test_an_image_is_found_in_any_spelling_of_its_suffix(bare, suffix):
    (bare / "JPEGImages/a.jpg").rename(bare / f"JPEGImages/a{suffix}")
    (bare / "JPEGImages/a.bmp").write_bytes(b"BM")
    assert names(PascalVoc(bare)) == [f"JPEGImages/a{suffix}", "JPEGImages/b.jpg"]


@pytest.mark.parametrize("suffix", [".bmp", ".WEBP", ".tif"])
def test_an_image_of_another_format_is_named_as_such(bare, tmp_path, suffix):
    (bare / "JPEGImages/a.jpg").rename(bare / f"JPEGImages/a{suffix}")
    (bare / f"JPEGImages/a{suffix}").write_bytes(b"pixels")
    with pytest.raises(DataError, match=rf"JPEGImages/a\{suffix}: none of JPEG, PNG, BMP, WEBP, TIFF; convert it"):
        pack_dataset(PascalVoc(bare), tmp_path / "t.lst", seed=None, workers=1)


def test_linked_image_folder_is_fine(bare, tmp_path_factory):
    moved = tmp_path_factory.mktemp("disk") / "images"
    shutil.move(bare / "JPEGImages", moved)
    (bare / "JPEGImages").symlink_to(moved)
    assert PascalVoc(bare).images[0].path.is_file()


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_wrong_root_is_named(tmp_path, what):
    if what == "empty":
        (tmp_path / "missing").mkdir()
    with pytest.raises(DataError, match="missing.*(no such folder|no annotations)"):
        PascalVoc(tmp_path / "missing")


def test_folder_without_annotations_is_named(bare):
    for path in (bare / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"Annotations/a\.xml is missing"):
        PascalVoc(bare)
    shutil.rmtree(bare / "ImageSets")
    with pytest.raises(DataError, match="holds no annotations"):
        PascalVoc(bare)


def test_empty_or_binary_set_is_named(bare):
    image_set(bare, "trainval")
    with pytest.raises(DataError, match="lists no images"):
        PascalVoc(bare)
    (bare / "ImageSets/Main/trainval.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        PascalVoc(bare)


def test_real_annotations(bccd_dir):
    voc = PascalVoc(bccd_dir)
    assert voc.class_names == ("Platelets", "RBC", "WBC")
    assert len(voc.images) == 292
    assert len(voc.dropped) == 2
