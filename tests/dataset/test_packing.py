"""Packing: what is written can be read by us and by MXNet, is complete or absent, and bad images are named."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from dataset.fitting import Rules
from dataset.imdb import AnnotatedImage, Part
from dataset.labels import parse_label
from dataset.packing import pack_dataset
from dataset.pascal_voc import PascalVoc
from dataset.recordio import RecordReader, unpack
from dataset.sidecar import read_sidecar, verify_sidecar
from machine.runtime import mx
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg, xml_object

FILES = ["t.idx", "t.json", "t.lst", "t.rec"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "voc"
    for k in range(30):
        add(root, f"{k:02}", *[[CAT, DOG], [DOG], []][k % 3], image=jpeg(seed=k))
    image_set(root, "trainval", *[f"{k:02}" for k in range(30)])
    return root


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "t.lst"


def run(root, target, seed=None, workers=1, **options):
    return pack_dataset(PascalVoc(root, class_names=["dog", "cat"]), target, seed=seed, workers=workers, **options)


def written(target):
    return sorted(path.name for path in target.parent.iterdir())


def records(target):
    reader = RecordReader(target.with_suffix(".rec"))
    return [unpack(reader.read(k), str(k)) for k in range(len(reader))]


def test_records_hold_the_original_bytes_and_objects(root, target):
    run(root, target, source="pascal voc")
    found = records(target)
    assert [record.index for record in found] == list(range(30))
    for k, record in enumerate(found):
        assert record.image == (root / "JPEGImages" / f"{k:02}.jpg").read_bytes()
    np.testing.assert_array_equal(
        parse_label(found[0].label, "0"), np.float32([[1, 0, 0, 0.5, 0.5, 0], [0, 0.5, 0.5, 1, 1, 1]])
    )
    assert found[2].label.tolist() == [2, 6]


def test_sidecar_and_report_count_what_is_there(root, target):
    report = run(root, target, source="pascal voc")
    rec = target.with_suffix(".rec")
    sidecar = read_sidecar(rec)
    assert (sidecar.num_images, sidecar.num_objects, sidecar.max_objects, sidecar.label_width) == (30, 30, 2, 14)
    assert dict(zip(sidecar.class_names, sidecar.objects_per_class, strict=True)) == {"dog": 20, "cat": 10}
    assert sidecar.source == "pascal voc"
    verify_sidecar(rec, sidecar, hash=True)
    assert report.counts.count(0) == 10
    assert written(target) == FILES


def test_list_has_full_precision_and_the_classic_layout(root, target):
    add(root, "00", xml_object("cat", (2, 3, 38, 29)))
    run(root, target)
    fields = target.read_text().splitlines()[0].split("\t")
    assert fields[:4] == ["0", "2", "6", "1"]
    assert fields[-1] == "JPEGImages/00.jpg"
    np.testing.assert_array_equal(np.float32(fields[1:-1]), records(target)[0].label)


def test_workers_change_nothing_and_the_seed_decides(root, target, tmp_path):
    contents = []
    for seed, workers in ((1, 1), (1, 2), (2, 1)):
        run(root, target, seed, workers)
        contents.append([target.with_suffix(s).read_bytes() for s in (".rec", ".lst", ".idx", ".json")])
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]


def test_mxnet_reads_the_record(root, target):
    for k in range(2, 30, 3):  # MXNet itself refuses images without objects
        add(root, f"{k:02}", CAT)
    run(root, target)
    batch = mx.io.ImageDetRecordIter(
        path_imgrec=str(target.with_suffix(".rec")), data_shape=(3, 30, 40), batch_size=2, shuffle=False
    ).next()
    label = batch.label[0].asnumpy()[0]
    np.testing.assert_array_equal(label[4:12], np.float32([2, 6, 1, 0, 0, 0.5, 0.5, 0]))


def test_bad_images_are_all_named_and_nothing_is_written(root, target):
    (root / "JPEGImages" / "03.jpg").write_bytes(jpeg(400, 300)[:-3000])
    (root / "JPEGImages" / "05.jpg").unlink()
    for k in range(10, 22):
        (root / "JPEGImages" / f"{k:02}.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(root, target)
    text = str(caught.value)
    assert text.startswith("images that cannot be used: 14")
    assert "JPEGImages/03.jpg: damaged JPEG" in text
    assert "JPEGImages/05.jpg: the image is missing" in text
    assert text.endswith("... and 4 more")
    assert written(target) == []


def test_skip_bad_leaves_them_out(root, target):
    (root / "JPEGImages" / "03.jpg").write_bytes(b"GIF89a")
    report = run(root, target, skip_bad=True)
    assert report.bad == ["JPEGImages/03.jpg: none of JPEG, PNG, BMP, WEBP, TIFF; convert it"]
    assert [record.index for record in records(target)] == list(range(29))
    assert read_sidecar(target).num_images == 29


def test_nothing_usable_is_an_error(root, target):
    for path in (root / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image can be used"):
        run(root, target, skip_bad=True)
    assert written(target) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_no_image_with_objects_is_an_error_that_names_the_option(root, target, workers):
    image_set(root, "trainval", "02", "05")
    with pytest.raises(DataError, match="no image has objects, nothing was written; --true-negative keeps"):
        run(root, target, workers=workers, keep_empty=False)
    assert written(target) == []


def test_boxes_of_an_image_that_was_resized_are_scaled(root, target):
    """They are in the pixels that <size> tells of; a second box is not outside for that."""
    boxes = [xml_object("cat", (17, 17, 64, 48)), xml_object("dog", (97, 61, 160, 120))]
    add(root, "00", *boxes, image=jpeg(80, 60), width=160, height=120)
    report = run(root, target)
    label = records(target)[0].label[2:].reshape(-1, 6)
    np.testing.assert_allclose(label[:, 1:5], [[0.1, 16 / 120, 0.4, 0.4], [0.6, 0.5, 1, 1]], rtol=1e-6)
    assert report.scaled == ["JPEGImages/00.jpg: 160 x 120 annotated, 80 x 60 decoded"]
    assert report.dropped == []
    np.testing.assert_allclose(report.images[0].objects[0, 1:5], [8, 8, 32, 24])  # pixels of the image


SMALL, WIDE = {"width": 160, "height": 120}, {"width": 160, "height": 60}


@pytest.mark.parametrize(
    ("size", "trust", "expected"),
    [(SMALL, "image", 0.8), (SMALL, "annotation", 0.4), (WIDE, "image", 0.8), (WIDE, "annotation", 0.4)],
)
def test_trust_size_says_whose_pixels_the_boxes_are_in(root, target, size, trust, expected):
    add(root, "00", xml_object("cat", (17, 17, 64, 48)), image=jpeg(80, 60), **size)
    run(root, target, rules=Rules(trust_size=trust))
    assert records(target)[0].label[5] == np.float32(expected)


@pytest.mark.parametrize(
    ("size", "box", "message"),
    [
        (WIDE, (17, 17, 64, 48), r"00\.jpg: 160 x 60 annotated, 80 x 60 decoded, of other proportions; --trust-size"),
        (
            {"width": 40, "height": 30},
            (17, 17, 64, 48),
            "40 x 30 annotated, .* boxes reach out of the annotated size",
        ),
    ],
)
def test_an_image_of_which_nobody_knows_the_pixels_is_refused_by_name(root, target, size, box, message):
    add(root, "00", xml_object("cat", box), image=jpeg(80, 60), **size)
    with pytest.raises(DataError, match=message):
        run(root, target)
    assert run(root, target, skip_bad=True).bad[0].startswith("JPEGImages/00.jpg: ")


def test_annotation_of_the_rotated_picture_is_refused(root, target):
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(stream, "JPEG", exif=exif)
    add(root, "00", CAT, image=stream.getvalue())
    assert run(root, target).rotated == ["JPEGImages/00.jpg"]
    add(root, "00", CAT, image=stream.getvalue(), width=30, height=40)
    with pytest.raises(DataError, match="rotated by its EXIF orientation 6"):
        run(root, target)


def test_box_outside_the_image_is_dropped_and_listed(root, target):
    add(root, "00", CAT, xml_object("dog", (50, 1, 60, 9)))
    report = run(root, target)
    assert report.counts[0] == 1
    assert report.dropped == ["JPEGImages/00.jpg: object 1 [50 1 60 9] lies outside the image"]
    assert report.emptied == []


def test_an_image_that_loses_its_only_box_is_told_to_be_without_objects(root, target):
    add(root, "00", xml_object("dog", (50, 1, 60, 9)))
    add(root, "01", xml_object("dog", (9, 9, 9, 12)))
    assert run(root, target).emptied == ["JPEGImages/00.jpg", "JPEGImages/01.jpg"]
    report = run(root, target, keep_empty=False)
    assert (report.emptied, report.empty, report.counts.count(0)) == ([], 12, 0)


def test_doubtful_boxes_are_told(root, target):
    add(
        root,
        "00",
        *[CAT, DOG, CAT, xml_object("cat", (1, 1, 20, 15.2)), xml_object("dog", (1, 1, 20, 15))],
        *[xml_object("dog", (5, 5, 5000, 20)), xml_object("dog", (7, 3, 7.5, 20)), xml_object("cat", (-3, 9, 20, 29))],
    )
    report = run(root, target)
    where = "JPEGImages/00.jpg: object"
    assert report.twice == [f"{where} 0 [1 1 20 15] and object 2 [1 1 20 15]"]
    assert report.alike == [f"{where} 0 [1 1 20 15] and object 3 [1 1 20 15.2]"]
    assert report.far == [f"{where} 5 [5 5 5000 20] of 40 x 30 pixels"]
    assert report.thin == [f"{where} 6 [7 3 7.5 20]"]
    assert report.clipped == 2
    assert len(records(target)[0].label) == 2 + 6 * 8
    dropping = run(root, target, rules=Rules(duplicates="drop"))
    assert dropping.twice == report.twice
    assert len(records(target)[0].label) == 2 + 6 * 7


def test_interruption_keeps_the_earlier_files(root, target):
    run(root, target)
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}

    def interrupt(images, total):
        yield next(iter(images))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, target, seed=5, workers=2, progress=interrupt)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


@pytest.mark.parametrize("suffix", [".lst", ".idx", ".json"])
def test_a_file_that_cannot_be_written_leaves_the_earlier_ones(root, target, suffix):
    run(root, target)
    blocked = target.with_suffix(suffix)
    blocked.unlink()
    blocked.mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in target.parent.iterdir()}
    with pytest.raises(IsADirectoryError, match=re.escape(str(blocked))):
        run(root, target, seed=5)
    assert {path.name: path.is_file() and path.read_bytes() for path in target.parent.iterdir()} == before


def test_workers_do_not_load_mxnet():
    code = "import sys, dataset.packing; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_annotations_without_any_class_are_refused(tmp_path, target):
    with pytest.raises(
        DataError, match="no annotation names a class, nothing was written; name them with --class-names"
    ):
        pack_dataset(
            Part((), [AnnotatedImage("a.jpg", tmp_path / "a.jpg", np.zeros((0, 6)), None)]),
            target,
            seed=None,
            workers=1,
        )
    assert not written(target)
