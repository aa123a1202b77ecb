"""Sidecar: written, read back, and never trusted when it is damaged or belongs to another record."""

import dataclasses

import pytest

from common.errors import DataError
from common.files import file_sha256
from common.version import __version__
from dataset.recordio import RecordWriter
from dataset.sidecar import Sidecar, read_sidecar, sidecar_path, verify_sidecar, write_sidecar
from tests.signing import earlier, edit, flips


@pytest.fixture
def rec(tmp_path):
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        writer.write(0, b"12345678")
        writer.write(1, b"12345678" * 16)
    names, counts = ("cat", "chât"), (3, 4)
    size = path.stat().st_size
    write_sidecar(path, Sidecar(names, 2, 7, 5, counts, 32, "VOC", file_sha256(path), size, __version__))
    return path


def test_round_trip(rec):
    sidecar = read_sidecar(rec)
    assert sidecar.class_names == ("cat", "chât")
    assert sidecar.objects_per_class == (3, 4)
    verify_sidecar(rec, sidecar, hash=True)
    assert read_sidecar(rec.with_name("other.rec")) is None


def test_record_that_changed_is_refused(rec):
    sidecar = read_sidecar(rec)
    for change in ({"num_images": 3}, {"size": 5}):
        with pytest.raises(DataError, match="does not belong to a.json"):
            verify_sidecar(rec, dataclasses.replace(sidecar, **change), hash=False)
    rec.write_bytes(rec.read_bytes().replace(b"5678", b"5679"))
    verify_sidecar(rec, sidecar, hash=False)
    with pytest.raises(DataError, match="sha256"):
        verify_sidecar(rec, sidecar, hash=True)


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": "2"},
        {"num_images": True},
        {"num_objects": -1},
        {"max_objects": 1.0},
        {"class_names": "cat"},
        {"class_names": ["a", "a"]},
        {"class_names": ["a"]},
        {"objects_per_class": [1, None]},
        {"sha256": None},
    ],
)
def test_wrong_field_is_refused(rec, change):
    edit(sidecar_path(rec), lambda values: values.update(change))
    with pytest.raises(DataError, match=r"a.json: not a sidecar.*" + next(iter(change))):
        read_sidecar(rec)


def test_a_sidecar_without_number_is_read_and_told_once(rec, caplog):
    path, known = sidecar_path(rec), read_sidecar(rec)
    path.write_text(earlier(path.read_text(), number=None).replace("{", '{"novelty": 1,', 1))
    assert [read_sidecar(rec) for _ in range(3)] == [known] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: of an earlier version, without a digest")
    path.write_text(earlier(path.read_text(), number=None, without=("size",)))
    with pytest.raises(DataError, match="size is missing in sidecar"):
        read_sidecar(rec)


def test_an_unknown_key_is_refused(rec):
    edit(sidecar_path(rec), lambda values: values.update(novelty=1))
    with pytest.raises(DataError, match="the unknown key 'novelty', written by a later version, or edited"):
        read_sidecar(rec)


def test_no_flipped_bit_is_taken_for_another_sidecar(rec):
    path, known = sidecar_path(rec), read_sidecar(rec)
    refused = 0
    for content in flips(path.read_bytes(), 3):
        path.write_bytes(content)
        try:
            assert read_sidecar(rec) == known
        except DataError as error:
            assert "pack the data set again" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0.98 * 8 * len(content) / 3


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"num_images": NaN}', "\xff"])
def test_damaged_file_is_refused(rec, text):
    sidecar_path(rec).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="a.json: not a sidecar"):
        read_sidecar(rec)


def test_more_objects_than_the_record_has_bytes_for_are_refused(rec):
    large = dataclasses.replace(read_sidecar(rec), max_objects=300_000_000)
    with pytest.raises(DataError, match=r"a.json: says that an image has 300000000 objects, more than the .* bytes of"):
        verify_sidecar(rec, large, hash=False)
