"""Weights files: ordinary MXNet files, and any damage ends in one CheckpointError that names the file."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError
from machine.runtime import mx
from model.params_file import LIST_MAGIC, V1_MAGIC, V2_MAGIC, read_arrays, read_params, stage_arrays, write_params

ARRAYS = {
    "arg:conv_weight": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "arg:ids": np.arange(5, dtype=np.int64),
    "arg:half": np.float16([0.5, 2]),
    "aux:moving_mean": np.float64([[np.pi]]),
    "aux:ünï": np.uint8([7]),
}


def mxnet_file(path, arrays=ARRAYS):
    mx.nd.save(str(path), {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays.items()})
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file that MXNet wrote."""
    return mxnet_file(tmp_path_factory.mktemp("params") / "net-0001.params").read_bytes()


def same(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_files_are_byte_for_byte_those_of_mxnet(tmp_path, sound):
    stage_arrays(tmp_path / "ours.params", ARRAYS).publish()
    assert (tmp_path / "ours.params").read_bytes() == sound
    same({name: array.asnumpy() for name, array in mx.nd.load(str(tmp_path / "ours.params")).items()})


def test_mxnet_files_are_read(tmp_path, sound):
    same(read_arrays(mxnet_file(tmp_path / "x.params")))


def test_params_round_trip_through_mxnets_own_loader(tmp_path):
    args, aux = {"w": mx.nd.array([[1.5, 2]])}, {"m": mx.nd.zeros((3,))}
    write_params(tmp_path / "net-0007.params", args, aux)
    mx.sym.var("data").save(str(tmp_path / "net-symbol.json"))
    _, loaded_args, loaded_aux = mx.model.load_checkpoint(str(tmp_path / "net"), 7)
    ours_args, ours_aux = read_params(tmp_path / "net-0007.params")
    for loaded in (loaded_args["w"], ours_args["w"]):
        np.testing.assert_array_equal(loaded.asnumpy(), [[1.5, 2]])
    assert loaded_aux.keys() == ours_aux.keys() == {"m"}


def old_file(array, name, magic):
    """An array as mxnet 0.x (magic None: number of dimensions, then 32-bit sides) or 0.12 (V1: 64-bit sides) wrote
    it."""
    if magic is None:
        shape = struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape)
    else:
        shape = struct.pack(f"<Ii{array.ndim}q", magic, array.ndim, *array.shape)
    body = struct.pack("<QQQ", LIST_MAGIC, 0, 1) + shape + struct.pack("<iii", 1, 0, 0) + array.tobytes()
    return body + struct.pack("<QQ", 1, len(name)) + name.encode()


@pytest.mark.parametrize("magic", [None, V1_MAGIC])
def test_files_of_old_mxnet_are_read_as_mxnet_reads_them(tmp_path, magic):
    array = np.float32([[1, 2, 3], [4, 5, 6]])
    (tmp_path / "old.params").write_bytes(old_file(array, "arg:w", magic))
    np.testing.assert_array_equal(mx.nd.load(str(tmp_path / "old.params"))["arg:w"].asnumpy(), array)
    np.testing.assert_array_equal(read_arrays(tmp_path / "old.params")["arg:w"], array)


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        read_params(path)


def test_truncated_files_are_refused(tmp_path, sound):
    for k in range(16):
        refused(tmp_path / "cut.params", sound[: len(sound) * k // 16])
    refused(tmp_path / "cut.params", sound[:-1])
    refused(tmp_path / "long.params", sound + b"\0")


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_damaged_counts_are_refused_without_allocating(tmp_path, sound, value):
    refused(tmp_path / "count.params", sound[:16] + struct.pack("<Q", value) + sound[24:])
    length = sound.index(b"arg:conv_weight") - 8
    refused(tmp_path / "name.params", sound[:length] + struct.pack("<Q", value) + sound[length + 8 :])


@pytest.mark.parametrize("side", [2**40, 2**62, 0, -1, -(2**63)])
def test_damaged_shapes_are_refused_without_allocating(tmp_path, sound, side):
    first_side = 24 + 4 + 4 + 4  # list header, magic, storage type, number of dimensions
    assert struct.unpack_from("<q", sound, first_side)[0] == 2
    refused(tmp_path / "shape.params", sound[:first_side] + struct.pack("<q", side) + sound[first_side + 8 :])


@pytest.mark.parametrize("shape", [(), (0,), (0, 2**40), (2**62, 0)])
def test_arrays_without_values_are_refused(tmp_path, shape):
    sides = struct.pack(f"<{len(shape)}q", *shape)
    head = struct.pack("<QQQIii", LIST_MAGIC, 0, 1, V2_MAGIC, 0, len(shape)) + sides
    refused(tmp_path / "empty.params", head + struct.pack("<iii", 1, 0, 0) + struct.pack("<QQ", 1, 5) + b"arg:w")


def test_every_flipped_bit_of_the_headers_is_refused_or_harmless(tmp_path, sound):
    header = range(24 + 4 + 4 + 4 + 24 + 12)  # up to the first array's values
    names = range(sound.index(b"arg:conv_weight") - 16, len(sound))
    path = tmp_path / "flipped.params"
    for at in (*header, *names):
        for bit in range(8):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :])
            try:
                read_params(path)
            except CheckpointError as error:
                assert path.name in str(error)  # noqa: PT017 - most flips are refused, those of names need not be


@settings(max_examples=300)
@given(st.data())
def test_any_mutation_is_a_checkpoint_error_or_read(tmp_path_factory, sound, data):
    path = tmp_path_factory.getbasetemp() / "mutated.params"
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(max_size=9))
        content[at : at + data.draw(st.sampled_from([0, len(piece)]))] = piece
    path.write_bytes(content)
    try:
        read_params(path)
    except CheckpointError as error:
        assert path.name in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 4096, b"PK\x03\x04" * 99, b"{}"])
def test_other_files_are_refused(tmp_path, content):
    refused(tmp_path / "other.params", content)


def test_missing_file_and_arrays_without_kind(tmp_path):
    with pytest.raises(CheckpointError, match="absent.params"):
        read_params(tmp_path / "absent.params")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_params(tmp_path)
    mxnet_file(tmp_path / "plain.params", {"weight": np.float32([1])})
    with pytest.raises(CheckpointError, match="neither arg:"):
        read_params(tmp_path / "plain.params")
    mx.nd.save(str(tmp_path / "list.params"), [mx.nd.ones(2)])
    with pytest.raises(CheckpointError, match="names"):
        read_params(tmp_path / "list.params")


def test_sparse_arrays_are_refused(tmp_path):
    mx.nd.save(str(tmp_path / "sparse.params"), {"arg:w": mx.nd.sparse.row_sparse_array(([[1.0]], [0]), shape=(2, 1))})
    with pytest.raises(CheckpointError, match="sparse"):
        read_arrays(tmp_path / "sparse.params")


def test_what_is_read_back_must_be_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("model.params_file.read_arrays", lambda path: {"arg:w": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match=r"arg:w could not be read back"):
        stage_arrays(tmp_path / "x.params", {"arg:w": np.ones(2, np.float32)})
    assert list(tmp_path.iterdir()) == []
