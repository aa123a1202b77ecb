"""im2rec: the same files as mxnet's own, and none of its silent failures."""

import io
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, OptionError
from dataset.packing import pack_dataset
from dataset.pascal_voc import PascalVoc
from dataset.recordio import RecordReader, unpack
from dataset.sidecar import Sidecar, read_sidecar, verify_sidecar, write_sidecar
from machine.runtime import mx
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg
from tools.im2rec import main

PROJECT = Path(__file__).parents[2]
MXNET_TOOL = Path(mx.__file__).parent / "tools" / "im2rec.py"
BOXES = "2\t6\t1\t0.1\t0.2\t0.5\t0.6\t0\t0\t0.25\t0.3\t0.75\t0.9\t1"


@pytest.fixture
def root(tmp_path):
    """Ten images of different shapes in two folders, one a grey PNG, one a PNG with alpha."""
    root = tmp_path / "images"
    for k in range(8):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[k % 2] / f"{k}.jpg").write_bytes(jpeg(40 + 5 * k, 70 - 5 * k, seed=k))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 45, 4), np.uint8)
    cv2.imwrite(str(root / "grey.png"), pixels[..., 0])
    cv2.imwrite(str(root / "alpha.PNG"), pixels)
    return root


@pytest.fixture
def detection(root, tmp_path):
    """A detection list of the ten images, ids 3, 10, 17..."""
    path = tmp_path / "out" / "det.lst"
    path.parent.mkdir()
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*"))
    path.write_text("".join(f"{3 + 7 * k}\t{BOXES}\t{file}\n" for k, file in enumerate(files)))
    return path


