"""Files of torch.save as numpy arrays, without torch: those of torch 1.6 and later (zip), and of 0.2 to 1.5.

    zip: NAME/data.pkl, a pickle whose storages are persistent ids ("storage", kind, key, place, count); NAME/data/KEY
    before: pickles one after the other (magic number, protocol, system, the value, keys of the storages), then for each
        key the count (int64) and the numbers

Source: torch/serialization.py (_save, _legacy_save) and torch/_utils.py (_rebuild_tensor_v2). Nothing is unpickled but
by safe_pickle, with the names below. Lengths are checked against the file before memory is taken, and a file may make
no more values than it has bytes: views of one storage, or one number spread over a large shape, are no bomb.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import CheckpointError
from common.files import refuse_page
from model.weights.safe_pickle import Ignored, Known, PickleDamagedError, PickleRefusedError, load

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ZIP_START = b"PK\x03\x04"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
PICKLE = "/data.pkl"
MAX_PICKLE = 64 << 20  # bytes of data.pkl; that of a state_dict has about 200 for each tensor
MAX_DIMENSIONS = 32
FREE_VALUES = 1 << 20  # that the smallest file may make
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state_dict
BFLOAT16 = "bfloat16"  # the upper half of a float32
# What a storage holds, by torch's names; also those of dtypes (torch.float16).
DTYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    BFLOAT16: "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "?",
    "complex64": "<c8",
    "complex128": "<c16",
}
STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": BFLOAT16,
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


@dataclass(frozen=True)
class Dtype:
    """A dtype by torch's name, as a value of a pickle."""

    name: str

    @property
    def numpy(self) -> np.dtype:
        """Of the stored numbers."""
        return np.dtype(DTYPES[self.name])


@dataclass
class Storage:
    """Numbers of a file that tensors look at: nbytes bytes, which `bytes_of` reads when they are wanted."""

    nbytes: int
    bytes_of: Callable[[], bytes]
    _content: bytes | None = field(default=None, repr=False)

    def content(self) -> bytes:
        """The bytes, read once."""
        if self._content is None:
            self._content = self.bytes_of()
            if len(self._content) != self.nbytes:
                raise PickleDamagedError("it is cut off")
        return self._content


@dataclass(frozen=True)
class TypedStorage:
    """Part of a storage as numbers, from the number `start` on."""

    storage: Storage
    dtype: Dtype
    start: int
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

    source: TypedStorage
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many values it has, sides of 0 taken for 1."""
        return math.prod(max(side, 1) for side in self.shape)

    def array(self) -> np.ndarray:
        """Its values as a float32 array of its own."""
        kind = self.dtype.numpy
        if kind.kind == "c":
            raise PickleRefusedError("complex numbers")
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        content = self.source.storage.content()
        flat = np.frombuffer(content, kind, len(content) // kind.itemsize)[self.offset :]
        # The stride of a single row or column may be anything.
        steps = [step * kind.itemsize if side > 1 else 0 for side, step in zip(self.shape, self.strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        if self.dtype.name == BFLOAT16:
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view.astype(np.float32)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """{name: float32 array} of a state_dict, or of one under a key of WRAPPERS in a training script's dict.

    CheckpointError for a file that is missing, damaged, of a form not known, or that holds more than tensors and plain
    values.
    """
    refuse_page(path)
    try:
        with open(path, "rb") as file:
            reader = (_Zip if file.read(len(ZIP_START)) == ZIP_START else _Legacy)(file)
            state = _state_dict(reader.read())
            _check_amount(state.values(), reader.size)
            return {name: tensor.array() for name, tensor in state.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except PickleRefusedError as error:
        raise CheckpointError(
            f"{path}: holds {error}, which is more than tensors and is never run; save the weights alone, by "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except (
        ValueError,
        RuntimeError,
        LookupError,
        ArithmeticError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a state_dict of torch.save, or damaged ({reason:.120})") from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The state_dict in the value of a file."""
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise PickleDamagedError("it holds no dict of tensors; save one by torch.save(model.state_dict(), FILE)")
    return {str(name): tensor for name, tensor in content.items()}


