"""MXNet's .params files, read and written without trust: lengths are checked against the file before anything is
allocated.

mx.nd.save reports success on a full disk, and mx.nd.load follows damaged length fields into enormous allocations.
Files written here are ordinary ones: mx.nd.load and mx.model.load_checkpoint read them.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import CheckpointError
from common.files import AtomicFile, refuse_page
from graph.symbol_graph import Params
from machine.runtime import mx

Arrays = dict[str, np.ndarray]

LIST_MAGIC = 0x112
# Magic numbers of one array (ndarray.cc): dense arrays of mxnet >= 1.0, of numpy-shape mode, and of 0.x.
V1_MAGIC, V2_MAGIC, V3_MAGIC = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
MAX_DIMENSIONS = 32
CPU_CONTEXT = (1, 0)


def read_arrays(path: str | Path) -> Arrays:
    """{name: array} of a .params file; CheckpointError names a file that is missing, damaged, sparse or has no
    names."""
    refuse_page(path)
    try:
        content = memoryview(Path(path).read_bytes())
        return _Reader(content).arrays()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a sound MXNet .params file ({error})") from error


def stage_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> AtomicFile:
    """Writes {name: array} beside `path` under a temporary name, synced and read back; the caller publishes it.

    OSError where the disk is full; CheckpointError where what was read back differs from what was written.
    """
    file = AtomicFile(Path(path))
    try:
        for part in _parts(arrays):
            file.file.write(part)
        file.sync()
        written = read_arrays(file.temporary)
        for name, array in arrays.items():
            if not np.array_equal(written[name], array, equal_nan=array.dtype.kind == "f"):
                raise CheckpointError(f"{path}: {name} could not be read back as written; check the disk")
    except BaseException:
        file.discard()
        raise
    return file


def read_params(path: str | Path) -> tuple[Params, Params]:
    """(arg_params, aux_params) as CPU NDArrays of a .params file with names `arg:...` and `aux:...`."""
    params: dict[str, Params] = {"arg": {}, "aux": {}}
    for name, array in read_arrays(path).items():
        kind, _, plain = name.partition(":")
        if kind not in params or not plain:
            raise CheckpointError(
                f"{path}: array {name!r} is neither arg:... nor aux:..., this is no checkpoint of a network"
            )
        params[kind][plain] = mx.nd.array(array, dtype=array.dtype)
    return params["arg"], params["aux"]


def write_params(path: str | Path, arg_params: Params, aux_params: Params) -> None:
    """Writes a .params file atomically: complete, read back and verified before it gets its name."""
    stage_arrays(path, with_kinds(arg_params, aux_params)).publish()


def with_kinds(arg_params: Params, aux_params: Params) -> Arrays:
    """{arg:name, aux:name} -> numpy copies of both dicts."""
    named = [("arg", arg_params), ("aux", aux_params)]
    return {f"{kind}:{name}": array.asnumpy() for kind, params in named for name, array in params.items()}


def _parts(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    parts = [struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))]
    for array in arrays.values():
        array = np.ascontiguousarray(array)
        parts.append(struct.pack(f"<Iii{array.ndim}q", V2_MAGIC, 0, array.ndim, *array.shape))
        parts.append(struct.pack("<iii", *CPU_CONTEXT, DTYPES.index(array.dtype.name)))
        parts.append(array.tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    for name in arrays:
        text = name.encode("utf-8")
        parts.append(struct.pack("<Q", len(text)) + text)
    return parts


class _Reader:
    """A cursor over the bytes of a file; every length is checked against what is left."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.position = 0

    def arrays(self) -> Arrays:
        magic, _, count = self._unpack("<QQQ")
        if magic != LIST_MAGIC:
            raise ValueError("wrong magic number")
        self._check_room(count * 4)
        values = [self._array() for _ in range(count)]
        names = self._names(count)
        if self.position != len(self.content):
            raise ValueError("bytes after the end")
        return dict(zip(names, values, strict=True))

    def _unpack(self, layout: str) -> tuple:
        size = struct.calcsize(layout)
        return struct.unpack(layout, self._take(size))

    def _take(self, size: int) -> memoryview:
        self._check_room(size)
        self.position += size
        return self.content[self.position - size : self.position]

    def _check_room(self, size: int) -> None:
        if not 0 <= size <= len(self.content) - self.position:
            raise ValueError("it ends too early or a length is damaged")

    def _array(self) -> np.ndarray:
        (magic,) = self._unpack("<I")
        if magic in (V2_MAGIC, V3_MAGIC) and self._unpack("<i")[0] != 0:
            raise ValueError("sparse arrays are not supported")
        shape = self._shape(magic)
        _, _, flag = self._unpack("<iii")  # device type, device id, dtype
        if not 0 <= flag < len(DTYPES):
            raise ValueError(f"unknown dtype {flag}")
        dtype = np.dtype(DTYPES[flag])
        size = dtype.itemsize
        for side in shape:
            if side < 1:
                raise ValueError(f"a side of {side}")
            size *= side
        return np.frombuffer(self._take(size), dtype).reshape(shape)

    def _shape(self, magic: int) -> tuple[int, ...]:
        modern = magic in (V1_MAGIC, V2_MAGIC, V3_MAGIC)
        ndim = self._unpack("<i")[0] if modern else magic  # before 0.9 an array began with its number of dimensions
        if not 1 <= ndim <= MAX_DIMENSIONS:
            raise ValueError(f"{ndim} dimensions")
        return self._unpack(f"<{ndim}{'q' if modern else 'I'}")

    def _names(self, count: int) -> list[str]:
        (found,) = self._unpack("<Q")
        if found != count:
            raise ValueError(f"{found} names for {count} arrays")
        names = [bytes(self._take(self._unpack("<Q")[0])).decode("utf-8") for _ in range(count)]
        if len(set(names)) != count:
            raise ValueError("a name appears twice")
        return names
