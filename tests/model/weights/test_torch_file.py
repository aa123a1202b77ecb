"""Files of torch.save without torch: what is read, what is refused, and that nothing in them ever runs."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from common.errors import CheckpointError
from model.weights import safe_pickle
from model.weights.torch_file import MAGIC, PROTOCOL, read_state_dict

COMMAND = "touch ran"


class Global:
    """Something that is pickled as a name with arguments, whatever is behind it."""

    def __init__(self, module, name, *arguments):
        self.words, self.arguments = (module, name), arguments


class Storage:
    def __init__(self, kind, key, count, part=None):
        self.identity = ("storage", Global("torch", f"{kind}Storage"), key, "cpu", count, *(part or ()))


def dumps(value):
    """A pickle of protocol 2, written opcode by opcode."""
    return b"\x80\x02" + _parts(value) + b"."


def _parts(value):
    if isinstance(value, Storage):
        return _parts(value.identity) + b"Q"
    if isinstance(value, Global):
        name = "c{}\n{}\n".format(*value.words).encode()
        return name + (_parts(value.arguments) + b"R" if value.arguments else b"")
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_parts, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_parts(k) + _parts(v) for k, v in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def tensor(storage, shape, strides, offset=0):
    return Global("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def zipped(pickled, compression=zipfile.ZIP_STORED, **storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key.removeprefix('k')}", content)
    return file.getvalue()


def legacy(pickled, keys=(), content=b"", little=True):
    head = [MAGIC, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": little, "type_sizes": {}}]
    return b"".join(map(dumps, head)) + pickled + dumps(list(keys)) + content


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads bytes as a.pth in an empty folder, in which afterwards nothing else is."""
    monkeypatch.chdir(tmp_path)

    def run(content):
        (tmp_path / "a.pth").write_bytes(content)
        try:
            return read_state_dict("a.pth")
        finally:
            assert os.listdir(tmp_path) == ["a.pth"]

    return run


def one(storage=None, shape=(2,), strides=(1,), offset=0):
    return dumps({"w": tensor(storage or Storage("Float", "0", 2), shape, strides, offset)})


TWO = struct.pack("<2f", 1.5, -2)


def test_both_forms_are_read(read):
    np.testing.assert_array_equal(read(zipped(one(), k0=TWO))["w"], [1.5, -2])
    np.testing.assert_array_equal(read(legacy(one(), ["0"], struct.pack("<q", 2) + TWO))["w"], [1.5, -2])
    part = Storage("Float", "0", 2, part=(("view", 1, 1),))  # as torch before 0.4 had it
    np.testing.assert_array_equal(read(legacy(one(part, (1,)), ["0"], struct.pack("<q", 2) + TWO))["w"], [-2])


def test_numbers_are_float32_whatever_they_were(read):
    found = read(zipped(one(Storage("BFloat16", "0", 2)), k0=np.array([1.5, -2], "<f4").view("<u2")[1::2].tobytes()))
    np.testing.assert_array_equal(found["w"], [1.5, -2])
    assert found["w"].dtype == np.float32
    found["w"][:] = 0  # an array of its own