def _check_amount(tensors: Iterable[Tensor], size: int) -> None:
    values = sum(tensor.size for tensor in tensors)
    if values > max(size, FREE_VALUES):
        raise PickleRefusedError(f"tensors of {values} values in {size} bytes")


class _Reader:
    """What both forms share: the storages by their keys."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, 2)
        file.seek(0)
        self._file = file
        self._storages: dict[str, Storage] = {}

    def storage(self, identity: tuple[Any, ...]) -> TypedStorage:
        """The storage of a persistent id: ("storage", kind, key, place, count[, part of a storage before 0.4])."""
        word, dtype, key, _, count, *rest = identity
        if word != "storage" or not isinstance(dtype, Dtype) or not isinstance(key, str) or not _is_count(count):
            raise PickleRefusedError("a persistent id that is no storage")
        nbytes = count * dtype.numpy.itemsize
        if nbytes > self.size:
            raise PickleDamagedError(f"a storage of {nbytes} bytes in a file of {self.size}")
        if key not in self._storages:
            self._storages[key] = Storage(nbytes, self.source_of(key, nbytes))
        if self._storages[key].nbytes != nbytes:
            raise PickleDamagedError("a storage has two lengths")
        start = 0
        if rest and rest[0] is not None:
            _, start, part = rest[0]
            if not (_is_count(start) and _is_count(part) and start + part <= count):
                raise PickleDamagedError("a part of a storage lies outside of it")
            count = part
        return TypedStorage(self._storages[key], dtype, start, count)

    def source_of(self, key: str, nbytes: int) -> Callable[[], bytes]:
        """What will read the bytes of a storage."""
        raise NotImplementedError


class _Zip(_Reader):
    """Files of torch 1.6 and later."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._archive = zipfile.ZipFile(file)
        self._read = 0
        names = self._archive.namelist()
        pickles = [name for name in names if name.endswith(PICKLE) and name.count("/") == 1]
        if len(pickles) != 1:
            raise PickleDamagedError("a zip file without NAME/data.pkl")
        self._folder = pickles[0].removesuffix(PICKLE)
        if any(name.startswith(f"{self._folder}/code/") for name in names):
            raise PickleRefusedError("a TorchScript program")

    def read(self) -> Any:
        """The value of the file."""
        order = f"{self._folder}/byteorder"
        if order in self._archive.namelist() and self._bytes(order, len(b"little")) != b"little":
            raise PickleRefusedError("numbers in the order of big-endian machines")
        with self._archive.open(self._member(f"{self._folder}{PICKLE}", MAX_PICKLE)) as file:
            return load(file, NAMES, self.storage, self.size)

    def source_of(self, key: str, nbytes: int) -> Callable[[], bytes]:
        return lambda: self._bytes(f"{self._folder}/data/{key}", nbytes)

    def _bytes(self, name: str, limit: int) -> bytes:
        return self._archive.read(self._member(name, limit))

    def _member(self, name: str, limit: int) -> zipfile.ZipInfo:
        """A member as torch writes it: as it is, no longer than the limit, and all of them no longer than the file."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise PickleDamagedError(f"no {name:.80} in it") from None
        self._read += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PickleRefusedError(f"a compressed or encrypted {name:.80}")
        if info.file_size > limit or self._read > self.size:
            raise PickleDamagedError(f"{name:.80} is longer than it may be")
        return info


class _Legacy(_Reader):
    """Files of torch 0.2 to 1.5, and of _use_new_zipfile_serialization=False."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._places: dict[str, int] = {}

    def read(self) -> Any:
        """The value of the file."""
        self._file.seek(TAR_MAGIC_AT)
        if self._file.read(len(TAR_MAGIC)) == TAR_MAGIC:
            raise PickleRefusedError("a tar archive of torch 0.1")
        self._file.seek(0)
        magic, protocol, system = (load(self._file, {}, _no_storage, self.size) for _ in range(3))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise PickleDamagedError("other first bytes")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise PickleRefusedError("numbers in the order of big-endian machines")
        content = load(self._file, NAMES, self.storage, self.size)
        keys = load(self._file, {}, _no_storage, self.size)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._storages):
            raise PickleDamagedError("it is cut off, or lists other storages than it uses")
        for key in keys:
            self._find(key)
        return content

    def _find(self, key: str) -> None:
        """Notes where the numbers of a storage begin, and goes behind them."""
        head = self._file.read(8)
        nbytes = self._storages[key].nbytes
        if len(head) < 8:
            raise PickleDamagedError("it is cut off")
        count = struct.unpack("<q", head)[0]
        self._places[key] = self._file.tell()
        if (count == 0) != (nbytes == 0) or (count and nbytes % count) or self._places[key] + nbytes > self.size:
            raise PickleDamagedError("it is cut off, or a storage has another length")
        self._file.seek(nbytes, 1)

    def source_of(self, key: str, nbytes: int) -> Callable[[], bytes]:
        def read() -> bytes:
            self._file.seek(self._places[key])
            return self._file.read(nbytes)

        return read


