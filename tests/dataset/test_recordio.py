"""RecordIO: byte for byte what mx.recordio writes, and every damage named before training starts."""

import contextlib
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from dataset.recordio import MAGIC_BYTES, RecordReader, RecordWriter, pack, unpack
from machine.runtime import mx

PAYLOADS = [b"", b"a", b"abcd", b"abcde" * 100, MAGIC_BYTES, b"abcd" + MAGIC_BYTES + b"xyz", b"a" + MAGIC_BYTES]


def write(path, payloads, first_id=0):
    with RecordWriter(path) as writer:
        for index, payload in enumerate(payloads, first_id):
            writer.write(index, payload)
    return path


def write_with_mxnet(path, payloads):
    writer = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for index, payload in enumerate(payloads):
        writer.write_idx(index, payload)
    writer.close()
    return path


def read_all(path):
    reader = RecordReader(path)
    return [reader.read(k) for k in range(len(reader))]


words = st.sampled_from([MAGIC_BYTES, b"\x00\x00\x00\x00", b"ab", b"c", b"jpeg"])


@given(st.lists(st.lists(words, max_size=6).map(b"".join), min_size=1, max_size=5))
def test_files_are_those_of_mxnet(tmp_path_factory, payloads):
    folder = tmp_path_factory.mktemp("rec")
    ours, theirs = write(folder / "a.rec", payloads), write_with_mxnet(folder / "b.rec", payloads)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.with_suffix(".idx").read_bytes() == theirs.with_suffix(".idx").read_bytes()
    assert read_all(theirs) == payloads


def test_mxnet_reads_ours(tmp_path):
    path = write(tmp_path / "a.rec", PAYLOADS[1:])
    reader = mx.recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "r")
    assert [reader.read_idx(k) for k in reader.keys] == PAYLOADS[1:]


@pytest.mark.parametrize("size", [1, 2, 14])
def test_pack_is_that_of_mxnet(size):
    label = np.random.default_rng(0).random(size).astype(np.float32)
    ours = pack(label, b"image", 7)
    assert ours == mx.recordio.pack(mx.recordio.IRHeader(0, label, 7, 0), b"image")
    record = unpack(ours, "r")
    assert (record.index, record.image) == (7, b"image")
    np.testing.assert_array_equal(record.label, label)


def test_classification_record_has_one_label():
    record = unpack(mx.recordio.pack(mx.recordio.IRHeader(0, 3.0, 5, 0), b"image"), "r")
    np.testing.assert_array_equal(record.label, np.float32([3]))
    assert record.image == b"image"


@pytest.mark.parametrize("payload", [b"", b"x" * 23, struct.pack("<IfQQ", 2**31, 0, 0, 0) + b"x" * 8])
def test_unpack_refuses_a_damaged_payload(payload):
    with pytest.raises(DataError, match="a.rec, record 3"):
        unpack(payload, "a.rec, record 3")


def test_ids_come_in_file_order(tmp_path):
    path = write(tmp_path / "a.rec", PAYLOADS, first_id=40)
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join(reversed(lines)) + "\n")
    assert RecordReader(path).keys.tolist() == list(range(40, 47))
    assert read_all(path) == PAYLOADS


def test_reader_works_without_index_and_after_pickling(tmp_path):
    path = write(tmp_path / "a.rec", PAYLOADS, first_id=9)
    path.with_suffix(".idx").unlink()
    reader = pickle.loads(pickle.dumps(RecordReader(path)))
    assert [reader.read(k) for k in range(len(reader))] == PAYLOADS
    assert reader.keys.tolist() == list(range(7))
    with pytest.raises(IndexError):
        reader.read(7)


def test_failure_leaves_nothing_and_keeps_the_old_files(tmp_path):
    path = write(tmp_path / "a.rec", [b"old"])

    def interrupted():
        with RecordWriter(path) as writer:
            writer.write(0, b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]
    assert read_all(path) == [b"old"]


@pytest.mark.parametrize(
    ("offset", "word"),
    [
        (20, b"\0\0\0\0"),
        (24, struct.pack("<I", (1 << 29) - 1)),
        (24, b"\xff" * 4),
        (24, struct.pack("<I", 2 << 29 | 8)),
    ],
    ids=["magic", "length", "flag", "order"],
)
def test_damaged_header_is_named(tmp_path, offset, word):
    path = write(tmp_path / "a.rec", [b"a" * 12, b"b" * 12, b"c" * 12])
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = word
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.rec, record 1"):
        RecordReader(path)


@given(st.data())
def test_any_cut_is_noticed(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("rec") / "a.rec", PAYLOADS)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match=r"a\.(rec|idx)"):
        RecordReader(path)


@given(st.data())
def test_any_damage_is_a_data_error_or_read(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("rec") / "a.rec", PAYLOADS)
    for file in (path, path.with_suffix(".idx")):
        content = bytearray(file.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
            content[at] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
    with contextlib.suppress(DataError):
        assert len(read_all(path)) == len(PAYLOADS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("0\t0\n0\t20\n", "id 0 is listed more than once"),
        ("0\t0\n1\t4000\n", "past the end"),
        ("0\t0\n1\t22\n", "not the beginning of a record"),
        ("0\t0\n", "lists 1 records"),
        ("0 0\n1 20\n", "id TAB offset"),
        ("", "id TAB offset|lists 0 records"),
        ("0\t0\n1\t99999999999999999999999\n", "id TAB offset"),
        ("0\t0\n" * 100, "larger than an index"),
    ],
)
def test_index_must_agree(tmp_path, index, message):
    path = write(tmp_path / "a.rec", [b"a" * 12, b"b" * 12])
    path.with_suffix(".idx").write_text(index)
    with pytest.raises(DataError, match=message):
        RecordReader(path)


def test_file_that_shrinks_under_the_reader_is_named(tmp_path):
    path = write(tmp_path / "a.rec", [b"a" * 12, b"b" * 12])
    reader = RecordReader(path)
    path.write_bytes(path.read_bytes()[:30])
    assert reader.read(0) == b"a" * 12
    with pytest.raises(DataError, match="record 1: the file ends inside it"):
        reader.read(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.rec", "cannot be read"),
        (".", r"is a folder; name the record in it"),
        ("t.lst", r"t\.lst: is no record; name the one beside it, t\.rec"),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        RecordReader(tmp_path / name)
