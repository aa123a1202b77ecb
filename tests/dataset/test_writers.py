"""What the writers write is read back by the readers of this folder, and by pycocotools, as it was."""

import contextlib
import io
import struct
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from common.errors import DataError
from dataset.imdb import AnnotatedImage
from dataset.names_file import names_in_file
from dataset.sources import AUTO, Wanted, read_source
from dataset.writers import FORMATS, NAMES, check_class_names, csv_boxes, losses, voc_annotation, yolo_labels

EXACT = 1e-6  # pixels
LARGEST = 20_000
MOST_PIXELS = 60_000_000
FORMS = tuple(FORMATS)


def png_header(width, height):
    """A PNG as far as its size is told."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def is_name(text):
    try:
        check_class_names([text], coco=True)
    except DataError:
        return False
    return True


NAME = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(is_name),
    st.sampled_from(["#1, \"two\" 'x' <b>&amp;", "Cat", "cat", "no", "1e3", "- a: b", "shapes", "{a}", "ля ü", "a;b"]),
)


@st.composite
def images(draw, number, num_classes):
    width = draw(st.integers(4, LARGEST))
    height = draw(st.integers(4, min(LARGEST, MOST_PIXELS // width)))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        low = [draw(st.floats(0, side - 2)) for side in (width, height)]
        high = [draw(st.floats(begin + 1.5, side)) for begin, side in zip(low, (width, height), strict=True)]
        rows.append([draw(st.integers(0, num_classes - 1)), *low, *high, draw(st.integers(0, 1))])
    objects = np.array(rows, np.float64).reshape(-1, 6)
    return AnnotatedImage(f"picture {number}.png", Path(), objects, (height, width))


@st.composite
def data_sets(draw):
    names = draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    return names, [draw(images(k, len(names))) for k in range(draw(st.integers(1, 3)))]


def write(root, form, names, some, part="", origin=1):
    folder = root / FORMATS[form].pictures(part)
    folder.mkdir(parents=True, exist_ok=True)
    for image in some:
        (folder / image.name).write_bytes(png_header(*image.size[::-1]))
    for path, content in FORMATS[form].annotations({part: some}, names, origin):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def read_back(root, origin=1):
    names = names_in_file(root / NAMES) if (root / NAMES).exists() else None
    return read_source(Wanted(AUTO, root, names=names, pixel_origin=origin))[0]


def by_name(some):
    return {Path(image.name).name: image for image in some}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(data_set=data_sets(), origin=st.integers(0, 1))
def test_what_is_written_is_read_back(form, data_set, origin):
    names, some = data_set
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), form, names, some, origin=origin)
        read = read_back(Path(folder), origin)
    assert list(read.class_names) == names
    assert not read.bad
    assert not read.dropped
    found = by_name(read.images)
    assert found.keys() == {image.name for image in some}
    columns = 5 if form == "yolo" else 6  # difficult is what it does not have
    for image in some:
        np.testing.assert_allclose(
            found[image.name].objects[:, :columns], image.objects[:, :columns], rtol=0, atol=EXACT
        )
        assert found[image.name].size == image.size or (form == "yolo" and not len(image.objects))


@settings(max_examples=60)
@given(data_sets())
def test_pycocotools_reads_the_coco_file(data_set):
    names, some = data_set
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write(Path(folder), "coco", names, some)
        coco = COCO(str(Path(folder) / "annotations" / "instances_train.json"))
    assert [coco.cats[k]["name"] for k in sorted(coco.cats)] == names
    for entry, image in zip(coco.loadImgs(sorted(coco.imgs)), some, strict=True):
        assert (entry["file_name"], entry["height"], entry["width"]) == (image.name, *image.size)
        found = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
        boxes = np.array([one["bbox"] for one in found]).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        np.testing.assert_allclose(corners, image.objects[:, 1:5], rtol=0, atol=EXACT)
        assert [one["category_id"] - 1 for one in found] == image.objects[:, 0].tolist()
        assert [one["iscrowd"] for one in found] == image.objects[:, 5].tolist()
        np.testing.assert_allclose([one["area"] for one in found], boxes[:, 2] * boxes[:, 3])


BOX = np.array([[1, 2.0, 3.0, 20.5, 15.0, 1.0]])
IMAGE = AnnotatedImage("a.png", Path(), BOX, (30, 40))
NAMES_OF = ["cell", "dot"]  # of VOC's twenty none


def test_whole_numbers_have_no_fraction():
    assert b"<xmin>3</xmin><ymin>4</ymin><xmax>20.5</xmax><ymax>15</ymax>" in voc_annotation(IMAGE, NAMES_OF)
    assert csv_boxes([IMAGE], NAMES_OF).splitlines()[1] == b"a.png,40,30,dot,3,4,20.5,15,1"


@pytest.mark.parametrize("form", FORMS)
def test_scores_do_not_disturb_the_readers(tmp_path, form):
    write(tmp_path, form, NAMES_OF, [replace(IMAGE, scores=np.array([0.25]))])
    columns = 5 if form == "yolo" else 6
    np.testing.assert_allclose(read_back(tmp_path).images[0].objects[:, :columns], BOX[:, :columns], atol=EXACT)
    text = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".xml", ".json", ".csv"))
    assert "0.25" in text or form == "yolo"


def test_yolo_has_scores_in_a_sixth_column_if_asked():
    scored = replace(IMAGE, scores=np.array([0.25]))
    assert len(yolo_labels(scored).split()) == 5
    assert yolo_labels(scored, scores=True).split()[5:] == [b"0.25"]
    assert len(yolo_labels(IMAGE, scores=True).split()) == 5


def test_what_yolo_loses_is_told():
    objects = np.array([[0, -5, 0, 10, 10, 0], [0, 50, 0, 60, 10, 1]], float)
    image = replace(IMAGE, objects=objects)
    assert yolo_labels(image) == b"0 0.125 0.16666666666666666 0.25 0.3333333333333333\n"
    lines = losses("yolo", {"": [image]}, NAMES_OF)
    assert [line.rpartition(": ")[2] for line in lines] == ["1", "1", "1"]
    assert losses("coco", {"": [image]}, NAMES_OF) == []


def test_boxes_that_readers_of_voc_drop_are_told(tmp_path):
    column = replace(IMAGE, objects=np.array([[0, 3, 3, 4, 20, 0], [1, 0, 0, 9, 9, 0]], float))
    assert any("a pixel or less" in line for line in losses("voc", {"": [column]}, NAMES_OF))
    assert not losses("voc", {"": [column]}, NAMES_OF, pixel_origin=0)
    write(tmp_path, "voc", NAMES_OF, [column], origin=0)
    np.testing.assert_array_equal(read_back(tmp_path, origin=0).images[0].objects, column.objects)


def test_classes_that_a_format_does_not_say_are_told():
    assert any(NAMES in line for line in losses("csv", {"": [IMAGE]}, NAMES_OF))
    assert any(NAMES in line for line in losses("voc", {"": [IMAGE]}, ["cat", "dog"]))
    assert not losses("coco", {"": [IMAGE]}, NAMES_OF)


@pytest.mark.parametrize("name", ["a\nb", "a\x07", " a", "", "\ud800", "a\u2028b"])
def test_class_names_that_no_file_gives_back_are_refused(name):
    with pytest.raises(DataError, match="class name"):
        check_class_names([name])


def test_names_that_coco_does_not_take_are_refused_there_alone():
    check_class_names(["a\u200cb"])
    with pytest.raises(DataError, match="class name"):
        check_class_names(["a\u200cb"], coco=True)