class Payload:
    """Pickled, it calls what it was made with."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "os.system": pickle.dumps({"w": Payload(os.system, COMMAND)}, 2),
    "posix.system, protocol 4": pickle.dumps({"w": Payload(os.system, COMMAND)}, 4),
    "eval": pickle.dumps({"w": Payload(eval, f"__import__('os').system('{COMMAND}')")}, 2),
    "getattr": pickle.dumps({"w": Payload(getattr, Payload(__import__, "os"), "system")}, 2),
    "a name alone": dumps({"w": Global("os", "system")}),
    "a name with dots": dumps({"w": Global("collections", "OrderedDict.__reduce__", "x")}),
    "a path in a known name": dumps({"w": Global("torch", "_utils._rebuild_tensor_v2.__globals__", "x")}),
    "INST": b"(S'touch ran'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch ran'\no.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of a text": dumps({"w": "x"})[:-1] + b"(tR.",
    "a state for a storage": b"\x80\x02" + _parts(Storage("Float", "0", 2)) + b"}(X\x01\x00\x00\x00aK\x01ub.",
    "an ordered dict of a call": dumps(Global("collections", "OrderedDict", (("a", 1),))),
    "nested keys": b"\x80\x02}" + b")" + b"q\x002\x86" * 60 + b"K\x01s.",
    "huge keys": b"\x80\x02}\x8a\x09" + b"\xff" * 8 + b"\x00K\x01s.",
    "persistent text": b"\x80\x02Pstorage\n.",
}


@pytest.mark.parametrize("wrap", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_is_unpickled(read, name, wrap):
    with pytest.raises(CheckpointError, match="a.pth: (holds .* more than tensors and is never run|not a state_dict)"):
        read(wrap(HOSTILE[name]))


def test_a_refused_name_is_told(read):
    with pytest.raises(CheckpointError, match=r"a.pth: holds (posix|nt).system, .*torch.save\(model.state_dict\(\)"):
        read(zipped(HOSTILE["os.system"]))


def test_the_attack_would_run_in_pickle(tmp_path, monkeypatch):
    """What the cases above are worth."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["os.system"])
    assert os.listdir(tmp_path) == ["ran"]


LARGE = 1 << 40
BOMBS = {
    "a storage": zipped(one(Storage("Float", "0", LARGE)), k0=TWO),
    "a legacy storage": legacy(one(Storage("Float", "0", LARGE)), ["0"], struct.pack("<q", LARGE)),
    "one number spread": zipped(one(shape=(LARGE,), strides=(0,)), k0=TWO),
    "many views": zipped(
        dumps({str(k): tensor(Storage("Float", "0", 1 << 16), (1 << 16,), (1,)) for k in range(99)}),
        k0=bytes(1 << 18),
    ),
    "a view beyond": zipped(one(offset=1), k0=TWO),
    "a stride beyond": zipped(one(strides=(2,)), k0=TWO),
    "a negative stride": zipped(one(strides=(-1,), offset=1), k0=TWO),
    "a shape of no numbers": zipped(one(shape=("a",)), k0=TWO),
    "an empty giant": zipped(one(shape=(LARGE, 0, LARGE, LARGE), strides=(1, 1, 1, 1)), k0=TWO),
    "many dimensions": zipped(one(shape=(1,) * 99, strides=(1,) * 99), k0=TWO),
    "a text": zipped(b"\x80\x04\x8d" + struct.pack("<Q", LARGE) + b"a."),
    "a legacy text": legacy(b"\x80\x02X\xff\xff\xff\xffa."),
    "a memo": zipped(b"\x80\x02Nr\xff\xff\xff\xff."),
    "a byte array": zipped(b"\x80\x05\x96" + struct.pack("<Q", LARGE) + b"a."),
    "deflated": zipped(one(), zipfile.ZIP_DEFLATED, k0=TWO),
    "a short storage": zipped(one(), k0=TWO[:5]),
    "two lengths": zipped(
        dumps({"a": tensor(Storage("Float", "0", 2), (1,), (1,)), "b": tensor(Storage("Float", "0", 1), (1,), (1,))}),
        k0=TWO,
    ),
    "no storage": zipped(one()),
    "an unknown legacy key": legacy(one(), ["1"], struct.pack("<q", 2) + TWO),
    "big-endian": legacy(one(), ["0"], struct.pack("<q", 2) + TWO, little=False),
}


@pytest.mark.parametrize("name", BOMBS)
def test_lengths_are_checked_before_memory_is_taken(read, name):
    with pytest.raises(CheckpointError, match=r"a\.pth: "):
        read(BOMBS[name])


def test_the_number_of_operations_is_limited(read, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 100)
    with pytest.raises(CheckpointError, match="holds more than 100 operations"):
        read(zipped(b"\x80\x02" + b"}" * 200 + b"."))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x04\x95" + b"\xff" * 40, zipped(one())[:-9]])
def test_damaged_files_are_named(read, content):
    with pytest.raises(CheckpointError, match="a.pth: not a state_dict"):
        read(content)


