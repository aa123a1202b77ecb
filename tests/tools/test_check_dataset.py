"""check_dataset names each defect with its code, changes nothing, and writes a cleaned copy."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError, UserError
from dataset import checking, defects, leaks
from dataset.defects import CODES
from dataset.labels import parse_label
from dataset.recordio import RecordReader, RecordWriter, pack
from dataset.sidecar import describe_record, image_digest, read_sidecar, verify_sidecar, write_sidecar
from tests.dataset import layouts
from tests.dataset.faults import FAULTS, _voc_a
from tests.dataset.voc import CAT, DOG, add, image_set, jpeg, xml_object
from tools.check_dataset import main

# The faults that are packed: the code that tells them, None where nothing is doubtful.
CODE_OF_READ = {
    "YOLO: a box 1.0025 wide": "clipped",
    "YOLO: one image without label": "told",
    "COCO: iscrowd null": "told",
    "COCO: two categories of a name": "told",
    "VOC: difficult Unspecified": "told",
    "files ._* of macOS": "told",
    "VOC: a set line `a.jpg`": None,
    "resized, same proportions": "size",
    "an object twice": "twice",
    "a box outside": "outside",
    "xmax 5000 of 40": "far",
    "classes `Cat` and `cat`": "like-names",
    "12 bits and a window": None,
    "a TIFF": None,
    "VOC: a.jpg.xml": None,
    "list: `images\\a.jpg`": "no-objects",
}
BOX = [0, 0.1, 0.1, 0.5, 0.5, 0]


def codes(text):
    return [code for code in re.findall(r": ([a-z-]+): ", text) if code in CODES]


def bytes_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_record(path, labels, image=None, names=("cat", "dog"), counted=None, size=(40, 30)):
    """A record with these objects, each a list of rows or a flat label; with a sidecar that fits `counted`."""
    flats = [label if isinstance(label, np.ndarray) else flat_label(label) for label in labels]
    images = [jpeg(*size, seed=k) if image is None or k else image for k in range(len(flats))]
    with RecordWriter(path) as writer:
        for k, (label, content) in enumerate(zip(flats, images, strict=True)):
            writer.write(k, pack(label, content, k))
    rows = np.array([row for label in labels if isinstance(label, list) for row in label]).reshape(-1, 6)
    ids = rows[:, 0].astype(int)
    counts = (
        np.bincount(ids[(ids >= 0) & (ids < len(names))], minlength=len(names))
        if counted is None
        else np.array(counted)
    )
    digests = [image_digest(content) for content in images]
    write_sidecar(path, describe_record(path, names, [1] * len(labels), counts, 8, "made", digests))
    return path


def flat_label(rows):
    return np.array([2, 6, *np.array(rows, np.float32).ravel()], np.float32)


def found(*words):
    """(status, defects as --json has them) of a run with one process."""
    return main([*map(str, words), "--num-thread", "1"])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_of_the_table_is_found(tmp_path, fault, capsys):
    fault.build(tmp_path / "set")
    words = shlex.split(fault.words.replace("FOLDER", str(tmp_path / "set")))
    words.remove("--root")
    before = bytes_of(tmp_path)
    if "--class-names" in words:
        with pytest.raises(UserError, match=re.escape(fault.says)):
            found(*words)
        return
    status, out = found(*words), capsys.readouterr().out
    assert bytes_of(tmp_path) == before
    if not fault.read:
        pattern = re.escape(fault.says).replace("PATH", ".*").replace(":\\ ", ":.* ")
        assert re.search(pattern, out), out
        assert status == 1
        return
    expected = CODE_OF_READ[fault.name]
    assert status == (expected is not None), out
    assert expected is None or expected in codes(out)


def test_the_doubts_of_boxes_are_told_of_a_folder(tmp_path, capsys):
    boxes = [(30, 5, 31, 25), (25, 20, 24, 28)]
    _voc_a(CAT, *(xml_object("cat", box) for box in boxes), xml_object("dog", (1, 1, 20, 14)))(tmp_path)
    assert found(tmp_path, "--pixel-origin", 0) == 1
    assert sorted(codes(capsys.readouterr().out)) == ["mixed", "no-area", "thin"]
    _voc_a(xml_object("truck", (1, 1, 9, 9)), xml_object("trucks", (20, 10, 30, 20)))(tmp_path / "names")
    found(tmp_path / "names")
    assert codes(capsys.readouterr().out) == ["like-names"]


def test_sound_data_have_no_defects(tmp_path, capsys):
    _voc_a(CAT, DOG)(tmp_path)
    assert found(tmp_path, "--json", tmp_path / "d.json") == 0
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["defects"] == []
    assert content["sets"] == [{"name": str(tmp_path), "images": 2}]
    assert found(write_record(tmp_path / "t.rec", [[BOX], [[1, *BOX[1:]]]])) == 0


@pytest.mark.parametrize(
    ("rows", "code", "says"),
    [
        ([[2, 0.1, 0.1, 0.5, 0.5, 0]], "label", "class ids are whole numbers 0 to 1"),
        ([[-1, 0.1, 0.1, 0.5, 0.5, 0]], "label", "class ids are whole numbers 0 to 1"),
        ([[0, np.nan, 0.1, 0.5, 0.5, 0]], "label", "a value is not finite"),
        ([[0, 0.5, 0.1, 0.1, 0.5, 0]], "label", "inverted or has no area"),
        ([[0, 10, 10, 30, 20, 0]], "label", "pixel coordinates?"),
        ([[0, 0.1, 0.1, 1.2, 0.5, 0]], "label", "coordinates must lie in"),
        (np.array([2, 6, 1, 2], np.float32), "label", "not a multiple of the object width"),
        ([BOX, BOX], "twice", "object 0 [4 3 20 15] and object 1"),
        ([BOX, [0, 0.1, 0.1, 0.5, 0.505, 0]], "alike", "object 0 [4 3 20 15] and object 1"),
        ([BOX, [1, 0.1, 0.1, 0.5, 0.52, 0]], "mixed", "object 0 [4 3 20 15] and object 1"),
        ([[0, 0.1, 0.1, 0.12, 0.5, 0]], "thin", "object 0"),
    ],
)
def test_a_label_of_a_record_is_named(tmp_path, rows, code, says, capsys):
    path = write_record(tmp_path / "t.rec", [rows, [BOX, [1, 0.6, 0.6, 0.9, 0.9, 0]]])
    assert found(path) == 1
    line, *_ = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}, record 0: {code}: ")
    assert says in line
    assert line.endswith(CODES[code].remedy)


def test_all_wrong_objects_of_a_record_have_their_line(tmp_path, capsys):
    path = write_record(tmp_path / "t.rec", [[[7, *BOX[1:]], BOX, [0, 0.5, 0.1, 0.1, 0.5, 0]], [BOX]])
    found(path)
    assert [line.partition(" [")[0][-8:] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "object 0",
        "object 2",
    ]


def test_classes_of_a_record_are_checked(tmp_path, capsys):
    found(write_record(tmp_path / "t.rec", [[BOX]], names=("Traffic light", "traffic-light")))
    assert sorted(codes(capsys.readouterr().out)) == ["like-names", "no-objects"]


def test_damaged_files_of_a_record_are_defects(tmp_path, capsys):
    path = write_record(tmp_path / "t.rec", [[BOX], [BOX]], image=jpeg(400, 300)[:-3000], names=("cat",))
    assert found(path) == 1
    out = capsys.readouterr().out
    assert f"{path}, record 0: image: damaged JPEG" in out
    assert codes(out) == ["image"]
    assert found(path, "--fix", tmp_path / "clean.rec") == 1
    assert read_sidecar(tmp_path / "clean.rec").num_images == 1
    capsys.readouterr()
    path = write_record(tmp_path / "t.rec", [[BOX], [BOX]], names=("cat",), counted=[5])
    assert found(path) == 1
    assert codes(capsys.readouterr().out) == ["sidecar"]
    for name, change, code in (
        ("t.json", lambda content: content.replace(b"made", b"else"), "sidecar"),
        ("t.idx", lambda content: content.replace(b"1\t", b"0\t"), "record"),
        ("t.rec", lambda content: content[:-8], "record"),
    ):
        file = tmp_path / name
        content = file.read_bytes()
        file.write_bytes(change(content))
        assert found(path) == 1
        assert code in codes(capsys.readouterr().out)
        file.write_bytes(content)


def test_a_cleaned_record_has_the_sound_images(tmp_path, capsys):
    sound = [[BOX, [1, 0.6, 0.6, 0.9, 0.9, 1]], [BOX, BOX]]
    path = write_record(tmp_path / "t.rec", [*sound, [[5, *BOX[1:]]], []])
    before, out = bytes_of(tmp_path), tmp_path / "out" / "clean.rec"
    assert found(path, "--fix", out) == 1
    assert {file: content for file, content in bytes_of(tmp_path).items() if file in before} == before
    sidecar, reader, old = read_sidecar(out), RecordReader(out), RecordReader(path)
    verify_sidecar(out, sidecar, hash=True)
    assert (sidecar.num_images, sidecar.objects_per_class, sidecar.label_width) == (3, (2, 1), 14)
    assert reader.keys.tolist() == [0, 1, 3]
    objects = [parse_label(reader.record(k).label, "") for k in range(3)]
    np.testing.assert_array_equal(objects[0], np.array(sound[0], np.float32))
    np.testing.assert_array_equal(objects[1], np.array([BOX], np.float32))
    assert [reader.record(k).image for k in range(3)] == [old.record(k).image for k in (0, 1, 3)]
    capsys.readouterr()
    assert found(out) == 0


def test_a_folder_is_cleaned_into_a_record(tmp_path, capsys):
    _voc_a(CAT, CAT)(tmp_path / "set")
    (tmp_path / "set/images/b.jpg").write_bytes(jpeg(400, 300)[:-3000])
    before = bytes_of(tmp_path / "set")
    assert found(tmp_path / "set", "--fix", tmp_path / "c.rec") == 1
    assert bytes_of(tmp_path / "set") == before
    assert read_sidecar(tmp_path / "c.rec").num_objects == 1
    assert f"{tmp_path / 'c.rec'} written, images: 1, left out: 1" in capsys.readouterr().out


def test_what_cannot_be_cleaned_leaves_no_file(tmp_path):
    path = write_record(tmp_path / "t.rec", [[BOX]], names=("cat",))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be cleaned"):
        found(path, "--fix", tmp_path / "c.rec")
    path = write_record(tmp_path / "u.rec", [[[3, *BOX[1:]]]], names=("cat",))
    with pytest.raises(UserError, match="no record is left"):
        found(path, "--fix", tmp_path / "c.rec")
    assert not list(tmp_path.glob("*c.*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a record"),
        (["nowhere.rec"], "nowhere.rec: no such file or folder"),
        (["t.rec", "--fix", "t.rec"], "is there; choose another name"),
        (["t.rec", "--fix", "t.lst"], "must end in .rec"),
        (["t.rec", "t.rec", "--fix", "c.rec"], "name one"),
        (["t.rec", "--json", "no/d.json"], "there is no folder"),
    ],
)
def test_a_mistake_is_refused(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "t.rec", [[BOX]], names=("cat",))
    with pytest.raises(OptionError, match=says):
        found(*words)


def test_the_exit_status_tells_defects_from_mistakes(tmp_path):
    script = Path(__file__).parents[2] / "tools" / "check_dataset.py"
    sound, bad = (write_record(tmp_path / f"{k}.rec", [[BOX] * k], names=("cat",)) for k in (1, 2))
    for words, status in ((["--num-thread", "1", sound], 0), ([bad, "--num-thread", "1"], 1), ([bad, "--fix"], 2)):
        done = subprocess.run([sys.executable, script, *words], cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


def test_without_pictures_none_is_decoded(tmp_path, monkeypatch):
    path = write_record(tmp_path / "t.rec", [[BOX], [BOX]], names=("cat",))

    def refused(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(defects, "packed_image", refused)
    monkeypatch.setattr(defects, "image_digest", refused)
    assert found(path, "--no-pictures") == 0
    with pytest.raises(AssertionError, match="decoded"):
        found(path)


def test_workers_find_what_one_process_finds(tmp_path, capsys):
    path = write_record(tmp_path / "t.rec", [[BOX, BOX] if k % 3 else [[7, *BOX[1:]]] for k in range(200)])
    found(path)
    one = capsys.readouterr().out
    assert main([str(path), "--num-thread", "2"]) == 1
    assert capsys.readouterr().out == one
    assert one.count(": twice: ") == 133


def test_leaks_between_records_are_found(tmp_path, capsys, monkeypatch):
    train = write_record(tmp_path / "train.rec", [[BOX], [BOX]], names=("cat",))
    val = write_record(tmp_path / "val.rec", [[BOX]], image=jpeg(seed=1), names=("cat",))
    (tmp_path / "val.lst").write_text("0\t2\t6\timages/a b.jpg\n")
    told = f"{val}, record 0 (images/a b.jpg): leak-same: {train}, record 1, the same bytes; remove one of them"
    assert found(train, val) == 1
    assert told in capsys.readouterr().out.splitlines()
    monkeypatch.setattr(defects, "small_grey", None)
    assert found(train, val, "--no-pictures") == 1
    assert told in capsys.readouterr().out.splitlines()
    val.with_suffix(".json").unlink()
    assert found(train, val, "--no-pictures") == 1
    assert told in capsys.readouterr().out.splitlines()


def test_the_sets_of_a_folder_are_compared(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 3)):
        add(tmp_path, name, CAT, image=jpeg(seed=seed))
    for part, *names in (("train", "a", "b"), ("val", "c"), ("trainval", "a", "b", "c"), ("mine", "d")):
        image_set(tmp_path, part, *names)
    assert found(tmp_path) == 1
    out = capsys.readouterr().out
    assert f"JPEGImages/c.jpg: leak-same: {tmp_path}/JPEGImages/a.jpg" in out
    assert codes(out) == ["leak-same"]
    assert found(tmp_path, "--set", "train,mine") == 0
    with pytest.raises(OptionError, match="has 2 sets; name one with --set"):
        found(tmp_path, "--fix", tmp_path / "c.rec")
    assert found(tmp_path, "--set", "train", "--fix", tmp_path / "c.rec") == 0
    assert read_sidecar(tmp_path / "c.rec").num_images == 2


def code_rows():
    rows = [f"| `{code}` | {one.what} | {one.fix} |" for code, one in CODES.items()]
    return ["| code | defect | with --fix |", "|---|---|---|", *rows]


def test_the_document_has_the_table_of_codes():
    text = layouts.DOCUMENT.read_text("utf-8")
    assert text == layouts.with_table(text, "codes", code_rows()), "run python -m tests.dataset.layouts"


def test_each_code_of_the_table_is_given_somewhere():
    written = [Path(module.__file__).read_text("utf-8") for module in (defects, checking, leaks)]
    text = written[0].partition("class Defect")[2] + "".join(written[1:])
    assert [code for code in CODES if f'"{code}"' not in text] == []
