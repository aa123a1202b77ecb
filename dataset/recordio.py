"""RecordIO as dmlc-core and mx.recordio write it, read and written without mxnet.

A record is one or more parts: magic, a length word (3 bits cflag, 29 bits bytes), the bytes, zeros up to a multiple of
4. cflag 0 is a whole record; 1, 2, 3 are the first, middle and last part of a payload that holds the magic at an
aligned position: it is split there and the magic itself left out (dmlc-core src/recordio.cc). `NAME.idx` beside
`NAME.rec` has a line `id TAB offset` for each record. An image record is IRHeader (flag, label, id, id2), flag floats
of label, the image.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataError
from common.file_set import clear_leftovers, finish_replacement, replace_set
from common.files import AtomicFile, staged

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_PART_BYTES = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
_PART = struct.Struct("<II")  # magic, length word
_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_MAX_INDEX_LINE = 64


@dataclass(frozen=True)
class Record:
    """An unpacked image record: its id, label (k,) float32 and the encoded image."""

    index: int
    label: np.ndarray
    image: bytes


def pack(label: np.ndarray, image: bytes, index: int) -> bytes:
    """The payload of an image record, byte for byte as mx.recordio.pack: label (k,) float32, k >= 1, id index >= 0."""
    label = np.ascontiguousarray(label, dtype="<f4")
    return _HEADER.pack(label.size, 0.0, index, 0) + label.tobytes() + image


def pack_single(label: float, image: bytes, index: int) -> bytes:
    """The payload of a record with one label value, kept in the header (flag 0), as in mx.recordio.pack."""
    return _HEADER.pack(0, label, index, 0) + image


def unpack(payload: bytes, where: str) -> Record:
    """Inverse of pack; flag 0 (a single label) gives label (1,). `where` names the record in the DataError."""
    if len(payload) < _HEADER.size:
        raise DataError(f"{where}: {len(payload)} bytes are too few for an image record; pack the data set again")
    flag, single, index, _ = _HEADER.unpack_from(payload)
    begin = _HEADER.size + 4 * flag
    if begin > len(payload):
        raise DataError(
            f"{where}: announces {flag} label values, more than its {len(payload)} bytes hold; pack the data set again"
        )
    if flag == 0:
        return Record(index, np.array([single], np.float32), payload[begin:])
    label = np.frombuffer(payload, "<f4", flag, _HEADER.size).astype(np.float32)
    return Record(index, label, payload[begin:])


class RecordWriter:
    """Context manager that writes PATH, its .idx and the files added; on a clean exit all appear as one."""

    def __init__(self, path: str | Path) -> None:
        """Opens temporary files in the folder of `path`, which must exist; those of killed packers are removed."""
        clear_leftovers(Path(path))
        self._gone: list[Path] = []
        self._rec = AtomicFile(Path(path))
        try:
            self._idx = AtomicFile(Path(path).with_suffix(".idx"))
        except BaseException:
            self._rec.discard()
            raise
        self._more: list[AtomicFile] = []
        self._offset = 0

    def write(self, index: int, payload: bytes) -> None:
        """Appends one record of id `index`; the payload is shorter than 2^29 bytes (ValueError otherwise)."""
        if len(payload) > MAX_PART_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes: RecordIO holds at most {MAX_PART_BYTES}")
        self._idx.file.write(f"{index}\t{self._offset}\n".encode())
        cuts = _aligned_magics(payload)
        begins, ends = [0] + [cut + 4 for cut in cuts], [*cuts, len(payload)]
        view = memoryview(payload)
        for k, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            self._rec.file.write(_PART.pack(MAGIC, _part_flag(k, len(cuts)) << 29 | (end - begin)))
            self._rec.file.write(view[begin:end])
            self._offset += _PART.size + end - begin
        self._offset += self._rec.file.write(bytes(-len(payload) % 4))

    def finish(self) -> Path:
        """Ends the .rec and returns its path of now, for its size and checksum; nothing can be written afterwards."""
        self._rec.sync()
        return self._rec.temporary

    def add_file(self, path: Path, content: bytes) -> None:
        """A small file that is to appear together with the record."""
        self._more.append(staged(path, content))

    def remove(self, path: Path) -> None:
        """A file of the earlier record that the new one has not."""
        self._gone.append(path)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        files = [self._rec, self._idx, *self._more]
        if kind is None:
            replace_set(self._rec.path, files, self._gone)
            return
        for file in files:
            file.discard()


class RecordReader:
    """Random access to the records of a .rec file; picklable, safe to share between threads and forked processes.

    The whole chain of record headers is checked on construction, and the .idx against it: a file that is cut off,
    damaged or does not belong to its .idx raises DataError with the number of the record (counted from 0). Payloads
    are not read then.
    """

    def __init__(self, path: str | Path) -> None:
        """Without an .idx the ids are 0, 1, 2... in file order."""
        self.path = Path(path)
        refuse_other_file(self.path)
        finish_replacement(self.path)
        self._file: BinaryIO | None = None
        self._size = self._open().seek(0, os.SEEK_END)
        self._bounds = self._walk()
        index_path = self.path.with_suffix(".idx")
        self.keys = (
            _read_index(index_path, self.path, self._bounds)
            if index_path.exists()
            else np.arange(len(self._bounds) - 1)
        )

    def __len__(self) -> int:
        """The number of records, at least 1."""
        return len(self._bounds) - 1

    @property
    def bounds(self) -> np.ndarray:
        """The byte offsets of the records and, last, the size of the file, int64 (n + 1,)."""
        return self._bounds

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open file, which the copy opens again when it reads."""
        return self.__dict__ | {"_file": None}

    def read(self, position: int) -> bytes:
        """The payload of the position-th record in the file (0 <= position < len; IndexError otherwise)."""
        if not 0 <= position < len(self):
            raise IndexError(f"{self.path}: record {position} of {len(self)}")
        begin, end = int(self._bounds[position]), int(self._bounds[position + 1])
        raw = self._pread(end - begin, begin, position)
        parts, offset = [], 0
        while offset < len(raw):
            flag, length = self._part(raw[offset : offset + 8], begin + offset, position)
            if offset + 8 + length > len(raw):
                raise self._damaged(position, "its length has changed")
            parts.append(raw[offset + 8 : offset + 8 + length])
            offset += 8 + _aligned(length)
        return MAGIC_BYTES.join(parts)

    def where(self, position: int) -> str:
        """How errors name the position-th record: by the file and its id."""
        return f"{self.path}, record {self.keys[position]}"

    def record(self, position: int) -> Record:
        """The position-th record, unpacked."""
        return unpack(self.read(position), self.where(position))

    def image_ids(self) -> np.ndarray:
        """The ids in the headers of the image records, int64 (n,): the keys, where there is an .idx."""
        return np.array([self.image_id(position) for position in range(len(self))], np.int64)

    def image_id(self, position: int) -> int:
        """The id in the header of the position-th record; DataError if it is no image record."""
        begin = int(self._bounds[position]) + _PART.size
        count = min(_HEADER.size, int(self._bounds[position + 1]) - begin)
        head = self._pread(count, begin, position)
        index = _HEADER.unpack(head)[2] if count == _HEADER.size else -1
        if not 0 <= index < 1 << 63:
            raise self._damaged(position, "it is no image record")
        return index

    def open_file(self) -> None:
        """Opens the file, which reading would otherwise do: who replaces it later does not change what is read."""
        self._open()

    def _open(self) -> BinaryIO:
        if self._file is None:
            try:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - kept open for the reader's life
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return self._file

    def _pread(self, count: int, offset: int, position: int) -> bytes:
        try:
            raw = os.pread(self._open().fileno(), count, offset)
        except OSError as error:
            raise self._damaged(position, f"reading failed: {error.strerror}") from error
        if len(raw) < count:
            raise self._damaged(position, "the file ends inside it")
        return raw

    def _part(self, head: bytes, offset: int, position: int) -> tuple[int, int]:
        """(cflag, length) of the part with these 8 bytes; refuses a wrong magic and a length past the file's end."""
        magic, word = _PART.unpack(head.ljust(_PART.size, b"\0"))
        flag, length = word >> 29, word & MAX_PART_BYTES
        if magic != MAGIC:
            raise self._damaged(position, f"no record begins at byte {offset}")
        if flag > LAST or offset + 8 + _aligned(length) > self._size:
            raise self._damaged(position, f"its length word at byte {offset + 4} is wrong or the file is cut off")
        return flag, length

    def _walk(self) -> np.ndarray:
        """The offsets of all records and the size of the file, int64 (n + 1,)."""
        bounds, offset, inside = [0], 0, False
        while offset < self._size:
            position = len(bounds) - 1
            flag, length = self._part(self._pread(8, offset, position), offset, position)
            if inside != (flag in (MIDDLE, LAST)):
                raise self._damaged(position, f"its parts are out of order at byte {offset}")
            inside = flag in (FIRST, MIDDLE)
            offset += 8 + _aligned(length)
            if not inside:
                bounds.append(offset)
        if inside or len(bounds) == 1:
            raise self._damaged(len(bounds) - 1, "the file ends before it is complete")
        return np.array(bounds, np.int64)

    def _damaged(self, position: int, what: str) -> DataError:
        return DataError(f"{self.path}, record {position}: {what}; pack the data set again")


