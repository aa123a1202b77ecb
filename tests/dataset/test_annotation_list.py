"""Annotation lists: read, written, and mistakes named with file and line."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from dataset.annotation_list import AnnotationList, write_annotation_list
from dataset.pascal_voc import PascalVoc
from tests.dataset.voc import CAT, DOG, add, jpeg, xml_object


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text(f"a.jpg 1,1,20,15,0  3,4,10.5,12,1\n\n{tmp_path}/b.jpg 5,5,9,9,1\nc.jpg\n")
    return tmp_path


@pytest.mark.parametrize("origin", [0, 1])
def test_lines_become_objects_in_pixels(folder, origin):
    data = AnnotationList(folder / "list.txt", ("cat", "dog"), pixel_origin=origin)
    assert data.class_names == ("cat", "dog")
    assert [image.name for image in data.images] == ["a.jpg", "b.jpg", "c.jpg"]
    expected = np.array([[0, 1, 1, 20, 15, 0], [1, 3, 4, 10.5, 12, 0]]) - [0, origin, origin, 0, 0, 0]
    np.testing.assert_array_equal(data.images[0].objects, expected)
    assert [len(image.objects) for image in data.images] == [2, 1, 0]


def test_names_beside_the_list_or_given(folder):
    with pytest.raises(DataError, match=r"list\.txt: its classes have no names"):
        AnnotationList(folder / "list.txt")
    (folder / "classes.txt").write_text("cat\ndog\nbird\n")
    assert AnnotationList(folder / "list.txt").class_names == ("cat", "dog", "bird")
    assert AnnotationList(folder / "list.txt", ["x", "y"]).class_names == ("x", "y")


def test_boxes_without_area_are_dropped_and_listed(folder):
    (folder / "list.txt").write_text("a.jpg 5,5,5,9,0 1,1,2,2,0 9,9,1,1,0\n")
    data = AnnotationList(folder / "list.txt", ("cat",))
    assert len(data.images[0].objects) == 1
    assert [line.split(": ")[1].split(" has")[0] for line in data.dropped] == ["object 1", "object 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\nb.jpg 1,2,3,4\n", r"list\.txt:2: '1,2,3,4' is not `x1,y1,x2,y2,class`"),
        ("a.jpg 1,2,3,4,cat\n", r"list\.txt:1: '1,2,3,4,cat' is not"),
        ("a.jpg 1,2,nan,4,0\n", r"list\.txt:1: .* is not"),
        ("a.jpg 1,2,3,1e999,0\n", r"list\.txt:1: .* is not"),
        ("a.jpg 1,2,3,4,2\n", r"list\.txt:1: '1,2,3,4,2': the class is not one of 0 to 1"),
        ("a.jpg 1,2,3,4,-1\n", r"list\.txt:1: .*the class is not one of"),
        ("a.jpg 1,2,3,4,0.5\n", r"list\.txt:1: .*the class is not one of"),
        ("my picture.jpg 1,2,3,4,0\n", r"list\.txt:1: 'my' is missing"),
        ("\0 1,2,3,4,0\n", r"list\.txt:1: .* is not a path"),
        ("a.jpg\nb.jpg\n\na.jpg 1,2,3,4,0\n", r"list\.txt:4: 'a\.jpg' is already in line 1"),
        ("\n \n", "lists no images"),
    ],
)
def test_mistakes_name_file_and_line(folder, text, message):
    (folder / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        AnnotationList(folder / "list.txt", ["cat", "dog"])


def test_a_missing_or_binary_list_is_named(folder):
    with pytest.raises(DataError, match=r"no\.txt: cannot be read"):
        AnnotationList(folder / "no.txt")
    (folder / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8"):
        AnnotationList(folder / "list.txt")


WORD = st.text("0123456789,.-+einfx \t", max_size=16)


@settings(max_examples=50)
@given(st.lists(WORD, max_size=6))
def test_any_line_is_read_or_refused(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("lists")
    (folder / "a.jpg").write_bytes(b"")
    (folder / "list.txt").write_text(" ".join(["a.jpg", *words]))
    with contextlib.suppress(DataError):
        assert np.isfinite(AnnotationList(folder / "list.txt", ("cat", "dog")).images[0].objects).all()


@pytest.mark.parametrize("origin", [0, 1])
def test_what_is_written_is_what_the_annotations_say_but_for_difficult_objects(tmp_path, origin):
    add(tmp_path, "a", CAT, DOG, xml_object("dog", (2.5, 3, 9, 30)))
    add(tmp_path, "b")
    voc = PascalVoc(tmp_path, class_names=["dog", "cat"], pixel_origin=origin, every_annotation=True)
    write_annotation_list(tmp_path / "list.txt", voc.images, origin)
    images = tmp_path.absolute() / "JPEGImages"
    assert (tmp_path / "list.txt").read_text() == f"{images}/a.jpg 1,1,20,15,1 2.5,3,9,30,0\n{images}/b.jpg\n"
    back = AnnotationList(tmp_path / "list.txt", voc.class_names, origin)
    np.testing.assert_array_equal(back.images[0].objects, voc.images[0].objects[[0, 2]])


def test_a_path_with_blanks_cannot_be_written(tmp_path):
    add(tmp_path / "my folder", "a", CAT)
    with pytest.raises(DataError, match=r"my folder.*blanks"):
        write_annotation_list(tmp_path / "list.txt", PascalVoc(tmp_path / "my folder", every_annotation=True).images)
    assert not (tmp_path / "list.txt").exists()