@pytest.mark.parametrize("wrap", ["zip", "legacy"])
def test_every_cut_of_a_file_is_one_sentence(read, wrap):
    whole = zipped(one(), k0=TWO) if wrap == "zip" else legacy(one(), ["0"], struct.pack("<q", 2) + TWO)
    for end in range(len(whole)):
        with pytest.raises(CheckpointError, match="a.pth: "):
            read(whole[:end])


def test_every_damaged_byte_is_one_sentence_or_other_numbers(read):
    rng = np.random.default_rng(0)
    for whole in (zipped(one(), k0=TWO), legacy(one(), ["0"], struct.pack("<q", 2) + TWO)):
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] = rng.integers(256)
            with contextlib.suppress(CheckpointError):
                read(bytes(damaged))


def test_a_dict_without_tensors_is_told(read):
    with pytest.raises(CheckpointError, match="holds no dict of tensors; save one by torch.save"):
        read(zipped(dumps({"epoch": 3})))


@pytest.mark.parametrize("form", ["zip", "legacy", "in a dict"])
def test_a_whole_model_gets_the_remedy(read, form):
    """torch pickles a module as its class and a dict; before 1.6 the class came with its source as a persistent id."""
    net = Global("nets", "SSD", 1)
    pickled = dumps({"epoch": 3, "model": net} if form == "in a dict" else net)
    with pytest.raises(
        CheckpointError, match=r"holds nets.SSD, .* never run; .* torch.save\(model.state_dict\(\), FILE\)"
    ):
        read(legacy(pickled) if form == "legacy" else zipped(pickled))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def samples(torch):
    """Tensors of each dtype and of all kinds of views."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    kinds = (
        *("float32", "float64", "float16", "bfloat16", "bool"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
    )
    found = {name: torch.arange(5).to(getattr(torch, name)) for name in kinds}
    with_attribute = torch.nn.Parameter(torch.ones(2))
    with_attribute.note = "x"
    return OrderedDict(
        found
        | {
            "base": base,
            "shared": base[1],
            "transposed": base.permute(2, 0, 1),
            "strided": base[:, ::2, 1:],
            "spread": torch.tensor([3.0]).expand(4, 5),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7),
            "parameter": torch.nn.Parameter(base * 2),
            "attribute": with_attribute,
            "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_it_reads_what_torch_writes(torch, tmp_path, is_zip, protocol):
    tensors = samples(torch)
    scores = {"best": np.float64(0.5), "all": np.zeros(3), "size": torch.Size([1]), "device": torch.device("cpu")}
    contents = [tensors, {"state_dict": tensors, "epoch": 3, "scores": scores}, {"model": dict(tensors), "args": [1.5]}]
    for content in contents:
        torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
        found = read_state_dict(tmp_path / "a.pth")
        assert list(found) == list(tensors)
        for name, values in tensors.items():
            wanted = values.detach().float().numpy()
            assert (found[name].dtype, found[name].shape) == (np.float32, wanted.shape)
            np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.slow
def test_it_reads_state_dicts_of_modules_and_optimizers(torch, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(4, 2))
    adam = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    adam.step()
    for is_zip in (True, False):
        torch.save(
            {"model": net.state_dict(), "optimizer": adam.state_dict(), "best": None},
            tmp_path / "a.pth",
            _use_new_zipfile_serialization=is_zip,
        )
        found = read_state_dict(tmp_path / "a.pth")
        assert list(found) == list(net.state_dict())
        np.testing.assert_array_equal(found["0.weight"], net[0].weight.detach().numpy())


@pytest.mark.slow
def test_whole_modules_programs_and_complex_numbers_are_refused(torch, tmp_path):
    net = torch.nn.Linear(2, 2)
    torch.save(net, tmp_path / "net.pth")
    torch.jit.script(net).save(tmp_path / "program.pth")
    torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "int8.pth")
    for name, word in (("net", "torch.nn.modules.linear.Linear"), ("program", "TorchScript"), ("complex", "complex"),
                       ("int8", "torch._utils._rebuild_qtensor")):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"{name}.pth: holds .*{word}"):
            read_state_dict(tmp_path / f"{name}.pth")