def _no_storage(identity: tuple[Any, ...]) -> Any:
    raise PickleRefusedError("a storage where none belongs")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rebuild(source: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor and _v2: a view of a typed storage."""
    if not isinstance(source, TypedStorage):
        raise PickleRefusedError("a tensor without storage")
    return _view(source, source.dtype, offset, shape, strides)


def _rebuild_untyped(
    source: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """torch._utils._rebuild_tensor_v3: a view of bytes."""
    if not isinstance(source, TypedStorage) or not isinstance(dtype, Dtype):
        raise PickleRefusedError("a tensor without storage")
    return _view(source, dtype, offset, shape, strides)


def _view(source: TypedStorage, dtype: Dtype, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor that lies within its storage; PickleDamagedError where it does not."""
    lists = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_DIMENSIONS
    if not lists or not all(_is_count(number) for number in (offset, *shape, *strides)):
        raise PickleDamagedError("a tensor whose shape is none")
    offset += source.start
    room = source.storage.nbytes // dtype.numpy.itemsize
    if dtype == source.dtype:
        room = source.start + source.count
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= room:
        raise PickleDamagedError("a tensor reaches out of its storage")
    return Tensor(source, dtype, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    """torch._utils._rebuild_parameter: the tensor."""
    return data


def _from_type(known: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are dropped."""
    if not isinstance(known, Known) or not isinstance(arguments, tuple):
        raise PickleRefusedError("a tensor of another type")
    return known.make(*arguments)


def _dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    """collections.OrderedDict, whose items follow."""
    if items != ():
        raise PickleRefusedError("an OrderedDict made of something")
    return {}


def _size(sides: Any) -> Any:
    """torch.Size."""
    return sides if isinstance(sides, tuple) else ()


def _ignored(*_: Any) -> Ignored:
    return Ignored()


def _names() -> dict[str, Any]:
    """What may be named in a file."""
    storages = {
        f"{place}.{name}Storage": Dtype(dtype) for place in ("torch", "torch.cuda") for name, dtype in STORAGES.items()
    }
    numpy = [
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ]
    return {
        **storages,
        **{f"torch.{name}": Dtype(name) for name in DTYPES},
        "torch.storage.UntypedStorage": Dtype("uint8"),
        "torch.UntypedStorage": Dtype("uint8"),
        "torch._utils._rebuild_tensor": Known(_rebuild),
        "torch._utils._rebuild_tensor_v2": Known(_rebuild),
        "torch._utils._rebuild_tensor_v3": Known(_rebuild_untyped),
        "torch._utils._rebuild_parameter": Known(_parameter),
        "torch._utils._rebuild_parameter_with_state": Known(_parameter),
        "torch._tensor._rebuild_from_type_v2": Known(_from_type),
        "torch.Tensor": Ignored(),
        "torch.nn.parameter.Parameter": Ignored(),
        "torch.Size": Known(_size),
        "torch.device": Known(_ignored),
        "collections.OrderedDict": Known(_dict),
        **dict.fromkeys((*numpy, "numpy.dtype", "_codecs.encode"), Known(_ignored)),  # scores beside the weights
        "numpy.ndarray": Ignored(),
    }


NAMES = _names()