def refuse_other_file(path: str | Path, what: str = "") -> None:
    """DataError for a folder, and for a file that stands beside records, in place of one.

    what: the option, or other word, that stands before the path in the sentence. An empty path is none.
    """
    found, where = Path(path), f"{what} {path}" if what else str(path)
    if str(path) and found.is_dir():
        raise DataError(f"{where}: is a folder; name the record in it (NAME.rec)")
    if found.suffix.lower() in (".lst", ".idx", ".json", ".txt"):
        raise DataError(f"{where}: is no record; name the one beside it, {found.with_suffix('.rec').name}")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _part_flag(part: int, cuts: int) -> int:
    if cuts == 0:
        return WHOLE
    return FIRST if part == 0 else LAST if part == cuts else MIDDLE


def _aligned_magics(payload: bytes) -> list[int]:
    """The multiples of 4 at which the payload holds the magic."""
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    return (4 * np.flatnonzero(words == MAGIC)).tolist()


def _read_index(path: Path, rec_path: Path, bounds: np.ndarray) -> np.ndarray:
    """The ids of an .idx, int64 (n,), in file order; DataError unless it describes exactly the records at `bounds`."""
    remedy = f"delete it (ids then count from 0) or pack {rec_path.name} again"
    try:
        if path.stat().st_size > _MAX_INDEX_LINE * len(bounds):
            raise DataError(
                f"{path}: larger than an index of the {len(bounds) - 1} records of {rec_path.name}; {remedy}"
            )
        lines = path.read_text("ascii").splitlines()
        rows = np.array([line.split("\t") for line in lines], np.int64).reshape(len(lines), 2)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: its lines are not `id TAB offset`; {remedy}") from error
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    _check_index(path, rec_path, rows, bounds, remedy)
    return rows[:, 0].copy()


def _check_index(path: Path, rec_path: Path, rows: np.ndarray, bounds: np.ndarray, remedy: str) -> None:
    ids, counts = np.unique(rows[:, 0], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: id {ids[counts > 1][0]} is listed more than once; {remedy}")
    wrong = ~np.isin(rows[:, 1], bounds[:-1])
    if wrong.any():
        index, offset = rows[wrong][0]
        what = "past the end" if offset >= bounds[-1] else "not the beginning of a record"
        raise DataError(f"{path}: record id {index} at offset {offset} of {rec_path.name} is {what}; {remedy}")
    if len(rows) != len(bounds) - 1:
        raise DataError(f"{path}: lists {len(rows)} records, {rec_path.name} holds {len(bounds) - 1}; {remedy}")