def mxnet_im2rec(monkeypatch, *words):
    """Runs mxnet's own tool in this process."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [str(MXNET_TOOL), *map(str, words)])
        namespace = runpy.run_path(str(MXNET_TOOL), run_name="__main__")
    if "record" in namespace:  # left open until the end of its process
        namespace["record"].close()


def im2rec(*words):
    main([str(word) for word in words])


def contents(folder, suffixes=(".rec", ".idx", ".lst")):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in suffixes}


@pytest.mark.parametrize(
    "words",
    [
        ["--pass-through", "--pack-label"],
        ["--pack-label"],
        ["--pack-label", "--resize", "24", "--quality", "80", "--num-thread", "2"],
        ["--pack-label", "--color", "0", "--num-thread", "3"],
        ["--pack-label", "--color", "-1", "--encoding", ".png", "--quality", "3"],
        ["--pack-label", "--encoding", ".png"],
    ],
    ids=" ".join,
)
def test_records_are_those_of_mxnet(root, detection, monkeypatch, words):
    mxnet_im2rec(monkeypatch, detection.with_suffix(""), root, *words, "--num-thread", "1")
    expected = contents(detection.parent)
    for suffix in (".rec", ".idx"):
        detection.with_suffix(suffix).unlink()
    im2rec(detection.with_suffix(""), root, *words)
    assert contents(detection.parent) == expected
    assert len(RecordReader(detection.with_suffix(".rec"))) == 10


@pytest.mark.parametrize("words", [[], ["--pack-label"], ["--center-crop", "--resize", "20"]], ids=" ".join)
def test_classification_records_are_those_of_mxnet(root, tmp_path, monkeypatch, words):
    im2rec("--list", "--recursive", tmp_path / "cls", root)
    mxnet_im2rec(monkeypatch, tmp_path / "cls", root, *words)
    expected = contents(tmp_path)
    im2rec(tmp_path / "cls", root, *words)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--recursive"],
        ["--recursive", "--no-shuffle"],
        ["--recursive", "--train-ratio", "0.7", "--test-ratio", "0.1"],
        ["--recursive", "--train-ratio", "0.5", "--test-ratio", "0.5", "--no-shuffle"],
        ["--recursive", "--chunks", "2", "--train-ratio", "0.5"],
        ["--recursive", "--exts", ".jpg"],
        ["--recursive", "--exts", ".jpg", ".png", "--no-shuffle"],
    ],
    ids=" ".join,
)
def test_lists_are_those_of_mxnet(root, tmp_path, monkeypatch, words):
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
    mxnet_im2rec(monkeypatch, tmp_path / "theirs/a", root, "--list", *words)
    im2rec(tmp_path / "ours/a", root, "--list", *words)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs") != {}


def test_mxnet_reads_what_is_packed(root, detection):
    im2rec(detection, root, "--class-names", "cat,dog")
    rec = detection.with_suffix(".rec")
    reader = mx.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    header, image = mx.recordio.unpack_img(reader.read_idx(10))
    np.testing.assert_array_equal(header.label, np.float32([float(value) for value in BOXES.split("\t")]))
    assert (header.id, image.ndim) == (10, 3)
    batch = mx.io.ImageDetRecordIter(path_imgrec=str(rec), data_shape=(3, 32, 32), batch_size=5).next()
    np.testing.assert_allclose(batch.label[0].asnumpy()[0, 4:12], [2, 6, 1, 0.1, 0.2, 0.5, 0.6, 0], rtol=1e-6)


def test_the_list_of_prepare_dataset_gives_the_same_record(tmp_path):
    voc = tmp_path / "voc"
    for k, objects in enumerate([[CAT, DOG], [], [DOG]]):
        add(voc, f"{k}", *objects, image=jpeg(seed=k))
    image_set(voc, "trainval", "0", "1", "2")
    target = tmp_path / "t.lst"
    pack_dataset(PascalVoc(voc), target, seed=1, workers=1)
    before, sidecar = contents(tmp_path), read_sidecar(target)
    im2rec(target, voc, "--pass-through")
    assert contents(tmp_path) == before
    assert read_sidecar(target).sha256 == sidecar.sha256


def test_the_sidecar_knows_the_classes_and_keeps_them(root, detection):
    rec = detection.with_suffix(".rec")
    im2rec(detection, root)
    assert read_sidecar(rec) is None
    for words in (["--class-names", "cat,dog,cow"], ["--resize", "20"]):
        im2rec(detection, root, *words)
        sidecar = read_sidecar(rec)
        assert (sidecar.class_names, sidecar.objects_per_class) == (("cat", "dog", "cow"), (10, 10, 0))
        assert (sidecar.num_images, sidecar.max_objects, sidecar.label_width) == (10, 2, 14)
        verify_sidecar(rec, sidecar, hash=True)


def test_a_record_without_classes_has_no_sidecar_of_an_older_one(root, detection, caplog):
    rec = detection.with_suffix(".rec")
    im2rec(detection, root, "--class-names", "cat,dog,cow")
    detection.write_text("".join(detection.read_text().splitlines(keepends=True)[:4]))
    im2rec(detection, root, "--pack-label", "--no-check-labels")
    assert read_sidecar(rec) is None
    assert "det.json removed: it described the record that was there before" in caplog.text
    rec.with_suffix(".json").write_text('{"images": []}')
    im2rec(detection, root, "--pack-label", "--no-check-labels")
    assert rec.with_suffix(".json").read_text() == '{"images": []}'


def test_all_labels_are_kept_without_pack_label(root, detection):
    im2rec(detection, root)
    record = unpack(RecordReader(detection.with_suffix(".rec")).read(0), "")
    assert record.label.size == 14


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("words", [[], ["--pass-through"]])
def test_unreadable_images_are_all_named_and_nothing_is_written(root, detection, threads, words):
    whole = (root / "a/0.jpg").read_bytes()
    (root / "a/0.jpg").write_bytes(whole[:-200])
    (root / "a/2.jpg").unlink()
    (root / "b/1.jpg").write_bytes(b"no image")
    (root / "grey.png").write_bytes((root / "grey.png").read_bytes()[:-20])
    detection.with_suffix(".rec").write_bytes(b"an older one")
    with pytest.raises(DataError) as caught:
        im2rec(detection, root, "--num-thread", threads, *words)
    text = str(caught.value)
    assert text.startswith("images that cannot be used: 4")
    assert "a/0.jpg (line 1): damaged JPEG" in text
    assert "a/2.jpg (line 2): the image is missing" in text
    assert "b/1.jpg (line 6): not an image" in text
    assert "grey.png (line 10): damaged PNG" in text
    assert contents(detection.parent, (".rec", ".idx", ".tmp")) == {"det.rec": b"an older one"}
    im2rec(detection, root, "--skip-bad", "--class-names", "x,y", "--num-thread", threads, *words)
    assert RecordReader(detection.with_suffix(".rec")).keys.tolist() == [17, 24, 31, 45, 52, 59]
    assert read_sidecar(detection).objects_per_class == (6, 6)


def test_a_folder_as_prefix_packs_its_lists(root, detection, monkeypatch):
    monkeypatch.chdir(detection.parent)
    im2rec(".", root)
    assert list(contents(detection.parent)) == ["det.idx", "det.lst", "det.rec"]


def test_linked_folders_are_packed_if_they_may_be(root, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "cat").symlink_to(root / "a")
    with pytest.raises(DataError, match="by a symbolic link; --follow-links takes it"):
        im2rec("--list", "--recursive", tmp_path / "l", links)
    im2rec("--list", "--recursive", "--follow-links", tmp_path / "l", links)
    im2rec("--follow-links", tmp_path / "l", links)
    assert (tmp_path / "l.rec").stat().st_size > 0


def test_a_folder_that_cannot_be_read_is_named(root, tmp_path, monkeypatch):
    def scandir(path, scan=os.scandir):
        if str(path).endswith("images/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="images/a: cannot be read or written"):
        im2rec("--list", "--recursive", tmp_path / "l", root)


def test_a_list_with_spaces_is_refused(root, detection):
    detection.write_text(detection.read_text().replace("\t", " "))
    with pytest.raises(DataError, match="det.lst, line 1: its fields are separated by spaces"):
        im2rec(detection, root)
    assert list(contents(detection.parent)) == ["det.lst"]


def test_other_lists_of_the_same_beginning_are_left_alone(root, detection):
    other = detection.with_name("det_x.lst")
    other.write_text("not a list")
    im2rec(detection.with_suffix(""), root)
    assert list(contents(detection.parent)) == ["det.idx", "det.lst", "det.rec", "det_x.lst"]


def test_one_call_packs_the_lists_that_another_made(root, tmp_path):
    im2rec("--list", "--recursive", "--train-ratio", "0.5", tmp_path / "set/p", root)
    (tmp_path / "set/p_more.lst").write_text("not a list")
    im2rec(tmp_path / "set/p", root)
    records = sorted(path.name for path in (tmp_path / "set").glob("*.rec"))
    assert records == ["p_train.rec", "p_val.rec"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"1\t{BOXES}\t../out/secret.jpg", "images that cannot be used: 1 .*lies outside"),
        (
            f"1\t{BOXES}\timages\\a.jpg",
            r"images\\a\.jpg \(line 2\): a path of Windows; write it relative to the folder",
        ),
        (f"1\t{BOXES}\tD:\\set\\a.jpg", r"D:\\set\\a\.jpg \(line 2\): a path of Windows; write it relative"),
        (f"1\t{BOXES}\tD:/set/a.jpg", r"D:/set/a\.jpg \(line 2\): a path of Windows; write it relative"),
        ("1\t2\t6\t0\t10\t20\t30\t40\t0\ta/0.jpg", "line 2, object 0 .*pixel coordinates"),
        ("1\t0\ta/0.jpg", "line 2: the label has 1 values"),
        ("1\t2\t6\t5\t0\t0\t1\t1\t0\ta/0.jpg", "line 2, object 0 .*class ids are whole numbers 0 to 1"),
    ],
)
def test_wrong_lines_are_named(root, detection, line, message):
    first = detection.read_text().splitlines()[0]
    detection.write_text(f"{first}\n{line}\n")
    with pytest.raises(DataError, match=message):
        im2rec(detection, root, "--class-names", "cat,dog")
    assert list(contents(detection.parent)) == ["det.lst"]


def test_a_broken_first_line_does_not_hide_that_the_list_has_boxes(root, detection):
    first, *rest = detection.read_text().splitlines(keepends=True)
    detection.write_text(first.replace("\t2\t6\t", "\t") + "".join(rest))
    with pytest.raises(DataError, match="det.lst, line 1: the label's header width.*--no-check-labels"):
        im2rec(detection, root)
    im2rec(detection, root, "--no-check-labels")
    assert unpack(RecordReader(detection.with_suffix(".rec")).read(0), "").label.size == 12


def test_vectors_that_are_no_boxes_are_packed_whole(root, tmp_path, capsys):
    (tmp_path / "v.lst").write_text("0\t1\t0\t1\ta/0.jpg\n1\t0\t0\t1\ta/2.jpg\n")
    im2rec(tmp_path / "v", root)
    reader = RecordReader(tmp_path / "v.rec")
    assert [unpack(reader.read(k), "").label.tolist() for k in range(2)] == [[1, 0, 1], [0, 0, 1]]
    assert "not as detection labels" in capsys.readouterr().out
    im2rec(tmp_path / "v", root, "--no-pack-label")
    assert unpack(RecordReader(tmp_path / "v.rec").read(0), "").label.tolist() == [1]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--center-crop"], OptionError, "--center-crop: the boxes"),
        (["--no-pack-label"], OptionError, "need all their values"),
        (["--encoding", ".png", "--quality", "80"], OptionError, "compression of PNG is 1 to 9"),
        (["--quality", "101"], OptionError, "at most 100"),
        (["--class-names", "a,a"], OptionError, "given twice"),
        (["--class-names", "a,b", "--no-check-labels"], OptionError, "exclude each other"),
        (["--list", "--train-ratio", "0.8", "--test-ratio", "0.3"], OptionError, "add up to more than 1"),
        (["--list", "--chunks", "11", "--recursive"], OptionError, "the list _10 would be empty"),
        (["--list", "--exts", ".bmp"], DataError, r"no images with the suffixes .bmp .*--recursive"),
    ],
)
def test_options_that_cannot_work_are_refused(root, detection, words, error, message):
    with pytest.raises(error, match=message):
        im2rec(detection.with_suffix(""), root, *words)
    assert list(contents(detection.parent)) == ["det.lst"]


def test_names_for_a_list_without_boxes_are_refused(root, tmp_path):
    im2rec("--list", tmp_path / "c", root)
    with pytest.raises(OptionError, match="no detection labels"):
        im2rec(tmp_path / "c", root, "--class-names", "a,b")


def test_missing_list_and_root_are_named(root, tmp_path, detection):
    with pytest.raises(DataError, match=r"none.lst: no such list"):
        im2rec(tmp_path / "none", root)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        im2rec(detection, tmp_path / "nowhere")
    with pytest.raises(OptionError, match="required: PREFIX, ROOT"):
        im2rec()


def test_links_out_of_the_root_are_not_listed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.jpg").write_bytes(jpeg())
    (root / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"link/x.jpg.*outside"):
        im2rec("--list", "--recursive", tmp_path / "l", root)
    (root / "link").unlink()
    (root / "a/loop").symlink_to(root)
    with pytest.raises(DataError, match="a second time by a symbolic link"):
        im2rec("--list", "--recursive", tmp_path / "l", root)
    assert not (tmp_path / "l.lst").exists()


def test_the_exif_orientation_is_ignored_and_reported(root, tmp_path, capsys):
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(stream, "JPEG", exif=exif)
    (root / "a/0.jpg").write_bytes(stream.getvalue())
    (tmp_path / "e.lst").write_text("0\t1\ta/0.jpg\n")
    im2rec(tmp_path / "e", root)
    record = unpack(RecordReader(tmp_path / "e.rec").read(0), "")
    assert cv2.imdecode(np.frombuffer(record.image, np.uint8), 1).shape == (30, 40, 3)
    assert "EXIF orientation, which is ignored: 1" in capsys.readouterr().out


def command(*words, **options):
    tool = str(PROJECT / "tools" / "im2rec.py")
    return subprocess.Popen(
        [sys.executable, tool, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def test_the_classic_line_as_a_script_from_anywhere(root, detection):
    process = command("det", root, "--pack-label", "--num-thread", "2", cwd=detection.parent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "images: 10, left out: 0" in out
    assert "10 of 10 images" in err
    (root / "a/0.jpg").unlink()
    process = command("det", root, cwd=detection.parent)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (2, False)
    assert "error: images that cannot be used: 1" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_leaves_the_older_files(root, detection, number):
    im2rec(detection, root)
    before = contents(detection.parent, (".rec", ".idx"))
    big = root / "big.png"
    cv2.imwrite(str(big), np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8))
    detection.write_text("".join(f"{k}\t{BOXES}\tbig.png\n" for k in range(400)))
    process = command(detection, root, "--encoding", ".png", cwd=detection.parent)
    deadline = time.monotonic() + 30
    while not any(p.stat().st_size for p in detection.parent.glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert contents(detection.parent, (".rec", ".idx", ".tmp")) == before


def test_a_sidecar_that_cannot_be_written_leaves_the_older_record(root, detection):
    im2rec(detection, root)
    before = contents(detection.parent)
    detection.with_suffix(".json").mkdir()
    with pytest.raises(DataError, match=r"det\.json: cannot be read or written"):
        im2rec(detection, root, "--resize", "20", "--class-names", "cat,dog")
    assert contents(detection.parent) == before


def test_a_sidecar_of_another_tool_gives_its_names(root, detection):
    write_sidecar(detection, Sidecar(("u", "v"), 1, 1, 1, (1, 0), 8, "", "", 1, "0"))
    im2rec(detection, root)
    assert read_sidecar(detection).class_names == ("u", "v")
